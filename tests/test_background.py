"""Background words against plain loops, and what a call and a config make of them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2 import FreeCP, FreeCPPredictor, background
from freecp_d2.background import BackgroundChoice, choose_background, dissimilar, representatives
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import draw_scene

LEXICON = ("rock", "stone", "sea", "ocean", "lamp", "lantern", "cat", "roof")
OPTS = ("MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.BACKGROUND_WORDS.COUNT", "4")
WORDS = ["sky", "lawn", "road", "dog"]


class Features:
    """A text encoder whose features are drawn from a seed for every word."""

    def __init__(self, dimensions: int = 6):
        self.dimensions = dimensions

    def encode(self, entries):
        rows = []
        for entry in entries:
            generator = torch.Generator().manual_seed(sum(map(ord, entry[0])))
            rows.append(torch.randn(self.dimensions, generator=generator) + 0.5)
        return F.normalize(torch.stack(rows), dim=1)


@pytest.fixture(autouse=True)
def small_lexicon(monkeypatch):
    monkeypatch.setattr(background, "lexicon", lambda *sources: LEXICON)


@pytest.fixture(scope="module")
def predictor() -> FreeCPPredictor:
    return FreeCPPredictor("scenes/clearclip", OPTS)


def cosines(seed: int, count: int) -> torch.Tensor:
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + 0.3
    rows = F.normalize(rows.double(), dim=1)
    return rows @ rows.T


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 14), st.floats(0, 2))
def test_representatives_by_a_double_loop(seed, size, count, penalty):
    s = cosines(seed, size).tolist()
    covered, chosen = [0.0] * size, []
    while len(chosen) < min(count, size):
        left = [d for d in range(size) if d not in chosen]
        gains = {d: sum(max(s[d][i] - covered[i], 0) for i in range(size)) / size for d in left}
        mean = sum(gains.values()) / len(gains)
        values = {
            d: gains[d] - penalty * max([0.0, *(s[d][c] for c in chosen)]) * mean for d in left
        }
        best = max(values.values())
        near = [d for d in left if values[d] > best - 1e-9]
        if len(near) > 1:  # which of them is a matter of rounding
            return
        chosen.append(near[0])
        covered = [max(c, s[near[0]][i]) for i, c in enumerate(covered)]
    assert representatives(cosines(seed, size), count, penalty) == chosen


def test_a_representative_stands_for_its_likes():
    rows = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [1, 0, 0.1], [0, 1, 0], [0, 1, 0.2]])
    rows = F.normalize(rows, dim=1)
    first, second = representatives(rows @ rows.T, 2, 0.5)
    assert first in (0, 1, 2) and second in (3, 4)


def test_words_like_a_class_are_left_out():
    words, targets = torch.eye(3), F.normalize(torch.tensor([[1.0, 1, 0], [0, 1, 0]]), dim=1)
    assert dissimilar(words, targets, 0.9).tolist() == [0, 2]
    assert dissimilar(words, targets, 1.0).tolist() == [0, 2]  # at least as much is too much
    assert dissimilar(words, targets, 0.5).tolist() == [2]


@pytest.mark.parametrize("how", ["auto", "random"])
def test_the_background_is_of_the_lexicon_and_like_no_class(how):
    vocabulary = Vocabulary((("cat", "puss"), ("sea",)), ("wall",))
    choice = BackgroundChoice(how, count=3, max_similarity=0.8)
    chosen = choose_background(Features(), vocabulary, choice)
    assert chosen.classes == vocabulary.classes and len(set(chosen.background)) == 3
    names = [[name] for name in ("cat", "puss", "sea")]
    encoded = Features().encode([[f"a bad photo of a {n}."] for (n,) in names])
    for word in chosen.background:
        assert word in LEXICON
        feature = Features().encode([[f"a bad photo of a {word}."]])
        assert (feature @ encoded.T).max() < 0.8
    assert choose_background(Features(), vocabulary, choice) == chosen
    few = choose_background(Features(), vocabulary, BackgroundChoice(how, max_similarity=0.8))
    assert "cat" not in few.background and 3 < len(few.background) < len(LEXICON)


def test_random_words_are_those_of_a_seed():
    vocabulary = Vocabulary((("cat",), ("dog",)))
    chosen = {
        choose_background(Features(), vocabulary, BackgroundChoice("random", count=3, seed=seed))
        for seed in range(8)
    }
    assert len(chosen) > 3


def test_off_is_the_very_vocabulary():
    vocabulary = Vocabulary((("cat",),), ("wall",))
    assert choose_background(None, vocabulary, BackgroundChoice()) is vocabulary


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"how": "automatic"}, "BACKGROUND is 'automatic'; choose auto or random"),
        ({"count": 0}, "BACKGROUND_WORDS.COUNT is 0; it must be at least 1"),
        ({"max_similarity": 1.5}, "MAX_SIMILARITY is 1.5; it must be above -1 and at most 1"),
        ({"max_similarity": -1}, "MAX_SIMILARITY is -1; it must be above -1 and at most 1"),
        ({"penalty": -1}, "PENALTY is -1; it must be at least 0"),
        ({"lexicon": ()}, "LEXICON is (); name a source of words"),
    ],
)
def test_odd_choices_get_a_sentence(options, said):
    with pytest.raises(ValueError) as error:
        BackgroundChoice(**options)
    assert said in str(error.value)


def test_a_lexicon_of_which_nothing_is_left():
    choice = BackgroundChoice("auto", max_similarity=-0.99)
    with pytest.raises(ValueError, match="raise it, or name the background yourself"):
        choose_background(Features(), Vocabulary((("cat",),)), choice)


def test_a_call_chooses_words_and_tells_them(predictor):
    image = draw_scene(120).image
    words = predictor.prepare(WORDS, background="auto")
    assert len(words.background) == 4 and set(words.background) <= set(LEXICON)
    result = predictor(image, WORDS, background="auto")
    named = predictor(image, WORDS, background=list(words.background))
    assert result.class_names == ("background", *WORDS)
    assert (result.label_map == named.label_map).all()
    assert (predictor(image, words).label_map == named.label_map).all()
    assert predictor.base(image, WORDS, background="auto").class_names == result.class_names
    by_chance = predictor.prepare(WORDS, background="random")
    assert len(by_chance.background) == 4 and by_chance != words
    with pytest.raises(ValueError, match="give True, auto, random or a list of names"):
        predictor.prepare(WORDS, background="automatic")


def test_the_config_chooses_words_too(predictor):
    words = predictor.prepare(WORDS, background="auto")
    configured = FreeCPPredictor(predictor.cfg, ["MODEL.FREECP.BACKGROUND", "auto"])
    assert configured.prepare(WORDS) == configured.prepare(words) == words
    named = configured.prepare(WORDS, background=["wall"])
    assert named.background == ("wall",) and configured.prepare(named) == named
    parts = FreeCP.parts_from_config(configured.cfg)
    model = FreeCP(**parts, vocabulary=Vocabulary.from_names(WORDS), descriptions={})
    assert model.vocabulary == words


def test_off_changes_no_bit(predictor):
    image = draw_scene(118).image
    plain = predictor(image, WORDS, scores_map=True)
    predictor(image, WORDS, background="auto")
    again = predictor(image, WORDS, scores_map=True)
    assert predictor.prepare(WORDS).background == ()
    assert np.array_equal(plain.scores_map, again.scores_map)


def test_the_lexicon_is_not_forgotten(predictor, monkeypatch):
    words = predictor.prepare(WORDS, background="auto")
    predictor.forget([words])
    model = predictor._segmenter.model
    encoded = []
    encode_text = model.text_encoder.model.encode_text
    monkeypatch.setattr(
        model.text_encoder.model,
        "encode_text",
        lambda tokens: encoded.append(len(tokens)) or encode_text(tokens),
    )
    assert predictor.prepare(WORDS, background="auto") == words
    assert sum(encoded) == 80 * len(WORDS) + sum(
        len(sentences) for name, sentences in descriptions(predictor).items() if name in WORDS
    )


def descriptions(predictor) -> dict:
    from freecp_d2.config import configured_descriptions

    return json.loads(json.dumps(dict(configured_descriptions(predictor.cfg))))
