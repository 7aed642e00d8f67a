"""Reading and resizing images and label maps.

Nothing here imports torch: the processes of `freecp_d2.data.prepare` start quickly.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def read_image(path: str | os.PathLike, format: str = "RGB") -> np.ndarray:
    """Read an image of any of Pillow's integer modes, turned as its EXIF data say.

    Transparency is dropped; of 16 bits the upper 8 are kept.

    Args:
        path: a file, or what else Detectron2's PathManager resolves.
        format: channel order, RGB or BGR.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, truncated, not an image, or holds floats.
        PIL.Image.DecompressionBombError: it has more pixels than Pillow allows.
    """
    with open_image(path) as image:
        image = _turned(image)
        if image.mode == "F":
            raise ValueError("it holds floats, whose range is unknown")
        pixels = np.asarray(to_eight_bits(image).convert("RGB"))
    return pixels[:, :, ::-1] if format == "BGR" else pixels


@contextmanager
def open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong inside becomes a one-line error that names it.

    Raises:
        FileNotFoundError, ValueError, PIL.Image.DecompressionBombError: see :func:`read_image`.
    """
    try:
        with _open(os.fspath(path)) as file:
            Image.open(file).verify()  # a PNG's checksums, which reading ignores
            file.seek(0)
            yield Image.open(file)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; check the data set's root (DETECTRON2_DATASETS)"
        ) from None
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image that Pillow knows; replace the file") from None
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"{path}: {error} Make the image smaller.") from None
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        raise ValueError(f"{path}: not a readable image ({error}); replace the file") from error


def load_label_map(path: str | os.PathLike, dtype: type = int) -> np.ndarray:
    """Read a label map, of 8 or 16 bits or a palette's indices, as a writable (H, W) array.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, or has several channels.
    """
    with open_image(path) as image:
        labels: np.ndarray = np.array(image, dtype=dtype)
    if labels.ndim != 2:
        raise ValueError(
            f"{path}: shape {labels.shape}; a label map has one channel of class ids, so fetch it "
            "anew or convert it"
        )
    return labels


def resize_shortest_edge(image: np.ndarray, min_size: int, max_size: int) -> np.ndarray:
    """Resize (H, W, C) uint8 bilinearly, without antialiasing, keeping the aspect ratio.

    Args:
        min_size: length of the short side; 0 returns the image as it is.
        max_size: the long side gets no longer than this.
    """
    if min_size == 0:
        return image
    height, width = image.shape[:2]
    scale = min(max_size / max(height, width), min_size / min(height, width))
    size = max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Pillow's convert() would clip 16 bits and warn of transparency in palettes."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGBA") if "transparency" in image.info else image


def _open(path: str) -> IO[bytes]:
    """A file on disk, or what only Detectron2's PathManager knows ("https://...")."""
    if "://" not in path:
        return open(path, "rb")
    from detectron2.utils.file_io import PathManager

    return PathManager.open(path, "rb")


def _turned(image: Image.Image) -> Image.Image:
    """As its EXIF data say; data that cannot be read say nothing."""
    try:
        image.getexif()
    except Exception:  # Pillow raises whatever it stumbles over
        return image
    return ImageOps.exif_transpose(image)
