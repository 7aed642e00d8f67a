"""How the label maps of a benchmark are made from what is on disk."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..benchmarks.files import INSTANCES_MARK, file_names, find_source, read_names
from ..benchmarks.layout import (
    COCO_IDS,
    Benchmark,
    CocoInstances,
    ContextJson,
    ContextMats,
    LabelMaps,
    Layout,
)
from ..images import load_label_map
from . import convert

Converter = Callable[[], np.ndarray]
"""Makes the (H, W) label map of one image. Can be sent to another process."""

COCO_THINGS = frozenset(COCO_IDS[:80])
_CONTEXT_LABELS = range(460)


@dataclass(frozen=True)
class Annotations:
    """The annotation of a benchmark's validation set.

    Attributes:
        where: the file or folder that is read, or those that were looked for, to tell the user.
        converters: image name -> what makes its label map.
        names: the images of the validation set, where the annotation (and not a file list or a
            folder) says so.
        mark: text (key, value) to write into the label maps.
        note: what the user is to know of this annotation.
    """

    where: str
    converters: dict[str, Converter]
    names: tuple[str, ...] | None = None
    mark: tuple[str, str] | None = None
    note: str | None = None


def find_annotations(benchmark: Benchmark, root: Path, layout: Layout) -> Annotations:
    """Look under `root` for what the label maps of `layout` are made from.

    What is not there makes no converters, and no error.

    Raises:
        ValueError: a JSON that is damaged or not the one it should be.
    """
    source = find_source(benchmark, root, layout)
    match source:
        case LabelMaps():
            return _label_maps(benchmark, root, source)
        case CocoInstances():
            return _coco_instances(benchmark, root / source.path)
        case ContextJson():
            return _context_json(benchmark, root / source.path)
        case ContextMats():
            return _context_mats(benchmark, root, source)
    looked_for = [str(root / source.path) for source in benchmark.sources]
    return Annotations(" or ".join(looked_for or [str(root / layout.mask_folder)]), {})


def _label_maps(benchmark: Benchmark, root: Path, source: LabelMaps) -> Annotations:
    folder = root / source.path
    names = file_names(folder, source.suffix, source.without)
    converters: dict[str, Converter] = {
        name: partial(
            _convert_label_map,
            folder / f"{name}{source.suffix}",
            source.ids,
            source.others,
            source.fill,
            convert.read_colors if source.in_colors else load_label_map,
        )
        for name in names
    }
    named = tuple(names) if source.names_the_set else None
    return Annotations(f"{folder}/*{source.suffix}", converters, named)


def _convert_label_map(
    path: Path,
    ids: Mapping[int, int],
    others: Iterable[int],
    fill: int,
    read: Callable[[Path], np.ndarray],
) -> np.ndarray:
    return convert.relabel(read(path), ids, tuple(others), fill)


def _coco_instances(benchmark: Benchmark, path: Path) -> Annotations:
    content = _load_json(path, "images", "annotations", "categories")
    try:
        categories = {category["id"] for category in content["categories"]}
        if categories != COCO_THINGS:
            raise ValueError(
                f"it has {len(categories)} categories and not COCO's 80 of things, so it is no "
                "instances_val2017.json"
            )
        by_image: dict[Any, list[dict]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = _by_name(content["images"], "id")
        converters: dict[str, Converter] = {
            name: partial(
                convert.coco_object,
                by_image[image["id"]],
                benchmark.contiguous_ids,
                *_size(image),
            )
            for name, image in images.items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise _not_that_json(path, error) from error
    note = (
        f"label maps from {path}, since no pixel maps of COCO-Stuff are there: they differ from "
        "the published ones where instances overlap and where there are crowds (crowds alone are "
        "0.60 % of the pixels of 164 images)"
    )
    return Annotations(str(path), converters, mark=INSTANCES_MARK, note=note)


def _context_json(benchmark: Benchmark, path: Path) -> Annotations:
    content = _load_json(path, "images", "annos_segmentation")
    segments: dict[Any, list[dict]] = defaultdict(list)
    try:
        for number, segment in enumerate(content["annos_segmentation"]):
            kept = {key: segment[key] for key in ("category_id", "segmentation")}
            segments[segment["image_id"]].append({"id": segment.get("id", number), **kept})
        images = _by_name(
            (image for image in content["images"] if image["phase"] == "val"), "image_id"
        )
        converters: dict[str, Converter] = {
            name: partial(
                convert.context_segments,
                segments[image["image_id"]],
                benchmark.contiguous_ids,
                _no_class(benchmark),
                *_size(image),
            )
            for name, image in images.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_that_json(path, error) from error
    return Annotations(str(path), converters, tuple(converters))


def _context_mats(benchmark: Benchmark, root: Path, source: ContextMats) -> Annotations:
    folder = root / source.path
    converters: dict[str, Converter] = {
        name: partial(
            _convert_mat, folder / f"{name}.mat", benchmark.contiguous_ids, _no_class(benchmark)
        )
        for name in file_names(folder, ".mat")
    }
    lists = [root / path for path in source.lists if (root / path).is_file()]
    where = f"{folder}/*.mat"
    if not lists:
        where += f" (its validation set in {' or '.join(source.lists)})"
    return Annotations(where, converters, read_names(lists[0]) if lists else None)


def _convert_mat(path: Path, ids: Mapping[int, int], fill: int) -> np.ndarray:
    return convert.relabel(convert.read_context_mat(path), ids, _CONTEXT_LABELS, fill)


def _no_class(benchmark: Benchmark) -> int:
    """What Pascal Context's further labels become: background where it is scored."""
    return 0 if benchmark.scored_background else benchmark.ignore_label


def _load_json(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON object that has lists of objects under `keys`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        for key in keys:
            entries = content[key]
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                raise ValueError(f"{key!r} is no list of objects")
    except (ValueError, KeyError, RecursionError) as error:
        raise _not_that_json(path, error) from error
    return content


def _by_name(images: Iterable[dict], key: str) -> dict[str, dict]:
    """Image entries by their files' names without suffix, in their order.

    Raises:
        ValueError: a file name or an id occurs twice; which annotation counts would be a guess.
    """
    images = list(images)
    names = [os.path.splitext(os.path.basename(image["file_name"]))[0] for image in images]
    for what, values in (("file_name", names), (key, [image[key] for image in images])):
        twice = [value for value, number in Counter(values).items() if number > 1]
        if twice:
            raise ValueError(f"{len(twice)} images share their {what}, the first is {twice[0]!r}")
    return dict(zip(names, images, strict=True))


def _size(image: Mapping[str, Any]) -> tuple[int, int]:
    size = image["height"], image["width"]
    if not all(type(side) is int and 0 < side < 1 << 16 for side in size):
        raise ValueError(f"image {image['file_name']!r} has height and width {list(size)}")
    return size


def _not_that_json(path: Path, error: Exception) -> ValueError:
    reason = f"no {error}" if isinstance(error, KeyError) else str(error) or "not an object"
    return ValueError(f"{path}: not the official file, or damaged ({reason}); fetch it anew")
