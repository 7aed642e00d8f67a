"""Text features against a plain loop, and their cache."""

import copy
import json
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from freecp_d2.clip import text
from freecp_d2.clip.digests import digest_of
from freecp_d2.clip.text import (
    TextEncoder,
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


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sentences go through a text tower, batch by batch."""
    batches = []
    encode_text = open_clip.CLIP.encode_text

    def record(self, tokens):
        batches.append(len(tokens))
        return encode_text(self, tokens)

    monkeypatch.setattr(open_clip.CLIP, "encode_text", record)
    return batches


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def one_by_one(model: open_clip.CLIP, entries: list[list[str]]) -> Tensor:
    """What an encoder is to give."""
    tokenizer = SimpleTokenizer(context_length=24)
    return torch.cat([encode_sentences(model, tokenizer, [entry]) for entry in entries])


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
    shown = capsys.readouterr().err
    assert "encoding text" in shown and "batch" in shown


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
        encode_sentences(model, tokenizer, template_sentences(["cat", name]))


def test_an_entry_without_a_sentence(model, tokenizer):
    with pytest.raises(ValueError, match="^entry 2 .* no sentence"):
        encode_sentences(model, tokenizer, [["a cat"], []])


def test_features_that_are_not_finite_name_their_sentence(model, tokenizer):
    zebra = tokenizer(["zebra"])[0, 1]
    with torch.no_grad():
        model.token_embedding.weight[zebra] = float("nan")
    with pytest.raises(ValueError, match="'a zebra'.*MODEL.CLIP.PRETRAINED"):
        encode_sentences(model, tokenizer, [["a cat"], ["a zebra"]])


def test_a_feature_with_one_infinity(model, tokenizer, monkeypatch):
    encode_text = model.encode_text

    def overflow(tokens):
        return encode_text(tokens).index_fill(1, torch.tensor([3]), torch.inf)

    monkeypatch.setattr(model, "encode_text", overflow)
    with pytest.raises(ValueError, match="infinity in the text feature of 'a cat'"):
        encode_sentences(model, tokenizer, [["a cat"]])


def test_an_entry_does_not_depend_on_others(model, tokenizer, tmp_path):
    expected = one_by_one(model, SENTENCES)
    encoder = TextEncoder(model, tokenizer, tmp_path)
    assert encoder.encode(SENTENCES[1:2]).equal(expected[1:2])
    assert encoder.encode(SENTENCES).equal(expected)  # one of memory, two new
    assert TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES[::-1]).equal(expected.flip(0))
    assert TextEncoder(model, tokenizer).encode(SENTENCES * 2).equal(expected.repeat(2, 1))
    assert expected.dtype == torch.float32


def test_each_entry_has_batches_of_its_own(model, tokenizer, encoded):
    long = [f"cat {number}" for number in range(300)]
    TextEncoder(model, tokenizer).encode([*SENTENCES, long, SENTENCES[0]])
    assert encoded == [2, 1, 2, 256, 44]


def test_a_word_of_two_lists_is_encoded_once(model, tokenizer, encoded):
    encoder = TextEncoder(model, tokenizer)
    encoder.encode(SENTENCES[:2])
    encoder.encode(SENTENCES[1:])
    encoder.encode(SENTENCES)
    assert encoded == [2, 1, 2]


def test_nothing_is_encoded_before_all_is_checked(model, tokenizer, tmp_path, encode_nothing):
    encoder = TextEncoder(model, tokenizer, tmp_path)
    name = "a very " + "long " * 30 + "name"
    with pytest.raises(ValueError, match=name):
        encoder.encode(template_sentences(["cat", name]))
    with pytest.raises(ValueError, match="^entry 2 .* no sentence"):
        encoder.encode([["a cat"], []])
    assert files(tmp_path) == []


def test_what_is_encoded_before_an_error_is_not_lost(tokenizer, tmp_path, encoded):
    model = build()
    with torch.no_grad():
        model.token_embedding.weight[tokenizer(["zebra"])[0, 1]] = float("nan")
    encoder = TextEncoder(model, tokenizer, tmp_path)
    with pytest.raises(ValueError, match="'a zebra'.*MODEL.CLIP.PRETRAINED"):
        encoder.encode([["a cat"], ["a zebra"]])
    assert len(files(tmp_path)) == 1
    encoder.encode([["a cat"]])
    assert encoded == [1, 1]


def test_one_progress_bar_for_what_is_missing(model, tokenizer, capsys):
    encoder = TextEncoder(model, tokenizer)
    assert encoder.encode([]).shape == (0, 8)
    assert capsys.readouterr().err == ""
    encoder.encode(SENTENCES[:1])
    assert "1/1" in capsys.readouterr().err
    encoder.encode(SENTENCES)
    shown = capsys.readouterr().err
    assert "encoding text" in shown and "entry" in shown
    assert "2/2" in shown and "1/1" not in shown
    encoder.encode(SENTENCES)
    assert capsys.readouterr().err == ""


def test_memory_keeps_what_was_asked_for_last(model, tokenizer, encoded, monkeypatch):
    monkeypatch.setattr(text, "KEPT_ENTRIES", 2)
    encoder = TextEncoder(model, tokenizer)
    first, second, third = ([entry] for entry in SENTENCES)
    for entries in (first, second, first, third):
        encoder.encode(entries)
    del encoded[:]
    encoder.encode(first + third)
    assert encoded == []
    encoder.encode(second)
    assert encoded == [1]


def test_more_entries_than_memory_keeps(model, tokenizer, monkeypatch):
    monkeypatch.setattr(text, "KEPT_ENTRIES", 1)
    features = TextEncoder(model, tokenizer).encode(SENTENCES)
    assert features.equal(one_by_one(model, SENTENCES))


def test_features_are_the_callers(model, tokenizer):
    encoder = TextEncoder(model, tokenizer)
    encoder.encode(SENTENCES).zero_()
    encoder.encode(SENTENCES).zero_()
    assert encoder.encode(SENTENCES).equal(one_by_one(model, SENTENCES))


def test_threads_are_in_the_tower_at_once(model, tokenizer, tmp_path, monkeypatch):
    both = threading.Barrier(2, timeout=30)
    encode_text = model.encode_text

    def wait_for_the_other(tokens):
        both.wait()
        return encode_text(tokens)

    monkeypatch.setattr(model, "encode_text", wait_for_the_other)
    encoder = TextEncoder(model, tokenizer, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(encoder.encode, [SENTENCES[:1], SENTENCES[1:2]]))
    monkeypatch.undo()
    assert torch.cat(results).equal(one_by_one(model, SENTENCES[:2]))


def test_threads_with_lists_that_overlap(model, tokenizer, tmp_path):
    entries = [[f"a {word}.", f"one {word}"] for word in "cat dog bird sky sea sand".split()]
    expected = one_by_one(model, entries)
    encoder = TextEncoder(model, tokenizer, tmp_path)

    def work(first: int) -> bool:
        order = [(first + step) % len(entries) for step in range(4)]
        same = encoder.encode([entries[index] for index in order]).equal(expected[order])
        encoder.forget()
        return same

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(48)))


def test_the_tokenizer_is_used_by_one_thread_at_a_time(model, tokenizer, tmp_path, monkeypatch):
    """Else forget() could take away a word's pieces between two looks at them."""
    encoder = TextEncoder(model, tokenizer, tmp_path)
    bpe = SimpleTokenizer.bpe

    def watched(self, token):
        assert encoder._lock.locked()
        return bpe(self, token)

    monkeypatch.setattr(SimpleTokenizer, "bpe", watched)
    assert encoder.encode(SENTENCES).shape == (3, 8)


@pytest.mark.parametrize("kind", [SimpleTokenizer, PadsWithOne])
def test_forget(kind, model, tmp_path, encoded):
    tokenizer = kind()
    encoder, stored = TextEncoder(model, tokenizer), TextEncoder(model, tokenizer, tmp_path)
    features = stored.encode(SENTENCES)
    encoder.encode(SENTENCES)
    for one in (encoder, stored):
        one.forget()
    del encoded[:]
    assert stored.encode(SENTENCES).equal(features)  # the folder stays
    assert encoded == []
    assert encoder.encode(SENTENCES).equal(features)
    assert encoded == [2, 1, 2]


def test_words_are_nowhere_in_memory_once_forgotten(model):
    encoder = TextEncoder(model, SimpleTokenizer())
    encoder.encode([["a quuxberry"], ["secretberry", "a quuxberry"]])
    assert "berry" in repr(encoder.tokenizer.cache)
    assert "berry" not in repr(vars(encoder))
    encoder.forget()
    assert encoder.tokenizer.cache == SimpleTokenizer().cache
    assert encoder.tokenizer(["a cat"]).equal(SimpleTokenizer()(["a cat"]))


def test_the_tower_is_hashed_once(model, tokenizer, tmp_path, monkeypatch):
    hashed = []
    tower_key = text._tower_key
    monkeypatch.setattr(
        text, "_tower_key", lambda *args: hashed.append(tower_key(*args)) or hashed[-1]
    )
    encoder = TextEncoder(model, tokenizer, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(encoder.encode, [SENTENCES[:1], SENTENCES[1:], SENTENCES, SENTENCES[:2]]))
    templates = encoder.encode([["cat"]])
    description_features(encoder, ["cat"], {"cat": ["It purrs."]}, templates)
    encoder.forget()
    encoder.encode(SENTENCES)
    model.visual.requires_grad_(False).proj.mul_(2)
    encoder.encode(SENTENCES)
    assert len(hashed) == 1

    model.ln_final.requires_grad_(False).bias.add_(1)
    for _ in range(3):
        assert encoder.encode(SENTENCES).equal(one_by_one(model, SENTENCES))
    assert len(set(hashed)) == len(hashed) == 2

    TextEncoder(model, tokenizer).encode(SENTENCES)  # no folder, no hash
    assert len(hashed) == 2


def add_in_place(model: open_clip.CLIP) -> None:
    with torch.no_grad():
        model.text_projection[0, 0] += 1


def load_weights(model: open_clip.CLIP, assign: bool) -> None:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["ln_final.bias"] += 1
    model.load_state_dict(weights, assign=assign)


def replace_data(model: open_clip.CLIP) -> None:
    model.ln_final.bias.data = model.ln_final.bias + 1


def replace_module(model: open_clip.CLIP) -> None:
    model.transformer = build(quick_gelu=True).transformer


@pytest.mark.parametrize(
    "change",
    [
        add_in_place,
        lambda model: load_weights(model, assign=False),
        lambda model: load_weights(model, assign=True),
        replace_data,
        replace_module,
        lambda model: model.bfloat16().float(),
    ],
)
@pytest.mark.parametrize("folder", [True, False])
def test_features_follow_the_weights(change, folder, model, tokenizer, tmp_path):
    encoder = TextEncoder(model, tokenizer, tmp_path if folder else None)
    before = encoder.encode(SENTENCES)
    change(model)
    expected = one_by_one(model, SENTENCES)
    assert not expected.equal(before)
    assert encoder.encode(SENTENCES).equal(expected)
    if folder:
        assert TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES).equal(expected)
        assert TextEncoder(build(), tokenizer, tmp_path).encode(SENTENCES).equal(before)


def test_weights_that_change_while_a_thread_encodes(model, tokenizer, tmp_path, monkeypatch):
    """What it encoded with those before is kept nowhere as what those after give."""
    encoder = TextEncoder(model, tokenizer, tmp_path)
    encode_text = model.encode_text

    def change_after(tokens):
        embeddings = encode_text(tokens)
        monkeypatch.undo()
        add_in_place(model)
        encoder.encode([["a whale"]])  # as another thread
        return embeddings

    monkeypatch.setattr(model, "encode_text", change_after)
    old = encoder.encode(SENTENCES[:1])
    assert old.equal(one_by_one(build(), SENTENCES[:1]))
    for one in (encoder, TextEncoder(model, tokenizer, tmp_path)):
        assert one.encode(SENTENCES).equal(one_by_one(model, SENTENCES))
    assert TextEncoder(build(), tokenizer, tmp_path).encode(SENTENCES[:1]).equal(old)


def test_a_tower_that_is_no_module(model, tokenizer, encoded):
    class Tower:
        """As Plug-and-play's."""

        logit_scale, context_length = model.logit_scale, model.context_length
        encode_text = staticmethod(model.encode_text)

    encoder = TextEncoder(Tower(), tokenizer)
    for _ in range(2):
        assert encoder.encode(SENTENCES).equal(one_by_one(model, SENTENCES))
    assert encoded[:3] == [2, 1, 2] and len(encoded) == 9  # 3, and 6 of one_by_one


def test_a_model_of_inference_mode(tokenizer, tmp_path):
    expected = one_by_one(build(), SENTENCES)
    with torch.inference_mode():
        encoder = TextEncoder(build(), tokenizer, tmp_path)
        torch.testing.assert_close(encoder.encode(SENTENCES[:1]), expected[:1])
    torch.testing.assert_close(encoder.encode(SENTENCES), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies(duplicate, model, tokenizer, tmp_path):
    encoder = TextEncoder(model, tokenizer, tmp_path)
    features = encoder.encode(SENTENCES)
    model.text_encoder = encoder  # a copy of a model has a copy of its encoder, of the same copy
    twin = duplicate(model).text_encoder
    assert twin.encode(SENTENCES).equal(features)
    assert twin.model is twin.model.text_encoder.model is not model
    add_in_place(twin.model)
    assert encoder.encode(SENTENCES).equal(features)
    assert not twin.encode(SENTENCES).equal(features)


def test_a_second_start_encodes_nothing(tokenizer, tmp_path, request):
    first = TextEncoder(build(), tokenizer, tmp_path / "a" / "b").encode(SENTENCES)
    written = files(tmp_path)
    request.getfixturevalue("encode_nothing")
    second = TextEncoder(build(), tokenizer, str(tmp_path / "a" / "b")).encode(SENTENCES)
    assert second.equal(first)
    assert files(tmp_path) == written
    (tower,) = {path.parent for path in written}
    assert tower.parent == tmp_path / "a" / "b"
    assert [path.suffix for path in written] == [".safetensors"] * 3


def test_without_a_folder_nothing_is_kept(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TextEncoder(model, tokenizer).encode(SENTENCES)
    assert files(tmp_path) == []


def test_the_image_tower_does_not_change_the_key(model, tokenizer):
    key = text._tower_key(model, tokenizer)
    with torch.no_grad():
        model.visual.proj.mul_(2)
        model.logit_scale.mul_(2)
    assert text._tower_key(model, tokenizer) == key


def test_all_that_encode_text_reads_changes_the_key_of_the_tower(tokenizer):
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
    reshaped = build()
    reshaped.text_projection = torch.nn.Parameter(reshaped.text_projection.detach().view(8, 16))
    models = [
        build(),
        build(quick_gelu=True),
        half,
        four_heads,
        last_token,
        reshaped,
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
    keys = [text._tower_key(model, tokenizer) for model in models]
    another = type("AnotherTokenizer", (SimpleTokenizer,), {})
    cleaning = (SimpleTokenizer(clean=clean) for clean in CLEANINGS)
    tokenizers = [PadsWithOne(), another(), *cleaning]
    keys += [text._tower_key(build(), one) for one in tokenizers]
    assert len(set(keys)) == len(keys)
    assert text._tower_key(build(), SimpleTokenizer()) == keys[0]


CLEANINGS = ("whitespace", "canonicalize")
"""Those of open_clip that are not the default."""


def test_all_that_an_entry_is_changes_its_key(model, tokenizer):
    def key(entry: list[str], tokenizer: Callable = tokenizer) -> str:
        (key,) = TextEncoder(model, tokenizer)._keys([entry])
        return key

    def swapped(texts, context_length):
        return tokenizer([one.replace("cat", "dog") for one in texts], context_length)

    first, second = SENTENCES[0]
    keys = [
        key([first, second]),
        key([second, first]),
        key([first]),
        key([first, second, second]),
        key([first, second, "a cat"]),
        key([first, "a cat", second]),
        key([first + second]),
        key([first.upper(), second]),
        key([first, second], swapped),
    ]
    assert len(set(keys)) == len(keys)
    assert TextEncoder(model, tokenizer)._keys(SENTENCES)[0] == keys[0]


DAMAGES = {
    "another name": lambda feature: {"something": feature},
    "rows": lambda feature: {"text_feature": feature[None]},
    "dimensions": lambda feature: {"text_feature": feature[:7].clone()},
    "no number": lambda feature: {"text_feature": feature[0].clone()},
    "dtype": lambda feature: {"text_feature": feature.double()},
    "integers": lambda feature: {"text_feature": feature.view(torch.int32)},
    "NaN": lambda feature: {"text_feature": feature.log()},
    "infinity": lambda feature: {"text_feature": feature / 0},
}
"""Files whose checksum is right."""


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "noise", "no checksum", "other feature", "other shape", *DAMAGES]
)
def test_a_damaged_file_is_replaced_and_said(damage, model, tokenizer, tmp_path, caplog):
    features = TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES[:1])
    TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES[1:])
    paths = files(tmp_path)
    (path,) = (one for one in paths if load_file(one)["text_feature"].equal(features[0]))
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if damage in DAMAGES:
        ((name, tensor),) = (tensors := DAMAGES[damage](features[0])).items()
        save_file(tensors, path, {"sha256": digest_of(tensor).hex()})
    elif damage == "no checksum":
        save_file({"text_feature": features[0]}, path)
    elif damage == "other feature":
        save_file({"text_feature": features[0].flip(0)}, path, metadata)
    elif damage == "other shape":
        save_file({"text_feature": features.view(4, 2)}, path, metadata)
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-7], "noise": b"\xff" * 99}[damage])
    again = TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES)
    assert again.equal(one_by_one(model, SENTENCES))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and str(path) in record.getMessage()
    assert files(tmp_path) == paths
    assert path.read_bytes() == whole


def test_no_flipped_bit_goes_unseen(model, tokenizer, tmp_path, caplog):
    encoder = TextEncoder(model, tokenizer, tmp_path)
    features = encoder.encode(SENTENCES[:1])
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert encoder._read(path) is None, f"bit {bit}"
    assert len(caplog.records) == 8 * len(whole)
    assert TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES[:1]).equal(features)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("where", ["a file", "under a file"])
def test_an_unwritable_cache_is_said_once(where, model, tokenizer, tmp_path, caplog):
    folder = tmp_path / "cache"
    folder.write_text("no folder")
    cache = folder if where == "a file" else folder / "texts"
    expected = one_by_one(model, SENTENCES)
    encoder = TextEncoder(model, tokenizer, cache)
    for _ in range(2):
        assert encoder.encode(SENTENCES).equal(expected)
    features = description_features(encoder, ["cat"], {"cat": ["It purrs."]}, expected[:1])
    assert features.equal(one_by_one(model, [["It purrs."]]))
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.WARNING and str(cache) in message and "\n" not in message
    assert "MODEL.CLIP.TEXT_CACHE" in message
    assert files(tmp_path) == [folder] and folder.read_text() == "no folder"


def no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["mkdir", "read", "write", "rename"])
def test_a_disk_error_costs_the_cache_only(call, model, tokenizer, tmp_path, monkeypatch, caplog):
    owner, name = {
        "mkdir": (Path, "mkdir"),
        "read": (text, "safe_open"),
        "write": (Path, "write_bytes"),
        "rename": (os, "replace"),
    }[call]
    encoder = TextEncoder(model, tokenizer, tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, no_space)
        features = encoder.encode(SENTENCES)
    assert features.equal(one_by_one(model, SENTENCES))
    (record,) = caplog.records
    assert "(No space left on device)" in record.getMessage()
    assert len(files(tmp_path)) == (3 if call == "read" else 0)
    encoder.encode([["a whale"]])
    assert TextEncoder(model, tokenizer, tmp_path / "a").encode(SENTENCES).equal(features)
    assert len(files(tmp_path)) == 4


def test_a_folder_that_cannot_be_written_is_still_read(
    model, tokenizer, tmp_path, monkeypatch, encoded, caplog
):
    features = TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES[:1])
    monkeypatch.setattr(Path, "write_bytes", no_space)
    encoder = TextEncoder(model, tokenizer, tmp_path)
    encoder.encode(SENTENCES[1:])
    del encoded[:]
    assert encoder.encode(SENTENCES[:1]).equal(features)
    assert encoded == []
    assert len(caplog.records) == 1


def test_the_file_appears_whole(model, tokenizer, tmp_path, monkeypatch):
    """Another rank writes the same file in the middle of ours."""
    depth = []
    replace = os.replace

    def slow(part, path):
        if not depth:
            depth.append(1)
            TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES[:1])
        replace(part, path)

    monkeypatch.setattr(os, "replace", slow)
    features = TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES[:1])
    assert depth
    (path,) = files(tmp_path)
    assert load_file(path)["text_feature"].equal(features[0])


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_write_leaves_nothing(
    killed, model, tokenizer, tmp_path, monkeypatch, caplog
):
    def interrupt(part, path):
        raise KeyboardInterrupt

    encoder = TextEncoder(model, tokenizer, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", interrupt)
        if killed:  # then nothing tidies up
            patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
        encoder.encode(SENTENCES)
    left = files(tmp_path)
    assert len(left) == killed
    assert (
        TextEncoder(model, tokenizer, tmp_path)
        .encode(SENTENCES)
        .equal(one_by_one(model, SENTENCES))
    )
    assert set(left) <= set(files(tmp_path))  # another process may still write it
    for part in left:
        os.utime(part, (0, time.time() - 7200))
    TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES)
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"] * 3
    assert not caplog.records


def test_what_cannot_be_swept_stays(model, tokenizer, tmp_path, caplog):
    TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES)
    folder = files(tmp_path)[0].parent / f".{'0' * 32}.part"
    folder.mkdir()
    os.utime(folder, (0, 0))
    TextEncoder(model, tokenizer, tmp_path).encode(SENTENCES)
    assert folder.is_dir() and not caplog.records


def test_classes_without_descriptions_take_their_templates(model, tokenizer, tmp_path, caplog):
    names = ("sky", "cat", "dog", "bird")
    encoder = TextEncoder(model, tokenizer, tmp_path)
    templates = encoder.encode([[name] for name in names])
    kept = templates.clone()
    descriptions = {"dog": ["It barks.", "It is furry."], "cat": ["It purrs."], "zebra": ["No."]}
    features = description_features(encoder, names, descriptions, templates)
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
    encoder = TextEncoder(model, tokenizer)
    features = description_features(encoder, names, descriptions, templates)
    assert features[[0, 2]].equal(templates[[0, 2]])
    assert features[1:2].equal(encode_sentences(model, tokenizer, [["Blue above the land."]]))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "of river, stream: " in record.getMessage()


def test_surrogates_of_a_module_are_encoded(model, tokenizer, tmp_path):
    path = tmp_path / "d.py"
    path.write_text(r'D = {"sky": ["Blue \ud83d\ude00."], "sea": ["Lone \ud83d."]}')
    templates = encode_sentences(model, tokenizer, [["sky"], ["sea"]])
    descriptions = load_descriptions(path)
    encoder = TextEncoder(model, tokenizer, tmp_path / "cache")
    features = description_features(encoder, ["sky", "sea"], descriptions, templates)
    assert features.equal(encode_sentences(model, tokenizer, [["Blue 😀."], ["Lone \ufffd."]]))
    descriptions["sky"][0] *= 9
    with pytest.raises(ValueError, match="has 29 tokens"):
        description_features(encoder, ["sky"], descriptions, templates)


def test_descriptions_of_all_classes_say_nothing(model, tokenizer, caplog):
    templates = encode_sentences(model, tokenizer, [["cat"]])
    encoder = TextEncoder(model, tokenizer)
    features = description_features(encoder, ["cat"], {"cat": ["It purrs."]}, templates)
    assert features.equal(encode_sentences(model, tokenizer, [["It purrs."]]))
    assert not caplog.records


def test_background_needs_no_descriptions(model, tokenizer, caplog):
    names = ["bed", "sky", "hot dog", "bed"]
    templates = encode_sentences(model, tokenizer, [[name] for name in names])
    descriptions = {"bed": ["It is soft."], "hotdog": ["A sausage in a bun."]}
    encoder = TextEncoder(model, tokenizer)
    features = description_features(encoder, names, descriptions, templates, num_background=2)
    expected = encode_sentences(model, tokenizer, [descriptions["hotdog"], descriptions["bed"]])
    assert features[:2].equal(templates[:2])
    assert features[2:].equal(expected)
    assert not caplog.records


def test_no_descriptions_encode_nothing(model, tokenizer, tmp_path, encode_nothing):
    templates = F.normalize(torch.ones(2, 8), dim=1)
    encoder = TextEncoder(model, tokenizer, tmp_path)
    features = description_features(encoder, ["cat", "dog"], {}, templates)
    assert features.equal(templates)
    assert files(tmp_path) == []


def test_the_shipped_descriptions_fit():
    """Into a context of 77 tokens, as SceneCLIP's."""
    folder = Path(text.__file__).parents[1] / "data" / "scenes"
    descriptions = json.loads((folder / "descriptions.json").read_text())
    sentences = [sentence for entry in descriptions.values() for sentence in entry]
    tokens = text._tokenize(SimpleTokenizer(), sentences, 77)
    assert set(tokens) == set(sentences)
    assert {len(row) for row in tokens.values()} == {77}
