"""Writing a benchmark's label maps: what is there is left alone, what cannot be read is named."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from ...files import write_whole
from ..benchmarks.files import file_names, read_names
from ..benchmarks.layout import Benchmark
from .parallel import each
from .sources import Converter, find_annotations


@dataclass
class Prepared:
    """What :func:`prepare` did.

    Attributes:
        images: how many images of the set lie in the image folder.
        written, skipped: label maps written now; there already.
        faults: sentences about what is missing or could not be converted.
        notes: sentences about what is unusual and does no harm.
    """

    images: int = 0
    written: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepare(
    benchmark: Benchmark, root: str | os.PathLike, workers: int = 1, partial: bool = False
) -> Prepared:
    """Write the label maps of `benchmark` that are not there yet, from its official annotation.

    Each appears whole or not at all, so that a run that was cut off is taken up by the next. An
    annotation that cannot be converted is a fault, and the others are converted. The official
    files are only read. Pascal Context's file list is written too where it is missing.

    Args:
        root: DETECTRON2_DATASETS.
        workers: processes.
        partial: fewer images than the official set has, if any, are no fault.

    Raises:
        ValueError: the annotation is one file, and damaged.
        OSError: the file list cannot be read or written.
        BrokenProcessPool: a process died.
    """
    root, layout, done = Path(root), benchmark.layout, Prepared()
    annotations = find_annotations(benchmark, root)
    images = set(file_names(root / layout.image_folder, layout.image_suffix))
    file_list = root / layout.file_list if layout.file_list else None
    if file_list is None:
        names = sorted(images | annotations.converters.keys())
    elif file_list.is_file():
        names = list(read_names(file_list))
    elif annotations.names:
        names = list(annotations.names)
        write_whole(file_list, "".join(f"{name}\n" for name in names).encode())
    else:
        names = []
        done.faults.append(f"{file_list}: no such file, and nothing to make it from")

    jobs, missing = [], []
    for name in names:
        target = root / layout.mask_folder / f"{name}{layout.mask_suffix}"
        if target.is_file():
            done.skipped += 1
        elif name in annotations.converters:
            jobs.append((name, target, annotations.converters[name]))
        else:
            missing.append(name)
    for fault in each(_write, jobs, workers, benchmark.name) if jobs else ():
        if fault is None:
            done.written += 1
        else:
            done.faults.append(fault)

    done.images = len(images.intersection(names))
    if missing or not names:
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


def compare_count(
    images: int, benchmark: Benchmark, partial: bool, faults: list[str], notes: list[str]
) -> None:
    """Fewer images than published are a fault unless `partial`, none always; more are a note."""
    if images != benchmark.num_images:
        sentence = f"{count(images, 'image')}, the published set has {benchmark.num_images}"
        harmless = images > benchmark.num_images or (partial and images > 0)
        (notes if harmless else faults).append(sentence)


def count(number: int, noun: str) -> str:
    """ "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, in brackets."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f" ({', '.join(names[:limit])}{more})" if names else ""


def _write(job: tuple[str, Path, Converter]) -> str | None:
    name, target, converter = job
    try:
        png = BytesIO()
        Image.fromarray(converter()).save(png, "PNG")
        write_whole(target, png.getvalue())
    except Exception as error:  # the fault of one file, whatever it is, must not stop the rest
        return f"{name}: {error or type(error).__name__}"
    return None
