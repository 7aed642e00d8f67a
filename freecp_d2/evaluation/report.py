"""The HTML report of an evaluation: one file that needs no network."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from ..data.mapper import read_image
from ..files import write_whole
from ..fonts import set_fonts
from .results import method_of, printable

PICTURE_SIDE = 480
"""Images are made smaller until their long side is at most this many pixels."""
LEAST_SIDE = 16
"""No side is drawn smaller; Detectron2's Visualizer does not draw two pixels."""
LONGEST_NAME = 60
"""A class's name in a picture has at most so many characters."""
MOST_PAIRS = 50
"""So many of the pairs that the ambiguity stage decided are listed."""


@dataclass(frozen=True)
class Example:
    """An image to show: its file, its own mIoU in percent, and label maps (H, W)."""

    file_name: str
    score: float
    predicted: np.ndarray
    truth: np.ndarray


def write_report(
    path: Path,
    results: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    palette: Metadata,
    best: Sequence[Example],
    worst: Sequence[Example],
) -> None:
    """Write the report.

    Args:
        results: what results.json holds.
        base: the same of the base method alone, or None.
        palette: names and colours of the pictures (:func:`palette_of`).
        best, worst: images by their own mIoU.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.rpartition(".")[0], ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if isinstance(value, str) else value,
    )
    environment.filters["figure"] = _figure
    runs = [run for run in (base, results) if run is not None]
    turned = results.get("config", {}).get("INPUT", {}).get("EXIF_ORIENTATION", True)
    html = environment.get_template("report.html").render(
        results=results,
        columns=[(method_of(run), run) for run in runs],
        classes=list(zip(*(run["classes"] for run in runs), strict=True)),
        pairs=results.get("ambiguous_losses", [])[:MOST_PAIRS],
        sections=[
            (title, [(example, draw(example, palette, turned)) for example in examples])
            for title, examples in (("Best images", best), ("Worst images", worst))
        ],
    )
    write_whole(path, html.encode())


def draw(example: Example, metadata: Metadata, exif_orientation: bool = True) -> dict[str, str]:
    """Title -> data URI of the image, the ground truth and the prediction.

    Args:
        metadata: with `stuff_classes` and `stuff_colors`.
        exif_orientation: whether the image was turned as its EXIF data say.
    """
    image = read_image(example.file_name, exif_orientation=exif_orientation)
    height, width = example.truth.shape
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    size = [max(round(side * scale), LEAST_SIDE) for side in (width, height)]
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    pictures = {"image": image}
    for title, labels in (("ground truth", example.truth), ("prediction", example.predicted)):
        labels = cv2.resize(labels.astype(np.uint16), size, interpolation=cv2.INTER_NEAREST)
        drawn = Visualizer(image, metadata).draw_sem_seg(labels)
        set_fonts(drawn.ax)
        pictures[title] = drawn.get_image()
    return {title: _data_uri(picture) for title, picture in pictures.items()}


def palette_of(metadata: Metadata) -> Metadata:
    """Names, as plain text for Detectron2's Visualizer, and colours of a data set.

    Detectron2's colours where a data set has none: its Visualizer would draw lots.

    Raises:
        ValueError: `stuff_colors` are not three integers of 0-255 a class.
    """
    names = metadata.stuff_classes
    colors = colormap(rgb=True).astype(int).tolist()
    colors = [colors[i % len(colors)] for i in range(len(names))]
    given = metadata.get("stuff_colors")
    if given is not None:
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
        colors = [[int(value) for value in color] for color in given]
    return Metadata(stuff_classes=[_plain_text(name) for name in names], stuff_colors=colors)


def _is_color(color: Any) -> bool:
    array = np.asarray(color, dtype=object)
    return array.shape == (3,) and all(
        isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value <= 255
        for value in array
    )


def _plain_text(name: str) -> str:
    """A name in one short line."""
    name = printable(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _data_uri(image: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _figure(value: float | None, digits: int = 1) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"
