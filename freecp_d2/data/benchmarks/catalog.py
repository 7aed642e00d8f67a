"""The benchmarks in Detectron2's catalogs; files are looked for when they are loaded."""

import logging
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType

from detectron2.data import DatasetCatalog, MetadataCatalog

from ...files import PACKAGED
from ..vocabulary import Vocabulary, load_vocabulary
from .files import (
    datasets_root,
    file_names,
    find_source,
    is_made_from_instances,
    likely_layout,
    read_names,
    repeated_names,
)
from .layout import BENCHMARKS, Benchmark, Layout

KINDS: tuple[str, ...] = ("published", "curated")
"""Each benchmark has a vocabulary of either kind; the catalogs hold the published ones."""

PROTOCOL_WORDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "sclip": {"voc20": "sclip", "voc21": "sclip", "coco_object": "sclip"},
        "clearclip": {"voc20": "clearclip", "voc21": "clearclip", "coco_object": "clearclip"},
        "sfp": {"voc20": "sfp", "voc21": "sfp", "coco_object": "sclip", "cityscapes": "sfp"},
    }
)
"""Kinds of the base methods' own protocols -> benchmarks where they differ from the published, and
the folder of their words there (NACLIP's and SC-CLIP's are SCLIP's)."""

logger = logging.getLogger(__name__)


def vocabulary_of(benchmark: Benchmark, kind: str = "published") -> Vocabulary:
    """Its class names in words for CLIP, and its background names where the background is scored.

    Args:
        kind: of :data:`KINDS` or :data:`PROTOCOL_WORDS`.

    Raises:
        FileNotFoundError: there is no such kind.
    """
    return load_vocabulary(words_file(kind, benchmark.name))


def words_file(kind: str, name: str) -> str:
    """The file of a benchmark's words of that kind."""
    if kind in PROTOCOL_WORDS:
        kind = PROTOCOL_WORDS[kind].get(name, "published")
    return f"{PACKAGED}benchmarks/{kind}/{name}.json"


def class_names(benchmark: Benchmark) -> list[str]:
    """The data set's own names of its classes, "background" first where it is scored.

    Tables and reports show them; CLIP is asked for :func:`vocabulary_of`'s.
    """
    names = load_vocabulary(words_file("classes", benchmark.name))
    return list(names.queries)


def register_benchmarks() -> None:
    """Add them to Detectron2's catalogs. Looks at no data set's files."""
    for benchmark in BENCHMARKS.values():
        DatasetCatalog.register(benchmark.dataset, partial(load_benchmark, benchmark))
        MetadataCatalog.get(benchmark.dataset).set(
            evaluator_type="sem_seg",
            ignore_label=benchmark.ignore_label,
            stuff_classes=class_names(benchmark),
            stuff_colors=_colors(benchmark),
            stuff_dataset_id_to_contiguous_id=benchmark.contiguous_ids,
            vocabulary=vocabulary_of(benchmark),
        )
        _set_roots(benchmark, datasets_root(), benchmark.layout)


def load_benchmark(benchmark: Benchmark) -> list[dict]:
    """Detectron2's dicts of its images, in the order of their names.

    The folder is $DETECTRON2_DATASETS, or "datasets", now and not when the benchmark was
    registered. `image_root` and `sem_seg_root` of its metadata become the folders that are read.
    A warning, once a process, says when there are more or fewer images than the official set has,
    when the file list has a name twice (the image counts once), and when COCO-Object's label maps
    are made from the instances; `label_maps_as_published` of the metadata is False then.

    Returns:
        One dict an image: `file_name`, `sem_seg_file_name`, and `image_id`, COCO's number or
        else the file's name without suffix.

    Raises:
        FileNotFoundError: a folder, the file list, an image or a mask is missing.
    """
    root = datasets_root()
    layout = likely_layout(benchmark, root)
    _set_roots(benchmark, root, layout)
    images, masks = root / layout.image_folder, root / layout.mask_folder
    listed = _listed(benchmark, root, layout)
    has_image = set(file_names(images, layout.image_suffix))
    _require(benchmark, "images", listed - has_image, listed, images)
    if len(listed) != benchmark.num_images:
        _warn_once(
            f"{benchmark.dataset}: {len(listed)} images in {images}, the official set has "
            f"{benchmark.num_images}"
        )
    by_rule = benchmark.name != "coco_object" or not any(
        is_made_from_instances(masks / f"{stem}{layout.mask_suffix}") for stem in listed
    )
    vars(MetadataCatalog.get(benchmark.dataset)).update(label_maps_as_published=by_rule)
    if not by_rule:
        _warn_once(
            f"{benchmark.dataset}: label maps in {masks} are made from COCO's instances, which is "
            "not how the published ones were; put COCO-Stuff's stuffthingmaps in place and run "
            f"python -m freecp_d2.data.prepare {benchmark.name}"
        )
    return [
        {
            "file_name": str(images / f"{stem}{layout.image_suffix}"),
            "sem_seg_file_name": str(masks / f"{stem}{layout.mask_suffix}"),
            "image_id": int(stem) if stem.isdecimal() else stem,
        }
        for stem in sorted(listed)
    ]


def _listed(benchmark: Benchmark, root: Path, layout: Layout) -> set[str]:
    """The names of the images that count; each has a mask."""
    masks = root / layout.mask_folder
    if not masks.is_dir():
        raise _nothing(benchmark, root, layout, f"there is no {masks}")
    has_mask = set(file_names(masks, layout.mask_suffix))
    if layout.file_list is None:
        if not has_mask:
            raise _nothing(benchmark, root, layout, f"no *{layout.mask_suffix} in {masks}")
        return has_mask
    file_list = root / layout.file_list
    if not file_list.is_file():
        raise _nothing(benchmark, root, layout, f"there is no {file_list}")
    listed = set(read_names(file_list))
    if not listed:
        raise _nothing(benchmark, root, layout, f"{file_list} names no image")
    if not listed & has_mask:
        raise _nothing(benchmark, root, layout, f"no label map of {file_list} in {masks}")
    _require(benchmark, "masks", listed - has_mask, listed, masks)
    if twice := repeated_names(file_list):
        _warn_once(
            f"{benchmark.dataset}: {file_list} has {twice[0]} more than once ({len(twice)} such "
            "names); each image counts once"
        )
    return listed


@cache
def _warn_once(message: str) -> None:
    """An evaluation loads its data set several times."""
    logger.warning(message)


def _nothing(benchmark: Benchmark, root: Path, layout: Layout, what: str) -> FileNotFoundError:
    """No label map is there; perhaps something that they are made from is."""
    source = find_source(benchmark, root, layout)
    if source is None:
        return FileNotFoundError(f"{benchmark.dataset}: {what}; {_advice(benchmark)}")
    return FileNotFoundError(
        f"{benchmark.dataset}: {what}; label maps can be made from {root / source.path}: run "
        f"python -m freecp_d2.data.prepare {benchmark.name}"
    )


def _advice(benchmark: Benchmark) -> str:
    return (
        "set DETECTRON2_DATASETS to the folder that holds the data sets, get the official files "
        f"from {benchmark.source} (docs/data.md shows where they go), and run "
        f"python -m freecp_d2.data.prepare {benchmark.name}"
    )


def _require(
    benchmark: Benchmark, what: str, missing: set[str], listed: set[str], folder: Path
) -> None:
    if missing:
        raise FileNotFoundError(
            f"{benchmark.dataset}: {len(missing)} of {len(listed)} {what} are missing in {folder}, "
            f"the first is {min(missing)}; {_advice(benchmark)}"
        )


def _set_roots(benchmark: Benchmark, root: Path, layout: Layout) -> None:
    # Detectron2's metadata refuses to change a value, but DETECTRON2_DATASETS may have changed.
    vars(MetadataCatalog.get(benchmark.dataset)).update(
        image_root=str(root / layout.image_folder), sem_seg_root=str(root / layout.mask_folder)
    )


def _colors(benchmark: Benchmark) -> list[list[int]]:
    """Pascal VOC's colour map, the bits of an id spread over R, G and B; black is background."""
    start = 0 if benchmark.scored_background else 1
    return [
        [
            sum((i >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
            for channel in range(3)
        ]
        for i in range(start, start + benchmark.num_classes)
    ]


if BENCHMARKS["voc20"].dataset not in DatasetCatalog:
    register_benchmarks()
