"""An answer drawn on its picture, in sizes up to those of cameras."""

import cv2
import numpy as np
from PIL import Image, ImageDraw

from ...fonts import draw_text, text_length
from ...predictor import Segmentation
from .inputs import shorten

ALPHA = 0.55
"""How opaque the classes are."""
NAMED = 0.001
"""Classes of a smaller share are outlined, not named."""


def overlay(segmentation: Segmentation) -> np.ndarray:
    """The classes in colour over the picture, outlined and named: (H, W, 3) uint8 RGB.

    Unlike :meth:`Segmentation.draw` it takes seconds and under a gigabyte for 40 million pixels,
    and its names are legible when a telephone shows the whole of it.
    """
    labels = segmentation.label_map.astype(np.uint8)  # the page takes fewer classes than 256
    height, width = labels.shape
    long_side = max(height, width)
    picture = cv2.addWeighted(segmentation.colors[labels], ALPHA, segmentation.image, 1 - ALPHA, 0)
    kernel = np.ones([1 + 2 * max(1, long_side // 1500)] * 2, np.uint8)
    picture[cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, kernel) > 0] = 255
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image)
    size = max(10, round(long_side / 36))
    box_height = round(1.3 * size)
    for label in np.flatnonzero(segmentation.shares >= NAMED):
        name = shorten(segmentation.class_names[label])
        length = round(text_length(name, size))
        x, y = _inside(labels == label)
        left = min(max(x - length // 2, size // 4), max(width - length - size // 4, 0))
        top = min(max(y - box_height // 2, 0), max(height - box_height, 0))
        box = (left - size // 4, top, left + length + size // 4, top + box_height)
        pen.rectangle(box, "black")
        draw_text(pen, (left, top), name, size, "white")
    return np.asarray(image)


def _inside(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) in the middle of where a mask is widest, to a few pixels."""
    step = -(-max(mask.shape) // 500)
    small = np.pad(mask[::step, ::step].astype(np.uint8), 1)
    distance = cv2.distanceTransform(small, cv2.DIST_L2, 3)[1:-1, 1:-1]
    widest = np.argwhere(distance >= 0.9 * distance.max())
    y, x = widest[np.square(widest - widest.mean(axis=0)).sum(axis=1).argmin()]
    return int(x) * step, int(y) * step
