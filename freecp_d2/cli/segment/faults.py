"""What may go wrong with one image or video without stopping the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ... import errors
from ...files import cannot_write
from ...memory import memory_ran_out

FAILURES = (OSError, ValueError, Image.DecompressionBombError)


@contextmanager
def noted(faults: list[str], source: Path, debug: bool = False) -> Iterator[None]:
    """Add a sentence to `faults` where the block fails for what `source` is, or for memory.

    Args:
        debug: errors go through as they are.

    Raises:
        OSError: nothing can be written any more, of this file or of others.
    """
    try:
        yield
    except Exception as error:
        expected = isinstance(error, FAILURES) or memory_ran_out(error)
        reading = isinstance(error, OSError) and str(error.filename) == str(source)
        if debug or not expected or (cannot_write(error) and not reading):
            raise
        faults.append(sentence(source, error))


def sentence(source: Path, error: Exception) -> str:
    """What went wrong with a file, and what to do."""
    if memory_ran_out(error):
        return (
            f"{source}: memory ran out; give it in a smaller size, name fewer classes, or leave "
            "out --base and --maps"
        )
    text = errors.sentence(error)
    return text if str(source) in text else f"{source}: {text}"
