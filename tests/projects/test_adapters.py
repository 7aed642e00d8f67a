"""projects/Adapters: its settings are FreeCP's own, and differ in what they say."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from freecp_d2 import get_config
from freecp_d2.adapters import BaFTA

FILE = Path(__file__).parents[2] / "projects" / "Adapters" / "measure.py"
OPTS = ("MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.OUTPUT", "label_map")


@pytest.fixture(scope="module")
def script(load_script):
    return load_script(FILE)


@pytest.fixture(scope="module")
def images(script):
    cfg = get_config("scenes/clearclip", OPTS)
    with torch.no_grad():
        return script.Images(cfg, build_model(cfg).eval(), "scenes_val", 40)


def test_the_first_rows_are_the_models_own(script, images):
    model = images.model
    with torch.no_grad():
        freecp = [model([x])[0]["label_map"] for x in images.inputs]
        alone = build_model(get_config("scenes/clearclip", (*OPTS, "MODEL.FREECP.ENABLED", False)))
        base = [alone([x])[0]["label_map"] for x in images.inputs]
        assert images.in_order() == images.in_order(seed=1) == images.miou(freecp)
        assert images.base() == images.miou(base) != images.in_order()


def test_views_are_those_of_the_config(script, images):
    opts = (*OPTS, "MODEL.FREECP.ADAPTER", "entropy_weights")
    views = build_model(get_config("scenes/clearclip", opts))
    with torch.no_grad():
        expected = images.miou([views([x])[0]["label_map"] for x in images.inputs])
        assert images.viewed(*script.VIEWS["entropy_weights"]) == expected != images.in_order()
        assert images.viewed(*script.VIEWS["plain mean of the same views"]) != expected


def test_the_order_matters_to_a_stream(images):
    with torch.no_grad():
        figures = {images.in_order(seed, BaFTA(10.0)) for seed in (0, 1, 2)}
    assert len(figures) > 1


def test_figures_are_written(script, tmp_path, capsys):
    arguments = ["--config-file", "scenes/clearclip", "--output", str(tmp_path), "--every", "100"]
    script.main([*arguments, "--only", "base", "clip_ot", "--opts", *OPTS])
    written = json.loads((tmp_path / "scenes_val.json").read_text())
    assert len(written["base"]) == 1 and len(written["clip_ot"]) == 3
    assert capsys.readouterr().out.count("scenes_val ") == 2


def test_a_setting_that_is_none_is_said_before_the_work(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "Images", None)
    arguments = ["--config-file", "scenes/clearclip", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="--only 'tent': choose from base; freecp; clip_ot; "):
        script.main([*arguments, "--only", "base", "tent", "--opts", *OPTS])
