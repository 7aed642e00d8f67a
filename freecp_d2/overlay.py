"""Pictures of label maps: colours over the photograph, outlines, names.

Nothing is kept between two pictures but palettes and fonts, and no window is opened: any thread may
draw.
"""

from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import skimage.measure
from PIL import Image, ImageDraw
from scipy import ndimage

from .fonts import draw_text, line_height, text_length, wrap_text

GREY = 112
"""The background."""
FIRST = 0, 119, 255
"""The colour of the first class."""
LIGHTNESS, CHROMA = (35, 88), (30, 90)
"""Bounds of the colours in CIELAB: none near black, white or grey, none glaring."""
NEIGHBOURS, APART = 3, 50
"""So many classes in a row are so far apart in CIELAB."""
DISTINCT = 1024
"""How many colours there are before they come again."""

DARK = 0.35
"""Of an outline, the larger class's side."""
SMALLEST_TEXT = 12
"""In pixels; letters below it are hard to read."""
SIZES = 1, 0.7, 0.5
"""Of a name beside the usual, from which the first is taken that has room."""
GRID = 400
"""Longest side of the grid on which room for names is sought."""
HIDING, LEAVING = 1.5, 0.5
"""A place for a name is worth the fraction of the name's box that is on the piece, less so much for
each piece wholly hidden, and for GRID cells between the box and the middle of the piece."""
ROOM = -0.75
"""What a place must be worth."""
NARROWER = 0.1
"""What a place for a name in narrower lines must be worth beside that for the name in wide ones."""


class Name(NamedTuple):
    """A class name in a picture; lengths are in pixels."""

    label: int
    lines: list[str]
    size: int
    left: int
    top: int
    width: int
    height: int


def palette(classes: int, background: bool) -> np.ndarray:
    """Colours that differ, and most those of classes that are near in the list.

    A colour depends on the index of the class alone: longer lists begin with the same colours.

    Args:
        classes: how many, with the background.
        background: whether the first is the background; it is grey.

    Returns:
        (classes, 3) uint8 RGB. After 1024 they come again.
    """
    named = classes - background
    grey = np.full((int(background), 3), GREY, np.uint8)
    return np.concatenate([grey, np.resize(_distinct(min(named, DISTINCT)), (named, 3))])


def draw_overlay(
    image: np.ndarray,
    label_map: np.ndarray,
    class_names: Sequence[str],
    colors: np.ndarray,
    ignore_label: int,
    alpha: float = 0.6,
    scale: float = 1.0,
) -> np.ndarray:
    """The image under its label map, with an outline around every piece, and class names.

    A class has its name where there is room on or beside its largest piece, on a box of its colour,
    in letters whose size goes with the picture. Names neither overlap nor leave the picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        label_map: (H, W) indices into `class_names`, or `ignore_label`.
        class_names: K of them, in any script.
        colors: (K, 3) uint8 RGB, of :func:`palette`.
        ignore_label: of pixels without a class; they are drawn without colours.
        alpha: how opaque the classes are, from 0 (outlines and names alone) to 1.
        scale: of the picture.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.

    Raises:
        ValueError: shapes do not agree, a label has no class, or a number is out of range.
    """
    labels = _labels(image, label_map, class_names, colors, ignore_label)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; give a number from 0 to 1")
    if not scale > 0:
        raise ValueError(f"scale is {scale}; give a number above 0")
    height, width = labels.shape
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT)
    picture = _blend(image, labels, colors, alpha)
    _draw_outlines(picture, labels, colors)
    return _draw_names(picture, place_names(labels, class_names), colors)


def place_names(labels: np.ndarray, class_names: Sequence[str]) -> list[Name]:
    """Where class names go in a picture.

    Args:
        labels: (H, W) uint16; pixels without a class have the label K.
        class_names: K of them.

    Returns:
        At most one a class, those of large pieces first.
    """
    height, width = labels.shape
    usual = _text_size(height, width)
    sizes = sorted({max(SMALLEST_TEXT, round(usual * share)) for share in SIZES}, reverse=True)
    step = max(1.0, max(height, width) / GRID)
    cells = max(1, int(width / step)), max(1, int(height / step))
    grid = cv2.resize(labels, cells, interpolation=cv2.INTER_NEAREST_EXACT)
    pieces = skimage.measure.label(grid, background=len(class_names), connectivity=1)
    areas = np.bincount(pieces.ravel())
    share_of_piece = np.where(pieces > 0, 1 / areas[pieces], 0)
    largest, labels_of = _largest_pieces(grid, pieces, areas, (sizes[-1] / 2 / step) ** 2)
    taken = np.zeros(grid.shape, np.uint8)
    names = []
    for number, bounds in enumerate(ndimage.find_objects(largest)):
        label = int(labels_of[number])
        for size in sizes:
            name, least = None, ROOM
            for lines in _layouts(class_names[label], size, width):
                box_width, box_height = _box_size(lines, size)
                # One cell more: positions are rounded.
                rows, columns = (int(np.ceil(side / step)) + 1 for side in (box_height, box_width))
                if rows > grid.shape[0] or columns > grid.shape[1]:
                    continue
                near = max(1, round(size / 4 / step))
                window = _grown(bounds, rows + near, columns + near)
                worths = _worths(
                    largest[window] == number + 1,
                    share_of_piece[window],
                    taken[window],
                    (rows, columns),
                    near,
                )
                if worths.max() >= least:
                    least = worths.max() + NARROWER
                    y, x = np.unravel_index(worths.argmax(), worths.shape)
                    top, left = int(y) + window[0].start, int(x) + window[1].start
                    box = slice(top, top + rows), slice(left, left + columns)
                    left, top = int(np.ceil(left * step)), int(np.ceil(top * step))
                    name = Name(label, lines, size, left, top, box_width, box_height)
            if name:
                taken[box] = 1
                names.append(name)
                break
    return names


def _largest_pieces(
    grid: np.ndarray,
    pieces: np.ndarray,
    areas: np.ndarray,
    least: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The largest piece of each class, those below `least` cells left out.

    Returns:
        A map of their numbers, from 1 for the largest of all, and 0 elsewhere; and their labels.
    """
    label_of = np.zeros(len(areas), np.int64)
    label_of[pieces] = grid
    order = np.argsort(-areas[1:], kind="stable") + 1
    _, first = np.unique(label_of[order], return_index=True)
    chosen = order[np.sort(first)]
    chosen = chosen[areas[chosen] >= least]
    numbers = np.zeros(len(areas), np.int64)
    numbers[chosen] = np.arange(1, len(chosen) + 1)
    return numbers[pieces], label_of[chosen]


def _worths(
    piece: np.ndarray,
    share_of_piece: np.ndarray,
    taken: np.ndarray,
    box: tuple[int, int],
    near: int,
) -> np.ndarray:
    """What each top and left of a name's box on or `near` a piece is worth; elsewhere -inf."""
    rows, columns = box
    mask = piece.astype(np.uint8)
    beside = _box_sums(np.pad(mask, near), rows + 2 * near, columns + 2 * near) > 0
    free = beside & (_box_sums(taken, rows, columns) == 0)
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deep = np.argwhere(depth > 0.9 * depth.max())
    middle = deep[np.abs(deep - np.argwhere(piece).mean(axis=0)).sum(axis=1).argmin()]
    y, x = np.ogrid[: free.shape[0], : free.shape[1]]
    away = np.hypot(y + (rows - 1) / 2 - middle[0], x + (columns - 1) / 2 - middle[1])
    worths = (
        _box_sums(mask, rows, columns) / (rows * columns)
        - HIDING * _box_sums(share_of_piece, rows, columns)
        - LEAVING * away / GRID
    )
    return np.where(free, worths, -np.inf)


def _box_sums(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Sums over every box of this size; the first is at the top left."""
    total = cv2.integral(values)
    across = total[:, columns:] - total[:, :-columns]
    return across[rows:] - across[:-rows]


def _grown(box: tuple[slice, slice], rows: int, columns: int) -> tuple[slice, slice]:
    return (
        slice(max(0, box[0].start - rows), box[0].stop + rows),
        slice(max(0, box[1].start - columns), box[1].stop + columns),
    )


def _text_size(height: int, width: int) -> int:
    return max(SMALLEST_TEXT, round((height * width) ** 0.5 / 36))


def _layouts(name: str, size: int, width: int) -> list[list[str]]:
    """A name in lines for a picture of a width, and where it can, in lines half as wide."""
    limit = max(width / 2, min(width, 12 * size) - size)
    lines = wrap_text(name, size, limit)
    half = 0.55 * max(text_length(line, size) for line in lines)
    word = max((text_length(word, size) for word in name.split()), default=0)
    narrower = wrap_text(name, size, min(limit, max(half, word)))
    return [lines, narrower] if narrower != lines else [lines]


def _box_size(lines: list[str], size: int) -> tuple[int, int]:
    """Width and height of the box around lines."""
    longest = max(text_length(line, size) for line in lines)
    return (
        int(np.ceil(longest)) + 2 * round(0.3 * size),
        line_height(size) * len(lines) + size // 4,
    )


def _blend(
    image: np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray,
    alpha: float,
) -> np.ndarray:
    flat = np.concatenate([colors, np.zeros((1, 3), np.uint8)]).take(labels, axis=0)
    ignored = labels == len(colors)
    if ignored.any():
        flat[ignored] = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[ignored, None]
    return cv2.addWeighted(flat, alpha, image, 1 - alpha, 0)


def _draw_outlines(
    picture: np.ndarray,
    labels: np.ndarray,
    colors: np.ndarray,
) -> None:
    """Between two classes a dark line, on the side of the one with more pixels."""
    pixels = np.bincount(labels.ravel(), minlength=len(colors) + 1)
    pixels[-1] = labels.size
    ranks = pixels.argsort(kind="stable").argsort().astype(np.uint16).take(labels)
    line = max(1, round(_text_size(*labels.shape) / 16))
    kernel = np.ones((2 * line + 1, 2 * line + 1), np.uint8)
    outer = cv2.erode(ranks, kernel) < ranks
    picture[outer] = (DARK * picture[outer]).astype(np.uint8)


def _draw_names(picture: np.ndarray, names: list[Name], colors: np.ndarray) -> np.ndarray:
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    for name in names:
        box = name.left, name.top, name.left + name.width - 1, name.top + name.height - 1
        color = colors[name.label]
        pen.rounded_rectangle(box, radius=name.size // 4, fill=tuple(color.tolist()))
        top = name.top + name.size // 8
        for line in name.lines:
            left = name.left + (name.width - text_length(line, name.size)) / 2
            draw_text(pen, (left, top), line, name.size, _ink(color))
            top += line_height(name.size)
    return np.array(canvas)


def _ink(color: np.ndarray) -> str:
    """Black or white, whichever contrasts more (relative luminance of WCAG 2)."""
    part = color / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def _labels(
    image: np.ndarray,
    label_map: np.ndarray,
    class_names: Sequence[str],
    colors: np.ndarray,
    ignore_label: int,
) -> np.ndarray:
    """(H, W) uint16, K where no class is."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image is {image.shape} {image.dtype}; give (H, W, 3) uint8 RGB")
    if label_map.shape != image.shape[:2]:
        raise ValueError(
            f"label_map is {label_map.shape} and image {image.shape}; give maps of the image's size"
        )
    classes = len(class_names)
    if colors.shape != (classes, 3):
        raise ValueError(f"colors is {colors.shape}; give ({classes}, 3) for {classes} class names")
    ignored = label_map == ignore_label
    stray = label_map[~ignored & ((label_map < 0) | (label_map >= classes))]
    if len(stray):
        raise ValueError(
            f"label_map has the label {stray[0]}; there are {classes} class names, from 0, and "
            f"ignore_label is {ignore_label}"
        )
    return np.where(ignored, classes, label_map).astype(np.uint16)


@lru_cache(maxsize=8)
def _distinct(count: int) -> np.ndarray:
    """(count, 3) RGB, each the farthest in CIELAB from those before it."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = cv2.cvtColor(rgb[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    fit = (lightness >= LIGHTNESS[0]) & (lightness <= LIGHTNESS[1])
    fit &= (chroma >= CHROMA[0]) & (chroma <= CHROMA[1])
    rgb, lab = rgb[fit], lab[fit]
    best = np.abs(rgb.astype(int) - FIRST).sum(axis=1).argmin()
    nearest = np.full(len(rgb), np.inf)
    recent: deque[np.ndarray] = deque(maxlen=NEIGHBOURS)
    chosen = []
    for _ in range(count):
        chosen.append(best)
        recent.append(np.linalg.norm(lab - lab[best], axis=1))
        nearest = np.minimum(nearest, recent[-1])
        best = np.where(np.min(recent, axis=0) >= APART, nearest, 0).argmax()
    return rgb[chosen]
