"""train_net.py as it is called, on a few scenes that a file of the test's own registers."""

import os
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
CONFIGS = [*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("projects/*/configs/*.yaml")]

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


def evaluate(folder: Path, name: str, *args: str) -> dict[str, float]:
    """The figures that a call of train_net.py writes."""
    output = folder / name
    command = [sys.executable, "train_net.py", "--register", str(folder / "register.py")]
    command += ["--config-file", CONFIG, "--eval-only", *args]
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
    return torch.load(output / "inference/few_scenes/sem_seg_evaluation.pth", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train_net")
    (folder / "register.py").write_text(REGISTER)
    return folder


@pytest.fixture(scope="module")
def purified(folder) -> dict[str, float]:
    return evaluate(folder, "purified")


@pytest.mark.skipif(torch.cuda.is_available(), reason="ranks would use NCCL, one GPU each")
def test_two_ranks_give_the_figures_of_one(folder, purified):
    two = evaluate(folder, "two", "--num-gpus", "2", "--dist-url", "auto")
    assert two == pytest.approx(purified, nan_ok=True, abs=0, rel=0)
    assert "World size: 2" in (folder / "two" / "log.txt").read_text()


def test_the_base_method_alone(folder, purified):
    base = evaluate(folder, "base", "MODEL.FREECP.ENABLED", "False")
    assert 0 < base["mIoU"] < 100 and 0 < purified["mIoU"] < 100
    assert base["mIoU"] != purified["mIoU"]


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
