"""What all command lines do with errors of their input: one sentence, no traceback."""

import argparse
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .memory import memory_ran_out

ADVICE = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some of your quota, or choose another folder",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "check the path",
    errno.EEXIST: "check the path",
    errno.ENAMETOOLONG: "check the path",
}
"""What to do about an error of the system."""


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Add --debug, the second argument of :func:`one_sentence`."""
    parser.add_argument(
        "--debug", action="store_true", help="show where in the code an error comes from"
    )


def path_argument(text: str) -> Path:
    """The type of an option that is a path: Path("") would be the current folder.

    Raises:
        argparse.ArgumentTypeError: it is empty.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no path; is a variable of the shell empty?")
    return Path(text)


@contextmanager
def one_sentence(prog: str, debug: bool = False) -> Iterator[None]:
    """End the process with one line, and exit code 1, where the block fails for its input.

    That is OSError and ValueError, and memory that ran out. A KeyboardInterrupt ends it with 130.
    What else is raised is a fault of the code and keeps its traceback.

    Args:
        prog: what the command is called.
        debug: errors go through as they are, with their traceback.

    Raises:
        SystemExit: it failed.
    """
    try:
        yield
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"{prog}: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if debug or not (isinstance(error, OSError | ValueError) or memory_ran_out(error)):
            raise
        sys.exit(f"{prog}: {sentence(error)}")


def sentence(error: Exception) -> str:
    """What went wrong in one line, and what to do."""
    if memory_ran_out(error):
        return "memory ran out; give smaller images, or name fewer classes"
    if isinstance(error, OSError) and error.strerror:
        name = error.filename2 or error.filename
        shown = name.decode(errors="replace") if isinstance(name, bytes) else name
        reason = error.strerror[:1].lower() + error.strerror[1:]
        parts = [f"{shown}: " if name else "", reason]
        if advice := ADVICE.get(error.errno or 0):
            parts.append(f"; {advice}")
        return _line("".join(parts))
    return _line(str(error)) or type(error).__name__


def _line(text: str) -> str:
    return " ".join(text.split())
