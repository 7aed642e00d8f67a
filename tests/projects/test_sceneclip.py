"""The training script of SceneCLIP, a few steps of it, and the weights that are committed."""

import json
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from freecp_d2.data.scenes import CLASSES, VAL_SEEDS
from freecp_d2.files import local_path

PROJECT = Path(__file__).parents[2] / "projects" / "SceneCLIP"

REGISTER = """
from pathlib import Path
from detectron2.data import DatasetCatalog, MetadataCatalog
from freecp_d2.data.scenes.catalog import load_scenes

if "two_scenes" not in DatasetCatalog:
    scenes = MetadataCatalog.get("scenes_val")
    folder = Path(__file__).parent / "two"
    DatasetCatalog.register("two_scenes", lambda: load_scenes(folder, range(2)))
    MetadataCatalog.get("two_scenes").set(
        stuff_classes=scenes.stuff_classes,
        stuff_colors=scenes.stuff_colors,
        ignore_label=scenes.ignore_label,
        evaluator_type="sem_seg",
    )
"""


@pytest.fixture(scope="module")
def script(load_script):
    return load_script(PROJECT / "train.py")


@pytest.fixture(scope="module")
def demo(load_script):
    return load_script(PROJECT / "demo.py")


def tiny_args(script, output, scratch):
    options = "--steps 2 --batch 4 --scenes 8 --held-out 4 --workers 1 --device cpu --seed 3"
    return script.parse_args([*options.split(), "--output", str(output), "--scratch", str(scratch)])


def test_a_few_steps_write_weights_that_load(script, tmp_path):
    output, scratch = tmp_path / "weights.safetensors", tmp_path / "scratch"
    scratch.mkdir()
    figures = script.train(tiny_args(script, output, scratch))
    assert 0 <= figures["accuracy"] <= 1
    state = load_file(output)
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    script.build_model().load_state_dict(state)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [output.name]
    assert list(scratch.iterdir()) == []


def test_the_committed_weights_are_not_the_default_output(script):
    output = script.parse_args([]).output
    assert output.relative_to(PROJECT.parents[1]).parts[0] == "output"


@pytest.mark.parametrize(
    "option",
    ["steps", "batch", "scenes", "held-out", "height", "width", "workers", "log-every"],
)
@pytest.mark.parametrize("value", ["0", "-1"])
def test_nothing_to_train_is_refused_before_anything_is_written(
    option, value, script, tmp_path, capsys
):
    output = tmp_path / "weights.safetensors"
    with pytest.raises(SystemExit):
        script.parse_args(["--output", str(output), f"--{option}", value])
    assert f"--{option}: {value} is not at least 1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_training_sees_no_seed_of_the_benchmark(script, tmp_path, monkeypatch):
    seeds = []
    draw = script.draw_scene

    class SerialPool:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def imap(self, function, tasks, chunksize):
            return map(function, tasks)

    def recording(seed, *size):
        seeds.append(seed)
        return draw(seed, *size)

    context = type("Context", (), {"Pool": SerialPool})()
    monkeypatch.setattr(script.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(script, "draw_scene", recording)
    script.train(tiny_args(script, tmp_path / "weights.safetensors", tmp_path))
    assert len(seeds) == len(set(seeds)) == 12
    assert not set(seeds) & set(VAL_SEEDS)


def test_a_caption_gives_its_words(script):
    words = script.words_of("a picture of the wheat field, a cat and an airplane")
    assert [name for name, said in zip(CLASSES, words, strict=True) if said] == [
        "wheat field",
        "airplane",
        "cat",
    ]


def test_dense_losses_reward_all_words_of_the_caption(script):
    words = torch.zeros(1, len(CLASSES), dtype=torch.bool)
    words[0, :2] = True
    right = torch.zeros(1, 8, len(CLASSES))
    right[:, :4, 0] = right[:, 4:, 1] = 10
    wrong = torch.zeros_like(right)
    wrong[:, :, 5] = 10
    one_word = torch.zeros_like(right)
    one_word[:, :, 0] = 10
    patch_words = words[:, None].expand(-1, 8, -1)
    assert script.cover_loss(right, patch_words) < 0.1 < 5 < script.cover_loss(wrong, patch_words)
    recall = [script.recall_loss(logits, words, 0.25) for logits in (right, one_word, wrong)]
    assert recall == sorted(recall)


def test_views_show_the_asked_share_of_a_scene(script):
    ramp = torch.arange(200).float()[:, None].expand(200, 250)
    images = ramp[None, ..., None].expand(2, -1, -1, 3).to(torch.uint8)
    generator = torch.Generator().manual_seed(0)
    views = script.sample_views(images, (160, 208), torch.tensor([1.0, 0.5]), generator)
    assert views.shape == (2, 3, 160, 208)
    heights = views.amax((1, 2, 3)) - views.amin((1, 2, 3))
    assert heights.tolist() == pytest.approx([199, 100], abs=2)


def test_committed_weights_fit_the_model_and_the_size_limit(script):
    path = local_path("freecp_d2://scenes/scene_clip.safetensors")
    assert path.stat().st_size <= 15 * 2**20
    state = load_file(path)
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    script.build_model().load_state_dict(state)


def test_make_demo_runs_this_script():
    recipe = (PROJECT.parents[1] / "Makefile").read_text().split("\ndemo:")[1].splitlines()[1]
    assert recipe.split() == ["$(PYTHON)", "projects/SceneCLIP/demo.py", "--output", "output/demo"]


def test_the_demo_evaluates_and_draws(demo, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "METHODS", ("clearclip",))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "register.py").write_text(REGISTER)
    output = tmp_path / "out"
    arguments = ["--register", str(tmp_path / "register.py"), "--dataset", "two_scenes"]
    demo.main([*arguments, "--output", str(output)])

    results = [
        json.loads((output / folder / "results.json").read_text())
        for folder in ("clearclip_base", "clearclip")
    ]
    assert [r["images"] for r in results] == [2, 2]
    alone, ours = (r["metrics"]["mIoU"] for r in results)
    row = ["clearclip", f"{alone:.1f}", f"{ours:.1f}", f"{ours - alone:+.1f}"]
    table = (output / "comparison.md").read_text()
    assert "two_scenes" in table
    assert [cell.strip() for cell in table.splitlines()[-1].split("|")[1:-1]] == row
    assert table.splitlines()[-1] in capfd.readouterr().out
    pictures = {path.name for path in output.glob("*.png")}
    scenes = {"scene_000000.png", "scene_000001.png"}
    assert pictures == {"comparison.png", "overview.png"} | scenes
    for path in output.glob("*.png"):
        with Image.open(path) as image:
            assert len(image.convert("L").getcolors()) > 20
    assert (output / "clearclip" / "report.html").is_file()


def test_the_demo_pictures_eight_of_the_200_scenes(demo, tmp_path, monkeypatch):
    """At equal distances; each with the predictions of both evaluations."""
    blank = np.zeros((4, 4), dtype=np.uint8)
    monkeypatch.setattr(demo, "save_picture", lambda rows, path: drawn.append((path.name, rows)))
    monkeypatch.setattr(demo, "load_predictions", lambda folder: defaultdict(lambda: blank))
    monkeypatch.setattr(demo, "read_image", lambda file: np.zeros((4, 4, 3), dtype=np.uint8))
    monkeypatch.setattr(demo, "load_label_map", lambda file: blank)
    records = [{"file_name": "", "sem_seg_file_name": "", "image_id": i} for i in range(200)]
    monkeypatch.setattr(demo.DatasetCatalog, "get", lambda name: records)
    drawn: list = []
    demo.save_pictures({False: tmp_path, True: tmp_path}, "scenes_val", tmp_path)
    *scenes, (name, overview) = drawn
    assert [file for file, _ in scenes] == [f"scene_{i:06d}.png" for i in range(12, 200, 25)]
    assert name == "overview.png" and len(overview) == 8
    assert list(overview[0]) == ["image", "clearclip", "clearclip + FreeCP", "ground truth"]


def test_the_demo_ends_where_an_evaluation_fails(demo, tmp_path, monkeypatch):
    calls = []
    ended = subprocess.CompletedProcess([], 3)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: calls.append(args) or ended)
    with pytest.raises(SystemExit, match="the evaluation of maskclip failed with exit code 3"):
        demo.main(["--output", str(tmp_path)])
    assert len(calls) == 1
