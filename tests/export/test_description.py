"""description.json says what the model does, and which files belong to it."""

import hashlib
import json

import numpy as np
import pytest
import torch

from freecp_d2 import load_config
from freecp_d2.data import Vocabulary
from freecp_d2.export.description import (
    describe,
    files_of_export,
    write_description,
    write_features,
)
from freecp_d2.meta_arch import FreeCP
from freecp_d2.segmenter import build_model

VOCABULARY = Vocabulary((("dog", "puppy"), ("straße",)), ("sky", "lawn"))


def built(*opts) -> tuple:
    """A config and its model."""
    on_cpu = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.PRECISION", "fp32"]
    cfg = load_config("scenes/clearclip", [*on_cpu, *opts])
    return cfg, build_model(cfg)


@pytest.fixture(scope="module")
def default() -> tuple:
    return built()


def described(cfg, model: FreeCP, format="onnx"):
    words = model.encode_words(VOCABULARY, {"dog": ["A dog."]})
    return words, describe(cfg, model.encoder, model.head, words, format)


def test_what_it_says_of_the_model(default):
    cfg, model = default
    _, description = described(*default)
    assert description == json.loads(json.dumps(description))
    assert description["labels"] == ["background", "dog", "straße"]
    assert description["queries"] == ["sky", "lawn", "dog", "puppy", "straße"]
    assert description["query_label"] == [0, 0, 1, 1, 2] and description["num_background"] == 2
    assert description["window"] == 224 and description["stride"] == 56
    image = description["image"]
    assert (image["short_side"], image["long_side"]) == (224, 2048) and image["exif_orientation"]
    assert image["mean"] == list(cfg.MODEL.PIXEL_MEAN) and image["std"] == list(cfg.MODEL.PIXEL_STD)
    assert description["patch_size"] == [16, 16] and description["crop_size"] == [112, 112]
    assert description["logit_scale"] == model.encoder.logit_scale
    assert description["redundancy_threshold"] == 0.05
    assert description["ambiguity_threshold"] == 0.9
    assert description["boxes"] == {"threshold": 0.4, "full_extent": False}
    assert description["clip"]["method"] == "clearclip" and len(description["clip"]["sha256"]) == 64


def test_options_and_weights_show(default):
    _, before = described(*default)
    cfg, model = built(
        *("MODEL.FREECP.REDUNDANCY", False, "MODEL.FREECP.AMBIGUITY", False),
        *("MODEL.FREECP.BOX_FULL_EXTENT", True, "INPUT.EXIF_ORIENTATION", False),
        *("MODEL.FREECP.CONSISTENCY", "paper"),
    )
    with torch.no_grad():
        model.encoder.model.visual.proj[0, 0] += 1
    _, description = described(cfg, model, "openvino")
    assert description["redundancy_threshold"] is description["ambiguity_threshold"] is None
    assert description["boxes"]["full_extent"] and not description["image"]["exif_orientation"]
    assert description["consistency"] == "paper" and before["consistency"] == "code"
    assert description["clip"]["sha256"] != before["clip"]["sha256"]
    assert description["programs"]["head"]["file"] == "head.xml"
    assert before["programs"]["head"]["file"] == "head.onnx"


def test_features_and_digests_of_the_files(default, tmp_path):
    words, description = described(*default)
    write_features(tmp_path, words)
    (tmp_path / "head.onnx").write_bytes(b"a program")
    write_description(tmp_path, description)
    read = json.loads((tmp_path / "description.json").read_text(encoding="utf-8"))
    digests = read.pop("sha256")
    assert read == description and "straße" in (tmp_path / "description.json").read_text("utf-8")
    assert digests == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("descriptions.npy", "head.onnx", "text.npy")
    }
    for name in ("text", "descriptions"):
        features = np.load(tmp_path / read["features"][name])
        assert features.dtype == np.float32
        assert (features == getattr(words, name).numpy()).all()
    assert not np.array_equal(
        np.load(tmp_path / "text.npy"), np.load(tmp_path / "descriptions.npy")
    )
    assert files_of_export(tmp_path) == {"description.json", *digests}


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"sha256": 3}'])
def test_other_folders_are_no_exports(tmp_path, content):
    if content is not None:
        (tmp_path / "description.json").write_text(content)
    assert files_of_export(tmp_path) == set()
