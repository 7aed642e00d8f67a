"""An evaluation with an adapter that goes on gives the figures of one without a stop."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils import comm

from freecp_d2.cli import evaluate
from freecp_d2.evaluation.records import Records
from freecp_d2.evaluation.sem_seg import FreeCPSemSegEvaluator
from freecp_d2.evaluation.stream import STATE, Stream

IMAGES = 5
REGISTER = """
from detectron2.data import DatasetCatalog, MetadataCatalog
from freecp_d2.data.scenes import CLASSES
if "five_scenes" not in DatasetCatalog:
    DatasetCatalog.register("five_scenes", lambda: DatasetCatalog.get("scenes_val")[:{images}])
    MetadataCatalog.get("five_scenes").set(
        stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
    )
"""


@pytest.fixture(scope="module")
def register(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("register") / "five.py"
    file.write_text(REGISTER.format(images=IMAGES))
    return file


def run(register: Path, output: Path, *opts: str) -> int:
    return evaluate.main(
        [
            *("--config-file", "scenes/clearclip", "--register", str(register), *opts),
            *("MODEL.FREECP.ADAPTER", "bafta", "DATASETS.TEST", "('five_scenes',)"),
            *("OUTPUT_DIR", str(output)),
        ]
    )


def figures(output: Path) -> tuple[dict, bytes, str]:
    results = json.loads((output / "results.json").read_text())
    for key in ("seconds", "seconds_per_image"):
        results.pop(key, None)
    kept = {k: results[k] for k in ("metrics", "classes", "stream", "images", "purification")}
    return kept, (output / "records" / STATE).read_bytes(), (output / "per_class.csv").read_text()


class Killed(Exception):
    pass


@pytest.mark.parametrize("before_the_state", [False, True])
def test_a_resumed_evaluation_gives_the_same_bits(
    register, tmp_path, monkeypatch, before_the_state
):
    assert run(register, tmp_path / "whole") == 0
    expected = figures(tmp_path / "whole")
    assert expected[0]["stream"]["images"] == IMAGES
    process, add = FreeCPSemSegEvaluator.process, Stream.add

    def killed_at_the_fourth(evaluator, images, outputs):
        if len(list(Records(evaluator.records_folder).evaluated())) == 3:
            raise Killed
        process(evaluator, images, outputs)

    def killed_after_the_third(stream, images):
        if images and len(stream.images) == 2:
            raise Killed  # its record is on the disk
        add(stream, images)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if before_the_state:
            patch.setattr(Stream, "add", killed_after_the_third)
        else:
            patch.setattr(FreeCPSemSegEvaluator, "process", killed_at_the_fourth)
        run(register, tmp_path / "killed")
    assert not (tmp_path / "killed" / "results.json").exists()
    assert run(register, tmp_path / "killed", "--resume") == 0
    assert figures(tmp_path / "killed") == expected


def test_several_ranks_are_refused_before_anything_is_removed(register, tmp_path, monkeypatch):
    several = SimpleNamespace(**{**vars(comm), "get_world_size": lambda: 2})
    monkeypatch.setattr(evaluate, "comm", several)
    (tmp_path / "results.json").write_text("of an earlier run")
    with pytest.raises(SystemExit, match="bafta follows .* 2 ranks; evaluate with --num-gpus 1"):
        run(register, tmp_path)
    assert (tmp_path / "results.json").read_text() == "of an earlier run"


def test_a_stream_begins_empty_and_knows_its_order(tmp_path):
    class Counter:
        def __init__(self):
            self.state = {"n": torch.ones(())}

    first = Stream(Counter(), tmp_path / STATE)
    assert first._adapter.state == {}
    first.add(["a", "b"])
    second = Stream(Counter(), tmp_path / STATE)
    looked_at = []
    second.resume(["a", "b", "c"], looked_at.append)
    assert looked_at == ["c"] and second.images == ["a", "b", "c"]
    order = second.facts()["stream"]["order"]
    other = Stream(Counter(), tmp_path / "other" / STATE)
    other.add(["b", "a", "c"])
    assert other.facts()["stream"]["images"] == 3 and other.facts()["stream"]["order"] != order
