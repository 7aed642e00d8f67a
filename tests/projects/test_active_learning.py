"""The experiment of projects/ActiveLearning at tiny sizes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from PIL import Image
from torch import nn

from freecp_d2.data.scenes import CLASSES, draw_scene
from freecp_d2.evaluation import load_label_map

FILE = Path(__file__).parents[2] / "projects" / "ActiveLearning" / "active_learning.py"
TINY = [
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.FPN.OUT_CHANNELS", 8, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8),
    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2),
]
"""A student that takes a moment."""


@pytest.fixture(scope="module")
def project(load_script):
    path = list(sys.path)
    module = load_script(FILE)
    sys.path[:] = path
    return module


@pytest.fixture
def scenes_val(monkeypatch, tmp_path):
    """Three scenes in its place."""
    for kind in ("images", "annotations"):
        (tmp_path / "val" / kind).mkdir(parents=True)
    records = []
    for seed in range(3):
        scene, name = draw_scene(seed), f"{seed}.png"
        image, labels = (tmp_path / "val" / kind / name for kind in ("images", "annotations"))
        Image.fromarray(scene.image).save(image)
        Image.fromarray(scene.labels).save(labels)
        size = {"height": scene.labels.shape[0], "width": scene.labels.shape[1]}
        records.append({"file_name": str(image), "sem_seg_file_name": str(labels), **size})
    monkeypatch.setitem(DatasetCatalog.data, "scenes_val", lambda: records)
    return records


def start(project, output: Path, *arguments: object) -> None:
    argv = ["--output", output, "--pool", 4, "--counts", 2, 3, "--seeds", 2, *arguments]
    argv += [] if "--opts" in arguments else ["--opts"]
    project.main([str(argument) for argument in [*argv, *TINY]])


@pytest.fixture
def trained(project, monkeypatch) -> list:
    """The seeds and the files that every student was trained with."""
    calls: list = []
    whole = project.train

    def train(cfg, records, seed):
        calls.append((seed, [record["file_name"] for record in records]))
        return whole(cfg, records, seed)

    monkeypatch.setattr(project, "train", train)
    return calls


def test_a_resume_does_what_is_left(project, tmp_path, scenes_val, trained, monkeypatch, capsys):
    """Stopped in the third run; its results are those of a run that nobody stopped."""
    output = tmp_path / "out"
    evaluate, runs = project.evaluate, []

    def killed(*arguments):
        if len(runs) == 2:
            raise KeyboardInterrupt
        runs.append(evaluate(*arguments))
        return runs[-1]

    with monkeypatch.context() as patch:
        patch.setattr(project, "evaluate", killed)
        with pytest.raises(SystemExit):
            start(project, output)
    stopped = json.loads((output / "results.json").read_text())
    assert list(stopped["runs"]) == ["discrepancy/2/0", "random/2/0"]
    monkeypatch.setattr(project, "rank_pool", _only_for(project, output / "pool_1_4"))
    start(project, output)
    results = json.loads((output / "results.json").read_text())
    assert {k: results["runs"][k] for k in stopped["runs"]} == stopped["runs"]
    assert len(results["runs"]) == 12 and len(trained) == 13
    shown = capsys.readouterr().out
    assert "| discrepancy |" in shown and "3 images" in shown
    assert Image.open(output / "curves.png").size == (720, 480)
    again = project.summary(results)
    values = [results["runs"][f"entropy/3/{seed}"]["mIoU"] for seed in (0, 1)]
    assert again["entropy"][3] == values and set(again) == {"discrepancy", "random", "entropy"}


def _only_for(project, folder: Path):
    """Ranks the images of `folder` only: a pool that is ranked is not ranked anew."""
    rank_pool = project.rank_pool

    def rank(records, config):
        assert all(Path(record["file_name"]).is_relative_to(folder) for record in records)
        return rank_pool(records, config)

    return rank


def test_what_a_student_is_trained_on(project, tmp_path, scenes_val, trained):
    """The first N by the ranking that is on the disk, of a pool of the seed's own."""
    output = tmp_path / "out"
    start(project, output, "--strategies", "entropy", "random")
    for position, seed in enumerate((0, 1)):
        ranked = json.loads((output / f"pool_{seed}.json").read_text())
        pool = project.pool_of(output, seed, 4)
        order = sorted(range(4), key=lambda i: -ranked[i]["scores"]["entropy"])
        calls = trained[4 * position : 4 * position + 4]
        assert calls[0] == (seed, [pool[i]["file_name"] for i in order[:2]])
        assert calls[2] == (seed, [pool[i]["file_name"] for i in order[:3]])
        assert calls[1][1] == calls[3][1][:2], "what is annotated stays"
    run = json.loads((output / "results.json").read_text())["runs"]["entropy/2/1"]
    seen = {int(k) for i in order[:2] for k in np.unique(_labels(pool[i]))}
    assert run["classes"] == len(seen)
    pools = [{x["file_name"].split("/")[-1] for x in project.pool_of(output, s, 4)} for s in (0, 1)]
    assert not pools[0] & pools[1]


def _labels(record) -> np.ndarray:
    return load_label_map(record["sem_seg_file_name"])


def test_the_strategies(project):
    ranked = [
        {"scores": {"largest": a, "entropy": b, "classes": c}, "channels": d}
        for a, b, c, d in ((3, 1, 2, [0]), (2.9, 3, 1, [0]), (2, 2, 3, [1]))
    ]
    orders = {name: project.order_of(name, ranked, 0) for name in project.STRATEGIES}
    assert orders["discrepancy"] == [0, 1, 2] and orders["entropy"] == [1, 2, 0]
    assert orders["classes"] == [2, 0, 1] and orders["cover"] == [0, 2, 1]
    many = ranked * 20
    chance = [project.order_of("random", many, seed) for seed in (0, 0, 1)]
    assert chance[0] == chance[1] != chance[2] and sorted(chance[2]) == list(range(60))


def test_training_changes_weights_and_its_seed_is_all(project, tmp_path):
    pool = project.pool_of(tmp_path, 0, 2)
    cfg = project.load_student_config(project.CONFIG, TINY)
    one, same, other = (project.train(cfg, pool, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    seed_all_rng(0)
    before = build_model(cfg).state_dict()
    assert any(not torch.equal(one[key], before[key]) for key in one if "predictor" in key)


def test_the_figures_of_a_loop(project, scenes_val):
    """A model that says sky everywhere."""

    class Sky(nn.Module):
        def forward(self, batch):
            (x,) = batch
            assert x["image"].shape == (3, 112, 144)
            scores = torch.zeros(len(CLASSES), x["height"], x["width"])
            scores[CLASSES.index("sky")] = 1
            return [{"sem_seg": scores}]

    cfg = project.load_student_config(project.CONFIG, TINY)
    figures = project.evaluate(cfg, Sky(), scenes_val)
    labels = np.stack([_labels(record) for record in scenes_val])
    share = (labels == CLASSES.index("sky")).mean()
    present = len({*np.unique(labels), CLASSES.index("sky")})
    assert figures == pytest.approx({"mIoU": 100 * share / present, "pixel_accuracy": 100 * share})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pool", 2], "--counts 3 is more than the 2 of --pool"),
        (["--opts", "SOLVER.BASE_LR", 1.0], r"results of other settings \(student\)"),
        (["--val", 1], r"results of other settings \(val\)"),
    ],
)
def test_what_is_refused(project, tmp_path, scenes_val, monkeypatch, arguments, said):
    monkeypatch.setattr(project, "train", lambda *a: None)
    monkeypatch.setattr(project, "evaluate", lambda *a: {"mIoU": 1.0, "pixel_accuracy": 1.0})
    start(project, tmp_path, "--strategies", "random")
    with pytest.raises(SystemExit, match=f"^active_learning.py: .*{said}"):
        start(project, tmp_path, "--strategies", "random", *arguments)
