"""Decorrelated class features against the inverse square root by torch.linalg."""

import pytest
import torch
import torch.nn.functional as F

from freecp_d2 import FreeCPPredictor
from freecp_d2.data.scenes import draw_scene
from freecp_d2.decorrelation import check_decorrelation, decorrelate, decorrelate_queries
from freecp_d2.ranking import template_halves


def features(seed: int, count: int, size: int) -> torch.Tensor:
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(seed)) + 1
    return F.normalize(rows, dim=1)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_rows_are_those_of_the_inverse_square_root(gamma, count):
    rows = features(count, count, 7).double()
    gram = (1 - gamma) * torch.eye(count, dtype=torch.float64) + gamma * rows @ rows.T
    # G^(-1/2) by Newton's iteration of Denman and Beavers, with torch.linalg.inv alone.
    y, z = gram, torch.eye(count, dtype=torch.float64)
    for _ in range(60):
        y, z = (y + torch.linalg.inv(z)) / 2, (z + torch.linalg.inv(y)) / 2
    expected = F.normalize(z @ rows, dim=1)
    torch.testing.assert_close(decorrelate(rows, gamma), expected, rtol=1e-6, atol=1e-6)


def test_all_the_way_they_are_orthogonal_and_half_way_less_alike():
    rows = features(3, 5, 8)
    whole = decorrelate(rows, 1.0)
    torch.testing.assert_close(whole @ whole.T, torch.eye(5), rtol=0, atol=1e-5)
    off = ~torch.eye(5, dtype=torch.bool)
    alike = [(t @ t.T)[off].abs().mean() for t in (rows, decorrelate(rows, 0.5), whole)]
    assert alike == sorted(alike, reverse=True)


def test_a_class_twice_stays_finite_and_alike():
    rows = features(1, 3, 8)[[0, 1, 1, 2]]
    whole = decorrelate(rows, 1.0)
    assert whole.isfinite().all()
    torch.testing.assert_close(whole[1], whole[2])
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(4))


def test_off_is_the_very_tensor():
    rows, classes = features(0, 9, 4), torch.arange(9)
    assert decorrelate(rows, 0) is rows
    assert decorrelate_queries(rows, classes, 0, 0) is rows


def test_names_of_a_class_go_together_and_the_background_stays():
    text, classes = features(5, 6, 8), torch.tensor([0, 0, 1, 2])
    moved = decorrelate_queries(text, classes, 2, 0.7)
    assert moved[:2].equal(text[:2])
    names = text[2:]
    means = torch.stack([names[classes == c].mean(0) for c in range(3)])
    means = F.normalize(means, dim=1)
    shifts = decorrelate(means, 0.7) - means
    for query, label in enumerate(classes):
        expected = F.normalize(names[query] + shifts[label], dim=0)
        torch.testing.assert_close(moved[2 + query], expected)
    single = decorrelate_queries(text[2:], torch.arange(4), 0, 0.7)
    torch.testing.assert_close(single, decorrelate(text[2:], 0.7))


def test_more_classes_than_dimensions_are_refused():
    with pytest.raises(ValueError, match="5 classes are more than the 4 dimensions"):
        decorrelate(features(0, 5, 4), 0.5)
    assert decorrelate(features(0, 4, 4), 0.5).shape == (4, 4)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_gamma_is_a_share(gamma):
    with pytest.raises(ValueError, match="MODEL.FREECP.DECORRELATION is"):
        check_decorrelation(gamma)


def test_sets_and_halves_of_templates_are_decorrelated_too():
    opts = ["MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.ADAPTER", "entropy_weights"]
    opts += ["MODEL.FREECP.ENTROPY_WEIGHTS.TEMPLATE_SETS", "2"]
    names, background = [["sky"], ["lawn", "meadow"], ["dog"]], ["wall"]
    classes = torch.tensor([0, 1, 1, 2]), 1, 0.5
    plain, on = (
        FreeCPPredictor("scenes/clearclip", [*opts, "MODEL.FREECP.DECORRELATION", gamma])._segmenter
        for gamma in ("0.0", "0.5")
    )
    words, moved = (segmenter.words_of(names, background) for segmenter in (plain, on))
    assert not moved.text_views.equal(words.text_views)
    for view, expected in zip(moved.text_views, words.text_views, strict=True):
        assert view.equal(decorrelate_queries(expected, *classes))
    halves, expected = template_halves(on.model, moved), template_halves(plain.model, words)
    for half, of_plain in zip(halves, expected, strict=True):
        assert half.text.equal(decorrelate_queries(of_plain.text, *classes))


def test_a_config_decorrelates_the_words_that_clip_reads():
    opts = ("MODEL.CLIP.TEXT_CACHE", "")
    names, image = ["sky", "lawn", "road", "dog", "snow"], draw_scene(120).image
    plain = FreeCPPredictor("scenes/clearclip", opts)
    off = FreeCPPredictor("scenes/clearclip", [*opts, "MODEL.FREECP.DECORRELATION", "0.0"])
    on = FreeCPPredictor("scenes/clearclip", [*opts, "MODEL.FREECP.DECORRELATION", "0.5"])
    text = plain._segmenter.words_of(names, False).text
    assert off._segmenter.words_of(names, False).text.equal(text)
    words = on._segmenter.words_of(names, False)
    assert words.text.equal(decorrelate_queries(text, torch.arange(5), 0, 0.5))
    assert not words.text.equal(text)
    expected = plain._segmenter.words_of(names, False).descriptions
    assert words.descriptions.equal(expected)
    maps = [p(image, names, scores_map=True).scores_map for p in (plain, off, on)]
    assert (maps[0] == maps[1]).all() and (maps[0] != maps[2]).any()
