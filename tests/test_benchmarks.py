"""The benchmark's yardstick against the published vectors, and a quick run of the benchmark."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from freecp_d2.meta_arch import windows_of

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def transcription():
    spec = importlib.util.spec_from_file_location("transcription", BENCHMARKS / "transcription.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def thresholds(case: dict) -> tuple[float, float, int]:
    return case["redundancy_threshold"], case["ambiguity_threshold"], case["num_background"]


@pytest.mark.parametrize("name", ["maskclip", "sclip", "clearclip", "gem", "clearclip_background"])
def test_the_transcription_purifies_as_published(
    name, transcription, encoder, inputs, vectors, cases
):
    clip, image, expected = encoder(name), inputs["image"], vectors(name)
    case = cases[name]
    dense = clip(image)
    if case["method"] != "gem":
        dense = transcription.dense_features(clip.model, case["method"], image)
    found = transcription.purify(
        image, dense, inputs["text"], inputs["descriptions"], clip, *thresholds(case)
    )
    background = case["num_background"]
    torch.testing.assert_close(found.probabilities, expected["probabilities"][0], atol=1e-5, rtol=0)
    refined = expected["refined"][0, background:]
    torch.testing.assert_close(found.refined, refined, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.consistency, expected["consistency"], atol=1e-5, rtol=0)
    assert found.kept_redundancy.nonzero()[:, 0].tolist() == expected["kept_redundancy"].tolist()
    assert found.kept.nonzero()[:, 0].tolist() == expected["kept"].tolist()


@pytest.mark.parametrize("name", ["sliding", "sliding_background"])
def test_the_transcription_segments_as_published(
    name, transcription, encoder, inputs, vectors, cases
):
    case, expected = cases[name], vectors(name)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transcription.MEAN, transcription.STD))
    clip, image = encoder(name), inputs["large_image"][0] * std + mean
    arguments = (image, inputs["text"], inputs["descriptions"], clip, *thresholds(case))
    scores, labels = transcription.segment(
        *arguments, case["window"], case["stride"], case["output_size"]
    )
    assert (labels == expected["labels"][0]).float().mean() >= 0.999
    torch.testing.assert_close(scores[:, ::4, ::4], expected["sem_seg"], atol=1e-4, rtol=0)
