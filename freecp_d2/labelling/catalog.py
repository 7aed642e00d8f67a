"""Labels in Detectron2's catalogs."""

import json
import os
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

_METADATA = "stuff_classes", "stuff_colors", "ignore_label"


def register_labels(name: str, json_file: str | os.PathLike) -> None:
    """Register the labels of a run as a data set for semantic segmentation.

    Its images have Detectron2's keys, and `scores_file_name` where scores were written.

    Args:
        name: of the data set.
        json_file: `sem_seg.json` of the output folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or the name is taken.
    """
    json_file = os.fspath(json_file)
    if name in DatasetCatalog:
        raise ValueError(f"there is a data set {name!r} already; choose another name")
    content = _load(json_file)
    DatasetCatalog.register(name, partial(_images, json_file))
    MetadataCatalog.get(name).set(
        **{key: content[key] for key in _METADATA}, evaluator_type="sem_seg", json_file=json_file
    )


def _images(json_file: str) -> list[dict[str, Any]]:
    folder = os.path.dirname(json_file)
    files = "sem_seg_file_name", "scores_file_name"
    return [
        image | {key: os.path.join(folder, image[key]) for key in files if key in image}
        for image in _load(json_file)["images"]
    ]


def _load(json_file: str) -> dict[str, Any]:
    with PathManager.open(json_file, "r") as file:
        try:
            content = json.load(file)
        except (ValueError, RecursionError):
            content = None
    if not isinstance(content, dict) or {*_METADATA, "images"} - content.keys():
        raise ValueError(
            f"{json_file}: not the sem_seg.json of `freecp label`; name that of an output folder"
        )
    return content
