"""Adapters in FreeCP: off they change no bit, on they see regions in the order of the images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from freecp_d2 import FreeCPPredictor, get_config
from freecp_d2.adapters import (
    ADAPTERS,
    BaFTA,
    ClipOT,
    build_adapter,
    load_state,
    region_features,
    save_state,
)
from freecp_d2.data.corruptions import CORRUPTIONS
from freecp_d2.data.scenes import CLASSES, draw_scene
from freecp_d2.evaluation.metrics import class_ious, confusion_matrix, mean
from freecp_d2.extensions import NO_EXTENSIONS, Extensions
from freecp_d2.inputs import as_vocabulary
from freecp_d2.labelling.core import Outputs
from freecp_d2.labelling.settings import settings_of
from freecp_d2.segmenter import build_model

SEEDS = (120, 125, 131, 137, 142)


class Spy:
    """Changes nothing, and says what it saw."""

    def __init__(self):
        self.state = {}
        self.seen = []

    def adapt(self, text, regions, weights):
        self.seen.append((regions, weights))
        return text


def model_of(*opts: str):
    model = build_model(get_config("scenes/clearclip", opts))
    model.set_vocabulary(as_vocabulary(list(CLASSES)))
    return model


def inputs(corruption: str | None = None) -> list[dict]:
    images = [draw_scene(seed).image for seed in SEEDS]
    if corruption:
        images = [CORRUPTIONS[corruption](image) for image in images]
    return [{"image": torch.from_numpy(image).permute(2, 0, 1)} for image in images]


@pytest.fixture(scope="module")
def off():
    model = model_of()
    return model, model(inputs())


def same(results: list[dict], others: list[dict]) -> bool:
    return all(
        torch.equal(a["sem_seg"], b["sem_seg"])
        and torch.equal(a["kept"], b["kept"])
        and torch.equal(a["consistency"], b["consistency"])
        and a["ambiguous_losses"] == b["ambiguous_losses"]
        for a, b in zip(results, others, strict=True)
    )


def test_off_is_the_default_and_an_adapter_that_changes_nothing_changes_no_bit(off):
    model, results = off
    assert model.extensions == NO_EXTENSIONS
    assert model.words.adapter is None and model.words.text_views is None
    spy = Spy()
    model = model_of()
    model.extensions = Extensions(adapter=lambda names, text_encoder: spy)
    model.set_vocabulary(model.vocabulary)
    assert len(spy.seen) == 0 and same(model(inputs()), results)
    assert len(spy.seen) == len(SEEDS)


def test_regions_are_the_weighted_means_of_what_stays():
    random = torch.Generator().manual_seed(0)
    patches = F.normalize(torch.randn(2, 12, 8, generator=random), dim=-1)
    refined = torch.rand(2, 5, 3, 4, generator=random)
    kept = torch.rand(2, 5, generator=random) < 0.5
    expected = []
    for window in range(2):
        for c in range(5):
            if kept[window, c]:
                total = sum(
                    refined[window, c, i // 4, i % 4] * patches[window, i] for i in range(12)
                )
                expected.append(total / total.norm())
    torch.testing.assert_close(region_features(patches, refined, kept), torch.stack(expected))


@pytest.mark.parametrize(("name", "kind"), [("clip_ot", ClipOT), ("bafta", BaFTA)])
def test_images_are_followed_in_their_order(name, kind, off):
    model = model_of("MODEL.FREECP.ADAPTER", name)
    assert isinstance(model.words.adapter, kind)
    at_once = model(inputs())
    assert not same(at_once, off[1])
    state = model.words.adapter.state
    model.words.adapter.state = {}
    assert same([model([x])[0] for x in inputs()], at_once)
    assert all(torch.equal(state[key], model.words.adapter.state[key]) for key in state)
    model.words.adapter.state = {}
    assert not same(model(inputs()[::-1])[::-1], at_once)


@pytest.mark.parametrize("name", ["clip_ot", "bafta"])
@pytest.mark.parametrize("corruption", [None, *CORRUPTIONS])
def test_scenes_and_corrupted_scenes_are_hardly_worse(name, corruption, off):
    model = model_of("MODEL.FREECP.ADAPTER", name)
    plain = off[1] if corruption is None else off[0](inputs(corruption))
    assert miou(model(inputs(corruption))) > miou(plain) - 3


def miou(results: list[dict]) -> float:
    total = sum(
        confusion_matrix(r["sem_seg"].argmax(dim=0), draw_scene(seed).labels, len(CLASSES), 255)
        for r, seed in zip(results, SEEDS, strict=True)
    )
    return 100 * mean(class_ious(total))


def test_a_state_on_disk_goes_on_with_the_same_bits(tmp_path: Path):
    model = model_of("MODEL.FREECP.ADAPTER", "bafta")
    model(inputs()[:3])
    save_state(model.words.adapter, tmp_path / "state.safetensors", ["a.png", "b.png"])
    expected = model(inputs()[3:])
    other = model_of("MODEL.FREECP.ADAPTER", "bafta")
    assert load_state(other.words.adapter, tmp_path / "state.safetensors") == ["a.png", "b.png"]
    assert same(other(inputs()[3:]), expected)
    assert not same(model_of("MODEL.FREECP.ADAPTER", "bafta")(inputs()[3:]), expected)


def test_what_is_no_state_is_said(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no state of an adapter"):
        load_state(BaFTA(), path)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match="no state of an adapter"):
        load_state(BaFTA(), path)


def test_broken_features_teach_nothing():
    model = model_of("MODEL.FREECP.ADAPTER", "bafta", "MODEL.FREECP.REDUNDANCY", "False")
    (broken, *_) = inputs()
    broken = {"image": torch.full(broken["image"].shape, float("nan")), "file_name": "x.png"}
    with pytest.raises(ValueError, match="x.png"):
        model([broken])
    assert model.words.adapter.state == {}


def test_several_images_have_no_order_when_they_are_encoded_at_once():
    with pytest.raises(ValueError, match="encode them one by one"):
        model_of("MODEL.FREECP.ADAPTER", "clip_ot").encode(inputs())


@pytest.mark.parametrize("name", ["clip_ot", "entropy_weights"])
def test_a_predictor_takes_a_list_in_its_order(name):
    images = [draw_scene(seed).image for seed in SEEDS[:3]]
    cfg = get_config("scenes/clearclip", ("MODEL.FREECP.ADAPTER", name))
    listed = FreeCPPredictor(cfg)(images, list(CLASSES))
    predictor = FreeCPPredictor(cfg)
    for image, result in zip(images, listed, strict=True):
        assert np.array_equal(predictor(image, list(CLASSES)).label_map, result.label_map)


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (("MODEL.FREECP.ADAPTER", "tent"), "'tent'; choose one of bafta, clip_ot, entropy_weights"),
        (("MODEL.FREECP.ADAPTER", "bafta", "MODEL.FREECP.ENABLED", "False"), "leave ADAPTER empty"),
    ],
)
def test_what_cannot_be_is_said(opts, said):
    with pytest.raises(ValueError, match=said):
        build_adapter(get_config("scenes/clearclip", opts))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("clip_ot", "CLIP_OT.KAPPA", "1.5"),
        ("bafta", "BAFTA.PRIOR", "0.0"),
        ("bafta", "BAFTA.CERTAINTY", "50.0"),
    ],
)
def test_an_option_out_of_range_is_named(name, key, value):
    with pytest.raises(ValueError, match=f"MODEL.FREECP.{key} is {value}; it must be"):
        model_of("MODEL.FREECP.ADAPTER", name, f"MODEL.FREECP.{key}", value)


def test_others_can_be_registered():
    ADAPTERS._do_register("spy", lambda cfg, names, text_encoder: Spy())
    model = model_of("MODEL.FREECP.ADAPTER", "spy")
    model(inputs()[:1])
    ((regions, weights),) = model.words.adapter.seen
    assert regions.shape == (len(weights), model.words.text.shape[1]) and len(weights) > 1
    assert 0 <= weights.min() and weights.max() <= 1 and np.isfinite(weights.numpy()).all()
    ADAPTERS._obj_map.pop("spy")


def test_labels_that_depend_on_the_order_are_refused():
    cfg = get_config("scenes/clearclip", ("MODEL.FREECP.ADAPTER", "bafta"))
    model = build_model(cfg)
    vocabulary = as_vocabulary(["sky"])
    with pytest.raises(ValueError, match="leave it empty"):
        settings_of(cfg, model, vocabulary, Outputs())
