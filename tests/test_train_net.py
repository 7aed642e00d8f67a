"""train_net.py as it is called: on a data set and a model of the test's own, and on scenes."""

import os
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
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from freecp_d2.data.scenes.catalog import CLASSES, load_scenes

@META_ARCH_REGISTRY.register()
class Stub(torch.nn.Module):
    '''Tells the classes by the brightness of the pixels.'''
    def __init__(self, cfg):
        super().__init__()
    def forward(self, inputs):
        names = torch.arange(len(CLASSES)).view(-1, 1, 1)
        return [{"sem_seg": -(x["image"].sum(0) % len(CLASSES) - names).abs()} for x in inputs]

folder = Path(__file__).parent / "few"
DatasetCatalog.register("few_scenes", lambda: load_scenes(folder, range(3)))
MetadataCatalog.get("few_scenes").set(
    stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
)
"""


@pytest.fixture(scope="module")
def register(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("register") / "register.py"
    file.write_text(REGISTER)
    return file


def train_net(register: Path, output: Path, *args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "train_net.py", "--register", str(register), *args]
    return subprocess.run(
        [*command, "DATASETS.TEST", "('few_scenes',)", "OUTPUT_DIR", str(output)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def figures(run: subprocess.CompletedProcess, output: Path) -> dict:
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(output / "inference/few_scenes/sem_seg_evaluation.pth", weights_only=True)


def test_two_ranks_give_the_figures_of_one(register, tmp_path):
    results = []
    for ranks in ("1", "2"):
        output = tmp_path / ranks
        args = ["--config-file", CONFIG, "--eval-only", "--num-gpus", ranks, "--dist-url", "auto"]
        run = train_net(register, output, *args, "MODEL.META_ARCHITECTURE", "Stub")
        results.append(repr(figures(run, output)))  # as text: NaN is not equal to NaN
        assert f"World size: {ranks}" in run.stdout
    assert results[0] == results[1]


def test_base_method_and_freecp(register, tmp_path):
    results = []
    for enabled in ("True", "False"):
        args = ["--config-file", CONFIG, "--eval-only", "MODEL.FREECP.ENABLED", enabled]
        args += ["MODEL.CLIP.TEXT_CACHE", str(tmp_path / "text")]
        run = train_net(register, tmp_path / enabled, *args)
        results.append(figures(run, tmp_path / enabled)["mIoU"])
    assert all(0 < miou <= 100 for miou in results) and results[0] != results[1]


@pytest.mark.parametrize(
    ("args", "said"),
    [(["--config-file", CONFIG], "--eval-only"), (["--eval-only"], "--config-file")],
)
def test_wrong_calls_end_with_one_line(register, tmp_path, args, said):
    run = train_net(register, tmp_path, *args)
    assert run.returncode == 1 and said in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("config", sorted(CONFIGS), ids=lambda p: p.stem)
def test_configs_have_no_unknown_keys(config):
    cfg = get_cfg()
    add_freecp_config(cfg)
    cfg.merge_from_file(str(config))
    assert cfg.MODEL.META_ARCHITECTURE == "FreeCP"
