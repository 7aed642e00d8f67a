"""Base methods alone by their authors' protocols, against vectors recorded from their codes."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import freecp_d2.scores
from freecp_d2 import FreeCP
from freecp_d2.clip import DenseCLIP
from freecp_d2.clip.text import TextEncoder
from freecp_d2.data import Vocabulary
from freecp_d2.data.benchmarks.protocols import PAPER, BaseProtocol
from freecp_d2.pamr import pamr
from freecp_d2.purification import PurificationHead

FOLDER = Path(__file__).parent / "data" / "base_methods"
CASES = {
    (authors, name): case
    for authors in ("sclip", "clearclip", "naclip")
    for name, case in json.loads((FOLDER / authors / "cases.json").read_text()).items()
}
SEGMENTATIONS = [key for key, case in CASES.items() if case["kind"] == "segmentation"]
FEATURES = [key for key, case in CASES.items() if case["kind"] == "features"]
MODEL_TYPES = {"ClearCLIP": "clearclip", "MaskCLIP": "maskclip", "SCLIP": "sclip", "csa": "sclip"}


@cache
def inputs() -> dict[str, Tensor]:
    """Text features (15, 32), and images (1, 3, H, W) that are normalised already."""
    return {name: value.float() for name, value in load_file(FOLDER / "inputs.safetensors").items()}


@pytest.fixture(scope="module")
def clip() -> Callable[..., DenseCLIP]:
    model = open_clip.CLIP(**json.loads((FOLDER / "clip.json").read_text()))
    weights = load_file(FOLDER / "clip.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and not any(key.startswith("visual") for key in missing)
    return lambda *method, **options: DenseCLIP(model, *method, **options)


def reading(authors: str, case: dict) -> tuple[str, dict]:
    """Our name of a case's base method, and its options."""
    method = case.get("model_type") or case.get("attn_strategy") or authors
    options = {"gaussian_std": case["gaussian_std"]} if "gaussian_std" in case else {}
    if method in ("kk", "nonly"):  # NACLIP's ablations
        method, options = "naclip", options | {"attn_strategy": method}
    trained = authors == "sclip" or case.get("arch") == "vanilla"
    trained = trained or case.get("ignore_residual") is False
    return MODEL_TYPES.get(method, method), {
        "last_block": "residual" if trained else "projection",
        **options,
    }


@pytest.mark.parametrize(("authors", "name"), FEATURES)
def test_features_are_the_published(authors, name, clip):
    case = CASES[authors, name]
    method, options = reading(authors, case)
    features = clip(method, **options)(inputs()[case["image"]])
    expected = load_file(FOLDER / authors / f"{name}.safetensors")
    assert list(features.grid) == case["grid"]
    torch.testing.assert_close(features.patches, expected["patch_features"], atol=2e-6, rtol=0)


def protocol_of(authors: str, case: dict) -> BaseProtocol:
    """A case's settings, and its authors' rules."""
    return replace(
        PAPER[authors][None],
        logit_scale=case["logit_scale"],
        probability_threshold=case["prob_thd"],
        area_threshold=case["area_thd"],
        pamr_steps=case["pamr_steps"],
        pamr_dilations=tuple(case["pamr_dilations"]),
    )


def tokenize(texts: list[str], context_length: int = 8) -> Tensor:
    """Two tokens each: the text tower of the vectors' CLIP has 16."""
    return torch.tensor([[14, 15] + [0] * (context_length - 2)]).repeat(len(texts), 1)


def segmentor(encoder: DenseCLIP, case: dict, protocol: BaseProtocol) -> FreeCP:
    """Names of class 0 are background names where it has several."""
    names: dict[int, list[str]] = {}
    for query, class_id in enumerate(case["query_class"]):
        names.setdefault(class_id, []).append(f"query {query}")
    background = names.pop(0) if len(names[0]) > 1 else []
    model = FreeCP(
        encoder=encoder,
        text_encoder=TextEncoder(encoder.model, tokenize),
        vocabulary=Vocabulary(tuple(map(tuple, names.values())), tuple(background)),
        descriptions={},
        head=PurificationHead(0.0, 1.0),
        enabled=False,
        window=case["window"],
        stride=case["stride"],
        batch_size=4,
        protocol=protocol,
        pixel_mean=(0, 0, 0),
        pixel_std=(1, 1, 1),
        input_format="RGB",
    )
    model.words = replace(model.words, text=inputs()["text"])
    return model


@pytest.mark.parametrize("strip_values", [2**22, 2**14])
@pytest.mark.parametrize(("authors", "name"), SEGMENTATIONS)
def test_label_maps_are_the_published(authors, name, strip_values, clip, monkeypatch):
    monkeypatch.setattr(freecp_d2.scores, "STRIP_VALUES", strip_values)
    case = CASES[authors, name]
    last_block = "residual" if authors == "sclip" else ""
    model = segmentor(clip(authors, last_block=last_block), case, protocol_of(authors, case))
    height, width = case["output_size"]
    x = {"image": inputs()[case["image"]][0], "height": height, "width": width}
    expected = load_file(FOLDER / authors / f"{name}.safetensors")
    sem_seg = model([x])[0]["sem_seg"]
    assert (sem_seg.argmax(0) == expected["labels"][0]).float().mean() >= 0.999
    model.output = "label_map"
    (result,) = model([x])
    assert result["label_map"].equal(sem_seg.argmax(0))
    assert result["scores"].equal(sem_seg.amax((1, 2)))
    if not case["prob_thd"]:
        probabilities = sem_seg[:, ::8, ::8]
        if authors == "naclip":
            probabilities = probabilities / probabilities.sum(0)
        torch.testing.assert_close(probabilities, expected["probabilities"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", json.loads((FOLDER / "pamr" / "cases.json").read_text()))
def test_pixel_adaptive_refinement_is_the_published(name):
    case = json.loads((FOLDER / "pamr" / "cases.json").read_text())[name]
    tensors = load_file(FOLDER / "pamr" / f"{name}.safetensors")
    refined = pamr(tensors["image"], tensors["masks"], case["steps"], case["dilations"])
    torch.testing.assert_close(refined, tensors["refined"], atol=1e-5, rtol=0)
