"""One image's official annotation -> its (H, W) label map of contiguous ids."""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.io
from pycocotools import mask as rle

from ..images import open_image


def read_context_mat(path: str | os.PathLike) -> np.ndarray:
    """The `LabelMap` of a .mat of Pascal Context, (H, W) integers of 0 to 459.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or it holds no such map, or one of other numbers.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    try:
        labels = scipy.io.loadmat(path, variable_names=["LabelMap"]).get("LabelMap")
    except Exception as error:  # SciPy's reader raises whatever it stumbles over
        raise ValueError(f"not a readable .mat file ({error}); fetch it anew") from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 2 or labels.dtype.kind not in "iuf":
        raise ValueError("it holds no LabelMap of two dimensions; fetch it anew")
    with np.errstate(invalid="ignore"):
        whole = labels.astype(np.int64)
    wrong = labels[(whole != labels) | (whole < 0) | (whole > 459)]
    if wrong.size:
        raise ValueError(
            f"its LabelMap holds {wrong[0]}; labels are whole numbers of 0 to 459, fetch it anew"
        )
    return whole


def read_colors(path: str | os.PathLike) -> np.ndarray:
    """The ids in a `_seg.png` of the full ADE20K, (H, W) integers: R // 10 * 256 + G.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or its pixels are no RGB.
    """
    with open_image(path) as image:
        mode, pixels = image.mode, np.asarray(image, dtype=np.int64)
    if mode != "RGB":
        raise ValueError(f"{path}: it has pixels of mode {mode} and not RGB; fetch it anew")
    return pixels[..., 0] // 10 * 256 + pixels[..., 1]


def relabel(
    labels: np.ndarray, ids: Mapping[int, int], others: Collection[int], fill: int = 255
) -> np.ndarray:
    """Replace every id of a label map by the contiguous one.

    Args:
        labels: (H, W) integers.
        ids: official id -> contiguous id.
        others: official ids that are no class; they become `fill`.

    Returns:
        (H, W) uint8, or uint16 where `fill` or a contiguous id needs it.

    Raises:
        ValueError: an id occurs that is in neither; the annotation has none such.
    """
    table = np.full(max([*ids, *others]) + 1, -1, np.int32)
    table[list(others)] = fill
    table[list(ids)] = list(ids.values())
    inside = (labels >= 0) & (labels < len(table))
    known = inside & (table[np.where(inside, labels, 0)] >= 0)
    if not known.all():
        wrong = ", ".join(map(str, np.unique(labels[~known])[:5]))
        raise ValueError(f"the official annotation has no id {wrong}; fetch the file anew")
    return table[labels].astype(np.uint8 if table.max() < 256 else np.uint16)


def paint(regions: Sequence[tuple[int, Any]], height: int, width: int) -> np.ndarray:
    """Draw regions over a map of zeros, each over those before it.

    Args:
        regions: (id, segmentation) pairs, the segmentation as COCO writes it: polygons, or
            compressed or uncompressed run lengths.

    Returns:
        (height, width) uint8.

    Raises:
        ValueError: a segmentation is malformed or of another size, or its run lengths do not sum to
            height x width.
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
    labels = np.zeros((height, width), np.uint8)
    for annotation in sorted(annotations, key=lambda a: not a.get("iscrowd", 0)):
        category = annotation.get("category_id")
        if type(category) is not int or category not in ids:
            raise ValueError(
                f"{_name(annotation)}: category_id {category} is none of COCO's 80; fetch the JSON "
                "anew"
            )
        labels[_mask(annotation, height, width)] = ids[category]
    return labels


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
    labels = np.full((height, width), fill, np.uint8)
    for annotation in annotations:
        category = annotation.get("category_id")
        if type(category) is not int or not 0 <= category <= 459:
            raise ValueError(
                f"{_name(annotation)}: category_id {category} is none of Pascal Context's 459; "
                "fetch the JSON anew"
            )
        labels[_mask(annotation, height, width)] = ids.get(category, fill)
    return labels


def _name(annotation: Mapping[str, Any]) -> str:
    return f"annotation {annotation.get('id', 'without id')}"


def _mask(annotation: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    try:
        return _decode(annotation.get("segmentation"), height, width)
    except ValueError as error:
        raise ValueError(f"{_name(annotation)}: {error}") from error


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(height, width) bool. pycocotools trusts what it is given: all is checked before."""
    try:
        if isinstance(segmentation, list):
            polygons = [_polygon(polygon, height, width) for polygon in segmentation]
            coded = rle.merge(rle.frPyObjects(polygons, height, width))
        elif not isinstance(segmentation, dict):
            raise ValueError("neither polygons nor run lengths")
        else:
            size, counts = list(segmentation["size"]), segmentation["counts"]
            if size != [height, width]:
                raise ValueError(f"it has size {size}, its image {[height, width]}")
            runs = _runs(counts)
            if sum(runs) != height * width:
                raise ValueError(
                    f"its run lengths sum to {sum(runs)}, its image has {height * width} pixels"
                )
            coded = rle.frPyObjects({"size": size, "counts": runs}, height, width)
        return rle.decode(coded).astype(bool)
    except Exception as error:  # pycocotools raises bare Exceptions
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"a segmentation is malformed ({reason}); fetch the JSON anew") from error


def _polygon(polygon: Any, height: int, width: int) -> list[float]:
    """Checked: three points or more, none of them further from the image than its sides."""
    points = np.array(polygon, dtype=np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2:
        raise ValueError("a polygon is a list of x and y of three points or more")
    x, y = points[::2], points[1::2]
    if not (np.abs(x - width / 2) <= 1.5 * width).all():  # NaN is none of these either
        raise ValueError(f"a polygon reaches to x = {x[np.abs(x - width / 2).argmax()]}")
    if not (np.abs(y - height / 2) <= 1.5 * height).all():
        raise ValueError(f"a polygon reaches to y = {y[np.abs(y - height / 2).argmax()]}")
    return points.tolist()


def _runs(counts: Any) -> list[int]:
    """Run lengths of zeros and ones in turn, from numbers or COCO's compressed text.

    The text has 6 bits a character, offset by 48: 5 of the number, low ones first, and one that
    says that it goes on; the fifth of its last character is the sign. From the fourth run on it has
    the difference to the run before the last.
    """
    if isinstance(counts, list):
        if not all(type(run) is int for run in counts):
            raise ValueError("its run lengths are no whole numbers")
        runs = np.array(counts, dtype=np.int64)
    else:
        text = counts.encode() if isinstance(counts, str) else counts
        if not isinstance(text, bytes):
            raise ValueError("its run lengths are no text of COCO's")
        bits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
        last = (bits & 32) == 0
        if not bits.size or not last[-1] or bits.min() < 0 or bits.max() > 63:
            raise ValueError("its run lengths are no text of COCO's")
        start = np.r_[0, np.flatnonzero(last)[:-1] + 1]
        length = np.diff(np.r_[start, bits.size])
        if length.max() > 7:
            raise ValueError("its run lengths are no text of COCO's")
        place = np.arange(bits.size) - np.repeat(start, length)
        runs = np.add.reduceat((bits & 31) << (5 * place), start)
        runs -= ((bits[last] & 16) >> 4) << (5 * length)
        runs[1::2] = runs[1::2].cumsum()
        runs[2::2] = runs[2::2].cumsum()
    if (runs < 0).any():
        raise ValueError("a run length is negative")
    return runs.tolist()
