"""That one run at a time writes to a folder."""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""The file in a folder that is locked; it names who holds it, or held it last."""
_held: dict[str, int] = {}
"""What this process holds: the path of each lock, and its descriptor."""
_held_lock = threading.Lock()
log = logging.getLogger(__name__)


class FolderInUseError(OSError):
    """Another run writes to the folder."""


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder, which is made; the lock ends with the block or with the process, however.

    Another process is refused on any machine that sees the folder, and so is another thread.
    Processes that this one starts do not hold it.

    Args:
        what: holds it, such as "freecp label".

    Raises:
        FolderInUseError: another run holds it; the sentence names it.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    name = os.path.realpath(path)
    with _held_lock:
        # Locks of a file are the process's: a second one would be granted, and the first ends when
        # any descriptor of the file is closed.
        if name in _held:
            raise _in_use(folder, _holder(_held[name]))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, folder)
        except OSError:
            os.close(descriptor)
            raise
        _held[name] = descriptor
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"what": what, "process": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder | {"since": since}).encode(), 0)
        yield
    finally:
        with _held_lock:
            os.close(descriptor)
            del _held[name]


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _in_use(folder, _holder(descriptor)) from None
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        log.warning(
            "%s: this file system locks no files (%s); see that no other run writes there",
            *(folder, error.strerror),
        )


def _holder(descriptor: int) -> bytes:
    return os.pread(descriptor, 65536, 0)


def _in_use(folder: Path, holder: bytes) -> FolderInUseError:
    try:
        who = "{what}, process {process} on {host} since {since}".format(**json.loads(holder))
    except (ValueError, KeyError, TypeError):  # it has not written yet
        who = "another run"
    return FolderInUseError(f"{folder}: in use by {who}; wait for it, or choose another folder")
