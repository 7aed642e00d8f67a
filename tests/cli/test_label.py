"""`freecp label`: options, exit codes, one and two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import freecp_d2.background
from freecp_d2 import FreeCPPredictor
from freecp_d2.cli.label import job_of, main, parse_args
from freecp_d2.data.scenes.scene import draw_scene

OPTS = ["--opts", "MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
WORDS = "sky,lawn,road,sand"


@pytest.fixture
def photos(tmp_path) -> Path:
    """Three small scenes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(1000, 1003):
        image = Image.fromarray(draw_scene(seed).image).resize((96, 72))
        image.save(folder / f"{seed}.png")
    return folder


def run(*arguments, opts=()) -> int:
    """The exit code."""
    argv = ["--config-file", "scenes/clearclip", *map(str, arguments), *OPTS, *opts]
    try:
        return main(argv, "freecp label")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0


def label_map(folder: Path, id: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "labels" / f"{id}.png"))


def test_the_labels_are_the_predictors(tmp_path, photos, capsys):
    out = tmp_path / "out"
    assert run("--input", photos, "--output", out, "--vocabulary", WORDS, "--background") == 0
    assert f"3 of 3 images are labelled: {out}" in capsys.readouterr().out
    predictor = FreeCPPredictor("scenes/clearclip", OPTS[1:])
    for seed in range(1000, 1003):
        expected = predictor(photos / f"{seed}.png", WORDS.split(","), background=True)
        assert np.array_equal(label_map(out, str(seed)), expected.label_map)
    content = json.loads((out / "sem_seg.json").read_text())
    assert content["stuff_classes"] == ["background", "sky", "lawn", "road", "sand"]


def test_the_background_may_be_chosen(tmp_path, photos, monkeypatch):
    words = ("sea", "roof", "cat", "lamp", "rock", "cup", "fork")
    monkeypatch.setattr(freecp_d2.background, "lexicon", lambda *sources: words)
    out, opts = tmp_path / "out", ["MODEL.FREECP.BACKGROUND_WORDS.COUNT", "5"]
    arguments = ["--input", photos, "--output", out, "--vocabulary", WORDS]
    assert run(*arguments, "--background", "auto", opts=opts) == 0
    predictor = FreeCPPredictor("scenes/clearclip", [*OPTS[1:], *opts])
    for seed in range(1000, 1003):
        expected = predictor(photos / f"{seed}.png", WORDS.split(","), background="auto")
        assert np.array_equal(label_map(out, str(seed)), expected.label_map)
    content = json.loads((out / "sem_seg.json").read_text())
    assert content["stuff_classes"] == ["background", "sky", "lawn", "road", "sand"]
    assert run(*arguments, "--background", "random", opts=opts) == 1


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ([], True),
        (["--background"], False),
        (["--background", "auto"], False),
        (["--opts", "MODEL.FREECP.BACKGROUND", "auto"], False),
    ],
)
def test_a_background_that_is_chosen_is_one(caplog, given, warned):
    argv = ["--config-file", "scenes/clearclip", "--vocabulary", "sky", "--input", "photos"]
    job_of(parse_args([*argv, "--output", "labels", *given]))
    assert ("one class and no background" in caplog.text) == warned


def test_again_does_nothing_again_and_another_configuration_is_refused(tmp_path, photos, capsys):
    out = tmp_path / "out"
    arguments = ["--input", photos, "--output", out]
    assert run(*arguments, "--vocabulary", WORDS) == 0
    times = {file: file.stat().st_mtime_ns for file in (out / "labels").iterdir()}
    assert len(times) == 3
    assert run(*arguments, "--vocabulary", WORDS) == 0
    assert {file: file.stat().st_mtime_ns for file in (out / "labels").iterdir()} == times
    capsys.readouterr()
    assert run(*arguments, "--vocabulary", "sky,lawn") == 1
    assert "another configuration (classes, words)" in capsys.readouterr().err
    assert run(*arguments, "--vocabulary", WORDS, opts=["MODEL.CLIP.METHOD", "sclip"]) == 1
    assert "(MODEL.CLIP.METHOD)" in capsys.readouterr().err


def test_a_data_set_of_the_catalogs(tmp_path, photos):
    name = f"data set of {tmp_path}"
    records = [
        {"file_name": str(photos / f"{i}.png"), "image_id": i, "height": 72, "width": 96}
        for i in range(1000, 1003)
    ]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["sky", "lawn"], evaluator_type="sem_seg")
    try:
        assert run("--dataset", name, "--output", tmp_path / "out", "--coco", "--tars", 2) == 0
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    content = json.loads((tmp_path / "out" / "sem_seg.json").read_text())
    assert [image["image_id"] for image in content["images"]] == [1000, 1001, 1002]
    assert content["stuff_classes"] == ["sky", "lawn"]
    assert len([*(tmp_path / "out" / "tars").iterdir()]) == 2
    assert (tmp_path / "out" / "segmentation.json").is_file()


def test_failures_are_named_and_counted(tmp_path, photos, capsys):
    for number in range(25):
        (photos / f"broken{number:02d}.jpg").write_bytes(b"no")
    assert run("--input", photos, "--output", tmp_path / "out", "--vocabulary", WORDS) == 3
    said = capsys.readouterr()
    assert "3 of 28 images are labelled" in said.out
    lines = [line for line in said.err.splitlines() if line.startswith("freecp label: ")]
    assert len(lines) == 21 and f"{photos}/broken00.jpg: not an image" in lines[0]
    assert "and 5 more" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input", "nowhere"], "no such folder, pattern or list"),
        (["--input", ""], "name a folder"),
        (["--dataset", "scenes_vall"], "did you mean scenes_val"),
        (["--input", "photos", "--min-confidence", "2"], "choose 0 to 1"),
        (["--input", "photos", "--min-confidence", "nan"], "choose 0 to 1"),
        (["--input", "photos", "--tars", "-1"], "--tars -1"),
        (["--input", "photos", "--vocabulary", "sky,,lawn"], "no name beside a comma"),
        (["--input", "photos", "--register", "none.py"], "none.py"),
        (["--input", "photos", "--output", "photos/1000.png"], "choose another folder"),
        (["--input", "photos", "--output", "photos/1000.png/x"], "photos/1000.png"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, photos, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert run("--output", "out", *arguments) == 1
    said = capsys.readouterr().err
    assert sentence in said and len(said.strip().splitlines()) == 1, said
    assert [f for f in sorted(tmp_path.rglob("*")) if f.name not in ("out", ".lock")] == before


def test_two_processes_are_as_one(tmp_path, photos):
    one, two = tmp_path / "one", tmp_path / "two"
    (photos / "broken.jpg").write_bytes(b"no")
    assert run("--input", photos, "--output", one, "--vocabulary", WORDS) == 3
    command = [sys.executable, "-m", "freecp", "label", "--config-file", "scenes/clearclip"]
    options = ["--input", photos, "--output", two, "--vocabulary", WORDS, "--num-gpus", "2"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, [*command, *options]), *OPTS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert "3 of 4 images are labelled" in done.stdout and "Traceback" not in done.stderr
    assert done.stderr.count("broken.jpg: not an image") == 1
    assert len([*(two / "manifest").iterdir()]) == 2
    for name in ("sem_seg.json", "settings.json", *(f"labels/{i}.png" for i in range(1000, 1003))):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize(
    "given",
    [["--actors", "3"], ["--gpu-share", "0.5"], ["--ray", "--num-gpus", "2"]],
)
def test_options_of_one_runner_are_not_given_to_the_other(given, capsys):
    assert run("--input", "photos", "--output", "labels", "--vocabulary", WORDS, *given) == 2
    assert given[-2] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("given", "address"), [(["--ray"], None), (["--ray", "a:1"], "a:1")])
def test_ray_is_asked_and_its_end_is_told(given, address, monkeypatch, capsys):
    asked = []

    def label_by_ray(job, *options):
        asked.append(options)
        return 143

    monkeypatch.setattr("freecp_d2.labelling.ray.label_by_ray", label_by_ray)
    argv = ["--config-file", "scenes/clearclip", "--vocabulary", "sky,sand", "--input", "photos"]
    argv += ["--output", "labels", "--actors", "3", "--gpu-share", "0.5", *given]
    assert main(argv, "freecp label") == 143
    assert asked == [(address, 3, 0.5, "freecp label")]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("freecp label: stopped by SIGTERM; go on with: freecp label --config-f")
    assert last.endswith(" ".join(given))
