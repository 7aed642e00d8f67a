"""projects/BaseMethods: all variants of a method in one table, and going on after an end."""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from freecp_d2.evaluation.results import load_results

PROJECT = Path(__file__).parents[2] / "projects" / "BaseMethods"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, PROJECT / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py"])
    monkeypatch.delenv("CAMVID_ROOT", raising=False)
    yield load("compare")
    del sys.modules["compare"]


class Child:
    """In place of an evaluation; the commands that were run."""

    commands: list[list[str]] = []

    def __init__(self, command, **options):
        self.commands.append(command)
        self.signals: list[int] = []

    def send_signal(self, number):
        self.signals.append(number)

    def wait(self):
        return 0


@pytest.fixture
def children(compare, monkeypatch):
    commands: list[list[str]] = []
    monkeypatch.setattr(Child, "commands", commands)
    monkeypatch.setattr(compare.subprocess, "Popen", Child)
    return commands


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_is_of_what_was_evaluated_and_nothing_is_evaluated_twice(
    compare, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["--images", "2", "--methods", "gem", "--output", str(tmp_path)]
    assert compare.main(arguments) == 0
    folder = tmp_path / "scenes_val_part_2"
    results = [load_results(folder / f"gem_{v}" / "results.json") for v in compare.VARIANTS]
    alone, ours, *_ = results
    assert {r["images"] for r in results} == {2}
    assert [r["enabled"] for r in results] == [False, True, True]
    assert [r["refine"] for r in results] == ["none", "none", "pamr"]
    assert alone["protocol"] == "same"
    assert {r["config"]["MODEL"]["CLIP"]["GEM"]["DEPTH"] for r in results} == {4}
    text = (tmp_path / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    kept = ours["purification"]["ambiguity"]
    expected = [r["metrics"]["mIoU"] for r in results] + [kept["precision"], kept["recall"]]
    figures = [f"{value:.1f}" for value in expected]
    seconds = [f"{sum(r['seconds_per_image'].values()):.3f}" for r in results]
    assert cells(text.splitlines()[-1])[1:] == figures + seconds

    monkeypatch.setattr(compare.subprocess, "Popen", None)
    assert compare.main(arguments) == 0
    assert text in capsys.readouterr().out

    commands: list[list[str]] = []
    monkeypatch.setattr(Child, "commands", commands)
    monkeypatch.setattr(compare.subprocess, "Popen", Child)
    (folder / "gem_alone" / "results.json").unlink()
    failed = {**ours, "failed": {"a.png": "broken"}}
    (folder / "gem_freecp" / "results.json").write_text(json.dumps(failed))
    compare.main(arguments)
    assert [Path(command[-1]).name for command in commands] == ["gem_alone", "gem_freecp"]
    row = (tmp_path / "comparison.md").read_text().splitlines()[-1]
    assert cells(row)[1:3] == ["-", "-"]
    commands.clear()
    compare.main([*arguments, "--opts", "MODEL.FREECP.STRIDE", "112"])
    assert len(commands) == len(results)


def test_commands_of_all_methods_on_both_data_sets(compare, children, tmp_path, capsys):
    camvid = tmp_path / "camvid"
    camvid.mkdir()
    (camvid / "classes.json").write_text(json.dumps({"descriptions": {"sky": ["Blue."]}}))
    assert compare.main(["--camvid", str(camvid), "--output", str(tmp_path / "out")]) == 0
    methods, variants = compare.base_method_names(), compare.VARIANTS
    assert len(children) == 2 * len(methods) * len(variants)
    for command in children:
        assert "--resume" in command and "--eval-only" in command
    folders = [Path(command[-1]).relative_to(tmp_path / "out").as_posix() for command in children]
    assert folders == [
        f"{name}/{method}_{variant}"
        for name in ("scenes_val", "camvid_val")
        for method in methods
        for variant in variants
    ]
    last = children[-1]
    assert last[last.index("--register") + 1].endswith("CamVid/camvid.py")
    assert last[last.index("MODEL.CLIP.NAME") + 1] == str(camvid / "clip.json")
    descriptions = last[last.index("MODEL.FREECP.DESCRIPTIONS") + 1]
    assert json.loads(Path(descriptions).read_text()) == {"sky": ["Blue."]}
    text = capsys.readouterr().out
    assert "scenes_val\n" in text and "camvid_val\n" in text and "No CamVid" not in text


def test_without_camvid_it_is_said(compare, children, tmp_path, capsys):
    assert compare.main(["--methods", "gem", "--output", str(tmp_path)]) == 0
    assert "No CamVid: --camvid or CAMVID_ROOT names" in capsys.readouterr().out
    assert len(children) == len(compare.VARIANTS)
    with pytest.raises(SystemExit, match="classes.json: no such file; --camvid is the folder"):
        compare.main(["--camvid", str(tmp_path / "nowhere"), "--output", str(tmp_path)])


def test_a_method_of_ones_own(compare, children, tmp_path):
    file = PROJECT.parent / "OwnBaseMethod" / "value_attention.py"
    arguments = ["--register", str(file), "--methods", "valueattention", "--output", str(tmp_path)]
    assert compare.main(arguments) == 0
    for command in children:
        assert command[command.index("--register") + 1] == str(file)
        assert command[command.index("MODEL.CLIP.METHOD") + 1] == "valueattention"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_the_evaluation_and_ends_the_comparison(
    number, compare, children, tmp_path, monkeypatch, capsys
):
    signalled: list[int] = []

    def wait(self):
        os.kill(os.getpid(), number)
        signalled.extend(self.signals)
        return 0  # it had just ended

    monkeypatch.setattr(Child, "wait", wait)
    arguments = ["--methods", "gem", "sclip", "--output", str(tmp_path)]
    assert compare.main(arguments) == 128 + number
    assert signalled == [number] and len(children) == 1
    go_on = f"go on with: python compare.py {' '.join(arguments)}"
    assert go_on in capsys.readouterr().out


def test_an_evaluation_that_fails_ends_the_comparison(compare, children, tmp_path, monkeypatch):
    monkeypatch.setattr(Child, "wait", lambda self: 3)
    assert compare.main(["--methods", "gem", "--output", str(tmp_path)]) == 3
    assert len(children) == 1


@pytest.mark.parametrize("images", [1, 3, 200])
def test_a_part_is_at_equal_distances(images, monkeypatch):
    monkeypatch.setenv("PART_OF", "ten_images")
    monkeypatch.setenv("PART_IMAGES", str(images))
    records = [{"file_name": f"{i}.png"} for i in range(10)]
    DatasetCatalog.register("ten_images", lambda: records)
    MetadataCatalog.get("ten_images").set(stuff_classes=["a"], ignore_label=255)
    part = f"ten_images_part_{images}"
    try:
        if images > 10:
            with pytest.raises(ValueError, match="--images is 200; ten_images has 10"):
                load("parts")
            return
        load("parts")
        chosen = [int(r["file_name"].split(".")[0]) for r in DatasetCatalog.get(part)]
        assert chosen == {1: [0], 3: [0, 3, 6]}[images]
        assert MetadataCatalog.get(part).stuff_classes == ["a"]
        assert MetadataCatalog.get(part).ignore_label == 255
    finally:
        for name in {"ten_images", part} & {*DatasetCatalog.list()}:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        sys.modules.pop("parts", None)
