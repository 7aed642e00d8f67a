"""`freecp export`: what it writes, says and refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from freecp_d2 import export as exporting
from freecp_d2 import load_config
from freecp_d2.cli.export import main
from freecp_d2.clip import DenseCLIP
from freecp_d2.data.scenes import draw_scene
from freecp_d2.export import check, check_exportable
from freecp_d2.export.check import Agreement, compare
from freecp_d2.segmenter import Segmenter, build_model

CONFIG = ["--config-file", "scenes/clearclip"]
WORDS = ["--vocabulary", "sky,sand,river,mountain,dog,road"]
NO_FREECP = """
import sys
sys.modules.update(dict.fromkeys(("freecp_d2", "detectron2", "open_clip", "triton")))
import numpy as np, torch
folder, window = sys.argv[1], int(sys.argv[2])
encoder, head = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("encoder", "head"))
seen = encoder(torch.zeros(3, 3, window, window))
text = torch.from_numpy(np.load(f"{folder}/text.npy"))
outputs = head(seen["patches"], seen["affinity"], text)
print(*outputs, tuple(outputs["keep"].shape))
"""


def run(output: Path, format: str, *argv) -> None:
    assert main([*CONFIG, "--format", format, "--output", str(output), *argv], "freecp export") == 0


def model_and_words(*opts):
    on_cpu = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.PRECISION", "fp32"]
    cfg = load_config("scenes/clearclip", [*on_cpu, *opts])
    segmenter = Segmenter(build_model(cfg), cfg)
    return segmenter.model, segmenter.words_of(WORDS[1].split(","), False)


@pytest.mark.parametrize("format", ["torch", "onnx", "openvino"])
def test_the_programs_are_the_model(tmp_path, capsys, format):
    """Features, maps and label maps on scenes; look-alikes by a low threshold among them."""
    opts = "MODEL.FREECP.AMBIGUITY_THRESHOLD", 0.5
    folder = tmp_path / "a" / "exported"
    run(folder, format, *WORDS, "--opts", *map(str, opts))
    said = capsys.readouterr().out
    assert "label map of a drawn image: 100.00 % of pixels are equal" in said
    worst = {
        n: float(v) for n, v in re.findall(r"^(\w+): differs from torch by .* (\S+)$", said, re.M)
    }
    assert worst.keys() == {"patches", "cls", "affinity", "refined", "consistency", "soft_iou"}
    assert max(worst.values()) < 1e-4
    assert [file.name for file in folder.parent.iterdir()] == ["exported"]

    description = json.loads((folder / "description.json").read_text())
    assert {*description["sha256"], "description.json"} == {f.name for f in folder.iterdir()}
    model, words = model_and_words(*opts)
    scenes = [draw_scene(seed).image for seed in range(1000, 1004)]
    inputs = [{"image": torch.from_numpy(s.transpose(2, 0, 1).copy())} for s in scenes]
    agreement = compare(model, words, folder, description, inputs)
    assert agreement.equal >= 0.999 and max(agreement.differences.values()) < 1e-4
    encoded = model.encode(inputs)
    results = model.segment(encoded, words)
    assert any(result["ambiguous_losses"] for result in results), "no look-alikes"


def test_a_head_of_which_nothing_stays_does_not_agree(tmp_path, monkeypatch):
    run(tmp_path / "exported", "torch", *WORDS)
    load = check.load_program

    def broken(folder, description, name):
        program = load(folder, description, name)
        if name != "head":
            return program
        return lambda *inputs: [x * (i != 2) for i, x in enumerate(program(*inputs))]

    monkeypatch.setattr(check, "load_program", broken)
    model, words = model_and_words()
    inputs = [{"image": torch.from_numpy(draw_scene(120).image.transpose(2, 0, 1).copy())}]
    description = json.loads((tmp_path / "exported" / "description.json").read_text())
    assert compare(model, words, tmp_path / "exported", description, inputs).equal < 0.9


def test_a_torch_export_needs_torch_alone(tmp_path):
    run(tmp_path / "exported", "torch", *WORDS)
    command = [sys.executable, "-c", NO_FREECP, str(tmp_path / "exported"), "224"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.stdout.strip() == "refined consistency keep soft_iou (3, 6)", ran.stderr


@pytest.fixture
def no_programs(monkeypatch):
    """Exporting writes small files in place of programs, which agree."""
    monkeypatch.setattr(exporting, "encoder_program", lambda *_: None)
    monkeypatch.setattr(exporting, "crop_program", lambda *_: None)
    monkeypatch.setattr(exporting, "head_program", lambda *_: None)
    for name in ("save", "save_head"):
        monkeypatch.setattr(exporting, name, lambda program, path, format: path.write_text(format))
    monkeypatch.setattr(exporting, "compare", lambda *_: Agreement({"cls": 1e-7}, 1.0))


def test_an_export_takes_the_place_of_another(tmp_path, no_programs):
    folder = tmp_path / "exported"
    run(folder, "torch", *WORDS)
    assert (folder / "head.pt2").is_file()
    run(folder, "onnx", "--vocabulary", "dog,cat")
    names = {file.name for file in folder.iterdir()}
    programs = {"encoder.onnx", "crops.onnx", "head.onnx"}
    assert names == {*programs, "text.npy", "descriptions.npy", "description.json"}
    assert len(np.load(folder / "text.npy")) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["exported"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="exported holds notes.txt, which is of no export"):
        run(folder, "onnx", *WORDS)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "head.onnx").is_file()


def test_what_is_exported_is_not_compiled_and_in_float32(tmp_path, no_programs, monkeypatch):
    """Whatever the config says of how PyTorch is to run it."""
    exported = []
    monkeypatch.setattr(exporting, "crop_program", exported.append)
    for key, value in (
        ("MODEL.CLIP.COMPILE", "True"),
        ("MODEL.CLIP.ENGINE", "openvino"),
        ("MODEL.FREECP.COMPILE", "True"),
    ):
        run(tmp_path / "exported", "onnx", *WORDS, "--opts", key, value)
        encoder = exported[-1]
        assert type(encoder) is DenseCLIP and encoder._run_blocks == encoder._pass_blocks
        assert encoder.model.visual.proj.dtype == torch.float32 and not encoder.bf16_matmul


def test_an_empty_folder_is_free_and_a_file_is_not(tmp_path, no_programs):
    (tmp_path / "empty").mkdir()
    run(tmp_path / "empty", "onnx", *WORDS)
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match="file: not a directory; check the path"):
        run(tmp_path / "file", "onnx", *WORDS)


def test_the_folder_one_is_in(tmp_path, no_programs, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(Path("."), "onnx", *WORDS)
    assert (tmp_path / "here" / "head.onnx").is_file() and "head.onnx" in capsys.readouterr().out


@pytest.mark.parametrize(
    "agreement", [Agreement({"cls": 1e-7}, 0.98), Agreement({"cls": np.nan}, 1.0)]
)
def test_what_does_not_agree_is_not_written(tmp_path, no_programs, monkeypatch, agreement):
    monkeypatch.setattr(exporting, "compare", lambda *_: agreement)
    with pytest.raises(
        SystemExit, match="labels .* % of the pixels of a drawn image as torch does"
    ):
        run(tmp_path / "exported", "onnx", *WORDS)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("MODEL.FREECP.ENABLED", False, "a base method alone has no head"),
        ("MODEL.FREECP.PROTOCOL", "paper", "PROTOCOL is paper, of base methods alone"),
        ("MODEL.FREECP.WINDOW", 0, "the whole image at once"),
        ("MODEL.FREECP.STRIDE", 0, "the whole image at once"),
        ("MODEL.FREECP.WINDOW", 240, "INPUT.MIN_SIZE_TEST is 224, less than"),
        ("INPUT.MAX_SIZE_TEST", 200, "INPUT.MAX_SIZE_TEST is 200, less than"),
        ("MODEL.FREECP.AFFINITY_PROVIDER", "TimmViT", "AFFINITY_PROVIDER TimmViT is not exported"),
        ("MODEL.FREECP.REFINE", "pamr", "REFINE pamr is not exported"),
        ("MODEL.FREECP.ADAPTER", "bafta", "ADAPTER bafta is not exported"),
        ("MODEL.FREECP.RELATIONS", "file.json", "RELATIONS file.json are not exported"),
        ("MODEL.FREECP.SYNONYM_THRESHOLD", 0.1, "SYNONYM_THRESHOLD 0.1 is not exported"),
        ("MODEL.CLIP.PRECISION", "bf16", "PRECISION is bf16, and what is exported is in float32"),
    ],
)
def test_refusals(tmp_path, key, value, said):
    with pytest.raises(SystemExit, match=f"^freecp export: .*{said}.*; ") as error:
        run(tmp_path / "exported", "onnx", *WORDS, "--opts", key, str(value))
    assert "\n" not in str(error.value) and not [*tmp_path.iterdir()]


def test_a_method_that_reads_the_words_is_refused(tmp_path):
    argv = ["--config-file", "scenes/resclip", "--format", "onnx", *WORDS]
    argv += ["--output", str(tmp_path / "exported"), "--opts", "MODEL.CLIP.RESCLIP.USE_SFR", "True"]
    with pytest.raises(SystemExit, match="resclip .*; set MODEL.CLIP.RESCLIP.USE_SFR False"):
        main(argv)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("short_side", "long_side", "window"),
    [(0, 2048, 384), (0, 100, 96), (224, 256, 224), (500, 300, 290), (448, 2048, 384)],
)
def test_the_image_that_an_export_is_tried_on_is_no_smaller_than_a_window(
    short_side, long_side, window
):
    sizes = ["INPUT.MIN_SIZE_TEST", short_side, "INPUT.MAX_SIZE_TEST", long_side]
    opts = ["MODEL.DEVICE", "cpu", "MODEL.FREECP.WINDOW", window, *sizes]
    cfg = load_config("scenes/clearclip", opts)
    check_exportable(cfg)
    assert min(exporting._drawn_image(cfg)["image"].shape[1:]) >= window


def test_precision_is_float32_which_is_said(monkeypatch):
    from freecp_d2.clip import loading

    monkeypatch.setattr(loading, "multiplies_in_bf16", lambda: True)
    for precision in ("auto", "bf16_matmul"):
        cfg = load_config(
            "scenes/clearclip", ["MODEL.CLIP.PRECISION", precision, "MODEL.DEVICE", "cpu"]
        )
        assert check_exportable(cfg) == (
            f"MODEL.CLIP.PRECISION {precision} is bf16_matmul here; exported as fp32"
        )
    cfg = load_config("scenes/clearclip", ["MODEL.CLIP.PRECISION", "fp32", "MODEL.DEVICE", "cpu"])
    assert check_exportable(cfg) == ""
