"""projects/Corruptions: damaged copies of a data set, whatever it is."""

import os
import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from freecp_d2.data.corruptions import CORRUPTIONS

FILE = Path(__file__).parents[2] / "projects" / "Corruptions" / "corruptions.py"
NAME = "corruptions_test"
METADATA = {"stuff_classes": ["sky"], "ignore_label": 255, "evaluator_type": "sem_seg"}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two grey images in the catalog as NAME, and what is registered since away again."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = set(DatasetCatalog.list())
    random = np.random.default_rng(0)
    images = [random.integers(90, 160, (20, 30, 3), dtype=np.uint8) for _ in range(2)]
    records = []
    for index, image in enumerate(images):
        path = tmp_path / str(index) / "photo.png"
        path.parent.mkdir()
        Image.fromarray(image).save(path)
        record = {"file_name": str(path), "sem_seg_file_name": f"{index}.png", "image_id": index}
        records.append({**record, "height": 20, "width": 30})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(image_root=str(tmp_path), **METADATA)
    yield images
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_images_are_damaged_and_nothing_else_changes(images, tmp_path, corruption):
    runpy.run_path(str(FILE))
    copy = f"{NAME}_{corruption}"
    records = DatasetCatalog.get(copy)
    for seed, (image, record, original) in enumerate(
        zip(images, records, DatasetCatalog.get(NAME), strict=True)
    ):
        damaged = np.array(Image.open(record["file_name"]))
        np.testing.assert_array_equal(damaged, CORRUPTIONS[corruption](image, seed))
        assert record | {"file_name": ""} == original | {"file_name": ""}
    folder = tmp_path / "corrupted" / copy
    assert MetadataCatalog.get(copy).image_root == str(folder)
    assert {k: getattr(MetadataCatalog.get(copy), k) for k in METADATA} == METADATA
    assert len(list(folder.parent.iterdir())) == 1 and len(list(folder.iterdir())) == 2


def test_files_are_written_once_and_by_whoever_is_first(images):
    runpy.run_path(str(FILE))
    runpy.run_path(str(FILE))  # twice, as two --register do
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(DatasetCatalog.get, [f"{NAME}_noise"] * 4))
    path = several[0][0]["file_name"]
    assert all(records == several[0] for records in several)
    written = os.stat(path).st_mtime_ns
    assert DatasetCatalog.get(f"{NAME}_noise") == several[0]
    assert os.stat(path).st_mtime_ns == written


def test_data_sets_without_label_maps_have_no_copies(images):
    runpy.run_path(str(FILE))
    assert "coco_2017_val_noise" not in DatasetCatalog and f"{NAME}_blur" in DatasetCatalog
