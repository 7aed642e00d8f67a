"""What is made of all records when the images are done."""

import io
import json
import logging
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any

from ..index import Index
from ..overlay import palette
from ..segmentation import nothing_of
from .core import LABELS, MANIFEST, SCORES
from .store import Store, read_input

RECORDS, SEM_SEG, COCO, TARS = "manifest.jsonl", "sem_seg.json", "segmentation.json", "tars"
"""Files of the output folder, and the folder of tars."""
log = logging.getLogger(__name__)


def all_records(store: Store) -> Iterator[dict[str, Any]]:
    """The records of all journals of an output folder."""
    return chain.from_iterable(store.records(name) for name in store.journals(MANIFEST))


def merge(store: Store, index: Index, settings: Mapping[str, Any], tars: int = 0) -> None:
    """Write what the images of an output folder have in common; memory does not grow with them.

    `manifest.jsonl` has the latest record of each image, by id. `sem_seg.json` has those that are
    labelled (:func:`.catalog.register_labels` reads it). Where the records have COCO's segments,
    `segmentation.json` has all of them.

    Args:
        index: of :func:`all_records`.
        settings: of :func:`.settings.settings_of`.
        tars: so many images in each of the files tars/*.tar, in WebDataset's format; 0: none.
    """
    with _text(store, RECORDS) as file:
        for record in index:
            record.pop("segments", None)
            file.write(json.dumps(record) + "\n")
    with _text(store, SEM_SEG) as file:
        _write_sem_seg(file, index, settings)
    if settings["coco"]:
        with _text(store, COCO) as file:
            _write_coco(file, index, settings)
    if tars:
        _write_tars(store, index, tars, settings["scores"])


def _labelled(index: Index) -> Iterator[tuple[int | str, dict[str, Any]]]:
    """The records of images that are labelled, by id, each with an image id."""
    records = (record for record in index if "error" not in record)
    return ((record.get("image_id", n), record) for n, record in zip(count(1), records))


def _write_sem_seg(file: IO[str], index: Index, settings: Mapping[str, Any]) -> None:
    classes = settings["classes"]
    head = {
        "stuff_classes": classes,
        "stuff_colors": palette(len(classes), classes[0] == "background").tolist(),
        "ignore_label": nothing_of(len(classes)),
    }
    file.write(json.dumps(head)[:-1] + ', "images": ')
    _write_list(file, (_sem_seg_image(*pair, settings["scores"]) for pair in _labelled(index)))
    file.write("}\n")


def _sem_seg_image(image_id: int | str, record: dict[str, Any], scores: bool) -> dict[str, Any]:
    image = {
        "file_name": record["file_name"],
        "sem_seg_file_name": f"{LABELS}/{record['id']}.png",
        **{key: record[key] for key in ("height", "width")},
        "image_id": image_id,
    }
    return image | {"scores_file_name": f"{SCORES}/{record['id']}.png"} if scores else image


def _write_coco(file: IO[str], index: Index, settings: Mapping[str, Any]) -> None:
    """COCO's format; an image's `file_name` is its whole path."""
    categories = [{"id": i, "name": name} for i, name in enumerate(settings["classes"])]
    file.write(json.dumps({"categories": categories})[:-1] + ', "images": ')
    keys = "file_name", "height", "width"
    images = ({"id": id, **{k: record[k] for k in keys}} for id, record in _labelled(index))
    _write_list(file, images)
    file.write(', "annotations": ')
    numbers = count(1)
    annotations = (
        {**segment, "id": next(numbers), "image_id": id}
        for id, record in _labelled(index)
        for segment in record["segments"]
    )
    _write_list(file, annotations)
    file.write("}\n")


def _write_list(file: IO[str], entries: Iterator[dict[str, Any]]) -> None:
    separator = "["
    for entry in entries:
        file.write(f"{separator}\n{json.dumps(entry)}")
        separator = ","
    file.write("[]" if separator == "[" else "\n]")


def _write_tars(store: Store, index: Index, size: int, scores: bool) -> None:
    """Tars of `size` images by id: <id>.<suffix>, <id>.seg.png, <id>.json, perhaps <id>.scores.png.

    The reader takes what is before the first full stop of a name as its key, so that those of an id
    are %2E.
    """
    store.clear(TARS)  # a run of fewer images has named them otherwise
    records = (record for _, record in _labelled(index))
    number_of_tars = -(-index.count(failed=False) // size)
    for number in range(number_of_tars):
        with tempfile.TemporaryDirectory(prefix="freecp_tar_") as folder:
            path = Path(folder) / "tar"
            with tarfile.open(path, "w") as tar:
                for record in islice(records, size):
                    try:
                        files = _sample(store, record, scores)
                    except OSError as error:
                        log.warning("%s is in no tar (%s)", record["file_name"], error)
                        continue
                    for suffix, content in files.items():
                        parent, name = posixpath.split(record["id"])
                        key = posixpath.join(parent, name.replace(".", "%2E"))
                        entry = tarfile.TarInfo(f"{key}.{suffix}")  # of no time, nobody's
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
            store.upload(f"{TARS}/{number:06d}-of-{number_of_tars:06d}.tar", path)


def _sample(store: Store, record: dict[str, Any], scores: bool) -> dict[str, bytes]:
    suffix = posixpath.splitext(record["file_name"])[1][1:].lower() or "image"
    kept = {key: value for key, value in record.items() if key not in ("segments", "time")}
    files = {
        suffix: read_input(record["file_name"]),
        "seg.png": store.read(f"{LABELS}/{record['id']}.png"),
        "json": json.dumps(kept).encode(),
    }
    if scores:
        files["scores.png"] = store.read(f"{SCORES}/{record['id']}.png")
    return files


@contextmanager
def _text(store: Store, name: str) -> Iterator[IO[str]]:
    """A file of the output folder, to be written bit by bit; it appears whole at the end."""
    with tempfile.TemporaryDirectory(prefix="freecp_merge_") as folder:
        path = Path(folder) / "text"
        with path.open("w", encoding="utf-8") as file:
            yield file
        store.upload(name, path)
