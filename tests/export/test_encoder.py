"""The image encoder in the formats of other runtimes, against DenseCLIP itself."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from freecp_d2.clip import BASE_METHODS, DenseCLIP, base_method_names, load_clip
from freecp_d2.clip.methods import LastBlockMethod
from freecp_d2.export.encoder import FORMATS, SUFFIXES, crop_program, encoder_program, save

SCENE_CLIP = Path(__file__).parents[2] / "freecp_d2" / "data" / "scenes" / "scene_clip"
WINDOW = 96
OUTPUTS = ["patches", "cls", "affinity"]


def in_torch(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    return torch.export.load(path).module()


def in_onnxruntime(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [output.name for output in session.get_outputs()]

    def run(pixels: Tensor) -> dict[str, Tensor]:
        values = session.run(None, {"pixels": pixels.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    return run


def in_openvino(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    from freecp_d2.clip.runtimes import required

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    model = required("openvino").compile_model(path, "CPU", exact)

    def run(pixels: Tensor) -> dict[str, Tensor]:
        result = model({"pixels": pixels.numpy()})
        return {port.get_any_name(): torch.from_numpy(result[port]) for port in model.outputs}

    return run


RUNNERS = {"torch": in_torch, "onnx": in_onnxruntime, "openvino": in_openvino}


def saved(
    program: ExportedProgram, format: str, folder: Path, name: str = "encoder"
) -> Callable[[Tensor], dict[str, Tensor]]:
    path = folder / f"{name}{SUFFIXES[format]}"
    save(program, path, format)
    return RUNNERS[format](path)


def expected(encoder: DenseCLIP, pixels: Tensor) -> dict[str, Tensor]:
    features = encoder(pixels)
    return dict(zip(OUTPUTS, (features.patches, features.cls, features.attention), strict=True))


def pixels(count: int, side: int = WINDOW) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        assert got[name].dtype == torch.float32
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=0, msg=lambda m, n=name: n + m)


@pytest.fixture(scope="module")
def scene_clip() -> DenseCLIP:
    config, weights = SCENE_CLIP.with_suffix(".json"), SCENE_CLIP.with_suffix(".safetensors")
    model, _ = load_clip(str(config), str(weights), "fp32")
    return DenseCLIP(model, "clearclip")


@pytest.fixture(scope="module")
def scene_programs(scene_clip: DenseCLIP) -> tuple[ExportedProgram, ExportedProgram]:
    return encoder_program(scene_clip, WINDOW), crop_program(scene_clip)


@pytest.mark.parametrize("format", FORMATS)
def test_scene_clip_is_the_same_in_every_format(scene_clip, scene_programs, format, tmp_path):
    run = saved(scene_programs[0], format, tmp_path)
    crops = saved(scene_programs[1], format, tmp_path, "crops")
    for count in (1, 2, 3):
        assert_same(run(pixels(count)), expected(scene_clip, pixels(count)))
        cut = pixels(count, 112)
        assert_same(crops(cut), {"cls": scene_clip.encode_cls(cut)})


def tiny_clip() -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text)


OPTIONS = {
    "scclip": {"pre_adjust_idx": 2, "post_adjust_idx": 1, "multi_start_idx": 0, "multi_end_idx": 2},
    "sfp": {"pre_adjust_idx": 2, "post_adjust_idx": 1, "cross_s": 0, "cross_e": 2},
    "resclip": {"rcs_blocks": (0, 2)},
    "gem": {"gem_depth": 3},
}


def tiny(method: str, affinity: str = "method", **options) -> DenseCLIP:
    return DenseCLIP(
        tiny_clip(), method, affinity=affinity, **{**OPTIONS.get(method, {}), **options}
    )


@pytest.mark.parametrize("method", base_method_names())
def test_every_base_method_is_the_same_in_every_format(method, tmp_path):
    encoder = tiny(method)
    program = encoder_program(encoder, 64)
    for format in FORMATS:
        run = saved(program, format, tmp_path)
        for count in (1, 3):
            assert_same(run(pixels(count, 64)), expected(encoder, pixels(count, 64)))


CHOICES = [
    ("sfp", {"pm": "L2"}),
    ("sfp", {"pm": "LOF"}),
    ("naclip", {"attn_strategy": "nonly"}),
    ("pearl", {"use_kk": False}),
    ("gem", {"affinity": "attention"}),  # of the first head alone
    ("resclip", {"affinity": "attention", "attn_strategy": "sclip"}),
    ("clearclip", {"last_block": "residual"}),
]


@pytest.mark.parametrize(("method", "options"), CHOICES)
def test_options_are_exported(method, options, tmp_path):
    encoder = tiny(method, **options)
    program = encoder_program(encoder, 64)
    for format in ("onnx", "openvino"):
        run = saved(program, format, tmp_path)
        assert_same(run(pixels(2, 64)), expected(encoder, pixels(2, 64)))


def test_the_encoder_stays_as_it_is_and_the_text_tower_stays_at_home(scene_clip, scene_programs):
    before = expected(scene_clip, pixels(1))
    program = encoder_program(scene_clip, 80)
    assert_same(program.module()(pixels(1, 80)), expected(scene_clip, pixels(1, 80)))
    assert all(torch.equal(a, b) for a, b in zip(
        before.values(), expected(scene_clip, pixels(1)).values(), strict=True
    ))  # fmt: skip
    assert {key.split(".")[2] for key in program.state_dict} == {"visual"}
    shared = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    assert (
        program.state_dict[f"encoder.model.{shared}"].data_ptr()
        == scene_clip.model.get_parameter(shared).data_ptr()
    )


def test_a_method_that_reads_the_words_is_refused_with_its_option():
    with pytest.raises(ValueError, match=r"resclip reads .*set MODEL.CLIP.RESCLIP.USE_SFR False"):
        encoder_program(tiny("resclip", use_sfr=True), 64)


class ByValue(LastBlockMethod):
    """Its shapes depend on the pixels."""

    def attend(self, trunk):
        value = trunk.qkv[2]
        return value if value.mean() > 0 else -value

    def similarity(self, trunk):
        raise NotImplementedError


def test_a_method_that_branches_on_values_is_refused_by_name():
    BASE_METHODS.register(ByValue)
    with pytest.raises(ValueError, match=r"METHOD byvalue: torch.export cannot follow it \(.+\);"):
        encoder_program(tiny("byvalue", "attention"), 64)


@pytest.mark.parametrize(("format", "name"), [("onnx", "ONNX"), ("openvino", "OpenVINO")])
def test_what_a_format_has_not_is_named(format, name, tmp_path):
    program = encoder_program(tiny("pearl", align_solver="svd"), 64)
    with pytest.raises(ValueError, match=f"{name} cannot hold it: .*linalg_svd"):
        save(program, tmp_path / "model", format)


def test_other_weights_and_small_windows_are_refused():
    encoder = tiny("clearclip")
    with pytest.raises(ValueError, match="windows of 7x7 pixels are smaller than a patch of 8x8"):
        encoder_program(encoder, 7)
    open_clip.convert_weights_to_lp(encoder.model, torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16 are not exported; set MODEL.CLIP.PRECISION"):
        crop_program(encoder)


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_missing_package_is_named(format, package, monkeypatch, scene_programs, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is not installed.*freecp_d2\[export\]"):
        save(scene_programs[1], tmp_path / "model", format)


def test_openvino_sends_no_telemetry(tmp_path):
    code = (
        "from freecp_d2.clip.runtimes import required; import sys;"
        "required('openvino').convert_model; print(sys.modules['openvino_telemetry'])"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("CI", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n"
    assert not (tmp_path / "intel").exists()
