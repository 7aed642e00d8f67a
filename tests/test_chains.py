"""The whole chain of every benchmark: official folder, prepare, register, evaluate, report."""

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools import mask as rle

from freecp_d2.data.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[1]
SCENE_CLIP = "freecp_d2://scenes/scene_clip"
PUBLISHED = {  # clearclip + FreeCP
    "coco_stuff164k": ("COCO-Stuff 164K", 26.1),
    "coco_object": ("COCO-Object", 36.9),
    "ade20k": ("ADE20K", 18.9),
    "voc20": ("VOC20", 81.5),
    "voc21": ("VOC21", 64.5),
    "pcontext59": ("PC59", 39.3),
    "pcontext60": ("PC60", 35.7),
    "cityscapes": ("Cityscapes", 34.4),
    "ade20k_847": ("ade20k_847_val_sem_seg", None),
    "pcontext459": ("pcontext_459_val_sem_seg", None),
}


def run(datasets: Path, *arguments: object) -> str:
    """What a Python command prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(datasets)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]], ignored: int) -> float:
    """METHOD.md section 9, class by class and pixel set by pixel set, in percent."""
    ious = []
    classes = {int(c) for pair in pairs for labels in pair for c in np.unique(labels)} - {ignored}
    for c in classes:
        truth = [(labels == c) for labels, _ in pairs]
        found = [(labels == c) & (other != ignored) for other, labels in pairs]
        union = sum(int((t | f).sum()) for t, f in zip(truth, found, strict=True))
        if union:
            both = sum(int((t & f).sum()) for t, f in zip(truth, found, strict=True))
            ious.append(100 * both / union)
    return float(np.mean(ious))


class Text(HTMLParser):
    """The text of a page, and what it would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_from_the_official_folder_to_the_report(name, write_official, tmp_path):
    benchmark = BENCHMARKS[name]
    expected = write_official(name, tmp_path, images=2)
    run(tmp_path, "-m", "freecp_d2.data.prepare", name, "--partial")

    output = tmp_path / "output"
    config = f"configs/{name}/clearclip.yaml"
    printed = run(
        *(tmp_path, "train_net.py", "--eval-only", "--config-file", config, "--coco-predictions"),
        *("MODEL.CLIP.NAME", f"{SCENE_CLIP}.json"),
        *("MODEL.CLIP.PRETRAINED", f"{SCENE_CLIP}.safetensors"),
        *("MODEL.CLIP.TEXT_CACHE", "", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", output),
        *("INPUT.MIN_SIZE_TEST", 128, "MODEL.FREECP.WINDOW", 96, "MODEL.FREECP.STRIDE", 48),
    )
    results = json.loads((output / "results.json").read_text())
    miou = results["metrics"]["mIoU"]

    # The table row, with the published figure; a star: not the paper's CLIP.
    title, published = PUBLISHED[name]
    (row,) = [line for line in printed.splitlines() if line.startswith(f"| {title} ")]
    _, *cells, _ = [cell.strip() for cell in row.split("|")]
    beside = (f"{published:.1f} \\*", f"{miou - published:+.2f}") if published else ("-", "-")
    assert cells == [title, "clearclip + FreeCP", "2", f"{miou:.2f}", *beside]

    # The metric, from the predictions as COCO's JSON and the label maps that were expected.
    metadata = MetadataCatalog.get(benchmark.dataset)
    contiguous = metadata.stuff_dataset_id_to_contiguous_id
    found: dict[str, np.ndarray] = {}
    for segment in json.loads((output / "sem_seg_predictions.json").read_text()):
        image = Path(segment["file_name"]).name.removesuffix(benchmark.layout.image_suffix)
        mask = rle.decode(segment["segmentation"]).astype(bool)
        labels = found.setdefault(image, np.full(mask.shape, -1))
        assert (labels[mask] == -1).all()
        labels[mask] = contiguous[segment["category_id"]]
    truth = {Path(image).name: mask.astype(int) for image, mask in expected.items()}
    assert found.keys() == truth.keys() and all((labels >= 0).all() for labels in found.values())
    pairs = [(truth[image], found[image]) for image in truth]
    assert miou == pytest.approx(mean_iou(pairs, metadata.ignore_label), abs=1e-9)

    page = Text((output / "report.html").read_text())
    words = " ".join(page.words)
    present = {c for labels, _ in pairs for c in np.unique(labels).tolist()}
    assert all(metadata.stuff_classes[c] in words for c in present - {metadata.ignore_label})
    assert page.sources and all(source.startswith(("data:", "#")) for source in page.sources)
