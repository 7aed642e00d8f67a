"""What lies in a benchmark's folders."""

import os
from pathlib import Path

from .layout import Benchmark, Layout


def find_layout(benchmark: Benchmark, root: Path) -> Layout | None:
    """The first of its layouts whose mask folder, and file list if it has one, is under `root`."""
    for layout in benchmark.layouts:
        files = [root / layout.file_list] if layout.file_list else []
        if (root / layout.mask_folder).is_dir() and all(file.is_file() for file in files):
            return layout
    return None


def file_names(folder: Path, suffix: str) -> list[str]:
    """Sorted names, relative to `folder` and without `suffix`, of the files under it.

    Links to folders are followed; hidden files do not count.
    """
    return sorted(
        (Path(parent) / name).relative_to(folder).as_posix().removesuffix(suffix)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.endswith(suffix) and not name.startswith(".")
    )


def read_names(path: Path) -> tuple[str, ...]:
    """The names in a file list of PASCAL VOC: the first word of every line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(line.split()[0] for line in lines if line.strip())
