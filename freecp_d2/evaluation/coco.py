"""Label maps as COCO's JSON of segments."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..coco import encode_mask
from ..files import whole_file
from .records import Records


def segments_of(
    image: Mapping[str, Any], labels: np.ndarray, category_ids: Mapping[int, int]
) -> list[dict[str, Any]]:
    """A label map (H, W) as COCO's segments.

    Args:
        image: Detectron2's dict; `file_name`, and `image_id` where there is one, are kept.
        category_ids: class id -> the data set's category id.
    """
    keys = {key: image[key] for key in ("image_id", "file_name") if key in image}
    return [
        {**keys, "category_id": category_ids[label], "segmentation": encode_mask(labels == label)}
        for label in np.unique(labels).tolist()
    ]


def write_segments(path: Path, segments: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON list, a segment at a time."""
    with whole_file(path) as whole, whole.open("w", encoding="utf-8") as file:
        separator = "["
        for segment in segments:
            file.write(f"{separator}\n{json.dumps(segment)}")
            separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")


def write_predictions(path: Path, records: Records, files: Sequence[str], images: int) -> None:
    """Write the segments that the records hold, in the order of `files`.

    Args:
        files: all images of the data set.
        images: so many of them are evaluated.

    Raises:
        FileNotFoundError: there are records of fewer; then there is no file.
    """
    number = 0

    def segments() -> Iterator[dict[str, Any]]:
        nonlocal number
        for record in records.in_order(files):
            number += 1
            yield from record["segments"]

    write_segments(path, segments())
    if number != images:
        path.unlink()
        raise FileNotFoundError(
            f"{records.folder} has {number} of {images} images; COCO predictions need an "
            "OUTPUT_DIR that all machines share"
        )
