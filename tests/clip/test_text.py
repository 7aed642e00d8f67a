"""Text features against a plain loop, and their cache."""

import json
import logging
import os
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from freecp_d2.clip import text
from freecp_d2.clip.text import (
    cached_text_features,
    description_features,
    encode_sentences,
    template_sentences,
)
from freecp_d2.data import load_descriptions

SENTENCES = [["a cat.", "a tabby on a mat."], ["a dog."], ["a bird.", "a cat.", "a bird."]]


def build(**options) -> open_clip.CLIP:
    torch.manual_seed(0)
    text_cfg = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    vision_cfg = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
    return open_clip.CLIP(8, vision_cfg, text_cfg, **options).eval()


@pytest.fixture
def model() -> open_clip.CLIP:
    return build()


@pytest.fixture(scope="module")
def tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer(context_length=24)


@pytest.fixture
def encode_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no text is encoded."""

    def encode_text(self, tokens):
        raise AssertionError("a text was encoded")

    monkeypatch.setattr(open_clip.CLIP, "encode_text", encode_text)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_underscores_are_spaces_in_sentences():
    under, apart = template_sentences(["hot_dog_", "hot dog"])
    assert under == apart
    assert not any("_" in sentence for sentence in under)


def test_the_templates_hold_every_name():
    sentences = template_sentences(["cat", "lamp post"])
    assert [len(entry) for entry in sentences] == [80, 80]
    assert sentences[0][0] == "a bad photo of a cat."
    assert all("lamp post" in sentence for sentence in sentences[1])


@pytest.mark.parametrize("batch_size", [1, 2, 256])
@torch.no_grad()
def test_features_are_a_plain_loop(batch_size, model, tokenizer):
    features = encode_sentences(model, tokenizer, SENTENCES, batch_size)
    for entry, feature in zip(SENTENCES, features, strict=True):
        total = torch.zeros(8)
        for sentence in entry:
            embedding = model.encode_text(tokenizer([sentence]))[0]
            total += embedding / embedding.norm()
        torch.testing.assert_close(feature, total / total.norm())
    assert features.dtype == torch.float32


def test_a_sentence_is_encoded_once(model, tokenizer, monkeypatch):
    encoded, encode_text = [], model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda t: encoded.append(len(t)) or encode_text(t))
    encode_sentences(model, tokenizer, SENTENCES, batch_size=3)
    assert encoded == [3, 1]


def test_half_precision_is_float32_outside_the_model(tokenizer):
    model = build(cast_dtype=torch.bfloat16)
    open_clip.convert_weights_to_lp(model, torch.bfloat16)
    features = encode_sentences(model, tokenizer, SENTENCES)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))


def test_progress_is_shown_unless_there_is_nothing(model, tokenizer, capsys):
    assert encode_sentences(model, tokenizer, []).shape == (0, 8)
    assert capsys.readouterr().err == ""
    encode_sentences(model, tokenizer, SENTENCES)
    assert "encoding text" in capsys.readouterr().err


class PadsWithOne:
    """As tokenizers of Hugging Face do: another padding, and the end marked by 2."""

    def __call__(self, texts, context_length=24):
        rows = []
        for sentence in texts:
            ids = [0, *(3 + len(word) for word in sentence.split())][: context_length - 1] + [2]
            rows.append(ids + [1] * (context_length - len(ids)))
        return torch.tensor(rows)


@pytest.mark.parametrize("kind", [SimpleTokenizer, PadsWithOne])
def test_a_sentence_that_does_not_fit_is_named(kind, model, encode_nothing):
    tokenizer = kind()
    with pytest.raises(ValueError, match=r"^'(cat ?){23}' has 25 tokens .* holds 24;.*$"):
        encode_sentences(model, tokenizer, [["a cat"], [" ".join(["cat"] * 23)]])


@pytest.mark.parametrize("kind", [SimpleTokenizer, PadsWithOne])
def test_a_sentence_that_just_fits_is_taken(kind, model):
    longest = " ".join(["cat"] * 22)
    tokenizer = kind()
    feature = encode_sentences(model, tokenizer, [[longest]])
    tokens = tokenizer([longest], context_length=24)
    torch.testing.assert_close(feature, F.normalize(model.encode_text(tokens).detach()))


def test_a_long_class_name_is_in_the_message(model, tokenizer):
    name = "a very " + "long " * 30 + "name"
    with pytest.raises(ValueError, match=name):
        cached_text_features(model, tokenizer, template_sentences(["cat", name]), None)


def test_an_entry_without_a_sentence(model, tokenizer):
    with pytest.raises(ValueError, match="^entry 2 .* no sentence"):
        encode_sentences(model, tokenizer, [["a cat"], []])


def test_features_that_are_not_finite_name_their_sentence(model, tokenizer):
    zebra = tokenizer(["zebra"])[0, 1]
    with torch.no_grad():
        model.token_embedding.weight[zebra] = float("nan")
    with pytest.raises(ValueError, match="'a zebra'.*MODEL.CLIP.PRETRAINED"):
        encode_sentences(model, tokenizer, [["a cat"], ["a zebra"]])


def test_a_second_start_encodes_nothing(tokenizer, tmp_path, request):
    first = cached_text_features(build(), tokenizer, SENTENCES, tmp_path / "a" / "b")
    written = files(tmp_path)
    request.getfixturevalue("encode_nothing")
    second = cached_text_features(build(), tokenizer, SENTENCES, tmp_path / "a" / "b")
    assert second.equal(first)
    assert files(tmp_path) == written
    assert [path.suffix for path in written if path.is_file()] == [".safetensors"]


def test_without_a_folder_nothing_is_kept(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features = cached_text_features(model, tokenizer, SENTENCES, None)
    assert features.equal(encode_sentences(model, tokenizer, SENTENCES))
    assert files(tmp_path) == []


def test_the_image_tower_does_not_change_the_key(model, tokenizer):
    key = text._cache_key(model, tokenizer, SENTENCES)
    with torch.no_grad():
        model.visual.proj.mul_(2)
        model.logit_scale.mul_(2)
    assert text._cache_key(model, tokenizer, SENTENCES) == key


def test_all_that_encode_text_reads_changes_the_key(tokenizer):
    def changed(parameter: str) -> open_clip.CLIP:
        model = build()
        with torch.no_grad():
            model.get_parameter(parameter).view(-1)[-1] += 1
        return model

    half = build(cast_dtype=torch.float16)
    open_clip.convert_weights_to_lp(half, torch.float16)
    four_heads, last_token = build(), build()
    four_heads.transformer.resblocks[0].attn.num_heads = 4
    last_token.text_pool_type = "last"
    models = [
        build(),
        build(quick_gelu=True),
        half,
        four_heads,
        last_token,
        *map(
            changed,
            [
                "positional_embedding",
                "text_projection",
                "token_embedding.weight",
                "ln_final.bias",
                "transformer.resblocks.1.mlp.c_fc.weight",
            ],
        ),
    ]
    keys = [text._cache_key(model, tokenizer, SENTENCES) for model in models]
    keys += [
        text._cache_key(build(), PadsWithOne(), SENTENCES),
        text._cache_key(build(), tokenizer, SENTENCES[::-1]),
        text._cache_key(build(), tokenizer, [["a cat."], ["a tabby on a mat."], *SENTENCES[1:]]),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "noise", "other", "no checksum", "other features", "other shape"]
)
def test_a_damaged_file_is_replaced_and_said(damage, model, tokenizer, tmp_path, caplog):
    features = cached_text_features(model, tokenizer, SENTENCES, tmp_path)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if damage == "other":
        save_file({"something": torch.ones(1)}, path)
    elif damage == "no checksum":
        save_file({"text_features": features}, path)
    elif damage == "other features":
        save_file({"text_features": features.flip(0)}, path, metadata)
    elif damage == "other shape":
        save_file({"text_features": features.view(4, 6)}, path, metadata)
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-7], "noise": b"\xff" * 99}[damage])
    again = cached_text_features(model, tokenizer, SENTENCES, tmp_path)
    assert again.equal(features)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(path) in record.getMessage()
    assert files(tmp_path) == [path]
    assert load_file(path)["text_features"].equal(features)


def test_no_flipped_bit_goes_unseen(model, tokenizer, tmp_path, caplog):
    features = cached_text_features(model, tokenizer, SENTENCES, tmp_path)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert text._read(path) is None, f"byte {position}"
    assert len(caplog.records) == len(whole)
    assert cached_text_features(model, tokenizer, SENTENCES, tmp_path).equal(features)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("where", ["a file", "under a file"])
def test_an_unwritable_cache_is_said_once(where, model, tokenizer, tmp_path, caplog):
    folder = tmp_path / "cache"
    folder.write_text("no folder")
    cache = folder if where == "a file" else folder / "texts"
    expected = encode_sentences(model, tokenizer, SENTENCES)
    for _ in range(2):
        assert cached_text_features(model, tokenizer, SENTENCES, cache).equal(expected)
    features = description_features(
        model, tokenizer, ["cat"], {"cat": SENTENCES[0]}, expected[:1], cache
    )
    assert features.equal(expected[:1])
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.WARNING and str(cache) in message and "\n" not in message
    assert "MODEL.CLIP.TEXT_CACHE" in message
    assert files(tmp_path) == [folder] and folder.read_text() == "no folder"


@pytest.mark.parametrize("call", ["mkdir", "read", "write", "rename"])
def test_a_disk_error_costs_the_cache_only(call, model, tokenizer, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner, name = {
        "mkdir": (Path, "mkdir"),
        "read": (text, "safe_open"),
        "write": (Path, "write_bytes"),
        "rename": (os, "replace"),
    }[call]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        features = cached_text_features(model, tokenizer, SENTENCES, tmp_path / "a")
    assert features.equal(encode_sentences(model, tokenizer, SENTENCES))
    (record,) = caplog.records
    assert "No space left" in record.getMessage()
    assert not [path for path in files(tmp_path) if path.is_file()]
    again = cached_text_features(model, tokenizer, SENTENCES, tmp_path / "a")
    assert again.equal(features) and len([p for p in files(tmp_path) if p.is_file()]) == 1


def test_the_file_appears_whole(model, tokenizer, tmp_path, monkeypatch):
    """Another rank writes the same file in the middle of ours."""
    depth = []
    replace = os.replace

    def slow(part, path):
        if not depth:
            depth.append(1)
            cached_text_features(model, tokenizer, SENTENCES, tmp_path)
        replace(part, path)

    monkeypatch.setattr(os, "replace", slow)
    features = cached_text_features(model, tokenizer, SENTENCES, tmp_path)
    assert depth
    (path,) = files(tmp_path)
    assert load_file(path)["text_features"].equal(features)


def test_classes_without_descriptions_take_their_templates(model, tokenizer, tmp_path, caplog):
    names = ("sky", "cat", "dog", "bird")
    templates = cached_text_features(model, tokenizer, [[name] for name in names], None)
    kept = templates.clone()
    descriptions = {"dog": ["It barks.", "It is furry."], "cat": ["It purrs."], "zebra": ["No."]}
    features = description_features(model, tokenizer, names, descriptions, templates, tmp_path)
    expected = encode_sentences(model, tokenizer, [descriptions["cat"], descriptions["dog"]])
    assert features[[1, 2]].equal(expected)
    assert features[[0, 3]].equal(templates[[0, 3]])
    assert templates.equal(kept)
    (record,) = caplog.records
    assert "sky, bird" in record.getMessage() and "\n" not in record.getMessage()


def test_a_class_with_an_empty_list_takes_its_templates(model, tokenizer, tmp_path, caplog):
    path = tmp_path / "d.json"
    path.write_text('{"sky": ["Blue above the land."], "river": [], "stream": "river"}')
    names = ["river", "sky", "stream"]
    templates = encode_sentences(model, tokenizer, [[name] for name in names])
    descriptions = load_descriptions(path)
    features = description_features(model, tokenizer, names, descriptions, templates, None)
    assert features[[0, 2]].equal(templates[[0, 2]])
    assert features[1:2].equal(encode_sentences(model, tokenizer, [["Blue above the land."]]))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "of river, stream: " in record.getMessage()


def test_surrogates_of_a_module_are_encoded(model, tokenizer, tmp_path):
    path = tmp_path / "d.py"
    path.write_text(r'D = {"sky": ["Blue \ud83d\ude00."], "sea": ["Lone \ud83d."]}')
    templates = encode_sentences(model, tokenizer, [["sky"], ["sea"]])
    descriptions = load_descriptions(path)
    features = description_features(
        model, tokenizer, ["sky", "sea"], descriptions, templates, tmp_path / "cache"
    )
    assert features.equal(encode_sentences(model, tokenizer, [["Blue 😀."], ["Lone \ufffd."]]))
    descriptions["sky"][0] *= 9
    with pytest.raises(ValueError, match="has 29 tokens"):
        description_features(model, tokenizer, ["sky"], descriptions, templates, None)


def test_descriptions_of_all_classes_say_nothing(model, tokenizer, caplog):
    templates = encode_sentences(model, tokenizer, [["cat"]])
    features = description_features(
        model, tokenizer, ["cat"], {"cat": ["It purrs."]}, templates, None
    )
    assert features.equal(encode_sentences(model, tokenizer, [["It purrs."]]))
    assert not caplog.records


def test_background_needs_no_descriptions(model, tokenizer, caplog):
    names = ["bed", "sky", "hot dog", "bed"]
    templates = encode_sentences(model, tokenizer, [[name] for name in names])
    descriptions = {"bed": ["It is soft."], "hotdog": ["A sausage in a bun."]}
    features = description_features(
        model, tokenizer, names, descriptions, templates, None, num_background=2
    )
    expected = encode_sentences(model, tokenizer, [descriptions["hotdog"], descriptions["bed"]])
    assert features[:2].equal(templates[:2])
    assert features[2:].equal(expected)
    assert not caplog.records


def test_no_descriptions_encode_nothing(model, tokenizer, tmp_path, encode_nothing):
    templates = F.normalize(torch.ones(2, 8), dim=1)
    features = description_features(model, tokenizer, ["cat", "dog"], {}, templates, tmp_path)
    assert features.equal(templates)
    assert files(tmp_path) == []


def test_the_shipped_descriptions_fit():
    """Into a context of 77 tokens, as SceneCLIP's."""
    folder = Path(text.__file__).parents[1] / "data" / "scenes"
    descriptions = json.loads((folder / "descriptions.json").read_text())
    sentences = [sentence for entry in descriptions.values() for sentence in entry]
    assert text._tokenize(SimpleTokenizer(), sentences, 77).shape == (len(sentences), 77)
