"""Register `camvid_val`: an example of a data set of one's own.

    CAMVID_ROOT=FOLDER python train_net.py --register projects/CamVid/camvid.py \
        --config-file projects/CamVid/configs/clearclip.yaml --eval-only

The folder is $CAMVID_ROOT, or else camvid/ in $DETECTRON2_DATASETS. It holds images/*.png,
annotations/*.png of the same names (ids 0, 1, ...), and classes.json with the keys "classes" and
"ignore_label".
"""

import json
import os
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_sem_seg


def register_camvid(root: Path, name: str = "camvid_val") -> None:
    """Add the folder `root` to Detectron2's catalogs.

    Raises:
        FileNotFoundError: `root` has no classes.json.
    """
    file = root / "classes.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; set CAMVID_ROOT to the folder of CamVid")
    content = json.loads(file.read_text(encoding="utf-8"))
    images, annotations = str(root / "images"), str(root / "annotations")
    DatasetCatalog.register(name, lambda: load_sem_seg(annotations, images, image_ext="png"))
    MetadataCatalog.get(name).set(
        stuff_classes=content["classes"],
        ignore_label=content["ignore_label"],
        evaluator_type="sem_seg",
    )


default = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "camvid"
register_camvid(Path(os.environ.get("CAMVID_ROOT", default)).expanduser())
