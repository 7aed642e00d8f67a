"""Register damaged copies of data sets: NAME_noise, NAME_blur and NAME_contrast for each NAME.

    python train_net.py --register projects/Corruptions/corruptions.py \
        --config-file scenes/clearclip --eval-only DATASETS.TEST "('scenes_val_noise',)"

Every data set with label maps that is registered before has them, one of an earlier --register,
too. Images are written as PNGs below corrupted/ in $DETECTRON2_DATASETS when a copy is first asked
for; label maps are the data set's own.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import read_image
from PIL import Image

from freecp_d2.data.corruptions import CORRUPTIONS
from freecp_d2.files import whole_folder
from freecp_d2.progress import progress


def register_corrupted(name: str, corruption: str, root: Path) -> None:
    """Add `name`_`corruption` to Detectron2's catalogs, with its images in `root`."""
    copy = f"{name}_{corruption}"
    DatasetCatalog.register(copy, lambda: corrupted(name, corruption, root / copy))
    metadata = MetadataCatalog.get(name).as_dict()
    left = {key: metadata[key] for key in metadata.keys() - {"name", "image_root"}}
    MetadataCatalog.get(copy).set(**left, image_root=str(root / copy))


def corrupted(name: str, corruption: str, folder: Path) -> list[dict[str, Any]]:
    """Detectron2's dicts of a copy, whose images are written into `folder` if it is missing.

    The seed of an image is its position in the data set.

    Raises:
        OSError: when `folder` cannot be written.
    """
    records = DatasetCatalog.get(name)
    files = [f"{seed:06d}_{Path(x['file_name']).stem}.png" for seed, x in enumerate(records)]
    if not folder.exists():
        with whole_folder(folder) as part:
            shown = {"total": len(files), "desc": f"writing {folder}", "unit": "image"}
            for seed, (x, file) in enumerate(progress(zip(records, files, strict=True), **shown)):
                image = read_image(x["file_name"], "RGB")
                damaged = CORRUPTIONS[corruption](np.asarray(image), seed)
                Image.fromarray(damaged).save(part / file)
    return [x | {"file_name": str(folder / file)} for x, file in zip(records, files, strict=True)]


root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser() / "corrupted"
for name in DatasetCatalog.list():
    is_a_copy = name.endswith(tuple(f"_{corruption}" for corruption in CORRUPTIONS))
    if MetadataCatalog.get(name).get("evaluator_type") == "sem_seg" and not is_a_copy:
        for corruption in CORRUPTIONS:
            if f"{name}_{corruption}" not in DatasetCatalog:
                register_corrupted(name, corruption, root)
