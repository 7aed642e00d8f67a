"""Configs: what is none is named, nothing in one is run, and every key reaches what it is for."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from freecp_d2 import (
    FreeCP,
    FreeCPPredictor,
    add_freecp_config,
    get_config,
    list_configs,
    load_config,
)
from freecp_d2.affinity import TimmViT
from freecp_d2.cli import segment
from freecp_d2.cli.evaluate import Trainer
from freecp_d2.clip import base_method_names
from freecp_d2.clip.engine import EngineCLIP
from freecp_d2.cuda_graphs import Graphed
from freecp_d2.data import describe, load_descriptions
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.encoding import Normalize
from freecp_d2.files import PACKAGED, local_path

ROOT = Path(__file__).parents[1]


def payloads(trace: Path) -> dict[str, str]:
    """Name -> YAML that makes the file `trace` where it is loaded unsafely."""
    return {
        "system": f'MODEL: !!python/object/apply:os.system ["touch {trace}"]',
        "builtin": f'OUTPUT_DIR: !!python/object/apply:builtins.open ["{trace}", "w"]',
        "eval": f"MODEL:\n  CLIP:\n    NAME: !!python/object/apply:eval [\"open('{trace}', 'w')\"]",
        "new": f'? !!python/object/new:pathlib.Path ["{trace}"]\n: !!python/object/apply:os.mknod '
        f'["{trace}"]',
        "name": "MODEL: {CLIP: {NAME: !!python/name:os.system }}",
        "module": "MODEL: {CLIP: {NAME: !!python/module:os }}",
        "tuple": "MODEL: {CLIP: {NAME: !!python/tuple [1, 2]}}",
    }


PAYLOADS = sorted(payloads(Path("x")))


@pytest.fixture
def trace(tmp_path) -> Path:
    """The file that a payload makes."""
    return tmp_path / "trace"


def refused(said: str, file: Path, trace: Path) -> None:
    assert str(file) in said and "Python object" in said
    assert "\n" not in said.strip() and not trace.exists()


@pytest.mark.parametrize("depth", [0, 1, 2], ids=["itself", "its base", "the base of its base"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_python_in_a_config_is_refused(tmp_path, trace, payload, depth):
    (tmp_path / "0.yaml").write_text(payloads(trace)[payload])
    (tmp_path / "1.yaml").write_text("_BASE_: 0.yaml\nVERSION: 2\n")
    (tmp_path / "2.yaml").write_text("_BASE_: [1.yaml]\nVERSION: 2\n")
    file = tmp_path / f"{depth}.yaml"
    for load in (load_config, FreeCPPredictor):
        with pytest.raises(ValueError, match=r"0\.yaml.*line") as error:
            load(str(file))
        refused(str(error.value), file, trace)


def test_the_payloads_would_run(tmp_path, trace):
    """Detectron2's default runs them: the tests above would see it."""
    file = tmp_path / "config.yaml"
    for name in ("system", "builtin", "eval", "new"):
        file.write_text(payloads(trace)[name])
        with pytest.raises((AssertionError, KeyError, TypeError)):
            get_cfg().merge_from_file(str(file))
        assert trace.exists(), name
        trace.unlink()


def test_the_demo_refuses_python(tmp_path, trace):
    file = tmp_path / "config.yaml"
    file.write_text(payloads(trace)["system"])
    arguments = ["--config-file", str(file), "--input", str(file), "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        segment.main([*arguments, "--vocabulary", "a, b"])
    refused(f"{end.value.code}\n", file, trace)


@pytest.mark.parametrize(
    ("script", "options"),
    [("train_net.py", ["--eval-only"]), ("projects/Demo/web.py", ["--port", "7999"])],
)
def test_the_scripts_refuse_python(tmp_path, trace, script, options):
    file = tmp_path / "config.yaml"
    file.write_text(payloads(trace)["system"])
    command = [sys.executable, script, "--config-file", str(file), *options]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode not in (0, None)
    refused(run.stderr.strip().splitlines()[-1], file, trace)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a mapping"),
        ("- 1\n- 2\n", "not a mapping"),
        ("just words", "not a mapping"),
        ("MODEL: [", "line 1|line 2"),
        ("MODEL: 3", "not a mapping"),
        ("_BASE_: nowhere.yaml", r"nowhere\.yaml is not there"),
        ("_BASE_: config.yaml", "leads back to itself"),
        ("_BASE_: [3]", "not a mapping"),
        ("MODEL: {CLIP: {NOPE: 1}}", r"MODEL\.CLIP\.NOPE"),
        ("MODEL: {CLIP: {NAME: 3}}", r"MODEL\.CLIP\.NAME"),
        ("MODEL: {CLIP: {NAME: 2020-01-01}}", r"MODEL\.CLIP\.NAME"),
        ("OUTPUT_DIR: \0", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
    ],
)
def test_what_is_no_config_is_named(tmp_path, text, said):
    file = tmp_path / "config.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=said) as error:
        load_config(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def plain(tmp_path) -> str:
    file = tmp_path / "plain.yaml"
    file.write_text("VERSION: 2\n")
    return str(file)


def test_no_such_file_or_name(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    for path in (tmp_path / "nowhere.yaml", tmp_path / "folder.yaml"):
        for given in (path, str(path)):
            with pytest.raises(FileNotFoundError, match=r"\.yaml: no such file; check the path"):
                load_config(given)
    close = r"config 'scenes/clearclap': no such name; choose one of scenes/clearclip, .*\.yaml$"
    for load in (load_config, get_config):
        with pytest.raises(FileNotFoundError, match=close):
            load("scenes/clearclap")
        with pytest.raises(FileNotFoundError, match="one of ade20k/clearclip, .*voc21/sclip"):
            load(str(tmp_path))


def test_configs_by_name(tmp_path, monkeypatch):
    """Everything in configs/ but the bases, from any folder, and what it names is found there."""
    monkeypatch.chdir(tmp_path)
    files = [*ROOT.glob("configs/*/*.yaml")]
    names = {f"{file.parent.name}/{file.stem}" for file in files if file.stem != "base"}
    assert list_configs() == sorted(names) and len(names) > 80
    for name in ("coco_stuff164k/clearclip", "scenes/gem", "clip/naclip"):
        opts = ["MODEL.FREECP.BATCH_SIZE", "3"]
        cfg = get_config(name, opts)
        assert cfg == load_config(ROOT / f"configs/{name}.yaml", opts) == load_config(name, opts)
        assert cfg.is_frozen() and cfg.MODEL.FREECP.BATCH_SIZE == 3
    for name in list_configs():
        cfg = get_config(name)
        clip, freecp = cfg.MODEL.CLIP, cfg.MODEL.FREECP
        named = [clip.NAME, clip.PRETRAINED, freecp.DESCRIPTIONS, freecp.VOCABULARY]
        for path in (path for path in named if "/" in path):
            assert path.startswith(PACKAGED) and local_path(path).is_file(), (name, path)


def test_configs_for_photos_describe_the_benchmarks_classes():
    names = [name for name in list_configs() if name.startswith("clip/")]
    assert len(names) == len(base_method_names())
    for name in names:
        path = get_config(name).MODEL.FREECP.DESCRIPTIONS
        assert path == get_config("voc21/clearclip").MODEL.FREECP.DESCRIPTIONS
        descriptions = load_descriptions(path)
        assert describe(descriptions, "dog") and describe(descriptions, "carpet")
        assert not describe(descriptions, "my red bicycle")


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["MODEL.CLIP.NAME"], "odd length"),
        (["MODEL.CLIP.NOPE", "1"], r"MODEL\.CLIP\.NOPE"),
        (["MODEL.CLIP.GEM.DEPTH", "deep"], r"MODEL\.CLIP\.GEM\.DEPTH"),
        (["_BASE_", "x.yaml"], "_BASE_"),
    ],
)
def test_wrong_overrides(plain, opts, said):
    with pytest.raises(ValueError, match=said) as error:
        load_config(plain, opts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("MODEL.META_ARCHITECTURE", "FreeCQ", "'FreeCQ', which nothing has registered; choose Fr"),
        ("MODEL.META_ARCHITECTURE", "None", "is None; give a value such as 'FreeCP'"),
        ("DATALOADER.NUM_WORKERS", "-1", "is -1; it must be at least 0"),
        ("OUTPUT_DIR", "''", "is empty; name a folder"),
        ("OUTPUT_DIR", "' '", "is empty; name a folder"),
        ("MODEL.FREECP.REFINE", "crf", "is 'crf'; choose one of none, pamr, tlp"),
        ("MODEL.FREECP.BACKGROUND_THRESHOLD", "1.5", "is 1.5; give a number from 0 to 1"),
        ("MODEL.FREECP.BACKGROUND_THRESHOLD", "1e999", "is inf; give a number from 0 to 1"),
        ("MODEL.FREECP.AMBIGUITY_THRESHOLD", "2", "is 2, of type int; it takes float, such as"),
        ("MODEL.FREECP.WINDOW", "many", "is many, of type str; it takes int, such as"),
        ("TEST.IMS_PER_BATCH", "0", "is 0; it must be at least 1"),
        ("TEST.EXPECTED_RESULTS", "[1]", "has 1; give [task, metric, value, tolerance]"),
        ("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 1]]", "has ['sem_seg', 'mIoU', 1]; give"),
        ("TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 1, 'a']]", "'a']; give"),
        ("TEST.EXPECTED_RESULTS", "[[1, 'mIoU', 1, 1]]", "[1, 'mIoU', 1, 1]; give"),
    ],
)
def test_values_that_no_evaluation_survives(plain, key, value, said):
    with pytest.raises(ValueError) as error:
        load_config(plain, [key, value])
    line = str(error.value)
    assert key in line and said in line and "\n" not in line and "class '" not in line
    expected = ["TEST.EXPECTED_RESULTS", "[['sem_seg', 'mIoU', 26, 0.1]]"]
    load_config(plain, expected)
    with pytest.raises(ValueError, match="are of one data set, and DATASETS.TEST has 2"):
        load_config(plain, [*expected, "DATASETS.TEST", "('scenes_val', 'coco_2017_val')"])


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([1, 2], [1, 1, 1]),
        ([1, 2, 3, 4], [1, 1, 1]),
        ([], [1, 1, 1]),
        (["a", 1, 1], [1, 1, 1]),
        ([[1, 2], 3, 4], [1, 1, 1]),
        ([float("nan"), 1, 1], [1, 1, 1]),
        ([1, 2, 3], [1, 1]),
        ([1, 2, 3], [0, 1, 1]),
        ([1, 2, 3], [1, -1, 1]),
        ([1, 2, 3], [1, 1, float("inf")]),
    ],
    ids=str,
)
def test_pixel_values_are_three_numbers(mean, std):
    key = "STD" if mean == [1, 2, 3] else "MEAN"
    with pytest.raises(ValueError, match=f"^MODEL.PIXEL_{key} is .*; give three numbers"):
        Normalize(mean, std, "RGB")
    Normalize([0, -1.5, 3], [1, 2.5, 3], "RGB")


def test_none_is_no_value(plain):
    """Whatever the key; yacs takes it everywhere."""
    defaults = get_cfg()
    add_freecp_config(defaults)
    ours = [k for k, v in leaves(defaults.MODEL.FREECP, "MODEL.FREECP.") if v is not None]
    ours += [k for k, _ in leaves(defaults.MODEL.CLIP, "MODEL.CLIP.")]
    assert len(ours) > 20
    for key in [*ours, "MODEL.PIXEL_MEAN", "DATASETS.TEST", "INPUT.FORMAT", "MODEL.DEVICE"]:
        with pytest.raises(ValueError, match=f"^{key} is None; give a value such as "):
            load_config(plain, [key, "None"])


def test_an_override_is_a_literal(plain, tmp_path):
    code = f"open({str(tmp_path / 'trace')!r}, 'w')"
    assert load_config(plain, ["MODEL.CLIP.NAME", code]).MODEL.CLIP.NAME == code
    assert not (tmp_path / "trace").exists()


def test_weights_are_refused(plain, tmp_path):
    weights = tmp_path / "weights.yaml"
    weights.write_text("MODEL: {WEIGHTS: model_final.pth}\nVERSION: 2\n")
    cfg = get_cfg()
    add_freecp_config(cfg)
    cfg.MODEL.WEIGHTS = "model_final.pth"
    for load in (
        lambda: load_config(plain, ["MODEL.WEIGHTS", "model_final.pth"]),
        lambda: load_config(str(weights)),
        lambda: FreeCPPredictor(cfg),
    ):
        with pytest.raises(ValueError, match=r"WEIGHTS is 'model_final\.pth'.*CLIP\.PRETRAINED"):
            load()


def test_text_features_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    """Not in whatever folder one stands in; nor does a test write to that of who runs it."""
    ours = Path(get_config("scenes/clearclip").MODEL.CLIP.TEXT_CACHE)
    assert ours.is_relative_to(tempfile.gettempdir())
    for folder in ("a", "b"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        cache = get_config("scenes/clearclip").MODEL.CLIP.TEXT_CACHE
        assert cache == str(tmp_path / folder / "freecp_d2" / "text_features")
    assert not any(tmp_path.iterdir())


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


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cuda 0", "mps", "xla"])
def test_no_device_is_named(device):
    with pytest.raises(ValueError, match="MODEL.DEVICE is .*; choose cpu"):
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
    assert predictor._segmenter.model.device == torch.device("cpu")
    assert any("No CUDA device" in warning for warning in warnings_of(caplog))
    given = FreeCPPredictor(cfg, ["MODEL.DEVICE", "cpu"])
    assert given.cfg.MODEL.DEVICE == "cpu"


TINY_CLIP: dict = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 12, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
BASE_ALONE = ("MODEL.FREECP.ENABLED", "False")


def head(name: str) -> Callable[[FreeCP], object]:
    return lambda model: getattr(model.head, name)


def of_method(name: str) -> tuple[str, str]:
    return ("MODEL.CLIP.METHOD", name)


def base_method(name: str) -> Callable[[FreeCP], object]:
    return lambda model: getattr(model.encoder.base_method, name)


def by_provider(name: str) -> tuple[str, str]:
    return ("MODEL.FREECP.AFFINITY_PROVIDER", name)


def affinity(name: str) -> Callable[[FreeCP], object]:
    return lambda model: getattr(model.affinity, name)


def by_adapter(name: str) -> tuple[str, str]:
    return ("MODEL.FREECP.ADAPTER", name)


def of_words(name: str) -> Callable[[FreeCP], object]:
    return lambda model: getattr(model.words.adapter, name, None)


def views(name: str) -> Callable[[FreeCP], object]:
    return lambda model: getattr(model.extensions.views, name)


class StubViT(torch.nn.Module):
    """Of :func:`freecp_d2.affinity.load_vit`, with what it was asked for."""

    def __init__(self, name: str, weights: str):
        super().__init__()
        self.name, self.weights = name, weights
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def encoder(name: str) -> Callable[[FreeCP], object]:
    return lambda model: getattr(model.encoder, name)


def loader(name: str) -> Callable[[DataLoader], object]:
    return lambda loader: getattr(loader, name)


def mapper(name: str) -> Callable[[InferenceMapper], object]:
    return lambda mapper: getattr(mapper, name)


def class_of_encoder(model):
    return type(model.encoder)


def visual_dtype(model: FreeCP) -> torch.dtype:
    return model.encoder.model.visual.conv1.weight.dtype


def is_compiled(model):
    return hasattr(model.encoder._run_blocks, "__wrapped__")


def is_graphed(model):
    return isinstance(model.encoder._run_window, Graphed)


def background(name: str) -> Callable:
    return lambda model: getattr(model.extensions.background, name)


def has_quick_gelu(model: FreeCP) -> bool:
    return any(isinstance(module, QuickGELU) for module in model.modules())


def first_weight(model: FreeCP) -> float:
    return model.encoder.model.visual.proj[0, 0].item()


def class_names(model: FreeCP) -> tuple:
    return model.vocabulary.classes


def is_described(model: FreeCP) -> bool:
    return not model.words.descriptions.equal(model.words.text)


def cached_files(model: FreeCP) -> int:
    folder = model.text_encoder.cache_dir
    return len(list(folder.glob("*/*.safetensors"))) if folder else 0


PEARL = {
    "ALIGN_SOLVER": ("svd", base_method("align_solver"), "svd"),
    "ALPHA_KK": (0.3, base_method("alpha_kk"), 0.3),
    "POLAR_ITERS": (8, base_method("polar_iters"), 8),
    "USE_KK": (False, base_method("alpha_kk"), 0.0),
}
RESCLIP = {
    "ATTN_RCS_WEIGHTS": ((1.0, 0.4), base_method("rcs_share"), 0.4),
    "ATTN_SFR_WEIGHTS": ((1.0, 0.4), base_method("sfr_scale"), 1.0),
    "ATTN_STRATEGY": ("sclip", base_method("attn_strategy"), "sclip"),
    "DELETE_SAME_ENTITY": (False, base_method("delete_same_entity"), False),
    "GAUSSIAN_STD": (2.0, base_method("gaussian_std"), 2.0),
    "LOGIT_SCALE": (50.0, base_method("logit_scale"), 50.0),
    "RCS_BLOCKS": ((1,), base_method("rcs_blocks"), (1,)),
    "TEMP_THD": (0.1, base_method("temp_thd"), 0.1),
    "USE_SFR": (True, base_method("use_sfr"), True),
}
OF_RESCLIP = (of_method("resclip"), ("MODEL.CLIP.RESCLIP.RCS_BLOCKS", (0,)))

# Key -> a value other than that of the test's config, what it is seen by in a model, or in a mapper
# where the function is mapper()'s, what is seen with it, and what else is set.
REACHES: dict[str, tuple] = {
    "INPUT.EXIF_ORIENTATION": (False, mapper("exif_orientation"), False),
    "INPUT.FORMAT": ("BGR", lambda model: model.normalize.input_format, "BGR"),
    "INPUT.MAX_SIZE_TEST": (100, mapper("max_size"), 100),
    "INPUT.MIN_SIZE_TEST": (50, mapper("min_size"), 50),
    "MODEL.CLIP.COMPILE": (True, is_compiled, True),
    "MODEL.CLIP.GEM.DEPTH": (3, base_method("gem_depth"), 3, of_method("gem")),
    "MODEL.CLIP.GEM.HEAD_AVERAGE": (True, base_method("first_head_alone"), False, of_method("gem")),
    "MODEL.CLIP.NACLIP.ATTN_STRATEGY": (
        "kk",
        base_method("attn_strategy"),
        "kk",
        of_method("naclip"),
    ),
    "MODEL.CLIP.NACLIP.GAUSSIAN_STD": (2.0, base_method("gaussian_std"), 2.0, of_method("naclip")),
    "MODEL.CLIP.ENGINE": ("openvino", class_of_encoder, EngineCLIP),
    "MODEL.CLIP.LAST_BLOCK": ("residual", base_method("last_block"), "residual"),
    "MODEL.CLIP.METHOD": ("sclip", encoder("method"), "sclip"),
    "MODEL.CLIP.NAME": ("quick.json", has_quick_gelu, True),
    "MODEL.CLIP.PRECISION": ("bf16", visual_dtype, torch.bfloat16),
    "MODEL.CLIP.PRETRAINED": ("ones.safetensors", first_weight, 1.0),
    **{
        f"MODEL.CLIP.{method.upper()}.{option.upper()}": (
            *(value, base_method(option), value),
            of_method(method),
        )
        for method, options in {
            "scclip": {"multi_start_idx": 2, "multi_end_idx": 9},
            "sfp": {"cross_s": 2, "cross_e": 9, "pm": "L2", "purify": False},
        }.items()
        for option, value in {
            **options,
            **{"pre_adjust_idx": 7, "post_adjust_idx": 4, "res_cls": 0.2},
        }.items()
    },
    **{f"MODEL.CLIP.PEARL.{key}": (*row, of_method("pearl")) for key, row in PEARL.items()},
    **{f"MODEL.CLIP.RESCLIP.{key}": (*row, *OF_RESCLIP) for key, row in RESCLIP.items()},
    "MODEL.CLIP.TEXT_CACHE": ("cache", cached_files, 2),
    "MODEL.FREECP.ADAPTER": ("clip_ot", of_words("eta"), 0.2),
    "MODEL.FREECP.BAFTA.CERTAINTY": (0.7, of_words("least"), 0.7, by_adapter("bafta")),
    "MODEL.FREECP.BAFTA.PRIOR": (3.0, of_words("prior"), 3.0, by_adapter("bafta")),
    "MODEL.FREECP.CLIP_OT.ETA": (0.5, of_words("eta"), 0.5, by_adapter("clip_ot")),
    "MODEL.FREECP.CLIP_OT.KAPPA": (0.3, of_words("kappa"), 0.3, by_adapter("clip_ot")),
    **{
        f"MODEL.FREECP.ENTROPY_WEIGHTS.{key.upper()}": (
            *(value, views(key), value),
            by_adapter("entropy_weights"),
        )
        for key, value in {"flip": False, "scales": (0.5,), "template_sets": 2}.items()
    },
    "MODEL.FREECP.AFFINITY": ("method", encoder("affinity"), "method"),
    "MODEL.FREECP.BACKGROUND": ("random", background("how"), "random"),
    **{
        f"MODEL.FREECP.BACKGROUND_WORDS.{key.upper()}": (value, background(key), value)
        for key, value in {
            **{"lexicon": ("coco_stuff",), "count": 3},
            **{"max_similarity": 0.5, "penalty": 0.1, "seed": 7},
        }.items()
    },
    "MODEL.FREECP.DECORRELATION": (0.5, lambda model: model.extensions.decorrelation, 0.5),
    "MODEL.FREECP.RELATIONS": ("relations.json", lambda model: len(model.extensions.relations), 2),
    "MODEL.FREECP.SYNONYM_THRESHOLD": (0.1, head("synonym_threshold"), 0.1),
    "MODEL.FREECP.AFFINITY_MASKS": (
        *("tests", affinity("folder"), Path("tests")),
        by_provider("MaskFolder"),
        ("MODEL.FREECP.AFFINITY_MASKS", "configs"),
    ),
    "MODEL.FREECP.AFFINITY_PROVIDER": (
        *("TimmViT", lambda model: type(model.affinity), TimmViT),
        ("MODEL.FREECP.AFFINITY_MASKS", "configs"),
    ),
    "MODEL.FREECP.AFFINITY_VIT": (
        *("vit", lambda model: model.affinity.vit.name, "vit"),
        by_provider("TimmViT"),
    ),
    "MODEL.FREECP.AFFINITY_VIT_BETA": (0.5, affinity("beta"), 0.5, by_provider("TimmViT")),
    "MODEL.FREECP.AFFINITY_VIT_GAMMA": (9.0, affinity("gamma"), 9.0, by_provider("TimmViT")),
    "MODEL.FREECP.AFFINITY_VIT_WEIGHTS": (
        *("vit.pth", lambda model: model.affinity.vit.weights, "vit.pth"),
        by_provider("TimmViT"),
    ),
    "MODEL.FREECP.AMBIGUITY": (False, head("ambiguity"), False),
    "MODEL.FREECP.AMBIGUITY_THRESHOLD": (0.3, head("ambiguity_threshold"), 0.3),
    "MODEL.FREECP.BACKGROUND_THRESHOLD": (
        *(0.3, lambda model: model.protocol.probability_threshold, 0.3),
        BASE_ALONE,
    ),
    "MODEL.FREECP.BATCH_SIZE": (3, lambda model: model.batch_size, 3),
    "MODEL.FREECP.BOX_FULL_EXTENT": (True, head("box_full_extent"), True),
    "MODEL.FREECP.COMPILE": (True, is_graphed, True),
    "MODEL.FREECP.CONSISTENCY": ("paper", head("true_iou"), True),
    "MODEL.FREECP.CROP_BATCH_SIZE": (5, head("crop_batch_size"), 5),
    "MODEL.FREECP.DESCRIPTIONS": ("descriptions.json", is_described, True),
    "MODEL.FREECP.ENABLED": (False, lambda model: model.enabled, False),
    "MODEL.FREECP.OUTPUT": ("label_map", lambda model: model.output, "label_map"),
    "MODEL.FREECP.PROTOCOL": (
        *("paper", lambda model: (model.protocol.authors, model.window), ("ClearCLIP", 448)),
        BASE_ALONE,
    ),
    "MODEL.FREECP.REDUNDANCY": (False, head("redundancy"), False),
    "MODEL.FREECP.REDUNDANCY_THRESHOLD": (0.3, head("redundancy_threshold"), 0.3),
    "MODEL.FREECP.PAMR.DILATIONS": (
        *((4, 2), lambda model: model.refinement.pamr_dilations, (4, 2)),
        ("MODEL.FREECP.REFINE", "pamr"),
    ),
    "MODEL.FREECP.PAMR.STEPS": (
        *(3, lambda model: model.protocol.pamr_steps, 3),
        ("MODEL.FREECP.REFINE", "pamr"),
    ),
    "MODEL.FREECP.REFINE": ("pamr", lambda model: model.refinement.enabled, True),
    "MODEL.FREECP.TLP.GRID": (
        *(9, lambda model: model.refinement.tlp_grid, 9),
        ("MODEL.FREECP.REFINE", "tlp"),
    ),
    "MODEL.FREECP.STRIDE": (24, lambda model: model.stride, 24),
    "MODEL.FREECP.VOCABULARY": ("other.txt", class_names, (("dog",), ("sky",), ("road",))),
    "MODEL.FREECP.WINDOW": (160, lambda model: model.window, 160),
    "TEST.IMS_PER_BATCH": (4, loader("batch_size"), 4),
    "TEST.PRESENCE": (("local",), lambda model: model.presence, ("local",)),
    "TEST.SEPARABILITY": (True, lambda model: model.separability, True),
    "MODEL.PIXEL_MEAN": ([1.0, 2.0, 3.0], lambda m: m.normalize.mean.flatten().tolist(), [1, 2, 3]),
    "MODEL.PIXEL_STD": ([4.0, 5.0, 6.0], lambda m: m.normalize.std.flatten().tolist(), [4, 5, 6]),
}


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A CLIP of random weights, words and sentences."""
    folder = tmp_path_factory.mktemp("config")
    torch.manual_seed(0)
    clip = open_clip.CLIP(**TINY_CLIP)
    state = clip.state_dict()
    save_file(state, folder / "clip.safetensors")
    ones = {"visual.proj": torch.ones_like(clip.visual.proj.detach())}
    save_file({**state, **ones}, folder / "ones.safetensors")
    (folder / "clip.json").write_text(json.dumps(TINY_CLIP))
    (folder / "quick.json").write_text(json.dumps({**TINY_CLIP, "quick_gelu": True}))
    (folder / "relations.json").write_text('{"dog": {"tail": "part"}}')
    (folder / "words.txt").write_text("cat\nsky\n")
    (folder / "other.txt").write_text("dog\nsky\nroad\n")
    (folder / "descriptions.json").write_text(json.dumps({"cat": ["It has whiskers."]}))
    return folder


@pytest.fixture
def config_of(files, tmp_path) -> Callable[..., CfgNode]:
    """A config of the tiny CLIP with options; a value that names one of its files is its path."""

    def build(*opts: object) -> CfgNode:
        options = [
            *("MODEL.CLIP.NAME", "clip.json", "MODEL.CLIP.PRETRAINED", "clip.safetensors"),
            *("MODEL.FREECP.VOCABULARY", "words.txt", "MODEL.FREECP.DESCRIPTIONS", ""),
            *("MODEL.CLIP.TEXT_CACHE", "", "MODEL.DEVICE", "cpu", *opts),
        ]
        paths = {path.name: str(path) for path in files.iterdir()}
        paths["cache"] = str(tmp_path / "cache")
        options = [paths.get(o, o) if isinstance(o, str) else o for o in options]
        return load_config("configs/scenes/clearclip.yaml", options)

    return build


def seen(cfg: CfgNode, look: Callable) -> object:
    if look.__qualname__.startswith("loader."):
        return look(Trainer.build_test_loader(cfg, "scenes_val"))
    is_of_the_mapper = look.__qualname__.startswith("mapper.")
    return look(InferenceMapper(cfg) if is_of_the_mapper else build_model(cfg))


def test_every_key_has_its_entry():
    before, after = get_cfg(), get_cfg()
    add_freecp_config(after)
    known = dict(leaves(before))
    added = {key for key, value in leaves(after) if key not in known or known[key] != value}
    # The value that Detectron2 has of its own for a key of ours may be the same one day.
    ours = {"INPUT.FORMAT", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST"}
    assert added | ours | {"MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"} == REACHES.keys()


@pytest.mark.parametrize("key", REACHES)
def test_every_key_reaches_what_it_is_for(key, config_of, monkeypatch):
    monkeypatch.setattr("freecp_d2.affinity.vit.load_vit", StubViT)
    value, look, expected, *rest = REACHES[key]
    others = [x for pair in rest for x in pair]
    usual = seen(config_of(*others), look)
    changed = seen(config_of(*others, key, value), look)
    assert changed == expected and usual != expected


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("auto", torch.float32),
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
    ],
)
def test_the_towers_have_the_precision_that_is_configured(precision, dtype, config_of):
    clip = build_model(config_of("MODEL.CLIP.PRECISION", precision)).encoder.model
    blocks = [*clip.visual.transformer.resblocks, *clip.transformer.resblocks]
    assert clip.visual.conv1.weight.dtype == clip.text_projection.dtype == dtype
    assert {block.attn.in_proj_weight.dtype for block in blocks} == {dtype}


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_auto_is_fp16_where_the_device_is_cuda(device, config_of, monkeypatch):
    cfg = config_of().clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    encoder, _ = FreeCP.build_clip(cfg)
    assert encoder.model.visual.conv1.weight.dtype == torch.float16
