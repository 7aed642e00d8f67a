"""The HTML report of an evaluation: one file that needs no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image

from ..data.mapper import read_image
from ..files import write_whole
from ..overlay import palette as distinct_colors
from .pages import difference, render
from .recognition import dependency_picture
from .results import method_of, printable, settings_of

PICTURE_SIDE = 480
"""Images are made smaller until their long side is at most this many pixels."""
OPACITY = 0.7
"""Of the classes over the image."""
LEAST_NAMED, LEAST_LISTED = 0.02, 0.005
"""The least share of a picture that a class with its name in it has, and one in the legend."""
MOST_PAIRS = 50
"""So many of the pairs that the ambiguity stage decided are listed."""
SHOWN_SETTINGS = (
    *("DATASETS.TEST", "INPUT.EXIF_ORIENTATION", "INPUT.FORMAT", "INPUT.MAX_SIZE_TEST"),
    *("INPUT.MIN_SIZE_TEST", "MODEL.CLIP.", "MODEL.FREECP.", "MODEL.META_ARCHITECTURE"),
)
"""Keys of the config that are seen at once, or how they begin; the others are folded away."""


@dataclass(frozen=True)
class Example:
    """An image to show: its file, label maps (H, W), and their mIoU on it in percent.

    Attributes:
        base: the label map of the base method alone, or None.
    """

    file_name: str
    truth: np.ndarray
    predicted: np.ndarray
    score: float
    base: np.ndarray | None = None
    base_score: float | None = None


@dataclass(frozen=True)
class Picture:
    """What is drawn: a title, a data URI, and (class id, x, y in percent) where names stand."""

    title: str
    uri: str
    names: Sequence[tuple[int, float, float]] = ()


def write_report(
    path: Path,
    results: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    palette: np.ndarray,
    best: Sequence[Example],
    worst: Sequence[Example],
) -> None:
    """Write the report.

    Args:
        results: what results.json holds.
        base: the same of the base method alone, or None.
        palette: (K, 3) uint8 RGB (:func:`palette_of`).
        best, worst: images by their own mIoU.
    """
    runs = [run for run in (base, results) if run is not None]
    turned = results.get("config", {}).get("INPUT", {}).get("EXIF_ORIENTATION", True)
    titles = (method_of(results), method_of({**results, "enabled": False}))
    shown, folded = _settings(runs)
    page = render(
        "report.html",
        results=results,
        failed=results.get("failed", {}),
        columns=[(method_of(run), run) for run in runs],
        metrics=[
            (name, *_compared([run["metrics"][name] for run in runs]))
            for name in results["metrics"]
        ],
        classes=[
            _compared([entry["IoU"] for entry in entries])
            for entries in zip(*(run["classes"] for run in runs), strict=True)
        ],
        colors=[f"rgb({red} {green} {blue})" for red, green, blue in palette.tolist()],
        names=[entry["name"] for entry in results["classes"]],
        confusions=results["confusions"],
        pairs=results.get("ambiguous_losses", [])[:MOST_PAIRS],
        totals={
            key: sum(pair[key] for pair in results.get("ambiguous_losses", []))
            for key in ("images", "right", "wrong")
        },
        sections=[
            (
                title,
                [
                    (
                        example,
                        draw(example, palette, titles, turned),
                        *legend(example, len(palette)),
                    )
                    for example in examples
                ],
            )
            for title, examples in (("Best images", best), ("Worst images", worst))
        ],
        presence=results.get("presence"),
        separability=results.get("separability"),
        recognised=[
            column for column in results["classes"][0] if column.startswith(("AP ", "silhouette "))
        ],
        dependency=_png_uri(dependency_picture(results["dependency"]))
        if results.get("dependency")
        else None,
        settings=shown,
        folded=folded,
    )
    write_whole(path, page)


def draw(
    example: Example, palette: np.ndarray, titles: tuple[str, str], exif_orientation: bool = True
) -> list[Picture]:
    """The image, the ground truth, the base method where it is known, and the prediction.

    Args:
        palette: (K, 3) uint8 RGB.
        titles: of the prediction and of the base method.
        exif_orientation: whether the image was turned as its EXIF data say.
    """
    image = read_image(example.file_name, exif_orientation=exif_orientation)
    height, width = example.truth.shape
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    size = [max(round(side * scale), 1) for side in (width, height)]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    maps = [("ground truth", example.truth), (titles[0], example.predicted)]
    if example.base is not None:
        maps.insert(1, (titles[1], example.base))
    pictures = [Picture("image", _data_uri(image))]
    for title, labels in maps:
        labels = cv2.resize(labels.astype(np.int32), size, interpolation=cv2.INTER_NEAREST_EXACT)
        picture = overlay(image, labels, palette)
        pictures.append(Picture(title, _data_uri(picture), anchors(labels, len(palette))))
    return pictures


def overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """The image under the colours of its classes, with white outlines.

    Args:
        image: (H, W, 3) uint8.
        labels: (H, W); what is no class, such as an ignore_label, shows the image.
        palette: (K, 3) uint8.
    """
    is_class = (labels >= 0) & (labels < len(palette))
    colors = palette[np.where(is_class, labels, 0)]
    mixed = (1 - OPACITY) * image + OPACITY * colors
    picture = np.where(is_class[..., None], mixed.round().astype(np.uint8), image)
    picture[:, 1:][labels[:, 1:] != labels[:, :-1]] = 255
    picture[1:][labels[1:] != labels[:-1]] = 255
    return picture


def anchors(labels: np.ndarray, num_classes: int) -> list[tuple[int, float, float]]:
    """Where the name of each class that is large enough stands: deepest in its region.

    Returns:
        (class id, x, y), these two in percent of width and height.
    """
    places = []
    for label, share in _shares(labels, num_classes).items():
        if share >= LEAST_NAMED:
            region = np.pad(labels == label, 1).astype(np.uint8)
            depth = cv2.distanceTransform(region, cv2.DIST_L2, 3)[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            height, width = depth.shape
            x_percent = min(max(100 * (x + 0.5) / width, 12), 88)
            places.append((label, round(float(x_percent), 1), round(100 * (y + 0.5) / height, 1)))
    return places


def legend(example: Example, num_classes: int) -> tuple[list[tuple[int, bool]], int]:
    """(class id, whether the ground truth has it), the largest first, and how many are left out."""
    present = _shares(example.truth, num_classes)
    largest = dict(present)
    for labels in (example.predicted, example.base):
        if labels is not None:
            for label, share in _shares(labels, num_classes).items():
                largest[label] = max(share, largest.get(label, 0))
    listed = [
        (label, label in present)
        for label in sorted(largest, key=lambda label: (-largest[label], label))
        if label in present or largest[label] >= LEAST_LISTED
    ]
    return listed, len(largest) - len(listed)


def palette_of(metadata: Metadata) -> np.ndarray:
    """(K, 3) uint8: the colours of a data set, or those of :func:`freecp_d2.overlay.palette`.

    Raises:
        ValueError: `stuff_colors` are not three integers of 0-255 a class.
    """
    names, given = metadata.stuff_classes, metadata.get("stuff_colors")
    if given is None:
        return distinct_colors(len(names), names[0] == "background")
    if len(given) != len(names):
        raise ValueError(
            f"{metadata.name}: {len(given)} stuff_colors of {len(names)} classes; give each "
            "its own, or leave them out"
        )
    for name, color in zip(names, given, strict=True):
        if not _is_color(color):
            raise ValueError(
                f"{metadata.name}: the stuff_colors of {printable(name)!r} are {color}; give "
                "three integers from 0 to 255, R, G and B"
            )
    return np.array([[int(value) for value in color] for color in given], dtype=np.uint8)


def _is_color(color: Any) -> bool:
    array = np.asarray(color, dtype=object)
    return array.shape == (3,) and all(
        isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value <= 255
        for value in array
    )


def _shares(labels: np.ndarray, num_classes: int) -> dict[int, float]:
    """Class id -> its share of the pixels."""
    ids, counts = np.unique(labels, return_counts=True)
    pairs = zip(ids.tolist(), counts.tolist(), strict=True)
    return {label: count / labels.size for label, count in pairs if 0 <= label < num_classes}


def _compared(values: Sequence[float | None]) -> tuple[Sequence[float | None], float | None]:
    """The values of the base method, if any, and of this run; the gain."""
    return values, difference(values[-1], values[0])


def _settings(runs: Sequence[Mapping[str, Any]]) -> tuple[list[tuple], list[tuple]]:
    """(key, a value a run, whether they differ): those seen at once, and those folded away."""
    each = [settings_of(run) for run in runs]
    shown: list[tuple] = []
    folded: list[tuple] = []
    for key in each[-1]:
        values = [settings.get(key, "unknown") for settings in each]
        differ = len(set(values)) > 1
        seen = differ or key.startswith(SHOWN_SETTINGS) or not key.isupper()
        (shown if seen else folded).append((key, values, differ))
    return shown, folded


def _png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _data_uri(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
