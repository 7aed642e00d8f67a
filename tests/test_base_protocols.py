"""Base methods alone by their authors' protocols, against vectors recorded from their codes."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import freecp_d2.refinement
from freecp_d2 import FreeCP
from freecp_d2.clip import DenseCLIP
from freecp_d2.clip.methods import base_method, pearl, resclip, semantic_feedback
from freecp_d2.clip.text import TextEncoder
from freecp_d2.data import Vocabulary
from freecp_d2.data.benchmarks.protocols import PAPER, BaseProtocol
from freecp_d2.purification import PurificationHead

FOLDER = Path(__file__).parent / "data" / "base_methods"
CASES = {
    (authors, name): case
    for authors in ("sclip", "clearclip", "naclip", "pearl", "resclip")
    for name, case in json.loads((FOLDER / authors / "cases.json").read_text()).items()
}
SEGMENTATIONS = [
    (authors, name) for (authors, name), case in CASES.items() if case["kind"] == "segmentation"
]
FEATURES = [key for key, case in CASES.items() if case["kind"] == "features"]
CALIBRATED = {
    (authors, name): {**case, "query_class": case["query_idx"], "pamr_steps": 0}
    for authors in ("scclip", "sfp")
    for name, case in json.loads((FOLDER / authors / "cases.json").read_text()).items()
    if "window" in case
}
MODEL_TYPES = {"ClearCLIP": "clearclip", "MaskCLIP": "maskclip", "SCLIP": "sclip", "csa": "sclip"}


@cache
def inputs(authors: str) -> dict[str, Tensor]:
    """Text features (15, 32), and images (1, 3, H, W) that are normalised already.

    The folder of some authors has some of its own.
    """
    files = FOLDER / "inputs.safetensors", FOLDER / authors / "inputs.safetensors"
    tensors = [item for file in files if file.exists() for item in load_file(file).items()]
    return {name: value.float() for name, value in tensors}


@cache
def clip(authors: str) -> open_clip.CLIP:
    folder = FOLDER / authors if (FOLDER / authors / "clip.json").exists() else FOLDER
    model = open_clip.CLIP(**json.loads((folder / "clip.json").read_text()))
    weights = load_file(folder / "clip.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and not any(key.startswith("visual") for key in missing)
    return model


def encoder_of(authors: str, case: dict) -> DenseCLIP:
    """The base method of a case, with its options."""
    method, options = reading(authors, case)
    return DenseCLIP(clip(authors), method, **options)


def reading(authors: str, case: dict) -> tuple[str, dict]:
    """Our name of a case's base method, and its options."""
    if "options" in case:
        return authors, case["options"]
    if authors in ("pearl", "resclip"):  # the options have their names
        options = {key: case[key] for key in base_method(authors).options() if key in case}
        if not case.get("use_rcs", True):
            options["attn_rcs_weights"] = (1.0, 0.0)
        trained = case["arch"] in ("vanilla", "w_resi")
        return authors, {**options, "last_block": "residual" if trained else "projection"}
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
def test_features_are_the_published(authors, name):
    case = CASES[authors, name]
    features = encoder_of(authors, case)(inputs(authors)[case["image"]])
    expected = load_file(FOLDER / authors / f"{name}.safetensors")
    assert list(features.grid) == case["grid"]
    patches = features.patches_for(inputs(authors)["text"])
    torch.testing.assert_close(patches, expected["patch_features"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", [name for authors, name in FEATURES if authors == "resclip"])
def test_what_resclip_computes_on_the_way_is_the_published(name, monkeypatch):
    """Attention of each head, labels of patches, and features that half precision has not seen."""
    case = CASES["resclip", name]
    encoder = encoder_of("resclip", case)
    image, text = inputs("resclip")[case["image"]], inputs("resclip")["text"]
    expected = load_file(FOLDER / "resclip" / f"{name}.safetensors")
    close = {"atol": 5e-6, "rtol": 0}
    if "attention_rcs" in expected:
        trunk, _ = encoder._run(image, record_attention=False)
        torch.testing.assert_close(trunk.head_attention[0], expected["attention_rcs"], **close)
        if not case["use_sfr"]:
            tokens = trunk.head_attention.shape[-1]
            vars(trunk)["qkv"] = *trunk.qkv[:2], torch.eye(tokens).expand(1, 3, -1, -1)
            attention = encoder.base_method.attend(trunk)[0]
            torch.testing.assert_close(attention, expected["attention_last"], **close)
    labels: list[Tensor] = []

    def note(*args):
        labels.append(semantic_feedback.patch_labels(*args))
        return labels[-1]

    def unrounded(bonus, scale, share):
        if "attention_sfr" in expected:
            rows = expected["attention_sfr"][1:, 1:]  # before the division by the largest
            torch.testing.assert_close(bonus[0], rows / rows.amax(), **close)
        return F.pad(scale * share * bonus, (1, 0, 1, 0))[:, None]

    monkeypatch.setattr(resclip, "patch_labels", note)
    monkeypatch.setattr(resclip, "attention_bonus", unrounded)
    patches = encoder(image).patches_for(text)
    assert ("patch_labels" in expected) == case["use_sfr"] == bool(labels)
    if labels:
        assert labels[0][0].equal(expected["patch_labels"].long())
    if "patch_features_exact" in expected:
        torch.testing.assert_close(patches, expected["patch_features_exact"], atol=2e-6, rtol=0)


def test_what_pearl_computes_on_the_way_is_the_published(monkeypatch):
    """The correlation of keys and queries, the turn, and the attention of each head."""
    case = CASES["pearl", "features_image"]
    encoder = encoder_of("pearl", case)
    expected = load_file(FOLDER / "pearl" / "features_image.safetensors")
    trunk, _ = encoder._run(inputs("pearl")[case["image"]], record_attention=False)
    vars(trunk)["qkv"] = *trunk.qkv[:2], torch.eye(37).expand(1, 3, -1, -1)
    turns: list[tuple[Tensor, Tensor]] = []
    polar_factor = pearl.polar_factor

    def note(correlation, steps):
        turns.append((correlation, polar_factor(correlation, steps)))
        return turns[-1][1]

    monkeypatch.setattr(pearl, "polar_factor", note)
    attention = encoder.base_method.attend(trunk)[0]
    (correlation, rotation), *_ = turns
    torch.testing.assert_close(correlation[0], expected["correlation"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(rotation[0], expected["rotation"], atol=5e-6, rtol=0)
    torch.testing.assert_close(attention, expected["attention_last"], atol=5e-6, rtol=0)


def protocol_of(authors: str, case: dict) -> BaseProtocol:
    """A case's settings, and its authors' rules."""
    return replace(
        PAPER[authors][None],
        logit_scale=case["logit_scale"],
        probability_threshold=case["prob_thd"],
        area_threshold=case["area_thd"],
        pamr_steps=case["pamr_steps"],
        tlp_grid=case.get("tlp_grid", 0),
        pamr_dilations=tuple(case.get("pamr_dilations", (8, 16))),
    )


def tokenize(texts: list[str], context_length: int = 8) -> Tensor:
    """Two tokens each: the text tower of the vectors' CLIP has 16."""
    return torch.tensor([[14, 15] + [0] * (context_length - 2)]).repeat(len(texts), 1)


def segmentor(authors: str, case: dict) -> FreeCP:
    """Names of class 0 are background names where it has several."""
    names: dict[int, list[str]] = {}
    for query, class_id in enumerate(case["query_class"]):
        names.setdefault(class_id, []).append(f"query {query}")
    background = names.pop(0) if len(names[0]) > 1 else []
    encoder = encoder_of(authors, case)
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
        protocol=protocol_of(authors, case),
        pixel_mean=(0, 0, 0),
        pixel_std=(1, 1, 1),
        input_format="RGB",
    )
    model.words = replace(model.words, text=inputs(authors)["text"])
    return model


@pytest.mark.parametrize("strip_values", [2**22, 2**14])
@pytest.mark.parametrize(("authors", "name"), SEGMENTATIONS)
def test_label_maps_are_the_published(authors, name, strip_values, monkeypatch):
    monkeypatch.setattr(freecp_d2.refinement, "STRIP_VALUES", strip_values)
    monkeypatch.setattr(freecp_d2.refinement, "REFINED_VALUES", strip_values)
    case = CASES[authors, name]
    model = segmentor(authors, case)
    height, width = case["output_size"]
    x = {"image": inputs(authors)[case["image"]][0], "height": height, "width": width}
    expected = load_file(FOLDER / authors / f"{name}.safetensors")
    sem_seg = model([x])[0]["sem_seg"]
    assert (sem_seg.argmax(0) == expected["labels"][0]).float().mean() >= 0.999
    model.output = "label_map"
    (result,) = model([x])
    assert result["label_map"].equal(sem_seg.argmax(0))
    assert result["scores"].equal(sem_seg.amax((1, 2)))
    if not case["prob_thd"]:
        probabilities = sem_seg[:, ::8, ::8]
        if authors in ("naclip", "pearl", "resclip"):
            probabilities = probabilities / probabilities.sum(0)
        torch.testing.assert_close(probabilities, expected["probabilities"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("authors", "name"), CALIBRATED)
def test_label_maps_of_sc_clip_and_sfp_are_the_published(authors, name):
    """Where class 0 is put below the threshold, their scores stay; ours become 1."""
    case = CALIBRATED[authors, name]
    model = segmentor(authors, case)
    mean, std = torch.tensor([[122.771, 116.746, 104.094], [68.501, 66.632, 70.323]])
    image = (inputs(authors)[case["image"]] - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    height, width = case["output_size"]
    (result,) = model([{"image": image, "height": height, "width": width}])
    with np.load(FOLDER / authors / f"{name}.npz") as arrays:
        labels, scores = (torch.from_numpy(arrays[key]) for key in ("labels", "sem_seg"))
    assert (result["sem_seg"].argmax(0) == labels[0]).float().mean() >= 0.999
    ours = result["sem_seg"][:, ::8, ::8]
    below = scores.amax(0) < case["prob_thd"]
    assert below.any() == (case["prob_thd"] > 0)
    torch.testing.assert_close(ours[1:], scores[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(ours[0][~below], scores[0][~below], atol=1e-5, rtol=0)
    assert (ours[0][below] == 1).all()
