"""The training script of SceneCLIP, a few steps of it, and the weights that are committed."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from freecp_d2.data.scenes import CLASSES, VAL_SEEDS

PROJECT = Path(__file__).parents[2] / "projects" / "SceneCLIP"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("sceneclip_train", PROJECT / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # worker processes find its functions by this name
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


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


def test_training_sees_no_seed_of_the_benchmark(script, tmp_path, monkeypatch):
    seeds = []
    draw = script.draw_scene

    class SerialPool:
        def __init__(self, workers):
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
    path = PROJECT / "scene_clip.safetensors"
    assert path.stat().st_size <= 15 * 2**20
    state = load_file(path)
    assert all(tensor.dtype == torch.float16 for tensor in state.values())
    script.build_model().load_state_dict(state)
