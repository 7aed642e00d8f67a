"""The stages against brute force and properties."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2.purification import stages


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 3))
def test_class_activation_maps(seed, queries, batch):
    patches, text = random(batch, 6, 5, seed=seed), random(queries, 5, seed=seed + 1)
    probabilities, normalized = stages.class_activation_maps(patches, text, 20.0, (2, 3))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(batch, 2, 3))
    for b in range(batch):
        logits = torch.stack([20 * patch @ text.T for patch in patches[b]])
        expected = (logits.exp() / logits.exp().sum(1, keepdim=True)).T.reshape(queries, 2, 3)
        torch.testing.assert_close(probabilities[b], expected)
        assert normalized[b].min() == 0 and normalized[b].max() == 1
        spanned = normalized[b] * (expected.max() - expected.min()) + expected.min()
        torch.testing.assert_close(spanned, expected, atol=1e-6, rtol=1e-5)


def test_consistency_is_the_formula():
    p, r = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    result = stages.consistency(p, r)
    for b in range(2):
        for c in range(3):
            expected = (p[b, c] * r[b, c]).sum() / (p[b, c].sum() + r[b, c].sum() + 1e-8)
            torch.testing.assert_close(result[b, c], expected)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.floats(0.2, 0.9))
def test_groups_are_the_classes_that_links_reach(seed, count, threshold):
    maps = random(count, 3, 3, seed=seed) ** 2
    groups = stages.ambiguous_groups(maps, threshold)
    assert sorted(sum(groups, [])) == list(range(count))
    reachable = {i: {i} for i in range(count)}
    for _ in range(count):
        for i in range(count):
            for j in range(count):
                iou = torch.minimum(maps[i], maps[j]).sum() / torch.maximum(maps[i], maps[j]).sum()
                if abs(iou - threshold) < 1e-5:
                    return
                if i != j and iou >= threshold:
                    reachable[i] |= reachable[j]
    assert {frozenset(group) for group in groups} == {frozenset(r) for r in reachable.values()}


def blob(*spans: tuple[int, int, int, int]) -> torch.Tensor:
    maps = torch.zeros(6, 6)
    for top, bottom, left, right in spans:
        maps[top:bottom, left:right] = 1
    return maps


def test_the_winner_of_each_crop_stays():
    left, right = (1, 3, 0, 2), (1, 3, 4, 5)
    twins = blob(left, right)
    refined = torch.stack([twins, blob((4, 6, 0, 6)), twins, twins])[None]
    images = torch.zeros(1, 3, 24, 24)
    images[:, :, :, 12:] = 1.0
    seen = []

    def encode(crops: torch.Tensor) -> torch.Tensor:
        seen.append(crops)
        bright = crops.mean((1, 2, 3)) > 0.5
        return torch.where(bright[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))

    descriptions = torch.tensor([[1.0, 0.0], [0.9, 0.9], [0.0, 1.0], [0.2, 0.2]])
    kept = torch.ones(1, 4, dtype=torch.bool)
    result = stages.resolve_ambiguity(images, refined, kept, descriptions, encode, (4, 4), 0.7)
    assert result.tolist() == [[True, True, True, False]]
    assert len(seen) == 1 and seen[0].shape == (2, 3, 112, 112)


def test_a_box_without_extent_keeps_the_group():
    edge = blob((2, 4, 5, 6))
    refined = torch.stack([edge, edge])[None]

    def encode(crops: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no crop is left")

    kept = torch.ones(1, 2, dtype=torch.bool)
    arguments = (torch.zeros(1, 3, 24, 24), refined, kept, torch.eye(2))
    assert stages.resolve_ambiguity(*arguments, encode, (4, 4), 0.7).all()
    one = stages.resolve_ambiguity(
        *arguments, lambda crops: torch.tensor([[0.0, 1.0]]), (4, 4), 0.7, full_extent=True
    )
    assert one.tolist() == [[False, True]]


def test_only_classes_that_stayed_compete():
    twins = blob((1, 3, 1, 3))
    refined = torch.stack([twins, twins, twins])[None]
    kept = torch.tensor([[True, False, False]])
    result = stages.resolve_ambiguity(
        torch.zeros(1, 3, 24, 24), refined, kept, torch.eye(3), lambda crops: crops, (4, 4), 0.7
    )
    assert result.equal(kept)
