"""What a request may bring: a picture that was uploaded, classes, a background, thresholds."""

import os
import stat
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ...data.images import read_image

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
MAX_SIDE = 1024
MAX_AREA = 768 * 768
"""Larger pictures are shrunk to this long side and so many pixels before anything else: those, with
MAX_CLASSES, decide how much memory a request takes."""
MAX_CLASSES = 200
"""Also of classes and background names together."""
AUTOMATIC = 64
"""Background names that are chosen for the classes, at most."""
MAX_NAME = 80
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


def uploaded_file(upload: object, folder: str) -> str:
    """The path of a request's picture, resolved: a file in the folder of uploads, or none there.

    It may not be a link out of it. What lies elsewhere is not looked at.

    Args:
        upload: what the request holds in the picture's place: {"path": path} of an upload.
        folder: of uploads.

    Raises:
        ValueError: there is no picture, or it is none of the uploads: the same sentence whether or
            not there is such a file.
    """
    if upload is None or upload == {}:
        raise ValueError("Drop a picture first, or click an example.")
    path = upload.get("path") if isinstance(upload, dict) else None
    folder = os.path.realpath(folder)
    with suppress(OSError, ValueError):  # names that no file system takes
        if isinstance(path, str) and Path(os.path.abspath(path)).is_relative_to(folder):
            resolved = os.path.realpath(os.path.abspath(path))
            if Path(resolved).is_relative_to(folder):
                try:
                    status = os.stat(resolved)
                except FileNotFoundError:
                    return resolved  # deleted in the meantime
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    return resolved
    raise ValueError("Only pictures that were dropped on this page can be used; drop it again.")


def load_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB within MAX_SIDE and MAX_AREA; errors are those of :func:`read_upload`."""
    image = read_upload(path)
    height, width = image.shape[:2]
    scale = min(MAX_SIDE / max(height, width), (MAX_AREA / (height * width)) ** 0.5)
    if scale < 1:
        shrunk = [max(int(n * scale), 1) for n in (width, height)]
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    return image


def read_upload(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB, as large as it came. Its size is checked before it is decoded.

    Raises:
        ValueError: no such file, no image, of too many bytes or pixels.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a FIFO or device, which may never end
            raise Image.UnidentifiedImageError
        size = status.st_size
        if size > MAX_BYTES:
            raise ValueError(
                f"{path.name} has {size / 2**20:.1f} MiB; this page takes at most "
                f"{MAX_BYTES // 2**20}. Make it smaller and drop it again."
            )
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError
        return read_image(path)
    except FileNotFoundError:
        raise ValueError("The picture was deleted in the meantime; drop it again.") from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path.name} is no picture that this page can read; it takes {', '.join(FORMATS)}."
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path.name} has too many pixels; this page takes at most "
            f"{MAX_PIXELS // 1_000_000} million. Make it smaller and drop it again."
        ) from None
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None


def parse_classes(text: object) -> list[str]:
    """Class names, separated by commas or line ends.

    Raises:
        ValueError: no text, or words that :func:`check_words` refuses.
    """
    if not isinstance(text, str):
        raise ValueError("The classes must be text, separated by commas or lines.")
    names = [" ".join(name.split()) for line in text.splitlines() for name in line.split(",")]
    names = [name for name in names if name]
    check_words(names, False)
    return names


def check_words(names: Sequence[str], background: object) -> None:
    """Whether the page takes these words.

    Args:
        background: True, False, "auto", or a list of names.

    Raises:
        ValueError: no class, more than MAX_CLASSES with the background's names, one of more than
            MAX_NAME characters or with characters that are no text; or no background as above.
    """
    if not names:
        raise ValueError("Type at least one class, for example: sky, road, tree.")
    more = [] if isinstance(background, bool) or background == "auto" else background
    if not isinstance(more, list) or not all(isinstance(name, str) for name in more):
        raise ValueError("The background must be true, false, auto or a list of names.")
    count = AUTOMATIC if background == "auto" else len(more)
    if len(names) + count > MAX_CLASSES:
        what = f"{len(names)} classes" + (f" and {count} background names" if count else "")
        raise ValueError(f"{what} are too many; this page takes at most {MAX_CLASSES}.")
    for name in [*names, *more]:
        if len(name) > MAX_NAME:
            raise ValueError(f"{shorten(name)!r} has {len(name)} characters; at most {MAX_NAME}.")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise ValueError(f"{name!a} has characters that are no text; take them out.")


def shorten(name: str, length: int = 26) -> str:
    """A long name's beginning."""
    return name if len(name) <= length else name[: length - 1] + "…"


def check_thresholds(redundancy: object, ambiguity: object) -> None:
    """Whether both are thresholds.

    Raises:
        ValueError: one is no number from 0 to 1.
    """
    for name, value in (("redundancy", redundancy), ("ambiguity", ambiguity)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:  # type: ignore[operator]
            raise ValueError(f"The {name} threshold must be a number from 0 to 1.")
