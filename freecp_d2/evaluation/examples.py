"""The images that a report shows: those with the best and the worst mIoU of their own."""

import io
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .dataset import SemSegDataset
from .metrics import class_ious, mean
from .report import Example

Entry = tuple[float, str, bytes]
"""The key that orders them, image file, and label map as PNG, empty where it is not known."""
Segment = Callable[[dict[str, Any]], Tensor]
"""The label map (H, W) of an image of the data set, a dict with `file_name`."""


@dataclass
class Extremes:
    """The best and the worst images; of equal ones the first by file name.

    Attributes:
        count: at most so many of each.
        num_classes: of the label maps.
        best: by minus the image's mIoU.
        worst: by the image's mIoU.
    """

    count: int
    num_classes: int
    best: list[Entry] = field(default_factory=list)
    worst: list[Entry] = field(default_factory=list)

    def add(self, file: str, score: float, labels: Tensor | None) -> None:
        """Keep an image while it is among them.

        Args:
            file: the image's.
            score: its mIoU, 0-1.
            labels: (H, W) integers, class ids; None: it is segmented again where it is shown.
        """
        for entries, key in ((self.best, -score), (self.worst, score)):
            if len(entries) < self.count or (entries and (key, file) < entries[-1][:2]):
                insort(entries, (key, file, b"" if labels is None else self._png(labels)))
                del entries[self.count :]

    def __iadd__(self, other: "Extremes") -> "Extremes":
        self.best = sorted([*self.best, *other.best])[: self.count]
        self.worst = sorted([*self.worst, *other.worst])[: self.count]
        return self

    def _png(self, labels: Tensor) -> bytes:
        png = io.BytesIO()
        dtype = np.uint8 if self.num_classes <= 256 else np.uint16
        image = Image.fromarray(labels.cpu().numpy().astype(dtype))
        image.save(png, "PNG", compress_level=1)
        return png.getvalue()


def examples_of(
    extremes: Extremes,
    dataset: SemSegDataset,
    segment: Segment | None,
    segment_base: Segment | None,
) -> tuple[list[Example], list[Example]]:
    """The best and the worst images, with their ground truth, as a report shows them.

    Args:
        segment: asked for the images that were added without a label map.
        segment_base: of the base method, asked for all of them; or None.
    """

    def example(score: float, file: str, png: bytes) -> Example:
        if png:
            predicted = _labels(png)
        else:
            assert segment is not None  # resume() has seen to it
            predicted = segment({"file_name": file}).cpu().numpy()
        truth = dataset.truth({"file_name": file})
        shown = file, truth.numpy(), predicted, 100 * score
        if segment_base is None:
            return Example(*shown)
        base = segment_base({"file_name": file}).cpu()
        iou = mean(class_ious(dataset.confusion(file, base, truth)))
        return Example(*shown, base.numpy(), 100 * iou)

    best = [example(-key, file, png) for key, file, png in extremes.best]
    return best, [example(*entry) for entry in extremes.worst]


def _labels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image, dtype=int)
