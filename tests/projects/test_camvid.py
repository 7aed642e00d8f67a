"""CamVid's registration, and its evaluation as the README calls it, on a small folder like it."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

ROOT = Path(__file__).parents[2]
PROJECT = "projects/CamVid"
CLIP = "freecp_d2://scenes/scene_clip"
CONTENT = {
    "classes": ["sky", "road", "lawn"],
    "descriptions": {"sky": ["The open sky above the roofs."], "road": ["Grey asphalt."]},
    "ignore_label": 255,
}


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Two images of stripes, with the label maps of the same names."""
    root = tmp_path / "camvid"
    for kind in ("images", "annotations"):
        (root / kind).mkdir(parents=True)
    labels = np.repeat(np.array([0, 1, 2, 255], dtype=np.uint8), 24)[:, None].repeat(128, 1)
    generator = np.random.default_rng(0)
    for name in ("0001TP_008700", "Seq05VD_f00090"):
        image = generator.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        Image.fromarray(labels).save(root / "annotations" / f"{name}.png")
    (root / "classes.json").write_text(json.dumps(CONTENT))
    return root


@pytest.fixture
def registered():
    """Runs camvid.py, and takes what it registers away again."""

    def register() -> None:
        runpy.run_path(str(ROOT / PROJECT / "camvid.py"))

    yield register
    if "camvid_val" in DatasetCatalog:
        DatasetCatalog.remove("camvid_val")
        MetadataCatalog.remove("camvid_val")


def by_root(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("CAMVID_ROOT", str(folder))


def by_home(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("CAMVID_ROOT", f"~/{folder.name}")


def by_datasets(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.delenv("CAMVID_ROOT", raising=False)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))


@pytest.mark.parametrize("found", [by_root, by_home, by_datasets])
def test_the_folder_is_registered(found, camvid, registered, monkeypatch):
    found(monkeypatch, camvid)
    registered()
    records = DatasetCatalog.get("camvid_val")
    names = ["0001TP_008700.png", "Seq05VD_f00090.png"]
    assert sorted(Path(r["file_name"]) for r in records) == [camvid / "images" / n for n in names]
    for record in records:
        label_map = Path(record["sem_seg_file_name"])
        assert label_map == camvid / "annotations" / Path(record["file_name"]).name
    metadata = MetadataCatalog.get("camvid_val")
    assert metadata.stuff_classes == CONTENT["classes"] and metadata.ignore_label == 255
    assert metadata.evaluator_type == "sem_seg"


def test_a_folder_without_classes_is_named(tmp_path, registered, monkeypatch):
    by_root(monkeypatch, tmp_path)
    with pytest.raises(FileNotFoundError, match="classes.json: no such file; set CAMVID_ROOT"):
        registered()
    assert "camvid_val" not in DatasetCatalog


def test_the_evaluation_of_the_readme(camvid, tmp_path):
    descriptions = tmp_path / "descriptions.json"
    descriptions.write_text(json.dumps(CONTENT["descriptions"]))
    command = [sys.executable, "train_net.py", "--register", f"{PROJECT}/camvid.py"]
    command += ["--config-file", f"{PROJECT}/configs/clearclip.yaml", "--eval-only"]
    command += ["MODEL.CLIP.NAME", f"{CLIP}.json", "MODEL.CLIP.PRETRAINED", f"{CLIP}.safetensors"]
    command += ["MODEL.FREECP.DESCRIPTIONS", str(descriptions), "MODEL.CLIP.TEXT_CACHE", ""]
    command += ["OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    command += ["INPUT.MIN_SIZE_TEST", "0", "DATALOADER.NUM_WORKERS", "0"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "CAMVID_ROOT": str(camvid), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["dataset"] == "camvid_val" and results["images"] == 2
    assert 0 <= results["metrics"]["mIoU"] <= 100 and results["enabled"]
