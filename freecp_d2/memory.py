"""Whether an error says that memory ran out."""

import cv2

PHRASES = (
    "alloc_failed",
    "can't allocate memory",
    "cannot allocate memory",
    "insufficient memory",
    "not enough memory",
    "out of memory",
)
"""What a RuntimeError of torch, or an error of OpenCV, says when memory ran out."""


def memory_ran_out(error: Exception) -> bool:
    """Whether an error of Python, torch or OpenCV says so."""
    if isinstance(error, RuntimeError | cv2.error):
        return any(phrase in str(error).lower() for phrase in PHRASES)
    return isinstance(error, MemoryError)
