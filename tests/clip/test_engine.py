"""MODEL.CLIP.ENGINE: OpenVINO and onnxruntime in place of torch."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from freecp_d2 import FreeCPPredictor
from freecp_d2.clip import DenseCLIP, engine, load_clip
from freecp_d2.clip.engine import EngineCLIP, bf16_on
from freecp_d2.clip.runtimes import openvino_core, required
from freecp_d2.config import load_config
from freecp_d2.data.scenes.scene import draw_scene
from freecp_d2.evaluation.facts import precision_of
from freecp_d2.meta_arch import FreeCP

ENGINES = ["openvino", "onnxruntime"]
SCENE_CLIP = Path(__file__).parents[2] / "freecp_d2" / "data" / "scenes" / "scene_clip"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
WORDS = ["sky", "lawn", "road", "sand", "mushroom", "meadow", "dog", "river", "snow"]
SEEDS = (3, 87, 120)


def scene_clip():
    config, weights = SCENE_CLIP.with_suffix(".json"), SCENE_CLIP.with_suffix(".safetensors")
    return load_clip(str(config), str(weights), "fp32")[0]


def pixels(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def has_bf16() -> bool:
    capabilities = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities


@pytest.fixture(scope="module")
def label_maps() -> list[np.ndarray]:
    return labels_by("torch")


def labels_by(name: str, precision: str = "fp32") -> list[np.ndarray]:
    opts = [*OPTS, "MODEL.CLIP.ENGINE", name, "MODEL.CLIP.PRECISION", precision]
    predictor = FreeCPPredictor("scenes/clearclip", opts)
    return [predictor(draw_scene(seed).image, WORDS).label_map for seed in SEEDS]


def share_of_other_labels(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    assert len({label for labels in a for label in np.unique(labels)}) > 3
    return float(np.mean([(x != y).mean() for x, y in zip(a, b, strict=True)]))


@pytest.mark.parametrize("name", ENGINES)
def test_scenes_are_labelled_as_by_torch(name, label_maps):
    assert share_of_other_labels(labels_by(name), label_maps) <= 1e-4


def test_scenes_are_labelled_nearly_as_by_torch_in_bf16(label_maps):
    if not has_bf16():
        with pytest.raises(ValueError, match="bf16, for which this CPU has no units"):
            labels_by("openvino", "bf16")
    else:
        assert 0 < share_of_other_labels(labels_by("openvino", "bf16"), label_maps) < 0.01


@pytest.mark.parametrize("name", ENGINES)
def test_all_that_a_dense_clip_gives_for_images_of_several_sizes(name):
    wanted = DenseCLIP(scene_clip(), "clearclip", affinity="method")
    encoder = EngineCLIP(scene_clip(), "clearclip", affinity="method", engine=name)
    for size in ((2, 48, 80), (1, 70, 50), (3, 48, 80)):
        images = pixels(*size)
        features, expected = encoder(images), wanted(images)
        assert features.grid == expected.grid and features.reread is None
        assert_close(features.patches, expected.patches)
        assert_close(features.cls, expected.cls)
        assert_close(features.attention, expected.attention)
    assert len(encoder._runs) == 2
    images = pixels(2, 48, 80)
    patches, grid, reread = encoder.encode_dense(images)
    assert_close(patches, wanted.encode_dense(images)[0])
    assert grid == (3, 5) and reread is None
    affinity = torch.rand(2, 15, 15)
    features, expected = encoder(images, affinity), wanted(images, affinity)
    assert features.attention is affinity
    assert_close(features.patches, expected.patches)
    assert_close(features.cls, expected.cls)
    crops = pixels(5, 112, 112)
    assert_close(encoder.encode_cls(crops), wanted.encode_cls(crops))


def assert_close(got: Tensor, wanted: Tensor) -> None:
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)


def test_the_base_method_alone(label_maps):
    opts = [*OPTS, "MODEL.CLIP.PRECISION", "fp32", "MODEL.FREECP.ENABLED", "False"]
    image = draw_scene(87).image
    by_torch = FreeCPPredictor("scenes/clearclip", opts)(image, WORDS).label_map
    opts += ["MODEL.CLIP.ENGINE", "openvino"]
    assert (
        FreeCPPredictor("scenes/clearclip", opts)(image, WORDS).label_map != by_torch
    ).mean() < 1e-4


@pytest.fixture
def compiled(monkeypatch) -> list[tuple[int, int]]:
    """Heights and widths that were compiled, by an engine that gives zeros."""
    sizes = []

    def compiled(program):
        (pixels,) = [n.meta["val"] for n in program.graph.nodes if n.name == "pixels"]
        sizes.append(tuple(pixels.shape[2:]))
        return lambda images: [np.zeros((len(images), 1), np.float32)]

    monkeypatch.setitem(engine.ENGINES, "openvino", lambda bf16: compiled)
    return sizes


def test_a_size_is_compiled_once_and_kept_and_said(compiled, monkeypatch, caplog):
    monkeypatch.setattr(engine, "KEPT_PROGRAMS", 2)
    engine._say_that_sizes_are_many.cache_clear()
    encoder = EngineCLIP(scene_clip(), engine="openvino")
    caplog.set_level(logging.INFO, "freecp_d2.clip.engine")
    for height in (16, 32, 16):
        encoder.encode_cls(pixels(2, height, 32))
    assert compiled == [(16, 32), (32, 32)]
    assert "openvino compiles the encoder for images of 32x32 pixels" in caplog.text
    assert "it took" in caplog.text and "WARNING" not in caplog.text
    encoder.encode_cls(pixels(1, 48, 32))  # of the two, 32x32 was used before 16x32
    assert "images of more than 2 sizes" in caplog.text
    encoder.encode_cls(pixels(1, 16, 32))
    assert compiled == [(16, 32), (32, 32), (48, 32)]
    encoder.encode_cls(pixels(1, 32, 32))
    assert compiled[3:] == [(32, 32)]


def test_threads_share_it():
    encoder = EngineCLIP(scene_clip(), engine="openvino")
    images = [pixels(3, 64, 64) * scale for scale in (1, 2, 3, 4)]
    wanted = [encoder.encode_cls(x) for x in images]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(encoder.encode_cls, images), wanted, strict=True):
                assert torch.equal(got, expected)


def test_openvino_runs_on_as_many_threads_as_torch_and_binds_none(monkeypatch):
    openvino, models = required("openvino"), []
    whole = openvino.Core.compile_model

    def spy(self, *args):
        models.append(whole(self, *args))
        return models[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", spy)
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        EngineCLIP(scene_clip(), engine="openvino").encode_cls(pixels(1, 32, 32))
    assert [model.get_property("INFERENCE_NUM_THREADS") for model in models] == [1, 2]
    assert [model.get_property("ENABLE_CPU_PINNING") for model in models] == [False, False]


def test_onnxruntime_runs_on_as_many_threads_as_torch(monkeypatch):
    onnxruntime, sessions = required("onnxruntime"), []
    whole = onnxruntime.InferenceSession

    def spy(*args):
        sessions.append(whole(*args))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    EngineCLIP(scene_clip(), engine="onnxruntime").encode_cls(pixels(1, 32, 32))
    assert [s.get_session_options().intra_op_num_threads for s in sessions] == [2]


@pytest.mark.parametrize(
    ("name", "package"),
    [("openvino", "openvino"), ("onnxruntime", "onnxruntime"), ("onnxruntime", "onnxscript")],
)
def test_a_missing_package_is_named_at_once(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is not installed.*freecp_d2\[export\]"):
        EngineCLIP(scene_clip(), engine=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ENGINE", "tensorrt"], "'tensorrt'; choose one of torch, openvino, onnxruntime"),
        (["ENGINE", "onnxruntime", "PRECISION", "bf16"], "bf16, which .* has not; choose fp32$"),
        (["ENGINE", "openvino", "PRECISION", "fp16"], "fp16, which .* choose fp32 or bf16 or "),
        (["ENGINE", "openvino", "COMPILE", "True"], "COMPILE is PyTorch's, .* is openvino; set"),
        (
            ["ENGINE", "openvino", "METHOD", "resclip", "RESCLIP.USE_SFR", "True"],
            r"resclip reads images once more .*USE_SFR False",
        ),
    ],
)
def test_what_an_engine_cannot_is_refused_when_the_model_is_built(options, message):
    opts = [f"MODEL.CLIP.{x}" if i % 2 == 0 else x for i, x in enumerate(options)]
    if "resclip" in options:
        opts += ["MODEL.CLIP.RESCLIP.RCS_BLOCKS", "(2, 3)"]
    with pytest.raises(ValueError, match=message):
        FreeCP(load_config("scenes/clearclip", [*OPTS, *opts]))


@pytest.mark.parametrize("name", ENGINES)
def test_other_devices_are_refused(name):
    with pytest.raises(ValueError, match=f"ENGINE {name} runs on CPUs, not on cuda; set .* torch"):
        bf16_on(name, "fp32", "cuda:1")
    encoder = EngineCLIP(scene_clip(), engine=name)
    with pytest.raises(ValueError, match="runs on CPUs, not on meta"):
        encoder(pixels(1, 32, 32).to("meta"))


def test_a_method_that_the_engine_lacks_is_refused_at_the_first_image():
    encoder = EngineCLIP(scene_clip(), "pearl", align_solver="svd", engine="openvino")
    with pytest.raises(ValueError, match="pearl cannot run on .*ENGINE openvino .*linalg_svd.*set"):
        encoder(pixels(1, 32, 32))


def test_images_smaller_than_a_patch_are_refused():
    encoder = EngineCLIP(scene_clip(), engine="openvino")
    with pytest.raises(ValueError, match="15x40 pixels .* smaller than a patch of 16x16"):
        encoder(pixels(1, 15, 40))


@pytest.mark.parametrize("rounds", [False, True])
def test_precision_by_engine(rounds, monkeypatch):
    """`rounds`: whether the CPU is one where oneDNN multiplies float32 in bfloat16."""
    monkeypatch.setattr("freecp_d2.clip.loading.multiplies_in_bf16", lambda: rounds)
    assert bf16_on("openvino", "auto", "cpu") is rounds
    assert bf16_on("openvino", "bf16", "cpu") is True
    assert bf16_on("openvino", "fp32", "cpu") is False
    assert bf16_on("onnxruntime", "auto", "cpu") is False
    if rounds:
        assert bf16_on("openvino", "bf16_matmul", "cpu") is True


def test_results_say_its_precision(compiled):
    for bf16, precision in ((False, "fp32"), (True, "bf16")):
        encoder = EngineCLIP(scene_clip(), engine="openvino", bf16=bf16)
        assert precision_of(encoder) == precision


def test_onnxruntime_has_no_bf16():
    with pytest.raises(ValueError, match="is bf16, which .* onnxruntime has not; choose fp32"):
        EngineCLIP(scene_clip(), engine="onnxruntime", bf16=True)


DROPPED = """
import gc, os, signal, threading
import torch
from freecp_d2.clip.engine import ENGINES

class Twice(torch.nn.Module):
    def forward(self, x):
        return {"y": 2 * x}

program = torch.export.export(Twice(), (torch.ones(2, 4),))
runs = [ENGINES["openvino"](False)(program)]
assert runs[0](torch.ones(2, 4).numpy())[0].tolist() == [[2] * 4] * 2
thread = threading.Thread(target=lambda: (runs.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("noted"))
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_after_a_program_was_dropped_in_another_thread():
    run = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "noted\n"), run.stderr
