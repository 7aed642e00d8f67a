"""What results.json says of how a figure was made."""

import hashlib
import json

import pytest
import torch
from torch import nn

from freecp_d2 import load_config
from freecp_d2.clip.loading import precision_on
from freecp_d2.data import Vocabulary
from freecp_d2.evaluation.facts import (
    _plain,
    hash_of_descriptions,
    hash_of_weights,
    hash_of_words,
    precision_of,
)
from freecp_d2.meta_arch import FreeCP


def test_the_words_and_their_order_make_the_hash():
    words = [
        Vocabulary((("a",), ("b", "c"))),
        Vocabulary((("a",), ("c", "b"))),
        Vocabulary((("a", "b"), ("c",))),
        Vocabulary((("a",), ("b", "c")), ("d",)),
        Vocabulary((("b", "c"),), ("a",)),
    ]
    assert len({hash_of_words(vocabulary) for vocabulary in words}) == len(words)
    content = json.dumps([["d"], [["a"], ["b", "c"]]])
    assert hash_of_words(words[3]) == hashlib.sha256(content.encode()).hexdigest()


def test_descriptions_are_hashed_by_content(tmp_path):
    file, same, other = (tmp_path / f"{i}.json" for i in range(3))
    file.write_text('{"a": ["one", "two"], "b": ["three"]}')
    same.write_text('{"b": ["three"],\n "a": ["one", "two"]}')
    other.write_text('{"a": ["two", "one"], "b": ["three"]}')
    assert hash_of_descriptions("") is None
    assert hash_of_descriptions(str(file)) == hash_of_descriptions(str(same))
    assert hash_of_descriptions(str(file)) != hash_of_descriptions(str(other))


def test_every_weight_counts():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    hashes = {hash_of_weights(model)}
    assert hash_of_weights(model) in hashes
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.flatten()[-1] += 1e-6
        hashes.add(hash_of_weights(model))
    hashes.add(hash_of_weights(model.half()))
    assert len(hashes) == 1 + 4 + 1


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_precision_is_that_of_the_matrices(precision):
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    model = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(2, 3).to(types[precision]))
    assert precision_of(model) == precision
    model.bf16_matmul = True
    assert precision_of(model) == "bf16_matmul"


def test_all_of_a_config_is_json():
    cfg = load_config("configs/scenes/clearclip.yaml", ["MODEL.CLIP.NACLIP.GAUSSIAN_STD", "1e999"])
    plain = json.loads(json.dumps(_plain(cfg), allow_nan=False))
    assert plain["MODEL"]["CLIP"]["NACLIP"]["GAUSSIAN_STD"] == "inf"
    assert plain["DATASETS"]["TEST"] == ["scenes_val"]
    assert plain["MODEL"].keys() == cfg.MODEL.keys() and plain.keys() == cfg.keys()
    assert plain["MODEL"]["FREECP"]["STRIDE"] == 56


@pytest.mark.parametrize("enabled", [True, False])
def test_the_facts_of_a_model(enabled):
    from freecp_d2.evaluation.facts import facts_of

    opts = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.ENABLED", enabled]
    cfg = load_config("configs/scenes/gem.yaml", opts)
    model = FreeCP(cfg)
    facts = facts_of(cfg, model)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    shown = {key: facts[key] for key in ("method", "enabled", "protocol", "precision", "device")}
    assert shown == {
        "method": "gem",
        "enabled": enabled,
        "protocol": "same",
        "precision": precision_on("auto", "cpu"),
        "device": "cpu",
    }
    assert facts["config"]["MODEL"]["CLIP"]["PRECISION"] == "auto" != facts["precision"]
    assert facts["words"] == hash_of_words(model.vocabulary)
    assert facts["weights"] == hash_of_weights(model.encoder)
    assert facts["descriptions"] == hash_of_descriptions(cfg.MODEL.FREECP.DESCRIPTIONS)
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"].keys() == {"freecp_d2", "detectron2", "torch", "open_clip"}
