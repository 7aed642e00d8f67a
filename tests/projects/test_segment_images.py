"""segment.py as the README calls it."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[2]


def segment(output: Path, classes: str, *files: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "projects/SegmentImages/segment.py"]
    command += ["--config-file", "configs/scenes/clearclip.yaml", "--classes", classes]
    command += ["--output", str(output), "--input", *map(str, files)]
    command += ["--opts", "MODEL.CLIP.TEXT_CACHE", str(output / "cache")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_images_of_any_kind_get_label_maps(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    files = [tmp_path / "color.png", tmp_path / "gray.jpg", tmp_path / "pixel.png"]
    for file, image in zip(files, (noise, noise[:40, :, 0], noise[:1, :1]), strict=True):
        cv2.imwrite(str(file), image)
    run = segment(tmp_path, "sky,road,snowman", *files)
    assert run.returncode == 0, run.stderr[-2000:]
    for file, size in zip(files, ((60, 90), (40, 90), (1, 1)), strict=True):
        labels = cv2.imread(str(tmp_path / f"{file.stem}_labels.png"), cv2.IMREAD_UNCHANGED)
        assert labels.dtype == np.uint16 and labels.shape == size and labels.max() < 3
        assert (tmp_path / f"{file.stem}_drawn.png").stat().st_size > 0


def test_a_duplicate_class_and_a_corrupt_file_are_named(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG and no more")
    assert "'sky'" in segment(tmp_path, "sky,road,sky", broken).stderr.splitlines()[-1]
    last = segment(tmp_path, "sky,road", broken).stderr.splitlines()[-1]
    assert str(broken) in last
    assert not list(tmp_path.glob("*_labels.png"))
