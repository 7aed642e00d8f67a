"""Where the results of images and videos go, and which are there already."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import write_whole
from ...journal import Journal, read_journal

PROGRESS = ".progress.jsonl"
LONGEST_NAME = 245
"""Bytes of the name of a file that is written; most file systems take 255."""


@dataclass(frozen=True)
class Job:
    """An image or a video, and the place of its results below labels/, overlays/ and so on.

    Attributes:
        source: the file.
        file_name: its path below :attr:`.inputs.Inputs.root`.
        name: the same without suffix, as :func:`name_results` chooses it.
    """

    source: Path
    file_name: str
    name: str

    def stamp(self) -> dict[str, Any]:
        """Which file it is, and of what state."""
        stat = self.source.stat()
        return {"path": str(self.source), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


class Progress:
    """What is done, a line an image behind one of the settings; survives a kill.

    Lines that are damaged do not count: their images are done anew, and all of them where it is the
    line of the settings. A context manager, which closes the file.

    Args:
        folder: of the output.
        settings: whatever the results depend on but the images.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        path = folder / PROGRESS
        lines = list(read_journal(path)) if path.is_file() else []
        known = bool(lines) and "settings" in lines[0]
        if known and lines[0]["settings"] != settings:
            former = lines[0]["settings"]
            changed = [key for key in settings if former.get(key) != settings[key]]
            raise ValueError(
                f"{folder} holds results of other settings ({', '.join(changed)}); choose another "
                "--output, or remove the folder"
            )
        self.records: dict[str, dict[str, Any]] = {}
        if known:
            self.records = {record["name"]: record for record in lines[1:]}
        else:
            path.unlink(missing_ok=True)
        self._journal = Journal(path)
        if not known:
            self._journal.add({"settings": settings})

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._journal.close()

    def is_done(self, job: Job) -> bool:
        """Whether the results of this very file are there.

        Raises:
            ValueError: there are results of another file in its place.
        """
        record = self.records.get(job.name)
        if record is None:
            return False
        require_same_source(job, record)
        return record["source"] == job.stamp() and all(
            (self.folder / file).is_file() for file in record["files"]
        )

    def add(self, record: dict[str, Any]) -> None:
        """An image is done. Files of its former results that it has no more are removed."""
        former = self.records.get(record["name"], {"files": []})
        for name in {*former["files"]} - {*record["files"]}:
            (self.folder / name).unlink(missing_ok=True)
        self.records[record["name"]] = record
        self._journal.add(record)

    def write_coco(self, class_names: Sequence[str]) -> None:
        """segmentation.json of all images of the folder, as pycocotools.coco.COCO reads it."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        records = sorted(self.records.values(), key=lambda record: record["file_name"])
        for image_id, record in enumerate(records, start=1):
            image = {"id": image_id, "file_name": record["file_name"], **record["size"]}
            images.append({**image, "presence": record.get("presence", {})})
            for segment in record["segments"]:
                ids = {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append({**segment, **ids})
        categories = [{"id": i, "name": name} for i, name in enumerate(class_names)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        write_whole(self.folder / "segmentation.json", json.dumps(content).encode())


def require_same_source(job: Job, record: Mapping[str, Any]) -> None:
    """That a record of earlier results is of the job's file.

    Raises:
        ValueError: it is of another.
    """
    if record["source"]["path"] != str(job.source):
        raise ValueError(
            f"{job.source} would overwrite the results of {record['source']['path']}; choose "
            "another --output"
        )


def name_results(
    files: Sequence[Path], root: Path, records: Mapping[str, Mapping[str, Any]]
) -> list[Job]:
    """Where the results of images, or of videos, go: photo.jpg's label map is labels/photo.png.

    Names keep the folders below `root`, so that Detectron2's `load_sem_seg` pairs labels/ with it,
    folder by folder. Files that differ in their suffix alone keep it: photo.jpg and photo.tif
    become photo_jpg.png and photo_tif.png. A file whose results are there already keeps their
    name. A name of more than 245 bytes is cut, and ends in 8 digits of its SHA-256.

    Args:
        root: of :class:`.inputs.Inputs`.
        records: of earlier results, by name.
    """
    known = {record["source"]["path"]: name for name, record in records.items()}
    images = [file.relative_to(root) for file in files]
    plain = Counter(image.with_suffix("") for image in images)
    jobs: list[Job] = []
    taken: set[str] = set()
    for file, image in zip(files, images, strict=True):
        stem = image.with_suffix("")
        other = records.get(stem.as_posix())
        alike = other is not None and Path(other["source"]["path"]).name != file.name
        if plain[stem] > 1 or alike:
            stem = image.with_name(f"{stem.name}_{image.suffix[1:]}")
        name = known.get(str(file)) or _fitting(stem, image, taken).as_posix()
        taken.add(name)
        jobs.append(Job(file, image.as_posix(), name))
    return jobs


def _fitting(stem: Path, image: Path, taken: set[str]) -> Path:
    """`stem`, or where it is too long or taken a shorter one with a hash of the image's path."""
    bytes_of = os.fsencode(stem.name)
    most = LONGEST_NAME - len(".png")
    if len(bytes_of) <= most and stem.as_posix() not in taken:
        return stem
    digest = hashlib.sha256(os.fsencode(image)).hexdigest()[:8]
    cut = bytes_of[: most - 9].decode(errors="ignore")
    return stem.with_name(f"{cut}_{digest}")
