"""Each base method's own protocol, setting by setting, and how a config takes it."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from freecp_d2 import add_freecp_config, load_config
from freecp_d2.clip import DenseCLIP, TextEncoder
from freecp_d2.config import configured_vocabulary, get_config
from freecp_d2.data import load_vocabulary
from freecp_d2.data.benchmarks import BENCHMARKS
from freecp_d2.data.benchmarks.protocols import (
    PAPER,
    SAME,
    Refinement,
    base_protocol,
    configured_refinement,
    with_protocol,
)
from freecp_d2.data.mapper import InferenceMapper

CONFIGS = Path(__file__).parents[2] / "configs"

# METHOD.md section 8: short side, window, stride, logit scale, probability threshold, area
# threshold, how many queries and how many of them are background.
SCLIP = {
    "voc21": (336, 224, 112, 65, 0.1, 0.1, 56, 26),
    "voc20": (336, 224, 112, 40, 0, None, 30, 0),
    "pcontext60": (336, 224, 112, 50, 0.1, None, 60, 1),
    "pcontext59": (336, 224, 112, 40, 0, None, 59, 0),
    "coco_object": (336, 224, 112, 50, 0.1, None, 113, 26),
    "coco_stuff164k": (448, 224, 112, 40, 0, None, 171, 0),
    "ade20k": (336, 224, 112, 40, 0, None, 150, 0),
    "cityscapes": (560, 224, 112, 40, 0, None, 19, 0),
}
CLEARCLIP = {
    "voc21": (448, 448, 224, 50, 0.5, None, 21, 1),
    "voc20": (448, 448, 224, 50, 0, None, 20, 0),
    "pcontext60": (448, 448, 224, 50, 0.15, None, 60, 1),
    "pcontext59": (448, 448, 224, 50, 0, None, 59, 0),
    "coco_object": (448, 448, 224, 50, 0.4, None, 81, 1),
    "coco_stuff164k": (448, 448, 224, 50, 0, None, 171, 0),
    "ade20k": (448, 448, 224, 50, 0, None, 150, 0),
    "cityscapes": (448, 224, 224, 50, 0, None, 19, 0),
}
NACLIP = {
    "voc21": (336, 0, 0, 40, 0.1, None, 56, 26),
    "voc20": (336, 0, 0, 40, 0, None, 30, 0),
    "pcontext60": (336, 224, 112, 40, 0.1, None, 60, 1),
    "pcontext59": (336, 224, 112, 40, 0, None, 59, 0),
    "coco_object": (336, 224, 112, 40, 0.1, None, 113, 26),
    "coco_stuff164k": (336, 224, 112, 40, 0, None, 171, 0),
    "ade20k": (336, 224, 112, 40, 0, None, 150, 0),
    "cityscapes": (560, 224, 112, 40, 0, None, 19, 0),
}
SCCLIP = {
    "voc21": (336, 224, 112, 50, 0.15, 0.1, 56, 26),
    "voc20": (336, 224, 112, 40, 0, None, 30, 0),
    "pcontext60": (336, 224, 112, 40, 0.15, None, 60, 1),
    "pcontext59": (336, 224, 112, 40, 0, None, 59, 0),
    "coco_object": (336, 224, 112, 55, 0.35, None, 113, 26),
    "coco_stuff164k": (336, 224, 112, 40, 0, None, 171, 0),
    "ade20k": (336, 224, 112, 40, 0, None, 150, 0),
    "cityscapes": (560, 224, 112, 40, 0, None, 19, 0),
}
SFP = SCCLIP | {"ade20k": (384, 224, 112, 40, 0, None, 150, 0)}
RESCLIP = NACLIP
# TEMP_THD, and factor and share of RCS and of SFR.
RESCLIP_OPTIONS = {
    "voc21": (0.5, (2.0, 0.3), (2.2, 0.7)),
    "voc20": (0.1, (2.0, 0.6), (2.1, 0.6)),
    "pcontext60": (0.3, (2.0, 0.3), (1.8, 0.7)),
    "pcontext59": (0.25, (2.0, 0.4), (1.8, 0.7)),
    "coco_object": (0.11, (2.0, 0.4), (1.8, 0.7)),
    "coco_stuff164k": (0.11, (2.0, 0.4), (1.8, 0.7)),
    "ade20k": (0.25, (2.0, 0.3), (2.1, 0.7)),
    "cityscapes": (0.1, (2.0, 0.2), (2.1, 0.6)),
}
PEARL = NACLIP
# ALPHA_KK, and the grid of TLP.
PEARL_OPTIONS = dict.fromkeys(BENCHMARKS, (0.08, 80)) | {
    "ade20k": (0.3, 80),
    "cityscapes": (0.3, 224),
}
TWICE = ("naclip", "pearl", "resclip")  # these resample twice
TABLES = {
    "maskclip": SCLIP,
    "sclip": SCLIP,
    "clearclip": CLEARCLIP,
    "gem": CLEARCLIP,
    "naclip": NACLIP,
    "scclip": SCCLIP,
    "sfp": SFP,
    "resclip": RESCLIP,
    "pearl": PEARL,
}
IN_PAPER = [name for name, benchmark in BENCHMARKS.items() if benchmark.in_paper]
ROWS = [(method, benchmark) for method in TABLES for benchmark in IN_PAPER]
ON = ["MODEL.FREECP.ENABLED", "False", "MODEL.FREECP.PROTOCOL", "paper"]


def config(method: str, benchmark: str, *opts: str):
    return load_config(str(CONFIGS / benchmark / f"{method}.yaml"), opts)


@pytest.mark.parametrize(("method", "benchmark"), ROWS)
def test_the_settings_are_the_authors(method, benchmark):
    short, window, stride, scale, threshold, area, queries, background = TABLES[method][benchmark]
    for cfg in (config(method, benchmark, *ON), config(f"{method}_base", benchmark)):
        assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (short, 2048)
        assert (cfg.MODEL.FREECP.WINDOW, cfg.MODEL.FREECP.STRIDE) == (window, stride)
        assert cfg.MODEL.CLIP.LAST_BLOCK == ("residual" if method == "sclip" else "")
        vocabulary = configured_vocabulary(cfg)
        assert (len(vocabulary.queries), vocabulary.num_background) == (queries, background)
        assert len(vocabulary.classes) + bool(background) == BENCHMARKS[benchmark].num_classes
        protocol = base_protocol(cfg)
        assert (protocol.logit_scale, protocol.probability_threshold) == (scale, threshold)
        assert protocol.area_threshold == area
        assert (protocol.pamr_steps, protocol.pamr_dilations) == (
            10 * (method == "naclip"),
            (8, 16),
        )
        assert (protocol.partial_patches == "pad") == (method in ("clearclip", "gem"))
        assert protocol.whole_image_at_once == (method not in TWICE)
        assert with_protocol(cfg) == cfg and InferenceMapper(cfg).min_size == short
    assert cfg.OUTPUT_DIR == f"output/{benchmark}_{method}_base"


@pytest.mark.parametrize("benchmark", IN_PAPER)
def test_resclip_reads_the_words_by_its_authors_settings_alone(benchmark):
    threshold, rcs, sfr = RESCLIP_OPTIONS[benchmark]
    for cfg in (config("resclip", benchmark, *ON), config("resclip_base", benchmark)):
        options = cfg.MODEL.CLIP.RESCLIP
        assert options.USE_SFR and options.DELETE_SAME_ENTITY
        assert (options.TEMP_THD, options.LOGIT_SCALE) == (threshold, 40)
        assert (options.ATTN_RCS_WEIGHTS, options.ATTN_SFR_WEIGHTS) == (rcs, sfr)
        assert (options.RCS_BLOCKS, options.GAUSSIAN_STD) == ((5, 6, 7, 8), 5)
    ours = config("resclip", benchmark)
    assert ours.MODEL.CLIP.RESCLIP == get_config("clip/clearclip").MODEL.CLIP.RESCLIP
    assert not ours.MODEL.CLIP.RESCLIP.USE_SFR


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_pearl_is_aligned_and_propagated_by_its_authors_settings(benchmark):
    alpha, grid = PEARL_OPTIONS[benchmark]
    for cfg in (config("pearl", benchmark, *ON), config("pearl_base", benchmark)):
        options = cfg.MODEL.CLIP.PEARL
        assert (options.ALPHA_KK, options.USE_KK) == (alpha, True)
        assert (options.ALIGN_SOLVER, options.POLAR_ITERS) == ("polar", 5)
        assert base_protocol(cfg).tlp_grid == grid
    assert config("pearl", benchmark).MODEL.CLIP.PEARL.ALPHA_KK == 0.08
    assert not base_protocol(config("resclip", benchmark, *ON)).tlp_grid


@pytest.mark.parametrize(("method", "benchmark"), ROWS)
def test_same_is_what_freecp_has(method, benchmark):
    enabled, disabled = config(method, benchmark), config(method, benchmark, *ON[:2])
    disabled.defrost()
    disabled.MODEL.FREECP.ENABLED = True
    assert disabled == enabled
    protocol = base_protocol(enabled)
    assert (protocol.logit_scale, protocol.area_threshold, protocol.pamr_steps) == (50, None, 0)
    assert protocol.probability_threshold == enabled.MODEL.FREECP.BACKGROUND_THRESHOLD
    assert protocol.authors == SAME.authors and not protocol.threshold_without_background


PAMR = ["MODEL.FREECP.REFINE", "pamr"]


def test_a_refinement_is_that_of_freecp_and_of_a_base_method_that_is_run_as_it():
    steps = ["MODEL.FREECP.PAMR.STEPS", "3", "MODEL.FREECP.PAMR.DILATIONS", "[4, 2]"]
    for on in ([], ON[:2]):
        cfg = config("clearclip", "voc21", *on, *PAMR, *steps)
        expected = Refinement(3, (4, 2))
        assert configured_refinement(cfg) == base_protocol(cfg).refinement == expected
        cfg = config("clearclip", "voc21", *on, "MODEL.FREECP.REFINE", "tlp")
        expected = Refinement(tlp_grid=80)
        assert configured_refinement(cfg) == base_protocol(cfg).refinement == expected
        cfg = config("clearclip", "voc21", *on, *steps)
        assert not configured_refinement(cfg).enabled
        assert not base_protocol(cfg).refinement.enabled
    # With FreeCP the base method beside it keeps its own.
    cfg = config("naclip", "voc21", *PAMR, *steps, *ON[2:])
    assert configured_refinement(cfg) == Refinement(3, (4, 2))
    assert base_protocol(cfg).refinement == Refinement(10, (8, 16))
    with pytest.raises(ValueError, match="REFINE is pamr and PROTOCOL paper, which settles"):
        config("naclip", "voc21", *PAMR, *ON)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.FREECP.REFINE", "PAMR"], "REFINE is 'PAMR'; choose one of none, pamr, tlp$"),
        ([*PAMR, "MODEL.FREECP.PAMR.STEPS", "0"], "PAMR.STEPS is 0; give a number from 1 on"),
        ([*PAMR, "MODEL.FREECP.PAMR.DILATIONS", "()"], r"DILATIONS is \(\); give whole numbers"),
        ([*PAMR, "MODEL.FREECP.PAMR.DILATIONS", "(8, 0)"], r"is \(8, 0\); give whole numbers"),
        ([*PAMR, "MODEL.FREECP.PAMR.DILATIONS", "(1.5,)"], r"is \(1.5,\); give whole numbers"),
        (
            ["MODEL.FREECP.REFINE", "tlp", "MODEL.FREECP.TLP.GRID", "0"],
            "TLP.GRID is 0; give a number from 1 on",
        ),
    ],
)
def test_wrong_refinements(opts, message):
    with pytest.raises(ValueError, match=f"^MODEL.FREECP.*{message}"):
        config("clearclip", "voc21", *opts)


def test_words_and_last_block_of_ones_own_stay():
    file = "freecp_d2://benchmarks/curated/voc21.json"
    opts = ["MODEL.FREECP.VOCABULARY", file, "MODEL.CLIP.LAST_BLOCK", "mlp"]
    cfg = config("sclip", "voc21", *ON, *opts)
    assert configured_vocabulary(cfg) == load_vocabulary(file)
    assert cfg.MODEL.CLIP.LAST_BLOCK == "mlp"


def test_another_data_set_has_the_defaults():
    cfg = config("sclip", "scenes", *ON)
    assert (cfg.MODEL.FREECP.WINDOW, cfg.MODEL.FREECP.STRIDE) == (224, 112)
    assert cfg.INPUT.MIN_SIZE_TEST == 224 and cfg.MODEL.FREECP.VOCABULARY == ""
    assert base_protocol(cfg) == PAPER["sclip"][None]


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.FREECP.PROTOCOL", "papre"],
            "MODEL.FREECP.PROTOCOL is 'papre'; choose one of same",
        ),
        (["MODEL.CLIP.METHOD", "vanilla"], "vanilla has no published protocol"),
        (
            ["DATASETS.TEST", "('voc_2012_val_21_sem_seg','pcontext_60_val_sem_seg')"],
            "voc_2012_val_21_sem_seg, pcontext_60_val_sem_seg have different protocols",
        ),
    ],
)
def test_what_has_no_protocol_is_said(opts, message):
    with pytest.raises(ValueError, match=message):
        config("sclip", "voc21", *ON, *opts)


def test_a_config_that_was_not_loaded_by_load_config(monkeypatch, caplog):
    """Detectron2's own way: get_cfg, add_freecp_config, merge, build_model."""
    cfg = get_cfg()
    add_freecp_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "scenes/sclip.yaml"))
    cfg.merge_from_list([*ON, "MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""])
    cfg.DATASETS.TEST = ("voc_2012_val_21_sem_seg",)
    assert InferenceMapper(cfg).min_size == 336
    encode = torch.zeros
    monkeypatch.setattr(TextEncoder, "encode", lambda self, entries: encode(len(entries), 2))
    with caplog.at_level(logging.INFO):
        model = build_model(cfg)
    assert "PROTOCOL paper" in caplog.text and "SCLIP" in caplog.text
    assert (model.window, model.stride, len(model.words.text)) == (224, 112, 56)
    assert model.protocol == PAPER["sclip"]["voc21"]
    assert (
        isinstance(model.encoder, DenseCLIP) and model.encoder.base_method.last_block == "residual"
    )
