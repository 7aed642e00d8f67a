"""Images and labels in an object store, by fsspec: s3://, gs://, az://, memory://."""

import json
import logging
import os
import socket
import threading
import time
import uuid
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from ..files import results_of
from ..journal import checked_line, checked_record
from ..locks import LOCK, FolderInUseError
from .items import RESULTS, Entry, hash_of, is_image

CHUNK_RECORDS, CHUNK_SECONDS = 256, 30.0
"""A chunk of a journal is written when it has so many records, or its first one is so old."""
CHUNKS_AT_ONCE = 64
"""How many chunks are fetched together."""
ASKED = 100
"""After so many questions whether files of a folder exist, all of it is listed, once."""
COUNTED_SECONDS = 10.0
"""The records of all journals are counted so often at most."""
BEAT_SECONDS, DEAD_SECONDS = 20.0, 120.0
"""A lock is renewed so often; one that was not for so long is that of a dead process."""
_STAMPS = "ETag", "etag", "mtime", "LastModified", "updated", "last_modified", "created"
log = logging.getLogger(__name__)


class RemoteStore:
    """A folder in an object store; see :class:`.store.Store`. It can be pickled.

    An object is there whole or not at all. Nothing can be appended to one: a journal is a folder of
    chunks, objects of some hundred records that :meth:`records` reads one after the other.

    Args:
        url: such as s3://bucket/folder. Credentials and endpoint are found as the file system does
            it, for S3 in the environment (AWS_ENDPOINT_URL) and in ~/.aws.

    Raises:
        ValueError: there is no such file system, or its package is not installed.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.fs, self.root = _file_system(self.url)
        if isinstance(self.fs, LocalFileSystem):
            raise ValueError(f"{url}: a folder of this machine; name it by its path")
        self._asked: dict[str, int] = {}
        self._listed: dict[str, np.ndarray] = {}
        self._counted: tuple[float, int] = (-np.inf, 0)

    def write(self, name: str, content: bytes) -> None:
        with os_errors(f"{self.url}/{name}"):
            self.fs.pipe_file(self._path(name), content)

    def upload(self, name: str, file: Path) -> None:
        with os_errors(f"{self.url}/{name}"):
            self.fs.put_file(str(file), self._path(name))

    def clear(self, folder: str) -> None:
        with os_errors(f"{self.url}/{folder}"):
            if self.fs.exists(self._path(folder)):
                self.fs.rm(self._path(folder), recursive=True)

    def read(self, name: str) -> bytes:
        with os_errors(f"{self.url}/{name}"):
            return self.fs.cat_file(self._path(name))

    def exists(self, name: str) -> bool:
        """Whether there is such a file.

        A request a file would take longer than the labels themselves when a run of millions goes
        on: after some of them the folder is listed, and only what it lacked then is asked for.
        """
        folder = name.partition("/")[0]
        asked = self._asked[folder] = self._asked.get(folder, 0) + 1
        if asked > ASKED:
            if folder not in self._listed:
                self._listed[folder] = self._names_below(folder)
            names, hashed = self._listed[folder], np.uint64(hash_of(self._path(name)))
            place = np.searchsorted(names, hashed)
            if place < len(names) and names[place] == hashed:
                return True
        with os_errors(f"{self.url}/{name}"):
            return self.fs.exists(self._path(name))

    def journals(self, folder: str) -> list[str]:
        return sorted(f"{folder}/{name}" for name in self._chunks(folder))

    def journal(self, name: str) -> "RemoteJournal":
        folder, _, last = name.rpartition("/")
        chunks = self._chunks(folder).get(last, [])
        return RemoteJournal(self, name, start=max(map(_end_of, chunks), default=0))

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        folder, _, last = name.rpartition("/")
        chunks = sorted(self._chunks(folder).get(last, []), key=_end_of)
        damaged = 0
        for start in range(0, len(chunks), CHUNKS_AT_ONCE):
            group = [self._path(f"{name}/{c}") for c in chunks[start : start + CHUNKS_AT_ONCE]]
            with os_errors(f"{self.url}/{name}"):
                contents = self.fs.cat_ranges(group, 0, None, on_error="raise")
            for content in contents:
                for line in content.splitlines(keepends=True):
                    record = checked_record(line)
                    if record is None:
                        damaged += 1
                    else:
                        yield record
        if damaged:
            log.warning(
                "%s/%s: %d of its lines are damaged; what they were of is done anew",
                *(self.url, name, damaged),
            )

    def written(self, folder: str) -> int:
        when, count = self._counted
        if time.monotonic() - when > COUNTED_SECONDS:
            journals = self._chunks(folder).values()
            count = sum(max(map(_end_of, chunks)) for chunks in journals)
            self._counted = time.monotonic(), count
        return count

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Hold the folder, by an object that is renewed until the end of the block.

        A lock that was not renewed for :data:`DEAD_SECONDS` is taken over, by the clocks of the
        machines; that of a process of this machine that ended at once. Not guaranteed: that two
        runs which take over a lock in the same moment see each other; nor anything where the file
        system overwrites what it was to create (fsspec's mode "create"). Labels would still be
        whole then, and the second writer of a chunk of a journal fails.

        Raises:
            FolderInUseError: another run holds it; the sentence names it.
            OSError: the folder cannot be written.
        """
        holder = {
            "what": what,
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": uuid.uuid4().hex,
        }
        other = self._holder()
        if other is not None and _is_dead(other):
            self._remove(LOCK)
        try:
            self.create(LOCK, _beat(holder))
        except FileExistsError:
            pass
        other = self._holder() or {}
        if other.get("token") != holder["token"]:
            raise FolderInUseError(f"{self.url}: in use by {_who(other)}")
        end = threading.Event()
        thread = threading.Thread(target=self._renew, args=(holder, end), daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
            if (self._holder() or {}).get("token") == holder["token"]:
                self._remove(LOCK)

    def create(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet.

        Raises:
            FileExistsError: it is, where the file system can tell.
            OSError: it cannot be written.
        """
        with os_errors(f"{self.url}/{name}"):
            self.fs.pipe_file(self._path(name), content, mode="create")

    def _renew(self, holder: Mapping[str, Any], end: threading.Event) -> None:
        while not end.wait(BEAT_SECONDS):
            try:
                self.write(LOCK, _beat(holder))
            except OSError as error:  # the next beat may be heard
                log.warning("%s: the lock could not be renewed (%s)", self.url, error)

    def _holder(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.read(LOCK))
        except FileNotFoundError:
            return None

    def _remove(self, name: str) -> None:
        try:
            with os_errors(f"{self.url}/{name}"):
                self.fs.rm_file(self._path(name))
        except FileNotFoundError:
            pass

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _chunks(self, folder: str) -> dict[str, list[str]]:
        """Journal -> the names of its chunks."""
        chunks: dict[str, list[str]] = {}
        for info in self._below(folder):
            *_, journal, chunk = info["name"].split("/")
            chunks.setdefault(journal, []).append(chunk)
        return chunks

    def _names_below(self, folder: str) -> np.ndarray:
        """Sorted hashes of all paths."""
        hashes = array("Q", (hash_of(info["name"]) for info in self._below(folder)))
        return np.sort(np.frombuffer(hashes, dtype=np.uint64))

    def _below(self, folder: str) -> Iterator[Mapping[str, Any]]:
        with os_errors(f"{self.url}/{folder}"):
            yield from _objects_below(self.fs, self._path(folder))


class RemoteJournal:
    """Appends records to a journal of a :class:`RemoteStore`, a chunk at a time.

    A kill loses those of the chunk at hand. A chunk is called by how many records the journal has
    up to its end.

    Args:
        name: of the journal.
        start: how many records it has.
    """

    def __init__(self, store: RemoteStore, name: str, start: int):
        self._store = store
        self._name = name
        self._end = start
        self._lines: list[str] = []
        self._since = 0.0

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record; it lasts when its chunk is written.

        Raises:
            OSError: the chunk cannot be written.
        """
        if not self._lines:
            self._since = time.monotonic()
        self._lines.append(checked_line(record))
        if len(self._lines) >= CHUNK_RECORDS or time.monotonic() - self._since >= CHUNK_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Write the chunk at hand.

        Raises:
            OSError: it cannot be written; FileExistsError: another process writes this journal.
        """
        if self._lines:
            end = self._end + len(self._lines)
            content = "".join(self._lines).encode()
            self._store.create(f"{self._name}/{end:012d}.jsonl", content)
            self._end, self._lines = end, []

    def close(self) -> None:
        """:meth:`sync`."""
        self.sync()


def entries_below(url: str, output: str) -> Iterator[Entry]:
    """The images below a folder of an object store, or those that a pattern names, by name.

    Folders of S3 come in pages of a thousand names, everything else is in memory.

    Args:
        output: its :func:`.results_of` are left out.

    Raises:
        OSError: it cannot be listed.
        ValueError: there is no such file system, or its package is not installed.
    """
    fs, root = _file_system(url.rstrip("/"))
    left_out: tuple[str, ...] = ()
    if "://" in output:
        results = results_of(fs._strip_protocol(output), root, RESULTS)
        left_out = tuple(f"{folder}/" for folder in results)
    with os_errors(url):
        if any(sign in root for sign in "*?["):
            infos = iter(fs.glob(root, detail=True).values())
            root = ""
        else:
            infos = _objects_below(fs, root)
        for info in infos:
            path = info["name"]
            hidden = any(part.startswith(".") for part in path[len(root) :].split("/"))
            if info["type"] != "file" or hidden or not is_image(path):
                continue
            if not path.startswith(left_out):
                yield Entry(fs.unstrip_protocol(path), stamp_of(info))


def stamp_of(info: Mapping[str, Any]) -> str:
    """The state of an object, from its listing: its size, and its ETag or time of change."""
    changed = next((str(info[key]) for key in _STAMPS if info.get(key)), "")
    return f"{info['size']}-{changed}" if changed else ""


def _objects_below(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Mapping[str, Any]]:
    if not hasattr(fs, "call_s3"):
        yield from fs.find(path, detail=True).values()
        return
    # s3fs would hold all of them in memory.
    bucket, prefix, _ = fs.split_path(path)
    where = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else ""}
    while True:
        page = fs.call_s3("list_objects_v2", **where)
        for entry in page.get("Contents", ()):
            name = f"{bucket}/{entry['Key']}"
            yield {"name": name, "size": entry["Size"], "ETag": entry["ETag"], "type": "file"}
        if not page["IsTruncated"]:
            return
        where["ContinuationToken"] = page["NextContinuationToken"]


def _file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        # Other processes write, too: what was listed once is soon wrong.
        return fsspec.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ValueError(f"{url}: {error} (pip install, s3fs for s3://, gcsfs for gs://)") from None
    except ValueError as error:
        raise ValueError(f"{url}: {error}; give such a URL as s3://bucket/folder") from None


@contextmanager
def os_errors(url: str) -> Iterator[None]:
    """What a file system raises for network, credentials or rights is an OSError that names it."""
    try:
        yield
    except (FileNotFoundError, FileExistsError) as error:
        raise type(error)(f"{url}: {_one_line(error)}") from None
    except Exception as error:
        raise OSError(f"{url}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _end_of(chunk: str) -> int:
    return int(chunk.partition(".")[0])


def _beat(holder: Mapping[str, Any]) -> bytes:
    return json.dumps({**holder, "time": time.time()}).encode()


def _is_dead(holder: Mapping[str, Any]) -> bool:
    if holder["host"] == socket.gethostname():
        try:
            os.kill(holder["process"], 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
    return time.time() - holder["time"] > DEAD_SECONDS


def _who(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another run; wait for it, or choose another folder"
    heard = max(time.time() - holder["time"], 0)
    return (
        f"{holder['what']}, process {holder['process']} on {holder['host']} since "
        f"{holder['since']}, heard of {heard:.0f} s ago; wait for it, or choose another folder "
        f"(one that was killed counts as ended {DEAD_SECONDS:.0f} s later)"
    )
