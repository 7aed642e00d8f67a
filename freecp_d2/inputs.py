"""Images and words in the forms in which people give them to a predictor."""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image

from .data import Vocabulary, load_descriptions, load_vocabulary, normalized_name
from .data.images import read_image, resize_shortest_edge, to_pixels
from .data.mapper import InferenceMapper
from .files import PACKAGED

FILE_SUFFIXES = ".txt .json .csv .tsv .yaml .yml .names .lst .list .py .md".split()
"""A word that ends so is the path of a file, there or not, and no class."""

_URL = re.compile(r"(https?|ftp)://", re.IGNORECASE)
log = logging.getLogger(__name__)

ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
VocabularyLike: TypeAlias = (
    Vocabulary
    | Sequence[str]
    | Sequence[Sequence[str]]
    | Mapping[str, str | Sequence[str]]
    | str
    | os.PathLike
    | None
)
"""A list of names; a list of lists, the names of one class each; a dict, class -> more names of it;
a :class:`freecp_d2.data.Vocabulary`; the path of a file of one."""

Background: TypeAlias = bool | Sequence[str]
"""True: what is none of the classes is background; a list: by these names; "auto" or "random": by
names that are chosen (MODEL.FREECP.BACKGROUND); False: as it is."""

DescriptionsLike: TypeAlias = Mapping[str, Sequence[str]] | str | os.PathLike | None
"""Class -> sentences about it, or the path of a file of that."""

FAILURES = (OSError, TypeError, ValueError, Image.DecompressionBombError)
"""What one image may raise without stopping the others."""


def as_vocabulary(vocabulary: Any) -> Vocabulary:
    """The vocabulary of any of :data:`VocabularyLike` but None.
    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: it is no vocabulary, or none that can be used.
    """
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    if isinstance(vocabulary, Mapping):
        for name, more in vocabulary.items():
            if not isinstance(name, str) or not isinstance(more, str | Sequence):
                raise TypeError(f"class {name!r} must have a list of more names, not {more!r}")
        vocabulary = [
            list(dict.fromkeys([name, *([more] if isinstance(more, str) else more)]))
            for name, more in vocabulary.items()
        ]
    if isinstance(vocabulary, str | os.PathLike):
        path = os.path.expanduser(os.fspath(vocabulary))
        if not path.startswith(PACKAGED) and not os.path.isfile(path):
            raise FileNotFoundError(f"vocabulary {path!r}: {_no_vocabulary(vocabulary)}")
        return load_vocabulary(path)
    if not isinstance(vocabulary, Sequence):
        raise TypeError(f"a vocabulary is a list of names or a file, not {type(vocabulary)}")
    classes = []
    for number, entry in enumerate(vocabulary, start=1):
        names = [entry] if isinstance(entry, str) else entry
        if not _are_texts(names):
            raise TypeError(f"class {number} must be a name or a list of names, not {entry!r}")
        classes.append(tuple(name.strip() for name in names))
    return Vocabulary(tuple(classes))


def as_descriptions(descriptions: DescriptionsLike) -> Mapping[str, Sequence[str]]:
    """Class -> sentences.

    Raises:
        TypeError: they are no such mapping.
        FileNotFoundError, ValueError: as :func:`freecp_d2.data.load_descriptions`.
    """
    if isinstance(descriptions, str | os.PathLike):
        return load_descriptions(os.fspath(descriptions))
    if descriptions is None:
        return {}
    if not isinstance(descriptions, Mapping):
        raise TypeError(f"descriptions are class -> sentences, or a file, not {descriptions!r}")
    for name, sentences in descriptions.items():
        if not isinstance(name, str) or not _are_texts(sentences):
            raise TypeError(f"class {name!r} must have a list of sentences, not {sentences!r}")
    return descriptions


def _are_texts(values: object) -> TypeGuard[Sequence[str]]:
    """Whether it is a list of text, and not one text."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        return False
    return all(isinstance(value, str) for value in values)


def grouped(images: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` of them."""
    iterator = iter(images)
    while group := list(islice(iterator, size)):
        yield group


def names_a_file(text: str) -> bool:
    """Whether words are the path of a vocabulary's file rather than class names.

    They are where there is such a file, or where they look like one: "words.txt", "../words".
    """
    if os.path.isfile(text) or text.startswith(PACKAGED):
        return True
    path = Path(text)
    return "," not in text and (
        path.suffix.lower() in FILE_SUFFIXES or text.startswith(("/", "./", "../", "~/"))
    )


def _no_vocabulary(given: str | os.PathLike) -> str:
    """Why it is no file of a vocabulary, and what was meant perhaps."""
    if os.path.isdir(given):
        return "this is a folder; give the path of a file with one class a line"
    if not isinstance(given, str) or names_a_file(given):
        return "there is no such file; check the path"
    names = [name.strip() for name in given.split(",") if name.strip()]
    return (
        f"there is no such file; give a list of names, {names}, or the path of a file with one "
        "class a line"
    )


def as_detectron2(pixels: np.ndarray, image: object, mapper: InferenceMapper) -> dict[str, Any]:
    """Detectron2's dict of (H, W, 3) uint8 RGB `pixels`, resized.

    Args:
        image: what they were read from.
        mapper: what would read the image of a data set.
    """
    resized = resize_shortest_edge(pixels, mapper.min_size, mapper.max_size)
    if mapper.image_format == "BGR":
        resized = resized[:, :, ::-1]
    return {
        "file_name": os.fspath(image) if isinstance(image, str | os.PathLike) else "the image",
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "image": torch.from_numpy(resized.transpose(2, 0, 1).copy()),
    }


def with_background(vocabulary: Vocabulary, background: Background) -> Vocabulary:
    """The vocabulary with a scored background.

    Args:
        background: True: its own background names, or else the 26 of METHOD.md step 0 without those
            that name a class. A list: these names. False: as it is.

    Raises:
        TypeError: `background` is neither.
        ValueError: it is a string, or has an empty name or one twice.
    """
    if background is True and not vocabulary.background:
        classes = {normalized_name(name) for names in vocabulary.classes for name in names}
        default = load_vocabulary(f"{PACKAGED}benchmarks/published/voc21.json").background
        background = [name for name in default if normalized_name(name) not in classes]
    if isinstance(background, str):
        raise ValueError(
            f"background is {background!r}; give True, auto, random or a list of names"
        )
    if not isinstance(background, bool):
        if not _are_texts(background):
            raise TypeError(f"background is {background!r}; give True, False or a list of names")
        vocabulary = replace(vocabulary, background=tuple(background))
    if len(vocabulary.classes) == 1 and not vocabulary.background:
        name = vocabulary.classes[0][0]
        log.warning(
            "one class and no background: there is nothing to tell %r from; add other classes, "
            "or background=True (--background)",
            name,
        )
    return vocabulary


def as_pixels(image: object, exif_orientation: bool) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, a PIL image or an array.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: it is no image, or none that can be read.
    """
    if isinstance(image, str | os.PathLike):
        if _URL.match(os.fspath(image)):
            raise ValueError(f"{image}: a URL; download the image and give the path of the file")
        if not PathManager.isfile(os.fspath(image)):
            what = "a folder, not an image" if os.path.isdir(image) else "no such file"
            raise FileNotFoundError(f"{os.fspath(image)}: {what}; check the path")
        return read_image(image, exif_orientation=exif_orientation)
    if isinstance(image, Image.Image):
        try:
            return to_pixels(image, "a PIL image", exif_orientation)[0]
        except (OSError, ValueError) as error:
            raise ValueError(f"a PIL image that cannot be read ({error}); replace it") from error
    if not isinstance(image, np.ndarray):
        raise no_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"an array of shape {image.shape} and dtype {image.dtype}; an image is (height, width, "
            "3) uint8 in RGB order, and several images are a list"
        )
    return image.copy()


def no_image(image: object) -> TypeError:
    """What to raise for something that is neither an image nor images."""
    return TypeError(
        f"{type(image)} is no image; give a path, a PIL image, a NumPy array (height, width, 3) "
        "uint8 in RGB order, or a list of these"
    )
