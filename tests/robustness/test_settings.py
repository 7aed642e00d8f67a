import numpy as np
import pytest
import torch
import torch.nn.functional as F

from freecp_d2.data import Vocabulary
from freecp_d2.robustness.settings import (
    distractor_pool,
    distractor_settings,
    draw,
    name_settings,
    of_classes,
    without_names,
)
from freecp_d2.words import Words

OFFICIAL = Vocabulary((("road",), ("car", "cab"), ("tree",)), ("background", "wall"))
POOL = [f"word {i}" for i in range(9)]


def first_names(vocabulary):
    return [names[0] for names in vocabulary.classes]


def test_every_synonym_has_its_turn_and_the_background_stays():
    names = Vocabulary((("street", "lane", "way"), ("car", "auto"), ("tree",)))
    official, *others = name_settings(OFFICIAL, names)
    assert (official.name, official.vocabulary) == ("official", OFFICIAL)
    assert [(one.name, first_names(one.vocabulary)) for one in others] == [
        ("plain", ["street", "car", "tree"]),
        ("synonyms 1", ["lane", "auto", "tree"]),
        ("synonyms 2", ["way", "auto", "tree"]),
    ]
    assert all(one.vocabulary.background == OFFICIAL.background for one in others)
    assert all(len(given) == 1 for one in others for given in one.vocabulary.classes)


def test_without_other_names_there_are_the_official_ones_alone():
    assert [one.kind for one in name_settings(OFFICIAL, None)] == ["official"]
    plain = Vocabulary((("street",), ("auto",), ("oak",)))
    assert [one.name for one in name_settings(OFFICIAL, plain)] == ["official", "plain"]


def test_names_of_other_classes_are_refused():
    with pytest.raises(ValueError, match="the names are of 2 classes, the vocabulary has 3"):
        name_settings(OFFICIAL, Vocabulary.from_names(["a", "b"]))


def test_the_pool_is_brute_force_over_cosines():
    torch.manual_seed(0)
    features, targets = (F.normalize(torch.randn(n, 4), dim=1) for n in (40, 3))
    words = [f"w{i}" for i in range(40)]
    nearest = {w: max(float(f @ t) for t in targets) for w, f in zip(words, features, strict=True)}
    expected = sorted((w for w in words if nearest[w] < 0.6), key=lambda w: -nearest[w])
    assert 5 < len(expected) < 35
    assert distractor_pool(words, features, targets, 0.6) == expected


def test_a_word_at_the_limit_is_a_synonym():
    features = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    targets = torch.tensor([[0.5, 0.0]])
    assert distractor_pool(["a", "b"], features, targets, 0.5) == ["b"]


def test_near_distractors_are_the_nearest_and_random_ones_those_of_their_seed():
    settings = distractor_settings(OFFICIAL, POOL, [2, 4], seeds=2)
    assert [one.name for one in settings] == [
        *("near 2", "random 2, seed 0", "random 2, seed 1"),
        *("near 4", "random 4, seed 0", "random 4, seed 1"),
    ]
    for one in settings:
        names = first_names(one.vocabulary)
        assert names[:3] == ["road", "car", "tree"]
        distractors = names[3:]
        assert len(distractors) == one.distractors
        assert set(distractors) <= set(POOL)
        if one.kind == "near":
            assert distractors == POOL[: one.distractors]
        else:
            assert distractors == draw(POOL, one.distractors, one.number)


def test_a_draw_is_its_seed_s_and_a_smaller_one_begins_a_larger():
    assert draw(POOL, 5, 3) == draw(POOL, 5, 3)
    assert draw(POOL, 5, 3)[:2] == draw(POOL, 2, 3)
    assert len(set(draw(POOL, 9, 0))) == 9
    assert draw(POOL, 5, 3) != draw(POOL, 5, 4)


def test_a_pool_that_is_too_small_is_taken_whole_and_once():
    settings = distractor_settings(OFFICIAL, POOL, [4, 20, 1000], seeds=1)
    assert [one.name for one in settings] == ["near 4", "random 4, seed 0", "near 9"]


def test_distractors_are_no_names_of_the_vocabularies():
    words = ["Road", "cab", "wall", "traffic-light", "lane", "sea"]
    other = Vocabulary.from_names(["traffic light", "lane"])
    assert without_names(words, [OFFICIAL, other]) == ["sea"]


def test_a_subset_of_words_keeps_the_features_of_its_names():
    rows = torch.arange(6.0)[:, None]
    related = np.arange(16).reshape(4, 4)
    words = Words(OFFICIAL, rows, rows + 10, torch.tensor(OFFICIAL.query_class), related)
    some = of_classes(words, [1, 2])
    assert some.vocabulary == Vocabulary((("car", "cab"), ("tree",)), ("background", "wall"))
    assert some.text.flatten().tolist() == [0, 1, 3, 4, 5]
    assert some.descriptions.flatten().tolist() == [10, 11, 13, 14, 15]
    assert some.query_class.tolist() == [0, 0, 1]
    assert some.related.tolist() == related[1:, 1:].tolist()
