"""Small data sets in Detectron2's catalogs, whose files are written where they are asked for."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

CLASSES = ("a", "b", "c", "d", "e")
IGNORE = 255


@pytest.fixture(scope="module")
def register() -> Callable[..., str]:
    """register(folder, truths, **metadata) -> the data set's name.

    Writes each (H, W) label map and a grey image of its size; the names are removed at the end.
    """
    names: list[str] = []
    numbers = itertools.count()

    def register(folder: Path, truths: Sequence[np.ndarray], **metadata) -> str:
        records = []
        for i, labels in enumerate(truths):
            record = {"file_name": str(folder / f"image {i}.jpg"), "image_id": 100 + i}
            record["sem_seg_file_name"] = str(folder / f"{i}.png")
            Image.fromarray(labels.astype(np.uint8)).save(record["sem_seg_file_name"])
            Image.new("RGB", labels.shape[::-1], (128, 128, 128)).save(record["file_name"])
            records.append(record)
        names.append(f"test_evaluation_{next(numbers)}")
        DatasetCatalog.register(names[-1], lambda: records)
        MetadataCatalog.get(names[-1]).set(
            **{
                "stuff_classes": list(CLASSES),
                "ignore_label": IGNORE,
                "evaluator_type": "sem_seg",
                **metadata,
            }
        )
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
