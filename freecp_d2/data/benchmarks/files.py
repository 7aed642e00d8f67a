"""What lies in a benchmark's folders."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .layout import Benchmark, ContextMats, LabelMaps, Layout, Source

INSTANCES_MARK = ("Source", "instances_val2017.json")
"""Text (key, value) in the PNG of a COCO-Object map that is not made by the published rule."""


def datasets_root() -> Path:
    """$DETECTRON2_DATASETS, or else "datasets"; "~" is the home folder."""
    return Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))


def find_layout(benchmark: Benchmark, root: Path) -> Layout | None:
    """The first of its layouts that has label maps under `root`, of its list if it has one.

    One that has images too goes before one that has not.
    """
    layouts = [layout for layout in benchmark.layouts if _has_masks(layout, root)]
    with_images = (layout for layout in layouts if _has_images(layout, root))
    return next(with_images, next(iter(layouts), None))


def likely_layout(benchmark: Benchmark, root: Path) -> Layout:
    """The one that :func:`find_layout` finds, or the one whose label maps are to be made.

    That is the first with images and sources in its tree, else with images, else with sources,
    else the first.
    """

    def known(layout: Layout) -> tuple[bool, bool]:
        sources = any(source.path.startswith(f"{layout.tree}/") for source in there)
        return _has_images(layout, root), sources

    there = [source for source in benchmark.sources if _is_there(source, root)]
    writable = [layout for layout in benchmark.layouts if not layout.shared_images]
    return find_layout(benchmark, root) or max(writable, key=known)


def find_source(benchmark: Benchmark, root: Path, layout: Layout) -> Source | None:
    """What the label maps of `layout` are made from: see :attr:`Benchmark.sources`."""
    kinds = [type(source) for source in benchmark.sources]
    there = [source for source in benchmark.sources if _is_there(source, root)]
    return min(
        there,
        key=lambda s: (kinds.index(type(s)), not s.path.startswith(f"{layout.tree}/")),
        default=None,
    )


def file_names(folder: Path, suffix: str, without: tuple[str, ...] = ()) -> list[str]:
    """Sorted names, relative to `folder` and without `suffix`, of the files under it.

    Links to folders are followed; hidden files do not count, nor those that end with any of
    `without`.
    """
    return sorted(_walk(folder, suffix, without))


def has_files(folder: Path, suffix: str, without: tuple[str, ...] = ()) -> bool:
    """Whether :func:`file_names` has any."""
    return next(_walk(folder, suffix, without), None) is not None


def read_names(path: Path) -> tuple[str, ...]:
    """The names in a file list of PASCAL VOC: the first word of every line, each name once.

    Raises:
        ValueError: the file is no text.
    """
    return tuple(dict.fromkeys(_lines(path)))


def repeated_names(path: Path) -> list[str]:
    """The names that a file list has more than once."""
    return [name for name, number in Counter(_lines(path)).items() if number > 1]


def is_made_from_instances(path: Path) -> bool:
    """Whether a COCO-Object map has the mark of :data:`INSTANCES_MARK`."""
    with open(path, "rb") as file:
        return "\0".join(INSTANCES_MARK).encode() in file.read(256)


def _walk(folder: Path, suffix: str, without: tuple[str, ...] = ()) -> Iterator[str]:
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.endswith(suffix) and not name.endswith(without) and not name.startswith("."):
                path = os.path.relpath(os.path.join(parent, name), folder)
                yield Path(path).as_posix().removesuffix(suffix)


def _has_images(layout: Layout, root: Path) -> bool:
    return has_files(root / layout.image_folder, layout.image_suffix)


def _has_masks(layout: Layout, root: Path) -> bool:
    masks = _walk(root / layout.mask_folder, layout.mask_suffix)
    if layout.file_list:
        path = root / layout.file_list
        listed = set(read_names(path)) if path.is_file() else set()
        masks = (name for name in masks if name in listed)
    return next(masks, None) is not None


def _is_there(source: Source, root: Path) -> bool:
    path = root / source.path
    if isinstance(source, LabelMaps):
        return has_files(path, source.suffix, source.without)
    return has_files(path, ".mat") if isinstance(source, ContextMats) else path.is_file()


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error}); fetch it anew") from error
    return [line.split()[0] for line in lines if line.strip()]
