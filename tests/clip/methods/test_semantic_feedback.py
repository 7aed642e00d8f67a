"""ResCLIP's semantic feedback against loops over pixels and pairs of patches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2.clip.methods import semantic_feedback
from freecp_d2.clip.methods.semantic_feedback import attention_bonus, label_bonus, patch_labels


@st.composite
def label_grids(draw):
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    cells = st.lists(st.integers(0, 2), min_size=height * width, max_size=height * width)
    grids = [draw(cells) for _ in range(draw(st.integers(1, 2)))]
    return torch.tensor(grids).view(-1, height, width)


def sample(start: int, end: int, share: np.float32) -> int:
    """The place of a sample of the way, half-way cases to the even one, in float32."""
    position = (np.float32(1) - share) * np.float32(start) + share * np.float32(end)
    return int(np.round(position))


def bonus_by_loops(labels: np.ndarray, check_paths: bool, std: float) -> np.ndarray:
    height, width = labels.shape
    cells = [(row, column) for row in range(height) for column in range(width)]
    longest = max(height, width) - 1
    shares = torch.linspace(0, 1, longest + 1).numpy()
    bonus = np.zeros((len(cells), len(cells)))
    for i, (row, column) in enumerate(cells):
        for j, (other_row, other_column) in enumerate(cells):
            if labels[row, column] != labels[other_row, other_column]:
                continue
            distance = max(abs(row - other_row), abs(column - other_column))
            way = [
                labels[sample(row, other_row, share), sample(column, other_column, share)]
                for share in shares[: distance + 1]
            ]
            broken = check_paths and any(label != labels[row, column] for label in way)
            bonus[i, j] = math.exp(-distance / longest) if broken else 1.0
    taps = min(len(cells), int(6 * std + 1))
    reach = (taps + 1 - taps % 2) // 2
    weights = {t: math.exp(-(t**2) / (2 * std**2)) for t in range(-reach, reach + 1)}
    smooth = np.zeros_like(bonus)
    for j in range(len(cells)):
        for offset, weight in weights.items():
            if 0 <= j + offset < len(cells):
                smooth[:, j] += weight / sum(weights.values()) * bonus[:, j + offset]
    smooth /= smooth.sum(axis=1, keepdims=True) + 1e-8
    return smooth / smooth.max()


@settings(max_examples=60, deadline=None)
@given(labels=label_grids(), check_paths=st.booleans(), std=st.sampled_from([0.5, 2.0, 5.0]))
def test_the_bonus_is_that_of_loops_over_pairs(labels, check_paths, std):
    bonus = label_bonus(labels, check_paths, std)
    assert bonus.dtype == torch.float32
    for window, expected in zip(bonus, labels.numpy(), strict=True):
        expected = torch.from_numpy(bonus_by_loops(expected, check_paths, std)).float()
        torch.testing.assert_close(window, expected, atol=1e-5, rtol=0)


def test_only_the_first_share_of_the_way_is_looked_at():
    """As published: of D + 1 samples those of 0 to s/D; patches near one another are not seen."""
    labels = torch.zeros(1, 1, 9, dtype=torch.int64)
    labels[0, 0, 7] = 1
    bonus = label_bonus(labels, True, 0.1)[0]  # no smoothing
    bonus = bonus / bonus.amax(dim=1, keepdim=True)
    assert bonus[0, 8] < 1  # the whole way, which crosses 7
    assert bonus[6, 8] == bonus[6, 6]  # a quarter of it, which does not
    assert bonus[8, 0] < 1 and bonus[8, 6] == 1


def test_the_weight_falls_with_the_distance():
    labels = torch.zeros(1, 1, 9, dtype=torch.int64)
    labels[0, 0, 1] = 1
    row = label_bonus(labels, True, 0.1)[0, 0]
    expected = [math.exp(-s / 8) for s in (4, 5, 6, 7, 8)]
    torch.testing.assert_close(row[4:] / row[0], torch.tensor(expected))


def test_smoothing_runs_on_from_a_row_to_the_next():
    labels = torch.tensor([[[0, 0, 1], [2, 3, 4]]])
    bonus = label_bonus(labels, False, 1.0)[0]
    assert bonus[2, 3] == pytest.approx(bonus[2, 1].item())  # over the edge as within the row
    assert bonus[2, 3] > bonus[2, 5] > 0


def labels_by_loops(similarity, pixels, patch, scale, threshold):
    """One window's, of similarities that pixels and PAMR leave as they are."""
    p = (scale * similarity.double()).softmax(dim=0)
    pixel = p.argmax(dim=0)
    pixel[p.amax(dim=0) < threshold] = 0
    rows = []
    for top in range(0, pixels.shape[1] - patch[0] + 1, patch[0]):
        row = []
        for left in range(0, pixels.shape[2] - patch[1] + 1, patch[1]):
            votes = pixel[top : top + patch[0], left : left + patch[1]].flatten().tolist()
            row.append(min(votes, key=lambda label: (-votes.count(label), label)))
        rows.append(row)
    return torch.tensor(rows)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    patch=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    rim=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_patches_take_the_label_of_most_pixels(seed, patch, grid, rim, threshold):
    generator = torch.Generator().manual_seed(seed)
    rim = [min(r, p - 1) for r, p in zip(rim, patch, strict=True)]
    height, width = (g * p + r for g, p, r in zip(grid, patch, rim, strict=True))
    similarity = torch.rand(2, 4, height, width, generator=generator)
    pixels = torch.randn(2, 3, height, width, generator=generator)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(semantic_feedback, "pamr", lambda image, maps, *_: maps)
        labels = patch_labels(similarity, pixels, patch, 3.0, threshold)
    assert labels.shape == (2, *grid)
    for window in range(2):
        expected = labels_by_loops(similarity[window], pixels[window], patch, 3.0, threshold)
        assert labels[window].equal(expected)


def test_windows_do_not_see_one_another(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    similarity = torch.rand(3, 5, 4, 6, generator=generator)
    pixels = torch.randn(3, 3, 35, 50, generator=generator)
    together = patch_labels(similarity, pixels, (8, 8), 20.0, 0.3)
    assert together.unique().numel() > 3
    for window in range(3):
        one = slice(window, window + 1)
        alone = patch_labels(similarity[one], pixels[one], (8, 8), 20.0, 0.3)
        assert together[one].equal(alone)
    monkeypatch.setattr(semantic_feedback, "PIXEL_VALUES", 1)
    assert patch_labels(similarity, pixels, (8, 8), 20.0, 0.3).equal(together)
    labels = torch.tensor([[[0, 1, 0]], [[1, 1, 1]]])
    assert label_bonus(labels, True, 5.0)[:1].equal(label_bonus(labels[:1], True, 5.0))
    assert label_bonus(labels, True, 5.0)[1:].equal(label_bonus(labels[1:], True, 5.0))


def test_similarities_at_pixels_exist_of_a_few_windows_at_once(monkeypatch):
    seen = []

    def note(image, maps, steps, dilations):
        assert len(image) == len(maps) and (steps, dilations) == (10, (8, 16))
        seen.append(len(maps))
        return maps

    monkeypatch.setattr(semantic_feedback, "pamr", note)
    monkeypatch.setattr(semantic_feedback, "PIXEL_VALUES", 2 * 5 * 35 * 50)
    patch_labels(torch.rand(5, 5, 4, 6), torch.randn(5, 3, 35, 50), (8, 8), 20.0, 0.3)
    assert seen == [2, 2, 1]


def test_the_first_segmentation_is_refined_along_the_image():
    """A grid that says left and right takes its border from the image."""
    pixels = torch.zeros(1, 3, 32, 64)
    pixels[..., 24:] = 2.0
    similarity = torch.tensor([[[[1.0, 0.45, 0.0, 0.0]] * 2, [[0.0, 0.5, 1.0, 1.0]] * 2]])
    labels = patch_labels(similarity, pixels, (8, 8), 40.0, 0.0)
    assert labels.shape == (1, 4, 8)
    assert (labels[..., :3] == 0).all() and (labels[..., 3:] == 1).all()


def test_the_bonus_of_logits_is_rounded_to_half_precision():
    bonus = torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(0))
    logits = attention_bonus(bonus, 2.1, 0.7)
    assert logits.shape == (2, 1, 7, 7) and logits.dtype == torch.float32
    assert not logits[:, :, 0].any() and not logits[..., 0].any()
    rounded = (bonus.numpy().astype(np.float16).astype(np.float32) * np.float32(0.7)).astype(
        np.float16
    )
    expected = torch.from_numpy(np.float32(2.1) * rounded.astype(np.float32))
    torch.testing.assert_close(logits[:, 0, 1:, 1:], expected, atol=1e-6, rtol=0)
    exact = 2.1 * 0.7 * bonus
    assert 1e-6 < (logits[:, 0, 1:, 1:] - exact).abs().max() < 2e-3
