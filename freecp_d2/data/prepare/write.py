"""Writing a benchmark's label maps: what is there is left alone, what cannot be read is named."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ...files import cannot_write, sweep, write_whole
from ...stopping import Stop
from ..benchmarks.files import (
    file_names,
    is_made_from_instances,
    likely_layout,
    read_names,
    repeated_names,
)
from ..benchmarks.layout import Benchmark
from .parallel import each
from .sources import Annotations, Converter, find_annotations

logger = logging.getLogger(__name__)


@dataclass
class Prepared:
    """What :func:`prepare` did.

    Attributes:
        folder: of the label maps.
        images: how many images of the set lie in the image folder.
        written, skipped: label maps written now; there already.
        faults: sentences about what is missing or could not be converted.
        notes: sentences about what is unusual and does no harm.
    """

    folder: Path
    images: int = 0
    written: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(
    benchmark: Benchmark,
    root: str | os.PathLike,
    workers: int = 1,
    partial: bool = False,
    stop: Stop | None = None,
) -> Prepared:
    """Write the label maps of `benchmark` that are not there yet, from what is on disk.

    They come to lie in the tree that has the images. Each appears whole or not at all, so that a
    run that was cut off is taken up by the next. An annotation that cannot be converted is a fault,
    and the others are converted. Nothing else is changed, save that Pascal Context's file list is
    written where it is missing, and that COCO-Object's label maps made from the instances give way
    to those made from COCO-Stuff's. Label maps that evaluation reads already are left as they are.

    Args:
        root: DETECTRON2_DATASETS; "~" is the home folder.
        workers: processes, at most.
        partial: fewer images than the official set has, if any, are no fault.
        stop: once it has a signal no more label maps are written.

    Raises:
        ValueError: the annotation is one file, and damaged or another one.
        OSError: the file list cannot be read or written, or no label map can be written.
        BrokenProcessPool: a process died.
    """
    root = Path(os.path.expanduser(root))
    layout = likely_layout(benchmark, root)
    folder = root / layout.mask_folder
    done = Prepared(folder)
    images = set(file_names(root / layout.image_folder, layout.image_suffix))
    masks = set(file_names(folder, layout.mask_suffix))
    if layout.shared_images:  # another project's maps, which say themselves what the set is
        done.images, done.skipped = len(images & masks), len(masks)
        compare_count(done.images, benchmark, partial, done.faults, done.notes)
        return done
    annotations = find_annotations(benchmark, root, layout)
    if layout.file_list is None:
        names = sorted(images | masks | annotations.converters.keys())
    else:
        names = _listed_names(root / layout.file_list, annotations, done)

    jobs, missing = [], []
    for name in names:
        target = folder / f"{name}{layout.mask_suffix}"
        if name in masks and not _to_replace(benchmark, annotations, target):
            done.skipped += 1
        elif name in annotations.converters:
            jobs.append((name, target, annotations.converters[name], annotations.mark))
        else:
            missing.append(name)
    if jobs and annotations.note:
        done.notes.append(annotations.note)
        logger.warning("%s: %s", benchmark.name, annotations.note)
    sweep(folder)
    for fault in each(_write, jobs, workers, benchmark.name, stop) if jobs else ():
        if fault is None:
            done.written += 1
        else:
            done.faults.append(fault)

    done.images = len(images.intersection(names))
    if not masks and not annotations.converters:
        done.faults.append(
            f"no annotation at all: looked for {annotations.where}; get it from {benchmark.source}"
        )
    elif missing:
        done.faults.append(
            f"{count(len(missing), 'image')} without annotation{listed(missing)}: looked for in "
            f"{annotations.where}, from {benchmark.source}"
        )
    without_image = [name for name in names if name not in images]
    if without_image:
        done.faults.append(
            f"{count(len(without_image), 'annotation')} without image{listed(without_image)}: "
            f"looked for in {root / layout.image_folder}/*{layout.image_suffix}"
        )
    compare_count(done.images, benchmark, partial, done.faults, done.notes)
    return done


def _listed_names(file_list: Path, annotations: Annotations, done: Prepared) -> list[str]:
    """The names of a file list, which is written where it is missing and they are known."""
    if file_list.is_file():
        note_repeated(file_list, done.notes)
        return list(read_names(file_list))
    if not annotations.names:
        done.faults.append(f"{file_list}: no such file, and nothing to make it from")
        return []
    write_whole(file_list, "".join(f"{name}\n" for name in annotations.names).encode())
    return list(annotations.names)


def _to_replace(benchmark: Benchmark, annotations: Annotations, target: Path) -> bool:
    """Whether a COCO-Object map is of the instances, and can now be made by the published rule."""
    published = annotations.converters and annotations.mark is None
    return bool(published) and benchmark.name == "coco_object" and is_made_from_instances(target)


def compare_count(
    images: int, benchmark: Benchmark, partial: bool, faults: list[str], notes: list[str]
) -> None:
    """Fewer images than published are a fault unless `partial`, none always; more are a note."""
    if images != benchmark.num_images:
        sentence = f"{count(images, 'image')}, the published set has {benchmark.num_images}"
        if images > benchmark.num_images or (partial and images > 0):
            notes.append(sentence)
        else:
            faults.append(
                f"{sentence}; --partial says that a part is wanted" if images else sentence
            )


def note_repeated(file_list: Path, notes: list[str]) -> None:
    """Names that a file list has more than once are a note."""
    if twice := repeated_names(file_list):
        notes.append(f"{file_list} has names more than once{listed(twice)}: each counts once")


def count(number: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, in brackets."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f" ({', '.join(names[:limit])}{more})" if names else ""


def _write(job: tuple[str, Path, Converter, tuple[str, str] | None]) -> str | None:
    name, target, converter, mark = job
    try:
        png, info = BytesIO(), PngInfo()
        if mark:
            info.add_text(*mark)
        Image.fromarray(converter()).save(png, "PNG", pnginfo=info)
    except Exception as error:  # the fault of one file, whatever it is, must not stop the rest
        return f"{name}: {error or type(error).__name__}"
    try:
        write_whole(target, png.getvalue())
    except OSError as error:
        if cannot_write(error):
            raise
        return f"{name}: {error}"
    return None
