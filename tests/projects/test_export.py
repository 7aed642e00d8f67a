"""projects/Export: the label maps that FreeCP gives, without PyTorch, Detectron2 or freecp_d2."""

import json
import runpy
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from freecp_d2 import FreeCPPredictor
from freecp_d2.cli.export import main
from freecp_d2.data.images import read_image
from freecp_d2.data.scenes import CLASSES, draw_scene

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "projects/Export/run_onnx.py"
ALONE = """
import runpy, sys
for name in ("torch", "detectron2", "freecp_d2", "open_clip", "triton", "PIL"):
    sys.modules[name] = None  # importing it raises
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
CASES = {
    "look-alikes": (list(CLASSES), False, ["MODEL.FREECP.AMBIGUITY_THRESHOLD", "0.4"]),
    "background and several names": (
        [["dog", "puppy"], "car", ["tree", "pine"], "house"],
        ["sky", "lawn", "road", "sea"],
        ["MODEL.FREECP.AMBIGUITY_THRESHOLD", "0.5", "MODEL.FREECP.BOX_FULL_EXTENT", "True"],
    ),
    "without ambiguity": (list(CLASSES)[:20], False, ["MODEL.FREECP.AMBIGUITY", "False"]),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder and the predictor of a case, which is exported once."""

    @cache
    def export(case: str) -> tuple[Path, FreeCPPredictor]:
        folder = tmp_path_factory.mktemp("exported")
        words, background, opts = CASES[case]
        (folder / "words.json").write_text(json.dumps(words))
        argv = ["--config-file", "scenes/clearclip", "--format", "onnx"]
        argv += ["--output", str(folder / "exported"), "--vocabulary", str(folder / "words.json")]
        argv += ["--background", ",".join(background)] if background else []
        assert main([*argv, "--opts", *opts]) == 0
        opts = ["MODEL.CLIP.PRECISION", "fp32", *opts]
        return folder / "exported", FreeCPPredictor("scenes/clearclip", opts, device="cpu")

    return export


@pytest.mark.parametrize("case", CASES)
def test_label_maps_are_freecps(exported, case):
    words, background, _ = CASES[case]
    folder, predictor = exported(case)
    program = runpy.run_path(str(SCRIPT))
    model = program["Model"](folder)
    losses, seen = 0, set()
    for seed in range(1000, 1008):
        size = [(224, 288), (301, 477), (450, 338)][seed % 3]
        image = draw_scene(seed, *size).image
        expected = predictor(image, words, background)
        labels = program["segment"](model, image)
        assert (labels == expected.label_map).mean() >= 0.999, seed
        losses += sum(removed.stage == "ambiguity" for removed in expected.removed)
        seen |= {*np.unique(labels)}
    assert len(seen) > 2 and (losses > 0) == (case != "without ambiguity")


def test_pixels_of_no_class_and_of_two():
    """As `freecp_d2.scores` has it: 0 where nothing scores, the first of equals."""
    labels = runpy.run_path(str(SCRIPT))["labels"]
    maps = np.array([[[0, 0.5, 0.4]], [[0, 0.5, 0.6]]], dtype=np.float32)
    for background, expected in ((0, [0, 3, 5]), (2, [0, 0, 5])):
        label_map = labels(maps, np.array([3, 5]), {"num_background": background}, (1, 3))
        assert label_map.tolist() == [expected]


def test_a_photo_is_turned_as_its_exif_data_say(tmp_path):
    """Pixels are what this package reads, too, by another decoder."""
    image = Image.fromarray(draw_scene(1002).image)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "photo.jpg", exif=exif, quality=90)
    read = runpy.run_path(str(SCRIPT))["read"]
    for upright in (True, False):
        expected = read_image(tmp_path / "photo.jpg", exif_orientation=upright)
        pixels = read(tmp_path / "photo.jpg", upright)
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).max() <= 2


def test_it_runs_alone(exported, tmp_path):
    folder, predictor = exported("look-alikes")
    shutil.copytree(folder, tmp_path / "exported")
    scene = draw_scene(1001, 260, 300).image
    Image.fromarray(scene).save(tmp_path / "scene.png")
    argv = ["--model", "exported", "--input", "scene.png", "--output", "labels.png"]
    command = [sys.executable, "-c", ALONE, str(SCRIPT), *argv]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert not ran.returncode and not ran.stderr, ran.stderr
    labels = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
    expected = predictor(scene, list(CLASSES)).label_map
    assert labels.dtype == np.uint8 and (labels == expected).mean() >= 0.999
    names = list(CLASSES)
    shares = {line.split(": ")[0] for line in ran.stdout.splitlines()}
    assert shares == {names[label] for label in np.unique(labels)}

    description = json.loads((tmp_path / "exported/description.json").read_text())
    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.fromarray(scene[:100, :20]).resize((20, 3000)).save(tmp_path / "narrow.png")
    for change, file, said in (
        (
            {"format": "openvino"},
            "scene.png",
            "format openvino, version 1; this program reads onnx",
        ),
        ({"format_version": 2}, "scene.png", "format onnx, version 2; this program reads onnx"),
        ({}, "text.txt", "not an image that OpenCV reads"),
        ({}, "empty.png", "not an image that OpenCV reads"),
        ({}, "nothing.png", "No such file"),
        ({}, "narrow.png", "smaller than the model's window of 224"),
    ):
        (tmp_path / "exported/description.json").write_text(json.dumps(description | change))
        argv[3] = file
        ran = subprocess.run([*command[:4], *argv], cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 1 and ran.stderr.startswith("run_onnx.py: ") and said in ran.stderr
