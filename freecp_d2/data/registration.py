"""A data set of one's own in Detectron2's catalogs, from a JSON file that describes it."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .benchmarks.files import file_names
from .vocabulary import vocabulary_of_json

REQUIRED: dict[str, type] = {"name": str, "classes": list, "images": str, "labels": str}
OPTIONAL: dict[str, type] = {
    "background": list,
    "ignore_label": int,
    "image_suffix": str,
    "label_suffix": str,
}
IGNORED = 255
"""The `ignore_label` where none is given."""


def register_dataset(file: str | os.PathLike) -> str:
    """Register the data set that a JSON object describes, for evaluation.

    Its keys, of which the first four are required:

    - `name`: for DATASETS.TEST.
    - `classes`: as a vocabulary's (:func:`freecp_d2.data.load_vocabulary`): a name or a list of
      names each, in the order of the ids. Several classes may have one name.
    - `images`, `labels`: folders, relative to the file's own; they may have subfolders.
    - `image_suffix` (".jpg"), `label_suffix` (".png"): the ends of file names. An image and its
      label map share the name before them.
    - `ignore_label` (255): pixels that do not count.
    - `background`: names of what the background may be. Id 0 is then the background, which is
      scored, and the first class has id 1.

    Label maps have one channel of 8, 16 or 32 bits (:func:`freecp_d2.data.images.load_label_map`).
    The folders are looked into when the data set is loaded.

    Returns:
        The name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such object, its name is taken, its classes are no vocabulary, or one
            of them has the id 255 and no `ignore_label` is given.
    """
    file = Path(os.path.expanduser(file))
    try:
        content = _read(file)
        name = content["name"]
        if name in DatasetCatalog:
            raise ValueError(f"there is a data set {name!r} already; give it another name")
        words = {key: content[key] for key in ("classes", "background") if key in content}
        vocabulary = vocabulary_of_json(words, repeats=True)
        if "ignore_label" not in content and len(vocabulary.class_names) > IGNORED:
            raise ValueError(
                f"class {IGNORED} is {vocabulary.class_names[IGNORED]!r}, and such pixels do not "
                "count unless you say which do; give 'ignore_label'"
            )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    images, labels = (file.parent / content[key] for key in ("images", "labels"))
    suffixes = content.get("image_suffix", ".jpg"), content.get("label_suffix", ".png")
    DatasetCatalog.register(name, partial(_load, file, images, labels, *suffixes))
    MetadataCatalog.get(name).set(
        evaluator_type="sem_seg",
        ignore_label=content.get("ignore_label", IGNORED),
        image_root=str(images),
        sem_seg_root=str(labels),
        stuff_classes=list(vocabulary.class_names),
        vocabulary=vocabulary,
    )
    return name


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; check the path")
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error}); correct it") from None
    if not isinstance(content, dict):
        raise ValueError(f"it must be an object with the keys {', '.join(REQUIRED)}")
    known = REQUIRED | OPTIONAL
    for key in (*REQUIRED, *content):
        if key not in known:
            raise ValueError(f"{key!r} is no key; the keys are {', '.join(known)}")
        if type(content.get(key)) is not known[key]:
            kind = {str: "text", int: "a whole number", list: "a list"}[known[key]]
            raise ValueError(f"{key!r} must be {kind}, not {content.get(key)!r}")
    return content


def _load(
    file: Path, images: Path, labels: Path, image_suffix: str, label_suffix: str
) -> list[dict[str, str]]:
    """Detectron2's dicts, in the order of their names.

    Raises:
        FileNotFoundError: no label map, or one without image.
    """
    names = file_names(labels, label_suffix)
    if not names:
        raise FileNotFoundError(
            f'{file}: there is no {labels}/*{label_suffix}; correct "labels" or "label_suffix"'
        )
    there = set(file_names(images, image_suffix))
    missing = [name for name in names if name not in there]
    if missing:
        raise FileNotFoundError(
            f"{file}: {len(missing)} of {len(names)} images are missing, the first is "
            f'{images / missing[0]}{image_suffix}; correct "images" or "image_suffix"'
        )
    return [
        {
            "file_name": f"{images / name}{image_suffix}",
            "sem_seg_file_name": f"{labels / name}{label_suffix}",
        }
        for name in names
    ]
