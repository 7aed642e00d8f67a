"""train_net.py as it is called, on a few scenes that a file of the test's own registers."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

from freecp_d2 import add_freecp_config

ROOT = Path(__file__).parents[1]
CONFIG = "configs/scenes/clearclip.yaml"
CONFIGS = [*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("projects/CamVid/configs/*.yaml")]

REGISTER = """
from pathlib import Path
from detectron2.data import DatasetCatalog, MetadataCatalog
from freecp_d2.data.scenes.catalog import CLASSES, load_scenes

folder = Path(__file__).parent / "few"
DatasetCatalog.register("few_scenes", lambda: load_scenes(folder, range(3)))
MetadataCatalog.get("few_scenes").set(
    stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
)
"""


def evaluate(folder: Path, name: str, *args: str) -> tuple[dict, str]:
    """results.json, and what was printed, of a call of train_net.py."""
    output = folder / name
    command = [sys.executable, "train_net.py", "--register", str(folder / "register.py")]
    command += ["--config-file", CONFIG, "--eval-only", "--coco-predictions", *args]
    command += ["DATASETS.TEST", "('few_scenes',)", "OUTPUT_DIR", str(output)]
    command += ["MODEL.CLIP.TEXT_CACHE", str(folder / "text"), "MODEL.DEVICE", "cpu"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((output / "results.json").read_text()), run.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train_net")
    (folder / "register.py").write_text(REGISTER)
    return folder


@pytest.fixture(scope="module")
def base(folder) -> tuple[dict, str]:
    return evaluate(folder, "base", "MODEL.FREECP.ENABLED", "False")


@pytest.fixture(scope="module")
def purified(folder, base) -> tuple[dict, str]:
    return evaluate(folder, "purified", "--compare-with", str(folder / "base" / "results.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks would use NCCL, one GPU each")
def test_two_ranks_give_the_results_of_one(folder, purified):
    one, _ = purified
    two, _ = evaluate(folder, "two", "--num-gpus", "2", "--dist-url", "auto")
    assert "World size: 2" in (folder / "two" / "log.txt").read_text()
    for results in (one, two):
        seconds = results.pop("seconds_per_image")
        assert seconds["encode"] > 0
    assert two == one
    for file in ("per_class.csv", "sem_seg_predictions.json"):
        assert (folder / "two" / file).read_bytes() == (folder / "purified" / file).read_bytes()
    pictures = [
        re.findall(r"data:image[^\"]+", (folder / run / "report.html").read_text())
        for run in ("purified", "two")
    ]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 2 * 3 * 3


def test_results_and_the_table_row(base, purified):
    for (results, printed), method in ((base, "clearclip"), (purified, "clearclip + FreeCP")):
        miou = results["metrics"]["mIoU"]
        assert 0 < miou < 100 and results["images"] == 3
        assert results["enabled"] == method.endswith("FreeCP")
        rows = [line.split("|")[1:-1] for line in printed.splitlines() if "| few_scenes" in line]
        cells = [[cell.strip() for cell in row] for row in rows]
        assert cells == [["few_scenes", method, "3", f"{miou:.2f}", "-", "-"]]
    assert base[0]["metrics"] != purified[0]["metrics"]
    assert "purification" not in base[0]
    assert purified[0]["purification"].keys() == {"truth", "redundancy", "ambiguity"}


@pytest.mark.parametrize(
    ("args", "said"),
    [(["--config-file", CONFIG], "use --eval-only"), (["--eval-only"], "--config-file")],
)
def test_wrong_calls_end_with_one_line(args, said):
    with pytest.raises(SystemExit, match=said) as error:
        runpy.run_path(str(ROOT / "train_net.py"))["parse_args"](args)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", sorted(CONFIGS), ids=lambda path: path.stem)
def test_configs_have_no_unknown_keys(config):
    cfg = get_cfg()
    add_freecp_config(cfg)
    cfg.merge_from_file(str(config))
    assert cfg.MODEL.META_ARCHITECTURE == "FreeCP"
