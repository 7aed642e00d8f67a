"""load_config and what it makes of MODEL.DEVICE."""

import logging

import pytest
import torch
from detectron2.config import get_cfg

from freecp_d2 import FreeCPPredictor, add_freecp_config, load_config

CONFIG = "configs/scenes/clearclip.yaml"


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_without_a_gpu_cuda_becomes_cpu_and_is_said(monkeypatch, caplog, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config(CONFIG, ["MODEL.DEVICE", device])
    assert cfg.MODEL.DEVICE == "cpu" and cfg.is_frozen()
    (warning,) = warnings_of(caplog)
    assert "No CUDA device" in warning and device in warning


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_stay(monkeypatch, caplog, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_config(CONFIG, ["MODEL.DEVICE", device]).MODEL.DEVICE == device
    assert not warnings_of(caplog)


def test_the_gpus_of_this_machine(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cuda", "cuda:0", "cuda:1"):
        assert load_config(CONFIG, ["MODEL.DEVICE", device]).MODEL.DEVICE == device
    with pytest.raises(ValueError, match="MODEL.DEVICE is cuda:2; this machine has 2"):
        load_config(CONFIG, ["MODEL.DEVICE", "cuda:2"])
    assert not warnings_of(caplog)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cuda 0"])
def test_no_device_is_named(device):
    with pytest.raises(ValueError, match="MODEL.DEVICE is .*; choose cpu, cuda"):
        load_config(CONFIG, ["MODEL.DEVICE", device])


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_the_predictor_takes_config_nodes_alike(monkeypatch, caplog, device):
    """Made by hand, by Detectron2's default MODEL.DEVICE or another; the node stays as it is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = get_cfg()
    add_freecp_config(cfg)
    cfg.merge_from_file(CONFIG)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.CLIP.TEXT_CACHE = ""
    cfg.freeze()
    predictor = FreeCPPredictor(cfg)
    assert predictor.cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.DEVICE == device
    assert predictor._model.device == torch.device("cpu")
    assert any("No CUDA device" in warning for warning in warnings_of(caplog))
    given = FreeCPPredictor(cfg, ["MODEL.DEVICE", "cpu"])
    assert given.cfg.MODEL.DEVICE == "cpu"
