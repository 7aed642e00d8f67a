"""Append-only files of JSON lines that check themselves: a kill loses half a line at most."""

import errno
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CRC = ', "crc32": "'
log = logging.getLogger(__name__)


class Journal:
    """A file of :func:`checked_line`, open for appending; one writer a file.

    Half a line that a kill has left at its end is cut off. What :meth:`add` has written survives
    the end of the process, and what was there at :meth:`sync` that of the machine.

    Args:
        path: the folders above it are made.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._size = _end_of_last_line(self._descriptor)
        os.ftruncate(self._descriptor, self._size)

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record, whole.

        Raises:
            OSError: it cannot be written, and the file is as it was.
        """
        line = checked_line(record).encode()
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._descriptor, self._size)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._size += len(line)

    def sync(self) -> None:
        """Wait until all records are on the disk."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """:meth:`sync`, and close the file."""
        self.sync()
        os.close(self._descriptor)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file in their order, one in memory at a time.

    Half a line at the end, which a kill leaves, is none. Damaged lines elsewhere are left out, and
    one warning names the first.

    Raises:
        OSError: it cannot be read.
    """
    damaged = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            record = checked_record(line)
            if record is not None:
                yield record
            elif line.endswith(b"\n"):
                damaged.append(number)
    if damaged:
        log.warning(
            "%s: %d of its lines are damaged, the first is line %d; what they were of is done anew",
            *(path, len(damaged), damaged[0]),
        )


def checked_line(record: Mapping[str, Any]) -> str:
    """A record of at least one key as a line of JSON.

    Its last key is "crc32", eight hexadecimal digits of the CRC-32 of the text before it.
    """
    text = json.dumps(record)[:-1]
    return f'{text}{_CRC}{zlib.crc32(text.encode()):08x}"}}\n'


def checked_record(line: bytes) -> dict[str, Any] | None:
    """The record of a :func:`checked_line`, or None where it is damaged."""
    text, crc, rest = line.rpartition(_CRC.encode())
    if not crc or rest != f'{zlib.crc32(text):08x}"}}\n'.encode():
        return None
    return json.loads(text + b"}")


def _end_of_last_line(descriptor: int) -> int:
    """How many bytes of a file are whole lines."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(end - 65536, 0)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
