"""The package's own files, files that appear complete or not at all, and what kills leave."""

import errno
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .locks import LOCK, locked

PACKAGED: str = "freecp_d2://"
"""A path that begins so is one of this package's files, under freecp_d2/data."""


def local_path(path: str | Path) -> Path:
    """Where a file is on this machine: `path` itself, or what :data:`PACKAGED` means."""
    name = str(path)
    if name.startswith(PACKAGED):
        return Path(__file__).parent / "data" / name.removeprefix(PACKAGED)
    return Path(path)


PARTS: str = f".{'[0-9a-f]' * 32}.part*"
"""A pattern of the temporary files of :func:`whole_file`, which a killed process leaves behind."""
_HOPELESS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_STALE = 3600.0  # seconds; writing a file takes milliseconds, and a video is written all the time


def write_whole(path: Path, content: bytes, synced: bool = True) -> None:
    """Write a file, all or nothing, and the folders above it; see :func:`whole_file`.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path, synced) as part:
        part.write_bytes(content)


@contextmanager
def whole_file(path: Path, synced: bool = True) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place when the block ends without an error.

    For what is written bit by bit or by a library that wants a name. The folders above are made.
    The name is new each time, so any number of threads and processes may write one `path`: the last
    to end stays, whole. What is at `path` is on the disk before this returns; after an error it is
    as it was and the temporary file is gone. The mode is what the umask makes it.

    Args:
        synced: False: it may not be on the disk yet, and a power cut may damage it.

    Yields:
        Its path, hidden and with the suffix of `path`, and an empty file there.

    Raises:
        OSError: it cannot be written; its `filename` is `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A suffix is there for libraries that go by it; a long one is a sentence with a full stop.
    part = path.with_name(f".{uuid.uuid4().hex}.part{path.suffix[:16]}")
    try:
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # safetensors writes files that only their owner may read
        if synced:
            _sync(part)
        os.replace(part, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, part, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)
    if synced:
        _sync(path.parent)


def cannot_write(error: Exception) -> bool:
    """Whether an error of writing a file will be that of all others, too: no space, no right."""
    return isinstance(error, OSError) and error.errno in _HOPELESS


def sweep(folder: Path, age: float = _STALE) -> None:
    """Delete the temporary files below a folder that killed processes have left.

    Where that is not allowed, they stay.

    Args:
        age: seconds; those of :func:`whole_file` that are older, by default an hour. 0 where nobody
            else writes there.
    """
    for part in folder.rglob(PARTS):
        with suppress(OSError):  # another sweeps it, or it is not ours to delete
            if time.time() - part.stat().st_mtime >= age:
                part.unlink()


def replace_folder(path: Path, new: Path, former: Path) -> None:
    """Move the folder `new` to `path`; what is there goes to `former`, on the same file system."""
    if path.exists():
        os.replace(path, former)
    os.replace(new, path)


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A temporary folder, which is deleted when the block ends.

    Those of this name go first that processes of the same user have left when they were killed.

    Args:
        parent: there.
        name: what is done in it; the folder's name begins so.

    Raises:
        OSError: it cannot be made.
    """
    for left in parent.glob(f"{name}_*/{LOCK}"):
        with suppress(OSError):  # somebody works in it, or it is not ours
            if left.parent.lstat().st_uid == os.getuid() and not left.parent.is_symlink():
                with locked(left.parent, name):
                    shutil.rmtree(left.parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}_", dir=parent)).resolve()
    with locked(folder, name):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder, which becomes `path` when the block ends without an error.

    Several processes may make one `path` at once, each in a folder of its own: the first to end
    stays, and the others' go. The folders above are made.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(path.parent, f".{path.name}") as scratch:
        part = scratch / path.name
        part.mkdir()
        yield part
        try:
            part.rename(path)
        except OSError:
            if not path.exists():
                raise


def results_of(output: str, place: str, folders: Sequence[str]) -> list[str]:
    """Where images are results of an earlier run, and none of the input.

    Args:
        output: the folder of the results.
        place: of the input, a folder or pattern; it may lie in `output`.
        folders: those in `output` that images are written to.

    Returns:
        `output`; where the input lies in it, only those folders of it.
    """
    root = output.rstrip("/")  # "/" itself is one
    if f"{place}/".startswith(f"{root}/"):
        return [f"{root}/{folder}" for folder in folders]
    return [output]


def require_writable(folder: Path) -> None:
    """Make `folder` if it is not there, and see that a file can be made in it.

    Raises:
        OSError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
