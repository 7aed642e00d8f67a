"""The scores of a base method against brute force, and what becomes of ties and thresholds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freecp_d2 import refinement, scores
from freecp_d2.data import Vocabulary
from freecp_d2.data.benchmarks.protocols import SAME, BaseProtocol
from freecp_d2.words import Words

IMAGE = torch.zeros(3, 4, 4)
BACKGROUND = replace(SAME, threshold_without_background=False)


def words_of(channels: list[int], background: bool) -> Words:
    """Words whose queries belong to these channels; channel 0 is first where it is background."""
    first = channels.count(0) if background else 0
    assert not any(channels[:first])
    classes = [channel - bool(first) for channel in channels[first:]]
    vocabulary = Vocabulary(
        tuple(
            tuple(f"query {query}" for query, class_id in enumerate(classes) if class_id == index)
            for index in range(max(classes) + 1)
        ),
        tuple(f"background {i}" for i in range(first)),
    )
    text = torch.zeros(len(channels), 1)
    return Words(vocabulary, text, text, torch.tensor(classes))


def scores_of(
    similarity: Tensor, channels: list[int], protocol: BaseProtocol, background: bool, size=None
) -> Tensor:
    """(K, H, W) of all strips."""
    size = size or tuple(similarity.shape[1:])
    words = words_of(channels, background)
    strips = list(scores.base_scores(similarity, IMAGE, words, size, protocol))
    rows = [list(range(size[0]))[part] for part, _ in strips]
    assert sum(rows, []) == list(range(size[0]))
    return torch.cat([part for _, part in strips], dim=1)


def brute_force(
    similarity: Tensor, channels: list[int], protocol: BaseProtocol, background: bool, size
) -> np.ndarray:
    """The label map."""
    maps = F.interpolate(similarity[None].double(), size, mode="bilinear", align_corners=False)[0]
    exponents = np.exp(protocol.logit_scale * maps.numpy())
    probabilities = exponents / exponents.sum(axis=0)
    count = max(channels) + 1
    best = np.zeros((count, *size))
    for query, channel in enumerate(channels):
        best[channel] = np.maximum(best[channel], probabilities[query])
    if protocol.area_threshold is not None:
        labels = best.argmax(axis=0)
        total = (labels > 0).sum()
        for channel in range(1, count):
            if (labels == channel).sum() <= protocol.area_threshold * total:
                best[channel] = 0
    labels = best.argmax(axis=0)
    if background or protocol.threshold_without_background:
        labels[best.max(axis=0) < protocol.probability_threshold] = 0
    return labels


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 9999),
    names=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    background=st.booleans(),
    everywhere=st.booleans(),
    threshold=st.sampled_from([0.0, 0.3, 0.5]),
    area=st.sampled_from([None, 0.0, 0.2, 0.6]),
    strip=st.sampled_from([1, 40, 2**22]),
)
def test_labels_by_brute_force(seed, names, background, everywhere, threshold, area, strip):
    background = background and len(names) > 1
    channels = [channel for channel, count in enumerate(names) for _ in range(count)]
    similarity = torch.rand(len(channels), 3, 4, generator=torch.Generator().manual_seed(seed))
    protocol = BaseProtocol(
        *("x", 20.0, threshold), threshold_without_background=everywhere, area_threshold=area
    )
    size = (7, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refinement, "STRIP_VALUES", strip)
        found = scores_of(similarity, channels, protocol, background, size)
    assert found.shape == (max(channels) + 1, *size) and found.min() >= 0 and found.max() <= 1
    expected = brute_force(similarity, channels, protocol, background, size)
    # Where two classes, or a class and the threshold, are equal but for rounding, either is right.
    assert (found.argmax(0).numpy() == expected).mean() > 0.97


def test_strips_change_nothing(monkeypatch):
    similarity = torch.rand(5, 6, 7, generator=torch.Generator().manual_seed(0))
    protocol = replace(BACKGROUND, probability_threshold=0.3, area_threshold=0.1)
    arguments = (similarity, [0, 0, 1, 2, 2], protocol, True, (33, 21))
    whole = scores_of(*arguments)
    for values in (1, 5 * 21 * 4, 5 * 21 * 32):
        monkeypatch.setattr(refinement, "STRIP_VALUES", values)
        torch.testing.assert_close(scores_of(*arguments), whole, atol=1e-6, rtol=0)


def test_a_tie_with_the_background_is_the_backgrounds():
    for channels in ([0, 1], [0, 0, 1, 2], [0, 1, 2, 1]):
        found = scores_of(torch.full((len(channels), 2, 3), 0.5), channels, SAME, True)
        assert found.eq(1 / len(channels)).all() and found.argmax(0).eq(0).all()


@pytest.mark.parametrize(("above", "label"), [(0.0, 1), (2**-20, 0)])
def test_a_probability_of_the_threshold_itself_is_no_background(above, label):
    """Four classes of a quarter each, and a background that is out of question."""
    similarity = torch.tensor([-50.0, 1, 1, 1, 1])[:, None, None].expand(5, 2, 3)
    protocol = replace(SAME, probability_threshold=0.25 + above)
    found = scores_of(similarity, [0, 1, 2, 3, 4], protocol, True)
    assert found[1].eq(0.25).all() and found.argmax(0).eq(label).all()
    assert found[0].eq(1.0 if above else 0.0).all()


@pytest.mark.parametrize(
    ("background", "everywhere"), [(True, False), (False, True), (False, False)]
)
def test_the_threshold_wants_a_background_unless_the_protocol_has_it_everywhere(
    background, everywhere
):
    similarity = torch.tensor([0.0, 0.01])[:, None, None].expand(2, 2, 3)
    protocol = replace(SAME, probability_threshold=0.9, threshold_without_background=everywhere)
    label = 0 if background or everywhere else 1
    assert scores_of(similarity, [0, 1], protocol, background).argmax(0).eq(label).all()


@pytest.mark.parametrize(("area", "kept"), [(0.24, [0, 1, 2]), (0.25, [0, 2]), (0.75, [0])])
def test_a_class_of_the_area_threshold_itself_is_removed(area, kept):
    """Of 8 pixels 4 are background, 1 is of class 1 and 3 are of class 2."""
    labels = torch.tensor([[0, 0, 0, 0], [1, 2, 2, 2]])
    similarity = F.one_hot(labels, 3).permute(2, 0, 1).float()
    found = scores_of(similarity, [0, 1, 2], replace(SAME, area_threshold=area), True)
    assert found.argmax(0).unique().tolist() == kept
    assert [c for c in range(3) if found[c].any()] == kept


def test_class_scores_are_the_best_of_the_queries():
    values = torch.rand(5, 2, 3, generator=torch.Generator().manual_seed(0))
    found = scores.class_scores(values, torch.tensor([2, 0, 2, 0, 0]), 4)
    assert found[0].equal(values[[1, 3, 4]].amax(0)) and found[2].equal(values[[0, 2]].amax(0))
    assert found.shape == (4, 2, 3) and not found[[1, 3]].any()
    assert scores.class_scores(values[:, 0, 0], torch.zeros(5).long(), 1).tolist() == [
        values[:, 0, 0].max()
    ]
