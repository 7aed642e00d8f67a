"""Errors of the input are one sentence."""

import errno
import os

import cv2
import pytest

from freecp_d2.errors import one_sentence


def system_error(number: int, path: object = "/a/b") -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\n  two"), "one two"),
        (ValueError(), "ValueError"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "'utf-8' codec can't decode"),
        (system_error(errno.ENOSPC), "/a/b: no space left on device; free some space, or"),
        (system_error(errno.EACCES, b"/a/\xff"), "/a/\ufffd: permission denied; check its perm"),
        (system_error(errno.EIO), "/a/b: input/output error"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on device; free some"),
        (OSError("no errno"), "no errno"),
        (MemoryError(), "memory ran out; "),
        (RuntimeError("CUDA out of memory. Tried"), "memory ran out; "),
        (cv2.error("Failed to allocate: Insufficient memory"), "memory ran out; "),
    ],
    ids=str,
)
def test_an_error_of_the_input_is_one_line(error, said):
    with pytest.raises(SystemExit) as end, one_sentence("freecp x"):
        raise error
    line = end.value.code
    assert isinstance(line, str)  # which is exit code 1
    assert line.startswith(f"freecp x: {said}") and "\n" not in line and "Errno" not in line


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("no"), AssertionError(), SystemExit])
def test_a_fault_of_the_code_is_none(error):
    with pytest.raises(error if isinstance(error, type) else type(error)), one_sentence("freecp x"):
        raise error


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_debug_shows_where_it_comes_from(error):
    with pytest.raises(type(error)), one_sentence("freecp x", debug=True):
        raise error


def test_an_interrupt_ends_as_in_shells(capsys):
    with pytest.raises(SystemExit) as end, one_sentence("freecp x"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "freecp x: interrupted\n"
