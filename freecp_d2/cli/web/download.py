"""What people take home of an answer: a ZIP of label map, masks, COCO's JSON and overlay."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import cv2
import numpy as np
import pycocotools.mask
from PIL import Image

from ...evaluation.coco import encode_segments
from ...predictor import Segmentation
from .overlay import overlay


def at_size_of(segmentation: Segmentation, image: np.ndarray) -> Segmentation:
    """A segmentation of a picture that was shrunk, at the picture's own size.

    Args:
        image: the picture, (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    labels = segmentation.label_map.astype(np.uint8)  # the page takes fewer classes than 256
    larger = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    return replace(segmentation, image=image, label_map=larger)


def masks(segmentation: Segmentation) -> Iterator[tuple[int, np.ndarray]]:
    """(class, (H, W) bool) of every class that has a pixel."""
    for label in np.unique(segmentation.label_map).tolist():
        yield label, segmentation.label_map == label


def to_coco(segmentation: Segmentation, file_name: str) -> dict[str, Any]:
    """COCO's JSON of one image, with compressed RLE. Category ids are values of the label map."""
    height, width = segmentation.label_map.shape
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": label,
            "segmentation": rle,
            "area": int(pycocotools.mask.area(rle)),
            "bbox": pycocotools.mask.toBbox(rle).tolist(),
            "iscrowd": 0,
            "score": round(float(segmentation.scores[label]), 4),
        }
        for i, (label, rle) in enumerate(encode_segments(segmentation.label_map), start=1)
    ]
    return {
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(segmentation.class_names)],
        "annotations": annotations,
    }


def zipped(segmentation: Segmentation, file_name: str) -> bytes:
    """A ZIP of label_map.png, segmentation.json, overlay.jpg and masks/, all of the same size.

    Masks are 0 or 255, a PNG for every class that has a pixel, named by its value and its name.

    Args:
        file_name: of the picture, for COCO's JSON.
    """
    content = BytesIO()
    with ZipFile(content, "w", ZIP_STORED) as archive:  # of what is compressed already
        label_map = Image.fromarray(segmentation.label_map, mode="P")
        label_map.putpalette(segmentation.colors.tobytes())
        archive.writestr("label_map.png", _encoded(label_map, "PNG"))
        picture = Image.fromarray(overlay(segmentation))
        archive.writestr("overlay.jpg", _encoded(picture, "JPEG", quality=92))
        text = json.dumps(to_coco(segmentation, file_name), ensure_ascii=False)
        archive.writestr("segmentation.json", text, ZIP_DEFLATED)
        for label, mask in masks(segmentation):
            name = re.sub(r"\W+", "_", segmentation.class_names[label]).strip("_")
            image = Image.fromarray(mask.view(np.uint8) * 255)
            archive.writestr(f"masks/{label:03d}_{name}.png", _encoded(image, "PNG"))
    return content.getvalue()


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
