"""Reading and resizing images and label maps.

Nothing here imports torch: the processes of `freecp_d2.data.prepare` start quickly.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

log = logging.getLogger(__name__)

DEPTHS = 8, 10, 12, 14, 16
"""Bits that a camera or scanner may have filled of the 16 that a file has for them."""
HEIC_SENTENCE = (
    "HEIC images need one more package, pip install 'freecp_d2[heif]'; or save them as JPEG"
)
HEIC_BRANDS = b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"
"""What bytes 8 to 11 of a HEIC or HEIF image are."""
LOSSLESS = "PNG", "TIFF", "BMP", "PPM", "TGA"
"""Formats, as Pillow names them, that a label map may have."""
LOSSY_TIFF = "jpeg", "tiff_jpeg", "webp"
_ORIENTATION = 0x0112
TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the image upright."""
_TURN_BACK = {**TURN, 6: TURN[8], 8: TURN[6]}


def read_image(
    path: str | os.PathLike, format: str = "RGB", exif_orientation: bool = True
) -> np.ndarray:
    """Read an image of any of Pillow's integer modes.

    Transparency is dropped. Of 16 bits the upper 8 are kept: of those that are used, which are the
    lowest 8, 10, 12, 14 or 16 that hold the highest value; fewer than 16 are said in a warning.

    Args:
        path: a file, or what else Detectron2's PathManager resolves.
        format: channel order, RGB or BGR.
        exif_orientation: turn it as its EXIF data say.

    Returns:
        (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, truncated, not an image, or holds floats or integers that
            16 bits do not hold.
        PIL.Image.DecompressionBombError: it has more pixels than Pillow allows.
    """
    pixels, _ = read_with_orientation(path, exif_orientation)
    return pixels[:, :, ::-1] if format == "BGR" else pixels


def read_with_orientation(
    path: str | os.PathLike, exif_orientation: bool = True, content: bytes | None = None
) -> tuple[np.ndarray, int]:
    """What :func:`read_image` gives in RGB; and the EXIF orientation of the file, 1 without one.

    Args:
        content: of the file, where it is in memory already.
    """
    with open_image(path, content) as image:
        return to_pixels(image, path, exif_orientation, lambda: _opened(path, content))


def to_pixels(
    image: Image.Image,
    name: str | os.PathLike,
    exif_orientation: bool = True,
    reopen: Callable[[], IO[bytes]] | None = None,
) -> tuple[np.ndarray, int]:
    """A PIL image as :func:`read_image` gives it.

    Args:
        name: what a warning calls it.
        exif_orientation: as in :func:`read_image`.
        reopen: opens its file, from which OpenCV may read the colours of 16 bits of which Pillow
            keeps the upper 8 alone. Without it such an image of low bits is an error.

    Returns:
        (H, W, 3) uint8 RGB; and the EXIF orientation that the image had, 1 where none is known.

    Raises:
        ValueError: it holds floats, or integers that 16 bits do not hold, or that Pillow loses.
        OSError: it cannot be decoded.
    """
    if image.mode == "F":
        raise ValueError("it holds floats, whose range is unknown")
    cut = any(";16" in _raw_mode(tile) or tile[0] == "SGI16" for tile in _tiles(image))
    before = _orientation(image)
    image.load()  # which turns a TIFF
    after = _orientation(image)
    if image.mode.startswith("I"):
        upright = Image.fromarray(_eight_bits(np.asarray(image), name))
    elif (deep := _cut_colors(image, cut, reopen)) is not None:
        upright, after = Image.fromarray(_eight_bits(deep, name)), before
    else:
        # Pillow would warn of transparency in palettes.
        upright = image.convert("RGBA") if "transparency" in image.info else image
    if exif_orientation:
        turn = TURN.get(after)
    else:
        turn = _TURN_BACK.get(before) if before != after else None
    if turn is not None:
        upright = upright.transpose(turn)
    return np.asarray(upright.convert("RGB")), before


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data, for which Pillow raises whatever it stumbles over
        return 1


def _eight_bits(values: np.ndarray, name: str | os.PathLike) -> np.ndarray:
    """Integers of 16 or 32 bits as uint8, of the same shape."""
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest >= 1 << DEPTHS[-1]:
        raise ValueError(
            f"it holds integers from {lowest} to {highest}, whose range is unknown; convert it to "
            "8 bits, or to 16 bits without a sign"
        )
    depth = next(depth for depth in DEPTHS if highest < 1 << depth)
    if depth < DEPTHS[-1] and highest:
        _say_depth(str(name), highest, depth)
    return (values >> (depth - 8)).astype(np.uint8)


@lru_cache(maxsize=10_000)  # once a file
def _say_depth(name: str, highest: int, depth: int) -> None:
    log.warning(
        "%s: its highest value is %d, so it is read as %d bits in 16, not 16", name, highest, depth
    )


def _cut_colors(
    image: Image.Image, cut: bool, reopen: Callable[[], IO[bytes]] | None
) -> np.ndarray | None:
    """Colours (H, W, 3) uint16 of which Pillow has kept next to nothing, the upper 8 bits.

    Args:
        cut: whether Pillow has cut 16 bits for sure; of JPEG 2000 and PPM it does not say.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(284) == 2 and max(tags.get(258, (8,))) > 8:  # PlanarConfiguration, BitsPerSample
        raise ValueError("its planes of 16 bits lie one behind the other; interleave them")
    channels = sum(band != "A" for band in image.getbands())
    may_be = cut or (image.format in ("JPEG2000", "PPM") and image.mode in ("RGB", "RGBA"))
    if not may_be or np.asarray(image)[..., :channels].max() >= 80:
        return None
    colors = None
    if reopen is not None and image.mode != "CMYK":
        with reopen() as file:
            content = np.frombuffer(file.read(), dtype=np.uint8)
        colors = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    if colors is not None and colors.dtype == np.uint16 and colors.ndim == 3:
        return colors[:, :, 2::-1]
    if cut:
        raise ValueError(
            "it has 16 bits a channel of which only low ones are used, and Pillow keeps only high "
            "ones; give the path of a PNG or TIFF of it, or scale it to 8 bits"
        )
    return None


@contextmanager
def open_image(path: str | os.PathLike, content: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file; whatever goes wrong inside becomes a one-line error that names it.

    Args:
        content: of the file, where it is in memory already.

    Raises:
        FileNotFoundError, ValueError, PIL.Image.DecompressionBombError: see :func:`read_image`.
    """
    try:
        with _opened(path, content) as file:
            Image.open(file, formats=formats()).verify()  # a PNG's checksums, which reading ignores
            file.seek(0)
            yield Image.open(file, formats=formats())
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; check the data set's root (DETECTRON2_DATASETS)"
        ) from None
    except UnidentifiedImageError:
        with _opened(path, content) as file:
            heic = _begins_as_heic(file)
        if heic:
            raise ValueError(f"{path}: {HEIC_SENTENCE}") from None
        raise ValueError(f"{path}: not an image that Pillow knows; replace the file") from None
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError(f"{path}: {error} Make the image smaller.") from None
    except MemoryError as error:
        raise MemoryError(f"{path}: {error}") from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over
        if "memory" in str(error).lower():
            raise MemoryError(f"{path}: {error}") from error
        raise ValueError(f"{path}: not a readable image ({error}); replace the file") from error


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """The formats, as Pillow names them, of pictures that it decodes itself; HEIC with its package.

    Not those that it hands to other programs, as EPS to Ghostscript, or knows by name alone.
    """
    with suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    stubs = {
        name for name, (kind, _) in Image.OPEN.items() if _is_class(kind, ImageFile.StubImageFile)
    }
    return tuple(name for name in Image.ID if name not in {"EPS", "MPEG", *stubs})


def _is_class(kind: object, of: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, of)


def image_suffixes() -> frozenset[str]:
    """Suffixes of these formats, in lower case with their dots."""
    known = {*formats(), "MPO"}  # which Pillow opens as a JPEG
    return frozenset(s for s, name in Image.registered_extensions().items() if name in known)


def _begins_as_heic(file: IO[bytes]) -> bool:
    """Whether a file is a HEIC or HEIF image, by its first bytes."""
    head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS


def load_label_map(path: str | os.PathLike, dtype: type = int) -> np.ndarray:
    """Read a label map as a writable (H, W) array.

    It holds integers of any size, floats that are whole numbers, or a palette's indices.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, of a lossy format, whatever its suffix, has several
            channels, or values that are no ids or that `dtype` does not hold.
    """
    with open_image(path) as image:
        fault, step = _fault_of_labels(image), _step_of_labels(image)
        values: np.ndarray = np.array(image)
    if not fault and values.ndim != 2:
        fault = (
            f"shape {values.shape}; a label map has one channel of class ids, so fetch it anew or "
            "convert it"
        )
    if fault:
        raise ValueError(f"{path}: {fault}")
    if step > 1:
        values //= step
    with np.errstate(invalid="ignore"):
        labels: np.ndarray = values.astype(dtype)
    wrong = labels != values
    if wrong.any():
        raise ValueError(
            f"{path}: value {values[wrong][0]} is no class id; a label map holds whole numbers, so "
            "fetch it anew or convert it"
        )
    return labels


def _fault_of_labels(image: Image.Image) -> str:
    """Why an image, not loaded yet, is no label map; "" where it may be one."""
    lossy_tiff = image.format == "TIFF" and image.info.get("compression") in LOSSY_TIFF
    if image.format not in LOSSLESS or lossy_tiff:
        kind = "TIFF compressed as a JPEG is" if lossy_tiff else image.format
        return (
            f"a file of format {kind}, which may change class ids as it compresses them; fetch the "
            "label map as a PNG"
        )
    for tile in _tiles(image):
        raw = _raw_mode(tile)
        if raw in ("1;I", "1;IR") or (raw.startswith("L;") and "I" in raw):
            return "its values are stored inverted (TIFF's WhiteIsZero); convert it to a PNG"
        if image.format == "PPM" and tile[0] != "raw" and tile[3][-1] not in (255, 65535):
            return f"its values are relative to a maximum of {tile[3][-1]}; convert it to a PNG"
    return ""


def _step_of_labels(image: Image.Image) -> int:
    """What Pillow multiplies the values of 2 and 4 bits of grey by."""
    raw = {_raw_mode(tile)[:3] for tile in _tiles(image)}
    return 85 if "L;2" in raw else 17 if "L;4" in raw else 1


def _tiles(image: Image.Image) -> list[tuple]:
    """What Pillow is going to decode, (codec, extents, offset, arguments); none once it has."""
    return list(getattr(image, "tile", ()))


def _raw_mode(tile: tuple) -> str:
    args = tile[3]
    return str(args[0] if isinstance(args, tuple) and args else args)


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


def _opened(path: str | os.PathLike, content: bytes | None) -> IO[bytes]:
    """`content`, or a file on disk, or what only Detectron2's PathManager knows ("https://...")."""
    path = os.fspath(path)
    if content is not None:
        return io.BytesIO(content)
    if "://" not in path:
        return open(path, "rb")
    from detectron2.utils.file_io import PathManager

    return PathManager.open(path, "rb")
