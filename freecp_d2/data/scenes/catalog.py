"""`scenes_val` in Detectron2's catalogs; its files are drawn when they are first asked for."""

import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ...files import whole_folder
from ...progress import progress
from ..benchmarks.files import datasets_root
from .classes import CLASSES, COLORS
from .scene import HEIGHT, WIDTH, draw_scene

VAL_SEEDS: range = range(200)
"""Seeds of `scenes_val`. Reserved: whoever trains on scenes uses others."""


def register_scenes(root: str | os.PathLike) -> None:
    """Register `scenes_val` with its files under `root`/scenes/val. Touches no disk."""
    folder = Path(root) / "scenes" / "val"
    DatasetCatalog.register("scenes_val", lambda: load_scenes(folder, VAL_SEEDS))
    MetadataCatalog.get("scenes_val").set(
        stuff_classes=list(CLASSES),
        stuff_colors=[list(color) for color in COLORS],
        stuff_dataset_id_to_contiguous_id={i: i for i in range(len(CLASSES))},
        ignore_label=255,
        evaluator_type="sem_seg",
        image_root=str(folder / "images"),
        sem_seg_root=str(folder / "annotations"),
    )


def load_scenes(folder: Path, seeds: range) -> list[dict]:
    """Detectron2's dicts of the scenes of `seeds`, whose PNGs are drawn under `folder` if missing.

    Raises:
        OSError: when `folder` cannot be written.
    """
    if not folder.exists():
        write_scenes(folder, seeds)
    return [
        {
            "file_name": str(folder / "images" / _file_name(seed)),
            "sem_seg_file_name": str(folder / "annotations" / _file_name(seed)),
            "height": HEIGHT,
            "width": WIDTH,
            "image_id": seed,
        }
        for seed in seeds
    ]


def write_scenes(folder: Path, seeds: range) -> None:
    """Draw images and label maps as PNGs; see :func:`freecp_d2.files.whole_folder`."""
    with whole_folder(folder) as part:
        for kind in ("images", "annotations"):
            (part / kind).mkdir()
        for seed in progress(seeds, total=len(seeds), desc=f"drawing {folder}", unit="scene"):
            scene = draw_scene(seed)
            Image.fromarray(scene.image).save(part / "images" / _file_name(seed))
            Image.fromarray(scene.labels).save(part / "annotations" / _file_name(seed))


def _file_name(seed: int) -> str:
    return f"{seed:06d}.png"


if "scenes_val" not in DatasetCatalog:
    register_scenes(datasets_root())
