"""Where each benchmark's official annotation lies, and how a label map is made from it."""

import json
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from ..benchmarks.files import file_names, read_names
from ..benchmarks.layout import BENCHMARKS, Benchmark
from ..images import load_label_map
from . import convert

Converter = Callable[[], np.ndarray]
"""Makes the (H, W) uint8 label map of one image. Can be sent to another process."""


@dataclass(frozen=True)
class Annotations:
    """The official annotation of a benchmark's validation set.

    Attributes:
        where: the file or folder it was looked for in, to tell the user.
        converters: image name -> what makes its label map.
        names: the images of the validation set, where the annotation (and not a file list or a
            folder) says so.
    """

    where: str
    converters: dict[str, Converter]
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _PixelMaps:
    """PNGs of official ids. `others` are the ids that occur and are no class: they are ignored."""

    folder: str
    suffix: str
    others: Collection[int]


_VOC = "VOCdevkit/VOC2012/SegmentationClass"
_PIXEL_MAPS = {
    # The pixel is the COCO id less one; the 11 ids that COCO dropped do not occur.
    "coco_stuff164k": _PixelMaps("coco/stuffthingmaps/val2017", ".png", (255,)),
    "ade20k": _PixelMaps("ADEChallengeData2016/annotations/validation", ".png", (0,)),
    "voc20": _PixelMaps(_VOC, ".png", (0, 255)),
    "voc21": _PixelMaps(_VOC, ".png", (255,)),
    # Id 34 would be the licence plate, -1, which Cityscapes does not draw.
    "cityscapes": _PixelMaps("cityscapes/gtFine/val", "_gtFine_labelIds.png", range(34)),
}
_COCO_INSTANCES = "coco/annotations/instances_val2017.json"
_VOC2010 = "VOCdevkit/VOC2010"
_CONTEXT_JSON = f"{_VOC2010}/trainval_merged.json"
_CONTEXT_MAT = f"{_VOC2010}/trainval"
_CONTEXT_VAL = f"{_VOC2010}/ImageSets/Main/val.txt"
_CONTEXT_LABELS = range(460)


def find_annotations(benchmark: Benchmark, root: Path) -> Annotations:
    """Look for the official annotation of `benchmark` under `root`.

    Pascal Context comes from `trainval_merged.json` where it is there, else from the .mat files.
    What is not there makes no converters, and no error.

    Raises:
        ValueError: a JSON that is damaged or not the one it should be.
    """
    if benchmark.name in _PIXEL_MAPS:
        return _pixel_maps(benchmark, root, _PIXEL_MAPS[benchmark.name])
    if benchmark.name == "coco_object":
        return _coco_instances(benchmark, root)
    if (root / _CONTEXT_JSON).is_file():
        return _context_json(benchmark, root)
    return _context_mat(benchmark, root)


def _pixel_maps(benchmark: Benchmark, root: Path, maps: _PixelMaps) -> Annotations:
    folder = root / maps.folder
    converters: dict[str, Converter] = {
        name: partial(
            _convert_png,
            folder / f"{name}{maps.suffix}",
            benchmark.name,
            tuple(maps.others),
        )
        for name in file_names(folder, maps.suffix)
    }
    return Annotations(f"{folder}/*{maps.suffix}", converters)


def _convert_png(path: Path, name: str, others: tuple[int, ...]) -> np.ndarray:
    benchmark = BENCHMARKS[name]
    labels = load_label_map(path)
    return convert.relabel(labels, benchmark.pixel_to_contiguous, others, benchmark.ignore_label)


def _coco_instances(benchmark: Benchmark, root: Path) -> Annotations:
    path = root / _COCO_INSTANCES
    if not path.is_file():
        return Annotations(str(path), {})
    try:
        with redirect_stdout(StringIO()):
            coco = COCO(str(path))
        converters: dict[str, Converter] = {
            Path(image["file_name"]).stem: partial(
                convert.coco_object,
                coco.imgToAnns[image["id"]] if image["id"] in coco.imgToAnns else [],
                benchmark.contiguous_ids,
                image["height"],
                image["width"],
            )
            for image in coco.dataset["images"]
        }
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise _not_that_json(path, error) from error
    return Annotations(str(path), converters)


def _context_json(benchmark: Benchmark, root: Path) -> Annotations:
    path = root / _CONTEXT_JSON
    segments: dict[Any, list[dict]] = defaultdict(list)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for segment in content["annos_segmentation"]:
            segments[segment["image_id"]].append(
                {key: segment[key] for key in ("category_id", "segmentation")}
            )
        converters: dict[str, Converter] = {
            Path(image["file_name"]).stem: partial(
                convert.context_segments,
                segments[image["image_id"]],
                benchmark.contiguous_ids,
                _no_class(benchmark),
                image["height"],
                image["width"],
            )
            for image in content["images"]
            if image["phase"] == "val"
        }
    except (ValueError, KeyError, TypeError) as error:
        raise _not_that_json(path, error) from error
    return Annotations(str(path), converters, tuple(converters))


def _context_mat(benchmark: Benchmark, root: Path) -> Annotations:
    folder, val = root / _CONTEXT_MAT, root / _CONTEXT_VAL
    converters: dict[str, Converter] = {
        name: partial(_convert_mat, folder / f"{name}.mat", benchmark.name)
        for name in file_names(folder, ".mat")
    }
    where = f"{root / _CONTEXT_JSON} or {folder}/*.mat (with {val})"
    return Annotations(where, converters, read_names(val) if val.is_file() else None)


def _convert_mat(path: Path, name: str) -> np.ndarray:
    benchmark = BENCHMARKS[name]
    labels = convert.read_context_mat(path)
    ids = benchmark.contiguous_ids
    return convert.relabel(labels, ids, _CONTEXT_LABELS, _no_class(benchmark))


def _no_class(benchmark: Benchmark) -> int:
    """What Pascal Context's other 400 labels become: background where it is scored."""
    return 0 if benchmark.scored_background else benchmark.ignore_label


def _not_that_json(path: Path, error: Exception) -> ValueError:
    reason = f"no {error}" if isinstance(error, KeyError) else str(error) or "not an object"
    return ValueError(f"{path}: not the official file, or damaged ({reason}); fetch it anew")
