"""Where labels go: a folder on this machine, or one of fsspec's file systems."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import fsspec

from ..files import require_writable, sweep, whole_file, write_whole
from ..journal import Journal, read_journal
from ..locks import locked


class RecordWriter(Protocol):
    """Appends records to a journal, as :class:`freecp_d2.journal.Journal` does."""

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record."""

    def sync(self) -> None:
        """Make sure that all records last."""

    def close(self) -> None:
        """:meth:`sync`, and nothing more is appended."""


class Store(Protocol):
    """An output folder. Names are relative paths with "/".

    Attributes:
        url: the folder, as people name it.
    """

    url: str

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, to last."""

    def upload(self, name: str, file: Path) -> None:
        """The same with the content of a local file, which may be moved."""

    def clear(self, folder: str) -> None:
        """Delete a folder, if there is one, and all that is in it."""

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    def journals(self, folder: str) -> list[str]:
        """The names of the journals in a folder, sorted."""

    def journal(self, name: str) -> RecordWriter:
        """A journal, open for appending; one writer a name."""

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """The records of a journal."""

    def written(self, folder: str) -> int:
        """How many records the journals in a folder hold by now."""

    def locked(self, what: str) -> AbstractContextManager[None]:
        """Hold the folder; see :func:`freecp_d2.locks.locked`."""


class LocalStore:
    """A folder on this machine, or one that several machines see. It is made.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path):
        require_writable(folder)
        self.folder = folder
        self.url = str(folder)
        self._counted: dict[str, tuple[int, int]] = {}

    def write(self, name: str, content: bytes) -> None:
        write_whole(self.folder / name, content)

    def upload(self, name: str, file: Path) -> None:
        with whole_file(self.folder / name) as part:
            shutil.copyfile(file, part)

    def clear(self, folder: str) -> None:
        if (self.folder / folder).exists():
            shutil.rmtree(self.folder / folder)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def exists(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def journals(self, folder: str) -> list[str]:
        files = (self.folder / folder).glob("*.jsonl")
        return sorted(file.relative_to(self.folder).as_posix() for file in files)

    def journal(self, name: str) -> Journal:
        return Journal(self.folder / name)

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        return read_journal(self.folder / name)

    def written(self, folder: str) -> int:
        for name in self.journals(folder):
            size, lines = self._counted.get(name, (0, 0))
            with (self.folder / name).open("rb") as file:
                file.seek(size)
                while chunk := file.read(1 << 20):
                    size += len(chunk)
                    lines += chunk.count(b"\n")
            self._counted[name] = size, lines
        return sum(lines for _, lines in self._counted.values())

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        with locked(self.folder, what):
            sweep(self.folder, age=0)
            yield


def open_store(url: str | os.PathLike) -> Store:
    """The store of a path, or of a URL such as s3://bucket/folder.

    Raises:
        OSError: it cannot be written.
        ValueError: a package that the URL needs is not there.
    """
    if "://" in os.fspath(url):
        from .remote import RemoteStore

        return RemoteStore(os.fspath(url))
    return LocalStore(Path(url).expanduser())


def read_input(file_name: str) -> bytes:
    """The bytes of an image, of a path or a URL of fsspec.

    Raises:
        OSError: it cannot be read.
    """
    if "://" not in file_name:
        return Path(file_name).read_bytes()
    from .remote import os_errors

    with os_errors(file_name):
        fs, path = fsspec.url_to_fs(file_name, use_listings_cache=False)
        return fs.cat_file(path, start=0)  # without it, s3fs asks for its size first
