"""A vocabulary with its features, against the features of its names."""

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from freecp_d2.clip.text import TextEncoder, encode_sentences, template_sentences
from freecp_d2.data import Vocabulary
from freecp_d2.words import encode_words

VOCABULARY = Vocabulary((("cat", "kitten"), ("dog",)), ("wall",))
DESCRIPTIONS = {"cat": ["It purrs."], "kitten": ["It is small.", "It purrs."], "dog": ["It barks."]}


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(0)
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
    return open_clip.CLIP(8, vision, text).eval()


@pytest.fixture
def text_encoder(model) -> TextEncoder:
    return TextEncoder(model, SimpleTokenizer())


def test_words_are_the_features_of_all_queries(model, text_encoder):
    words = encode_words(text_encoder, VOCABULARY, DESCRIPTIONS)
    tokenizer = SimpleTokenizer()
    templates = template_sentences(["wall", "cat", "kitten", "dog"])
    torch.testing.assert_close(words.text, encode_sentences(model, tokenizer, templates))
    sentences = [DESCRIPTIONS[name] for name in ("cat", "kitten", "dog")]
    described = encode_sentences(model, tokenizer, sentences)
    torch.testing.assert_close(words.descriptions, torch.cat([words.text[:1], described]))
    assert words.vocabulary is VOCABULARY
    assert words.query_class.tolist() == [0, 0, 1] and words.query_class.dtype == torch.int64
    assert words.query_channel.tolist() == [0, 1, 1, 2]
    assert (words.num_background, words.first_class, words.num_channels) == (1, 1, 3)


def test_words_without_background(text_encoder):
    words = encode_words(text_encoder, Vocabulary((("cat",), ("dog", "hound")), ()), None)
    assert words.query_channel.tolist() == [0, 1, 1]
    assert (words.num_background, words.first_class, words.num_channels) == (0, 0, 2)


def test_a_base_method_says_nothing_of_descriptions(text_encoder, caplog):
    words = encode_words(text_encoder, VOCABULARY, None)
    assert words.descriptions.equal(words.text) and not caplog.records
    assert encode_words(text_encoder, VOCABULARY, {}).descriptions.equal(words.text)
    assert "cat, kitten, dog" in caplog.text


def test_a_word_of_two_vocabularies_is_encoded_once(model, text_encoder, monkeypatch):
    encoded = []
    encode_text = model.encode_text
    monkeypatch.setattr(
        model, "encode_text", lambda tokens: encoded.append(len(tokens)) or encode_text(tokens)
    )
    encode_words(text_encoder, VOCABULARY, DESCRIPTIONS)
    assert encoded == [80, 80, 80, 80, 1, 2, 1]
    del encoded[:]
    others = Vocabulary((("dog",), ("bird",), ("wall",)), ("cat",))
    encode_words(text_encoder, others, {**DESCRIPTIONS, "bird": DESCRIPTIONS["kitten"]})
    assert encoded == [80]  # the templates of "bird"


def test_words_move(text_encoder):
    words = encode_words(text_encoder, VOCABULARY, None)
    assert words.to(torch.device("cpu")) is words
    moved = words.to(torch.device("meta"))
    tensors = (moved.text, moved.descriptions, moved.query_class, moved.query_channel)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.vocabulary is words.vocabulary


def test_a_name_that_does_not_fit(text_encoder):
    name = "a very " + "long " * 30 + "name"
    with pytest.raises(ValueError, match=name):
        encode_words(text_encoder, Vocabulary((("cat",), (name,)), ()), None)
