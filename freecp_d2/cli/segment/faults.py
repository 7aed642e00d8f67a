"""What may go wrong with one image or video without stopping the others."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from ... import errors
from ...files import cannot_write
from ...memory import memory_ran_out
from ...stopping import Stop, stopping

FAILURES = (OSError, ValueError, Image.DecompressionBombError)


def run_noting(
    work: Callable[[argparse.Namespace, list[str], Stop], None],
    args: argparse.Namespace,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a command that goes over files; its exit code.

    That is 3 where some failed and the others are done, and 143 or 130 where a signal stopped it.

    Args:
        work: adds sentences about what failed to the list, and ends early where it is to stop.
        args: with `prog` and `debug`.
        argv: of the command that goes on after a signal, which is then said; None: none does.

    Raises:
        SystemExit: it failed as a whole; it says why.
    """
    faults: list[str] = []
    with errors.one_sentence(args.prog, args.debug), stopping() as stop:
        try:
            work(args, faults, stop)
        finally:
            for fault in faults:
                print(f"{args.prog}: {fault}", file=sys.stderr)
    if stop.signal:
        if argv is not None:
            print(stop.sentence(args.prog, argv), file=sys.stderr)
        return stop.exit_code
    return 3 if faults else 0


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
