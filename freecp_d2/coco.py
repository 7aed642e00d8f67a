"""Label maps in COCO's format of annotations.

As COCO's annotations of stuff are: one annotation a class and image, whose `iscrowd` is 0.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

import cv2
import numpy as np
import pycocotools.mask

Shape = Literal["rle", "polygons"]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) bool as COCO's compressed RLE, its counts a string as JSON wants it."""
    rle = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def outline(mask: np.ndarray) -> list[list[float]]:
    """The outer contours of a mask (H, W) bool as COCO's polygons, x, y, x, y, ...

    They run along the outer edges of pixels, so that a reader who rasterises them gets the mask
    back, but for its holes, which COCO's polygons cannot have.
    """
    # OpenCV's contours join centres of pixels; at twice the size and a pixel more the centres of
    # the outer ones are half a pixel from the edges.
    doubled = np.pad(mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1), 1)
    wider = cv2.dilate(doubled, np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, _ = cv2.findContours(wider, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [((contour[:, 0] - 1) / 2).flatten().tolist() for contour in contours]


def annotations(
    labels: np.ndarray,
    scores: Mapping[int, float],
    *,
    ignore: Collection[int] = (),
    shape: Shape = "rle",
) -> list[dict[str, Any]]:
    """COCO's annotations of the classes in a label map, by class id, without ids of their own.

    Args:
        labels: (H, W) of class ids.
        scores: class id -> its score.
        ignore: labels that are no class.
        shape: "rle", or "polygons" without holes (:func:`outline`).
    """
    result = []
    for label in np.unique(labels).tolist():
        if label in ignore:
            continue
        mask = labels == label
        rle = encode_mask(mask)
        result.append(
            {
                "category_id": label,
                "segmentation": rle if shape == "rle" else outline(mask),
                "area": int(pycocotools.mask.area(rle)),
                "bbox": pycocotools.mask.toBbox(rle).tolist(),
                "iscrowd": 0,
                "score": round(float(scores[label]), 4),
            }
        )
    return result
