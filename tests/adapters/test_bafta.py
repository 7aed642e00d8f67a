"""The clusters against the formula, and what a stream does to the classes."""

import numpy as np
import torch

from freecp_d2.adapters import BaFTA

from .streams import CLASSES, Gap, follow


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_two_images_by_hand():
    gap = Gap()
    text = gap.text.double()
    images = [gap.regions([0, 1, 1, 3]).double(), gap.regions([3, 0]).double()]
    weights = [torch.tensor([0.9, 0.2, 0.8, 0.7]), torch.tensor([0.9, 0.9])]
    adapter = BaFTA(prior=2.0, least=0.5)
    for regions, weight in zip(images, weights, strict=True):
        moved = adapter.adapt(text, regions, weight)
    basis = np.linalg.svd(text.numpy().T)[0][:, 1:CLASSES]
    inside = text.numpy() @ basis @ basis.T
    prototypes, counts = unit(inside), np.full(CLASSES, 2.0)
    seen = np.zeros((0, text.shape[1]))
    for regions, weight in zip(images, weights, strict=True):
        seen = np.concatenate([seen, regions.numpy()])
        for region, certain in zip(regions.numpy(), weight.tolist(), strict=True):
            if certain > 0.5:
                direction = unit((region - seen.mean(axis=0)) @ basis @ basis.T)
                best = int((prototypes @ direction).argmax())
                prototypes[best] = unit(counts[best] * prototypes[best] + direction)
                counts[best] += 1
    length = np.linalg.norm(inside, axis=1, keepdims=True)
    expected = unit(text.numpy() - inside + length * prototypes)
    np.testing.assert_allclose(moved.numpy(), expected, atol=1e-9)
    np.testing.assert_array_equal(adapter.state["counts"].numpy(), counts)
    assert counts.sum() == 2 * CLASSES + 5
    untouched = torch.from_numpy(counts == 2.0)
    assert untouched.any() and torch.equal(moved[untouched], text[untouched])


def test_a_class_that_is_never_seen_keeps_its_share():
    gap = Gap()
    text = follow(BaFTA(), gap, [0, 1, 2, 3], 200)
    assert torch.equal(text[4:], gap.text[4:])
    every = list(range(CLASSES))
    assert gap.accuracy(text, every, 0.1) >= gap.accuracy(gap.text, every, 0.1) - 0.02
    assert gap.accuracy(text, [4, 5]) == 1


def test_a_stream_of_one_class_takes_nothing_from_the_others():
    gap = Gap()
    text = follow(BaFTA(), gap, [2], 200)
    assert gap.accuracy(text, list(range(CLASSES))) >= 0.99


def test_a_shift_between_training_and_stream_is_followed():
    gap = Gap(shift=1.2)
    every = list(range(CLASSES))
    text = follow(BaFTA(), gap, every, 200)
    assert gap.accuracy(text, every, 0.15) > gap.accuracy(gap.text, every, 0.15) + 0.02


def test_the_prior_holds_the_text():
    gap = Gap(shift=1.2)
    distances = [
        (follow(BaFTA(prior), Gap(shift=1.2), [0, 1, 2], 20) - gap.text).norm()
        for prior in (1.0, 100.0, 1e6)
    ]
    assert distances[0] > 2 * distances[1] > 0 and distances[2] < 1e-3


def test_more_classes_than_dimensions():
    text = torch.nn.functional.normalize(Gap().normal(50, 8), dim=-1)
    regions = torch.nn.functional.normalize(Gap(seed=1).normal(30, 8), dim=-1)
    moved = BaFTA().adapt(text, regions, torch.ones(30))
    assert moved.isfinite().all() and not torch.equal(moved, text)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(50))
