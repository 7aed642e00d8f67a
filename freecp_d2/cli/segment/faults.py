"""What may go wrong with one image or video without stopping the others."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
from PIL import Image

FAILURES = (OSError, ValueError, Image.DecompressionBombError)
NO_MEMORY = (
    "alloc_failed",
    "can't allocate memory",
    "cannot allocate memory",
    "insufficient memory",
    "not enough memory",
    "out of memory",
)
"""What a RuntimeError of torch, or an error of OpenCV, says when memory ran out."""


@contextmanager
def noted(faults: list[str], source: Path) -> Iterator[None]:
    """Add a sentence to `faults` where the block fails for what `source` is, or for memory."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, FAILURES) and not memory_ran_out(error):
            raise
        faults.append(sentence(source, error))


def sentence(source: Path, error: Exception) -> str:
    """What went wrong with a file, and what to do."""
    if memory_ran_out(error):
        return (
            f"{source}: memory ran out; give it in a smaller size, name fewer classes, or leave "
            "out --base and --maps"
        )
    text = " ".join(str(error).split()) or type(error).__name__
    return text if str(source) in text else f"{source}: {text}"


def memory_ran_out(error: Exception) -> bool:
    """Whether an error of Python, torch or OpenCV says so."""
    if isinstance(error, RuntimeError | cv2.error):
        return any(phrase in str(error).lower() for phrase in NO_MEMORY)
    return isinstance(error, MemoryError)
