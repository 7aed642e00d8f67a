"""Which images are to be labelled, one after the other, however many there are."""

import glob
import hashlib
import json
import os
import posixpath
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import fsspec
import numpy as np

from ..data.images import image_suffixes
from ..files import results_of

LISTS = ".txt", ".jsonl"
"""Suffixes of files that list images."""
RESULTS = "labels", "scores"
"""Folders of the output."""


@dataclass(frozen=True)
class Item:
    """An image to be labelled.

    Attributes:
        id: names its outputs: a relative path with "/", without suffix.
        file_name: its path, or a URL of fsspec such as s3://bucket/photo.jpg.
        stamp: its state when it was listed, such as size and time of change; "" where unknown.
        image_id: Detectron2's, where the input says one.
    """

    id: str
    file_name: str
    stamp: str = ""
    image_id: int | str | None = None


@dataclass(frozen=True)
class Entry:
    """An image as an input names it; its `id` is None where the input gives none."""

    file_name: str
    stamp: str = ""
    id: str | None = None
    image_id: int | str | None = None


def shard_of(id: str, count: int) -> int:
    """Which of `count` workers an image is for, from 0; a function of nothing else."""
    return hash_of(id) % count


def read_items(
    source: str | os.PathLike | Sequence[Mapping[str, Any]], output: str | os.PathLike = ""
) -> Iterator[Item]:
    """The images of an input in its order, each once. The input is read twice.

    Memory holds some dozen bytes an image, and the names of one folder. Without an id of its own an
    image has its path below the folder that all share, without suffix; those that differ in their
    suffix alone keep it: photo.jpg and photo.tif are photo_jpg and photo_tif.

    Args:
        source: a folder; a pattern such as "photos/**/*.jpg"; a text file (.txt) of one path a line
            or a .jsonl of objects with `file_name`, relative to the list, and optionally `id` and
            `image_id`; any of these as a URL of fsspec; or Detectron2's dicts.
        output: the folder of the labels; no image below it is of the input, or where the input
            lies in it, below labels/ and scores/.

    Raises:
        FileNotFoundError: there is no such input.
        ValueError: it has no images, a line is none, or an id is none or that of two images.
    """
    entries = _entries_of(source, os.fspath(output))
    names = _survey(entries(), source)
    seen: set[tuple[str, str]] = set()
    for entry in entries():
        key = _key(entry)
        if hash_of(entry.file_name) in names.repeated:
            if (key, entry.file_name) in seen:
                continue
            seen.add((key, entry.file_name))
        id = entry.id
        if id is None:
            id = _without_suffix(entry.file_name)[len(names.root) :]
        if hash_of(key) in names.clashing:
            if entry.id is not None:
                raise ValueError(
                    f"{entry.file_name}: another image has its id, {id!r}, too; give each image an "
                    "id of its own"
                )
            id = _with_suffix(id, entry.file_name, names)
        yield Item(id, entry.file_name, entry.stamp or _stamp(entry.file_name), entry.image_id)


@dataclass(frozen=True)
class _Names:
    """What the images of an input have in common.

    Attributes:
        root: the folder of all, with "/" at its end.
        keys: (N,) uint64, the sorted hashes of :func:`_key`.
        clashing: those of several images.
        repeated: hashes of the paths of images that are listed several times.
    """

    root: str
    keys: np.ndarray
    clashing: frozenset[int]
    repeated: frozenset[int]


def _survey(entries: Iterable[Entry], source: object) -> _Names:
    hashes = array("Q")
    root: str | None = None
    for entry in entries:
        hashes.extend((hash_of(_key(entry)), hash_of(entry.file_name)))
        folder = posixpath.dirname(entry.file_name)
        root = folder if root is None else root
        while root and not f"{folder}/".startswith(f"{root.rstrip('/')}/"):
            root = posixpath.dirname(root.rstrip("/"))
    if root is None:
        name = source if isinstance(source, str | os.PathLike) else "the data set"
        raise ValueError(f"{name}: no images; name a folder, pattern or list that has some")
    pairs = np.frombuffer(hashes, dtype=np.uint64).reshape(-1, 2)
    images, times = np.unique(pairs, axis=0, return_counts=True)
    keys, counts = np.unique(images[:, 0], return_counts=True)
    return _Names(
        root if not root or root.endswith("/") else f"{root}/",
        keys,
        frozenset(keys[counts > 1].tolist()),
        frozenset(images[times > 1, 1].tolist()),
    )


def _key(entry: Entry) -> str:
    return f"id:{entry.id}" if entry.id is not None else _without_suffix(entry.file_name)


def _with_suffix(id: str, file_name: str, names: _Names) -> str:
    """The id of an image among others that differ in their suffix alone."""
    longer = f"{id}_{posixpath.splitext(file_name)[1][1:]}"
    key = np.uint64(hash_of(names.root + longer))
    place = np.searchsorted(names.keys, key)
    if place < len(names.keys) and names.keys[place] == key:  # it is another image's
        longer = f"{longer}_{hash_of(file_name):016x}"
    return longer


def hash_of(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    digest = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _without_suffix(file_name: str) -> str:
    return posixpath.splitext(file_name)[0]


def _stamp(file_name: str) -> str:
    """Size and time of change of a local file."""
    if "://" in file_name:
        return ""
    try:
        status = os.stat(file_name)
    except OSError:  # reading it says what is wrong
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def _entries_of(
    source: str | os.PathLike | Sequence[Mapping[str, Any]], output: str
) -> Callable[[], Iterator[Entry]]:
    """What gives the images of an input, each time it is called."""
    if not isinstance(source, str | os.PathLike):
        return lambda: (
            Entry(_absolute(record["file_name"]), image_id=record.get("image_id"))
            for record in source
        )
    if not os.fspath(source):
        raise ValueError("--input '': name a folder, pattern or list")
    name = _absolute(os.fspath(source))
    if name.endswith(LISTS):
        return partial(_listed, name)
    if "://" in name:
        from .remote import entries_below

        return partial(entries_below, name, output)
    results: Collection[str] = ()
    if output:
        results = results_of(os.path.realpath(output), os.path.realpath(name), RESULTS)
    if os.path.isdir(name):
        return partial(_below, name, results)
    if glob.has_magic(name):
        return partial(_matching, name, results)
    raise FileNotFoundError(
        f"--input {os.fspath(source)!r}: no such folder, pattern or list ({', '.join(LISTS)}); "
        "check the path"
    )


def _below(folder: str, results: Collection[str]) -> Iterator[Entry]:
    """The images below a folder, without hidden ones and those below `results`."""
    for name in sorted(os.listdir(folder)):
        path = f"{folder.rstrip('/')}/{name}"
        if name.startswith("."):
            continue
        if os.path.isdir(path):
            if os.path.realpath(path) not in results:
                yield from _below(path, results)
        elif is_image(path):
            yield Entry(path)


def _matching(pattern: str, results: Collection[str]) -> Iterator[Entry]:
    """The images that a pattern names, without those below `results`."""
    left_out = tuple(f"{folder}/" for folder in results)
    for path in sorted(glob.glob(pattern, recursive=True)):
        if is_image(path) and not os.path.realpath(path).startswith(left_out):
            yield Entry(path)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def is_image(path: str) -> bool:
    """Whether a name has the suffix of an image."""
    return os.path.splitext(path)[1].lower() in image_suffixes()


def _listed(list_file: str) -> Iterator[Entry]:
    """The images of a list."""
    folder = posixpath.dirname(list_file)
    given: tuple[bool, bool] | None = None
    record: dict[str, Any]
    try:
        with fsspec.open(list_file, "rt", encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{list_file}, line {number}"
                record = {"file_name": line.strip("\r\n")}
                if list_file.endswith(".jsonl"):
                    record = _record(line, place)
                name: str = record["file_name"]
                id, image_id = record.get("id"), record.get("image_id")
                if id is not None:
                    _require_id(id, place)
                has = id is not None, image_id is not None
                given = given or has
                if has != given:
                    raise ValueError(
                        f"{place}: id and image_id are of all images of a list, or of none"
                    )
                path = name if "://" in name else _absolute(posixpath.join(folder, name))
                yield Entry(path, id=id, image_id=image_id)
    except FileNotFoundError:
        raise FileNotFoundError(f"--input {list_file}: no such list; check the path") from None


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
        raise ValueError(f'{place}: not an object with "file_name"; correct it')
    if not isinstance(record.get("image_id"), int | str | None):
        raise ValueError(f"{place}: image_id is {record['image_id']!r}; give a number or a name")
    return record


def _require_id(id: object, place: str) -> None:
    parts = id.split("/") if isinstance(id, str) else []
    if not parts or any(p in ("", ".", "..") or not p.isprintable() for p in parts):
        raise ValueError(
            f"{place}: id {id!r} names no output; give a relative path such as train/000001"
        )
