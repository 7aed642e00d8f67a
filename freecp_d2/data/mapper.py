"""What the model takes of an image on disk."""

import copy
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import check_image_size

from .images import load_label_map, open_image, read_image, resize_shortest_edge, to_eight_bits

__all__ = [
    "InferenceMapper",
    "load_label_map",
    "open_image",
    "read_image",
    "resize_shortest_edge",
    "to_eight_bits",
]

from .benchmarks.protocols import with_protocol


class InferenceMapper:
    """Detectron2's dict of an image on disk -> what the model takes.

    Unlike Detectron2's own mapper it resizes as the published figures were made, with OpenCV's
    bilinear interpolation.

    Args:
        min_size, max_size: as in :func:`resize_shortest_edge`.
        image_format: RGB or BGR.

    Raises:
        ValueError: an argument out of range.
    """

    @configurable
    def __init__(self, *, min_size: int, max_size: int, image_format: str):
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

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments from a config."""
        cfg = with_protocol(cfg)
        return {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "image_format": cfg.INPUT.FORMAT,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """A copy of `dataset_dict` with `image`, (3, H, W) uint8, and without annotations.

        `height` and `width`, the image's size before it was resized, are set where missing.

        Raises:
            FileNotFoundError, ValueError: see :func:`read_image`; also when the image's size is
                not the given `height` and `width`.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        dataset_dict.pop("annotations", None)
        dataset_dict.pop("sem_seg_file_name", None)
        image = read_image(dataset_dict["file_name"], self.image_format)
        check_image_size(dataset_dict, image)
        image = resize_shortest_edge(image, self.min_size, self.max_size)
        dataset_dict["image"] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        return dataset_dict
