"""What the model takes of an image on disk."""

import copy
import logging
import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import check_image_size

from .benchmarks.protocols import with_protocol
from .images import (
    TURN,
    load_label_map,
    open_image,
    read_image,
    read_with_orientation,
    resize_shortest_edge,
)

__all__ = [
    "InferenceMapper",
    "load_label_map",
    "open_image",
    "read_image",
    "resize_shortest_edge",
]
log = logging.getLogger(__name__)


class InferenceMapper:
    """Detectron2's dict of an image on disk -> what the model takes.

    Unlike Detectron2's own mapper it resizes as the published figures were made, with OpenCV's
    bilinear interpolation.

    Args:
        min_size, max_size: as in :func:`resize_shortest_edge`.
        image_format: RGB or BGR.
        exif_orientation: whether images are turned as their EXIF data say.

    Raises:
        ValueError: an argument out of range.
    """

    @configurable
    def __init__(
        self, *, min_size: int, max_size: int, image_format: str, exif_orientation: bool = True
    ):
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {image_format!r}; choose RGB or BGR")
        if min_size < 0 or max_size < 1:
            raise ValueError(
                f"INPUT.MIN_SIZE_TEST is {min_size} and INPUT.MAX_SIZE_TEST {max_size}; choose at "
                "least 0 and 1"
            )
        self.min_size = min_size
        self.max_size = max_size
        self.image_format = image_format
        self.exif_orientation = exif_orientation

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments from a config."""
        cfg = with_protocol(cfg)
        return {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "image_format": cfg.INPUT.FORMAT,
            "exif_orientation": cfg.INPUT.EXIF_ORIENTATION,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """A copy of `dataset_dict` with `image`, (3, H, W) uint8, and without annotations.

        `height` and `width`, the image's size before it was resized, are set where missing. An
        image that was turned, and whose label map has the size of the image as it was, is named in
        a warning.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_image`; also when the image's size is
                not the given `height` and `width`.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        dataset_dict.pop("annotations", None)
        truth = dataset_dict.pop("sem_seg_file_name", None)
        path = dataset_dict["file_name"]
        image, orientation = read_with_orientation(path, self.exif_orientation)
        if self.exif_orientation and orientation in TURN and truth is not None:
            _compare_with_truth(path, orientation, image.shape[:2], truth)
        check_image_size(dataset_dict, image)
        image = resize_shortest_edge(image, self.min_size, self.max_size)
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        dataset_dict["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        return dataset_dict


def ground_truth(path: str | os.PathLike) -> dict[str, Any]:
    """A label map as Detectron2's dicts have it: `sem_seg`, (H, W), uint8 where the ids allow it.

    Where it cannot be read, `sem_seg_fault` says why instead.
    """
    try:
        labels = load_label_map(path)
    except (OSError, ValueError) as error:
        return {"sem_seg_fault": " ".join(str(error).split())}
    if 0 <= labels.min(initial=0) and labels.max(initial=0) <= 255:
        labels = labels.astype(np.uint8)
    return {"sem_seg": torch.from_numpy(labels)}


def _compare_with_truth(
    path: str, orientation: int, size: tuple[int, ...], truth: str | os.PathLike
) -> None:
    """Warn of an image, turned to (H, W), whose label map has its size before that."""
    stored = size if orientation >= 5 else size[::-1]
    with open_image(truth) as labels:
        unturned = labels.size == stored
    if unturned:
        log.warning(
            "%s is turned by its EXIF orientation %d, and its label map has the size of the image "
            "as it was, %d x %d: where label maps were drawn on images as they were, set "
            "INPUT.EXIF_ORIENTATION False",
            path,
            orientation,
            *stored,
        )
