"""The core that all runners share: an image in, a label map and a record out, any number of times.

An image goes through `read`, `label` and `write` of a :class:`Labeller`. Each may run where it
likes, in a thread or on another machine; what they hand on can be pickled. An image is done when
its record is in a journal, which comes last: a kill before that only repeats the image, and its
outputs are replaced by the same.
"""

import hashlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from ..coco import annotations
from ..data.images import read_with_orientation
from ..inputs import FAILURES
from ..memory import memory_ran_out
from ..segmentation import Segmentation
from .items import Item
from .store import Store, read_input

LABELS, SCORES, MANIFEST = "labels", "scores", "manifest"
"""Folders of the output: label maps, scores, and a journal a worker."""


@dataclass(frozen=True)
class Outputs:
    """What is written of an image.

    Attributes:
        min_confidence: pixels whose highest score is below are ignored, from 0 to 1.
        scores: the highest score at each pixel, too, as a PNG of 0 to 255.
        coco: COCO's RLE of the classes, too.
    """

    min_confidence: float = 0.0
    scores: bool = False
    coco: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence is {self.min_confidence}; choose 0 to 1")


@dataclass(frozen=True)
class Loaded:
    """An image in memory, or why it is not.

    Attributes:
        item: which.
        sha256: of the file's bytes; None where they could not be read.
        pixels: (H, W, 3) uint8 RGB; None where there is an error, or a former record holds.
        former: the record of an earlier run, of the same bytes; None where there is none.
        error: why it cannot be labelled.
    """

    item: Item
    sha256: str | None = None
    pixels: np.ndarray | None = None
    former: dict[str, Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Labelled:
    """What is to be written of an image.

    Attributes:
        record: the line of the manifest.
        files: name -> content.
    """

    record: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)


class Labeller:
    """Labels images, each by itself, so that its outputs depend on nothing else.

    Args:
        segment: (H, W, 3) uint8 RGB and the file's name -> segmentation. What it raises of
            :data:`freecp_d2.inputs.FAILURES`, or for memory, is the image's error.
        store: of the outputs.
        settings: a hash of what the labels depend on beside the image.
        outputs: what is written.
        exif_orientation: turn images as their EXIF data say.
    """

    def __init__(
        self,
        segment: Callable[[np.ndarray, str], Segmentation],
        store: Store,
        settings: str,
        outputs: Outputs,
        exif_orientation: bool = True,
    ):
        self.segment = segment
        self.store = store
        self.settings = settings
        self.outputs = outputs
        self.exif_orientation = exif_orientation

    def is_done(self, item: Item, former: dict[str, Any] | None) -> bool:
        """Whether an image need not even be read: its label is there, and nothing has changed.

        Args:
            former: its record of an earlier run.
        """
        return (
            former is not None
            and "error" not in former
            and former["file_name"] == item.file_name
            and former["stamp"] == item.stamp
            and former.get("image_id") == item.image_id
            and all(self.store.exists(name) for name in self.files_of(item.id))
        )

    def files_of(self, id: str) -> list[str]:
        """The names of the files that an image has when it is done."""
        folders = [LABELS, SCORES] if self.outputs.scores else [LABELS]
        return [f"{folder}/{id}.png" for folder in folders]

    def read(self, item: Item, former: dict[str, Any] | None = None) -> Loaded:
        """Read an image; one whose bytes are those of `former` is not decoded."""
        digest = None
        try:
            content = read_input(item.file_name)
            digest = hashlib.sha256(content).hexdigest()
            if former is not None and former.get("sha256") == digest and "error" not in former:
                if all(self.store.exists(name) for name in self.files_of(item.id)):
                    return Loaded(item, digest, former=former)
            pixels, _ = read_with_orientation(item.file_name, self.exif_orientation, content)
        except Exception as error:
            return Loaded(item, digest, error=_sentence(item, error))
        return Loaded(item, digest, pixels)

    def label(self, loaded: Loaded) -> Labelled:
        """Segment an image; an image that cannot be has a record with `error`."""
        item, start = loaded.item, time.perf_counter()
        record: dict[str, Any] = {
            "id": item.id,
            "file_name": item.file_name,
            "stamp": item.stamp,
            "sha256": loaded.sha256,
            "settings": self.settings,
        }
        if item.image_id is not None:
            record["image_id"] = item.image_id
        if loaded.former is not None:
            former = {key: loaded.former[key] for key in loaded.former if key != "image_id"}
            return Labelled({**former, **record, "time": time.time()})
        error, result = loaded.error, None
        if loaded.pixels is not None:
            try:
                result = self.segment(loaded.pixels, item.file_name)
            except Exception as exception:
                error = _sentence(item, exception)
        if result is None:
            return Labelled({**record, "error": error, "time": time.time()})
        return self._outputs_of(result, record, start)

    def write(self, labelled: Labelled) -> dict[str, Any]:
        """Write the files of an image; its record, which is to go into a journal now.

        Raises:
            OSError: a file cannot be written. That is no fault of the image.
        """
        for name, content in labelled.files.items():
            self.store.write(name, content)
        return labelled.record

    def _outputs_of(self, result: Segmentation, record: dict[str, Any], start: float) -> Labelled:
        removed = {entry.name for entry in result.removed}
        if result.removed or not np.isnan(result.consistency).all():
            classes = [name for name in result.class_names if name not in removed]
        else:  # a base method
            classes = [result.class_names[i] for i in result.shares.nonzero()[0]]
        if self.outputs.min_confidence:
            doubtful = result.confidence < self.outputs.min_confidence
            labels = np.where(doubtful, result.nothing, result.label_map)
            result = replace(result, label_map=labels)
        height, width = result.label_map.shape
        bits = np.uint8 if result.nothing < 256 else np.uint16
        files = {f"{LABELS}/{record['id']}.png": _png(result.label_map.astype(bits))}
        if self.outputs.scores:
            scores = np.rint(255 * result.confidence).astype(np.uint8)
            files[f"{SCORES}/{record['id']}.png"] = _png(scores)
        record |= {
            "height": height,
            "width": width,
            "classes": classes,
            "confidence": round(float(result.confidence.mean(dtype=np.float64)), 6),
        }
        if self.outputs.coco:
            best = dict(enumerate(result.scores))
            record["segments"] = annotations(result.label_map, best, ignore=(result.nothing,))
        seconds = round(time.perf_counter() - start, 4)
        return Labelled(record | {"seconds": seconds, "time": time.time()}, files)


def _png(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def _sentence(item: Item, error: Exception) -> str:
    """What is wrong with an image; what is no fault of an image is raised again."""
    if memory_ran_out(error):
        return f"{item.file_name}: memory ran out; make the image smaller, or name fewer classes"
    if not isinstance(error, FAILURES):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    return text if item.file_name in text else f"{item.file_name}: {text}"
