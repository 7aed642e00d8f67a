"""What people take home of an answer: a ZIP of label map, masks, COCO's JSON and overlay."""

import json
from dataclasses import replace
from io import BytesIO
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import cv2
import numpy as np
from PIL import Image

from ...segmentation import Segmentation, mask_files


def at_size_of(segmentation: Segmentation, image: np.ndarray) -> Segmentation:
    """A segmentation of a picture that was shrunk, at the picture's own size.

    Args:
        image: the picture, (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    labels, confidence = (
        cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        # The page takes fewer classes than 255.
        for values in (segmentation.label_map.astype(np.uint8), segmentation.confidence)
    )
    return replace(segmentation, image=image, label_map=labels, confidence=confidence)


def zipped(segmentation: Segmentation, file_name: str) -> bytes:
    """What :meth:`Segmentation.save` writes, but as a ZIP in memory, since words lie on no disk.

    The overlay is a JPEG, a tenth of the size.

    Args:
        file_name: of the picture, for COCO's JSON.
    """
    content = BytesIO()
    with ZipFile(content, "w", ZIP_STORED) as archive:  # of what is compressed already
        archive.writestr("label_map.png", _encoded(segmentation.label_image(), "PNG"))
        picture = Image.fromarray(segmentation.draw())
        archive.writestr("overlay.jpg", _encoded(picture, "JPEG", quality=92))
        text = json.dumps(segmentation.to_coco(file_name))
        archive.writestr("segmentation.json", text, ZIP_DEFLATED)
        for name, mask in mask_files(segmentation):
            image = Image.fromarray(mask.astype(np.uint8) * 255)
            archive.writestr(f"masks/{name}", _encoded(image, "PNG"))
    return content.getvalue()


def _encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
