"""Looking over a benchmark's images and label maps before they are evaluated."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...stopping import Stop
from ..benchmarks.files import file_names, likely_layout, read_names
from ..benchmarks.layout import BENCHMARKS, Benchmark
from ..images import load_label_map, read_image
from .parallel import each
from .write import compare_count, count, listed, note_repeated


@dataclass
class Verified:
    """What :func:`verify` found.

    Attributes:
        images, masks: how many there are of the set.
        faults, notes: as in :class:`Prepared`.
    """

    images: int = 0
    masks: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    benchmark: Benchmark,
    root: str | os.PathLike,
    workers: int = 1,
    partial: bool = False,
    stop: Stop | None = None,
) -> Verified:
    """Read every image and label map that evaluation will read, and report what is wrong.

    Faults are images without label map and the reverse, files that cannot be read, sizes that do
    not match, ids that are neither a class nor ignored, and too few images. Where the image folder
    holds other images too and no list says which count, an image without label map is none.

    Args:
        root, workers, partial: as in :func:`prepare`.
        stop: once it has a signal no more files are read.

    Raises:
        BrokenProcessPool: a process died.
    """
    root, verified = Path(os.path.expanduser(root)), Verified()
    layout = likely_layout(benchmark, root)
    image_folder, mask_folder = root / layout.image_folder, root / layout.mask_folder
    images = set(file_names(image_folder, layout.image_suffix))
    masks = set(file_names(mask_folder, layout.mask_suffix))
    names = masks if layout.shared_images else images | masks
    if layout.file_list:
        file_list = root / layout.file_list
        if file_list.is_file():
            names = set(read_names(file_list))
            note_repeated(file_list, verified.notes)
        else:
            names = masks
            verified.faults.append(f"{file_list}: no such file")
    without_mask, without_image = sorted(names - masks), sorted(names - images)
    verified.images, verified.masks = len(names & images), len(names & masks)
    if not verified.masks:
        verified.faults.append(
            f"no label map at all: looked for {mask_folder}/*{layout.mask_suffix}; "
            f"python -m freecp_d2.data.prepare {benchmark.name} makes them"
        )
    elif without_mask:
        verified.faults.append(
            f"{count(len(without_mask), 'image')} without label map{listed(without_mask)}: looked "
            f"for in {mask_folder}/*{layout.mask_suffix}"
        )
    if without_image:
        verified.faults.append(
            f"{count(len(without_image), 'label map')} without image{listed(without_image)}: "
            f"looked for in {image_folder}/*{layout.image_suffix}"
        )
    pairs = [
        (
            benchmark.name,
            name,
            image_folder / f"{name}{layout.image_suffix}",
            mask_folder / f"{name}{layout.mask_suffix}",
        )
        for name in sorted(names & images & masks)
    ]
    label = f"{benchmark.name}, verifying"
    for faults in each(_faults, pairs, workers, label, stop) if pairs else ():
        verified.faults += faults
    compare_count(verified.images, benchmark, partial, verified.faults, verified.notes)
    return verified


def _faults(pair: tuple[str, str, Path, Path]) -> list[str]:
    benchmark_name, name, image_path, mask_path = pair
    benchmark = BENCHMARKS[benchmark_name]
    faults, sizes = [], []
    try:
        sizes.append(read_image(image_path).shape[:2])
    except Exception as error:
        faults.append(f"{name}: image: {error}")
    try:
        labels = load_label_map(mask_path)
        sizes.append(labels.shape)
        wrong = np.unique(labels[(labels < 0) | (labels >= benchmark.num_classes)])
        if benchmark.ignores:
            wrong = wrong[wrong != benchmark.ignore_label]
        if wrong.size:
            ignored = (
                f"ignored is {benchmark.ignore_label}" if benchmark.ignores else "none is ignored"
            )
            faults.append(
                f"{name}: label map: ids out of range: {', '.join(map(str, wrong[:5]))} (classes "
                f"are 0 to {benchmark.num_classes - 1}, {ignored})"
            )
    except Exception as error:
        faults.append(f"{name}: label map: {error}")
    if len(set(sizes)) == 2:
        (image_h, image_w), (mask_h, mask_w) = sizes
        faults.append(
            f"{name}: sizes do not match: image {image_w} x {image_h}, "
            f"label map {mask_w} x {mask_h}"
        )
    return faults
