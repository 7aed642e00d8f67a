"""Codes against Sinkhorn's algorithm as it is written, and what a stream does to the classes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from freecp_d2.adapters import ClipOT, transport_codes

from .streams import CLASSES, Gap, follow


def codes_by_hand(logits: np.ndarray, kappa: float, rounds: int) -> np.ndarray:
    """Rows are classes and columns samples, as the paper has them."""
    codes = np.exp(logits.T - logits.T.max(axis=0))
    codes /= codes.sum(axis=0)
    classes, samples = codes.shape
    marginal = (1 - kappa) * codes.mean(axis=1) + kappa / classes
    for _ in range(rounds):
        for row in range(classes):
            codes[row] *= marginal[row] / codes[row].sum()
        for column in range(samples):
            codes[:, column] *= 1 / samples / codes[:, column].sum()
    return (codes / codes.sum(axis=0)).T


@pytest.mark.parametrize("kappa", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("rounds", [1, 3])
def test_codes_are_sinkhorns(kappa, rounds):
    logits = 3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double()
    expected = codes_by_hand(logits.numpy(), kappa, rounds)
    codes = transport_codes(logits, kappa, rounds)
    np.testing.assert_allclose(codes.numpy(), expected, rtol=1e-10, atol=1e-14)


def test_kappa_0_is_softmax_and_1_is_even():
    logits = torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close(transport_codes(logits, 0.0), logits.softmax(dim=-1))
    even = transport_codes(logits, 1.0, rounds=500).sum(dim=1)
    torch.testing.assert_close(even, torch.full_like(even, 3.0), rtol=1e-6, atol=0)
    assert (transport_codes(logits, 0.1) - logits.softmax(dim=-1)).abs().max() > 1e-3


def test_similarities_that_overflow_are_no_matter():
    logits = torch.tensor([[143.0, -143.0, 0.0], [-143.0, 143.0, 0.0]])
    codes = transport_codes(logits, 0.1)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(dim=-1), torch.ones(2))


def test_a_step_by_hand():
    gap = Gap()
    templates = torch.stack([gap.text, F.normalize(gap.text + 0.02, dim=-1)]).double()
    adapter = ClipOT(templates, kappa=0.1, eta=0.2)
    first, regions = gap.regions([0, 1, 2]).double(), gap.regions([0, 0, 0, 1, 1]).double()
    text = gap.text.double()
    adapter.adapt(text, first, torch.ones(3))
    moved = adapter.adapt(text, regions, torch.ones(5))
    mean = torch.cat([first, regions]).mean(dim=0)
    centred = F.normalize(regions - mean, dim=-1).numpy()
    codes = 0
    for template in templates:
        centre = F.normalize(template - template.mean(dim=0), dim=-1).numpy()
        codes = codes + codes_by_hand(centred @ centre.T / 0.01 / 0.7, 0.1, 3) / 2
    for k in range(CLASSES):
        total = codes[:, k] @ centred
        expected = text[k].numpy() + 0.2 * total / np.linalg.norm(total)
        expected /= np.linalg.norm(expected)
        if codes[:, k].sum() < 1:
            assert torch.equal(moved[k], text[k])
        else:
            np.testing.assert_allclose(moved[k].numpy(), expected, atol=1e-9)
    assert [bool((moved[k] != text[k]).any()) for k in range(CLASSES)] == [k < 2 for k in range(6)]
    assert adapter.state["count"] == 8


def test_a_class_that_is_never_seen_keeps_its_share():
    gap = Gap()
    text = follow(ClipOT(gap.text[None]), gap, [0, 1, 2, 3], 200)
    assert torch.equal(text[4:], gap.text[4:])
    every = list(range(CLASSES))
    assert gap.accuracy(text, every, 0.1) >= gap.accuracy(gap.text, every, 0.1) - 0.02
    assert gap.accuracy(text, [4, 5]) == 1


def test_a_stream_of_one_class_takes_nothing_from_the_others():
    gap = Gap()
    text = follow(ClipOT(gap.text[None]), gap, [2], 200)
    assert gap.accuracy(text, list(range(CLASSES))) >= 0.99


def test_a_shift_between_training_and_stream_is_followed():
    gap = Gap(shift=1.2)
    every = list(range(CLASSES))
    text = follow(ClipOT(gap.text[None]), gap, every, 200)
    seen = (text != gap.text).any(dim=1).nonzero()[:, 0].tolist()  # in the last image
    assert gap.accuracy(text, seen, 0.15) > gap.accuracy(gap.text, seen, 0.15) + 0.02
