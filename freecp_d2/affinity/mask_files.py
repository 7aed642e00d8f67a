"""Files of class-agnostic masks, as SAM's automatic mask generator and others write them.

What SAM writes was read off scripts/amg.py, segment_anything/automatic_mask_generator.py and
README.md (data set SA-1B) of github.com/facebookresearch/segment-anything.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..data.images import load_label_map
from .provider import AffinityFault


def read_masks(folder: Path, image: str, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The masks of an image: `<stem>.json`, `<stem>.png` or the PNGs of the folder `<stem>`.

    JSON: a list of records with `segmentation`, COCO's RLE, compressed or not, as SAM's amg.py
    writes with --convert-to-rle; or an object with such a list as `annotations`, as SA-1B has. An
    empty list: no mask. PNG: a label map, every value but 0 is a mask. A folder: every PNG is one,
    where it is not 0, as amg.py writes without that option.

    Args:
        image: the path of the image; its name without the suffix is the stem.
        size: height and width that the masks must have.

    Yields:
        (H, W) bool.

    Raises:
        AffinityFault: no such file or several, a damaged one, or one of another size.
    """
    stem = os.path.splitext(os.path.basename(image))[0]
    named = [folder / f"{stem}.json", folder / f"{stem}.png", folder / stem]
    files = [path for path in named if path.exists()]
    if len(files) != 1:
        what = "more than one of them" if files else "none of them"
        raise AffinityFault(
            f"{image}: its masks are {named[0]}, {stem}.png or the folder {stem}, and there is "
            f"{what}; correct MODEL.FREECP.AFFINITY_MASKS or that folder"
        )
    (file,) = files
    if file.suffix == ".json":
        return _of_json(file, image, size)
    return _of_label_map(file, image, size) if file.is_file() else _of_folder(file, image, size)


def _of_label_map(file: Path, image: str, size: tuple[int, int]) -> Iterator[np.ndarray]:
    labels = _load_png(file, image, size)
    for label in np.unique(labels):
        if label:
            yield labels == label


def _of_folder(folder: Path, image: str, size: tuple[int, int]) -> Iterator[np.ndarray]:
    files = sorted(folder.glob("*.png"))
    if not files:
        raise AffinityFault(f"{image}: its folder of masks {folder} has no PNG; write them anew")
    for file in files:
        yield _load_png(file, image, size) != 0


def _load_png(file: Path, image: str, size: tuple[int, int]) -> np.ndarray:
    try:
        labels = load_label_map(file)
    except (OSError, ValueError) as error:
        raise AffinityFault(f"{image}: its masks cannot be read: {error}") from error
    _require_size(file, image, labels.shape, size)
    return labels


def _of_json(file: Path, image: str, size: tuple[int, int]) -> Iterator[np.ndarray]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AffinityFault(
            f"{image}: its masks {file} cannot be read ({error}); write them anew"
        ) from error
    records = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(records, list):
        raise AffinityFault(
            f"{image}: its masks {file} are no list of records, nor an object with annotations; "
            "write them as SAM's amg.py --convert-to-rle does"
        )
    for number, record in enumerate(records):
        rle = record.get("segmentation") if isinstance(record, dict) else None
        if (
            not isinstance(rle, dict)
            or not isinstance(rle.get("size"), list)
            or not isinstance(rle.get("counts"), str | list)
        ):
            raise AffinityFault(
                f"{image}: mask {number} of {file} has no segmentation as COCO's RLE, an object "
                "with size and counts; write it so"
            )
        _require_size(file, image, tuple(rle["size"]), size)
        counts = rle["counts"]
        counts = _counts_of_text(counts) if isinstance(counts, str) else counts
        whole = all(type(count) is int and count >= 0 for count in counts)
        if not whole or sum(counts) != size[0] * size[1]:
            raise AffinityFault(
                f"{image}: mask {number} of {file} is damaged, its counts are not those of "
                f"{size[0]} x {size[1]} pixels; write it anew"
            )
        # Runs of zeros and ones in turn, column by column.
        ones = np.arange(len(counts)) % 2 == 1
        yield ones.repeat(counts).reshape(size[::-1]).T


def _counts_of_text(text: str) -> list[int]:
    """Lengths of runs in COCO's compressed RLE.

    pycocotools writes past its memory where they are more than the pixels, and says nothing. Each
    number is written as characters of 5 bits above "0", the lowest first; a sixth bit says that
    more follow, and the highest bit of the last is the sign. From the fourth number on they are
    differences to the number before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - ord("0")
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:
            value -= (digit & 0x10) << (shift - 4)
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts


def _require_size(file: Path, image: str, found: tuple[int, ...], size: tuple[int, int]) -> None:
    if found != size:
        raise AffinityFault(
            f"{image}: its masks {file} have (height, width) {found}, and the image {size}, turned "
            "as INPUT.EXIF_ORIENTATION says; make masks of the image as it is read"
        )
