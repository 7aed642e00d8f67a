"""One image's official annotation -> its (H, W) uint8 label map of contiguous ids."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.io
from pycocotools import mask as rle


def read_context_mat(path: str | os.PathLike) -> np.ndarray:
    """The `LabelMap` of a .mat of Pascal Context, (H, W) integers of 0 to 459.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or it holds no such map.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    try:
        labels = scipy.io.loadmat(path, variable_names=["LabelMap"]).get("LabelMap")
    except Exception as error:  # SciPy's reader raises whatever it stumbles over
        raise ValueError(f"not a readable .mat file ({error}); fetch it anew") from error
    if labels is None or labels.ndim != 2 or labels.dtype.kind not in "iuf":
        raise ValueError("it holds no LabelMap of two dimensions; fetch it anew")
    return labels.astype(np.int64)


def relabel(
    labels: np.ndarray, ids: Mapping[int, int], others: Collection[int], fill: int = 255
) -> np.ndarray:
    """Replace every id of a label map by the contiguous one.

    Args:
        labels: (H, W) integers.
        ids: official id -> contiguous id.
        others: official ids that are no class; they become `fill`.

    Returns:
        (H, W) uint8.

    Raises:
        ValueError: an id occurs that is in neither; the annotation has none such.
    """
    table = np.full(max([*ids, *others]) + 1, -1, np.int16)
    table[list(others)] = fill
    table[list(ids)] = list(ids.values())
    inside = (labels >= 0) & (labels < len(table))
    known = inside & (table[np.where(inside, labels, 0)] >= 0)
    if not known.all():
        wrong = ", ".join(map(str, np.unique(labels[~known])[:5]))
        raise ValueError(f"the official annotation has no id {wrong}; fetch the file anew")
    return table[labels].astype(np.uint8)


def paint(regions: Sequence[tuple[int, Any]], height: int, width: int) -> np.ndarray:
    """Draw regions over a map of zeros, each over those before it.

    Args:
        regions: (id, segmentation) pairs, the segmentation as COCO writes it: polygons, or
            compressed or uncompressed run lengths.

    Returns:
        (height, width) uint8.

    Raises:
        ValueError: a segmentation is malformed or of another size.
    """
    labels = np.zeros((height, width), np.uint8)
    for label, segmentation in regions:
        labels[_decode(segmentation, height, width)] = label
    return labels


def coco_object(
    annotations: Sequence[Mapping[str, Any]], ids: Mapping[int, int], height: int, width: int
) -> np.ndarray:
    """COCO's instances of an image -> 0 (background) and contiguous ids 1..80.

    Crowd regions are painted as their category, first of all, so that a single instance lies over
    the crowd around it. Then the instances in the order of the file, later over earlier, as
    COCO-Stuff's own tools flatten instances. Nothing is ignored.

    Args:
        annotations: dicts with `category_id`, `segmentation`, and `iscrowd`.
        ids: COCO category id -> contiguous id.

    Raises:
        ValueError: a category that is none of COCO's 80; see also :func:`paint`.
    """
    regions = []
    for annotation in sorted(annotations, key=lambda a: not a.get("iscrowd", 0)):
        category = annotation["category_id"]
        if category not in ids:
            raise ValueError(f"category_id {category} is none of COCO's 80; fetch the JSON anew")
        regions.append((ids[category], annotation["segmentation"]))
    return paint(regions, height, width)


def context_segments(
    annotations: Sequence[Mapping[str, Any]],
    ids: Mapping[int, int],
    fill: int,
    height: int,
    width: int,
) -> np.ndarray:
    """Pascal Context's segments of an image, of `trainval_merged.json`, -> contiguous ids.

    The segments are painted in the order of the file. Pixels of no segment, and segments of
    categories not in `ids`, become `fill`.

    Args:
        annotations: dicts with `category_id` and `segmentation`.
        ids: id of Pascal Context's 459 labels -> contiguous id.

    Raises:
        ValueError: see :func:`paint`.
    """
    order = {own: position for position, own in enumerate(ids, start=1)}
    regions = [(order.get(a["category_id"], 0), a["segmentation"]) for a in annotations]
    table = np.array([fill, *ids.values()], np.uint8)
    return table[paint(regions, height, width)]


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    try:
        if isinstance(segmentation, list):
            coded = rle.merge(rle.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            coded = rle.frPyObjects(segmentation, height, width)
        else:
            coded = segmentation
        size = list(coded["size"])
        if size == [height, width]:
            return rle.decode(coded).astype(bool)
    except Exception as error:  # pycocotools raises bare Exceptions
        raise ValueError(f"a segmentation is malformed ({error}); fetch the JSON anew") from error
    raise ValueError(
        f"a segmentation has size {size}, its image {[height, width]}; fetch the JSON anew"
    )
