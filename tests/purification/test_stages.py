"""The stages against brute force and properties."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from freecp_d2 import ops, transfers
from freecp_d2.purification import PurificationHead, Selected, stages


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


class SloppyDivision(TorchDispatchMode):
    """Quotients that are a step too large, as compiled for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.div:
            result = result.nextafter(2 * result)
        return result


def test_activation_maps_stay_in_range_where_quotients_are_rounded_up():
    with SloppyDivision():
        normalized = stages.normalize(random(2, 3, 4, 5))
    assert normalized.min() == 0 and normalized.max() == 1
    assert stages.normalize(torch.full((1, 2, 2, 2), torch.nan)).isnan().all()


def test_consistency_is_the_formula():
    p, r = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    result = stages.consistency(p, r)
    for b in range(2):
        for c in range(3):
            expected = (p[b, c] * r[b, c]).sum() / (p[b, c].sum() + r[b, c].sum() + 1e-8)
            torch.testing.assert_close(result[b, c], expected)


def test_consistency_as_a_true_iou():
    p, r = random(2, 3, 4, 5), random(2, 3, 4, 5, seed=1)
    result = stages.consistency(p, r, true_iou=True)
    for b in range(2):
        for c in range(3):
            overlap = (p[b, c] * r[b, c]).sum()
            expected = overlap / ((p[b, c] + r[b, c] - p[b, c] * r[b, c]).sum() + 1e-8)
            torch.testing.assert_close(result[b, c], expected)
    ones = torch.ones(1, 1, 2, 2)
    torch.testing.assert_close(stages.consistency(ones, ones, true_iou=True), torch.ones(1, 1))


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.floats(0.2, 0.9))
def test_groups_are_the_classes_that_links_reach(seed, count, threshold):
    maps = random(count, 3, 3, seed=seed) ** 2
    groups = stages.ambiguous_groups(ops.soft_iou(maps).numpy(), threshold)
    assert sorted(np.concatenate(groups).tolist()) == list(range(count))
    reachable = {i: {i} for i in range(count)}
    for _ in range(count):
        for i in range(count):
            for j in range(count):
                iou = torch.minimum(maps[i], maps[j]).sum() / torch.maximum(maps[i], maps[j]).sum()
                if abs(iou - threshold) < 1e-5:
                    return
                if i != j and iou >= threshold:
                    reachable[i] |= reachable[j]
    assert {frozenset(group.tolist()) for group in groups} == {
        frozenset(r) for r in reachable.values()
    }


def selected(refined: torch.Tensor, kept: np.ndarray) -> Selected:
    """What the host knows of windows whose classes `kept` (B, C) stay."""
    maps, soft_iou = stages.compared(refined, torch.as_tensor(kept), refined.shape[1])
    consistency = np.zeros(kept.shape, dtype=np.float32)
    return Selected(kept, consistency, maps.numpy(), soft_iou.numpy())


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
    kept = np.ones((1, 4), dtype=bool)
    stays, beaten_by = stages.resolve_ambiguity(
        images, selected(refined, kept), descriptions, encode, (4, 4), 0.7
    )
    assert stays.tolist() == [[True, True, True, False]]
    assert beaten_by.tolist() == [[-1, -1, -1, 2]]  # both winners score 1; the last is named
    assert len(seen) == 1 and seen[0].shape == (2, 3, 112, 112)


def test_a_box_without_extent_keeps_the_group():
    edge = blob((2, 4, 5, 6))
    refined = torch.stack([edge, edge])[None]

    def encode(crops: torch.Tensor) -> torch.Tensor:
        raise AssertionError("no crop is left")

    kept = np.ones((1, 2), dtype=bool)
    arguments = (torch.zeros(1, 3, 24, 24), selected(refined, kept), torch.eye(2))
    stays, beaten_by = stages.resolve_ambiguity(*arguments, encode, (4, 4), 0.7)
    assert stays.all() and (beaten_by == -1).all()
    stays, beaten_by = stages.resolve_ambiguity(
        *arguments, lambda crops: torch.tensor([[0.0, 1.0]]), (4, 4), 0.7, full_extent=True
    )
    assert stays.tolist() == [[False, True]] and beaten_by.tolist() == [[1, -1]]


def test_the_best_of_several_winners_is_named():
    """The first of three look-alikes wins a crop with 1, the second another with 0.5."""
    twins = blob((1, 3, 0, 2), (1, 3, 4, 5))
    images = torch.zeros(1, 3, 24, 24)
    images[:, :, :, 12:] = 1.0

    def encode(crops: torch.Tensor) -> torch.Tensor:
        bright = crops.mean((1, 2, 3)) > 0.5
        return torch.where(bright[:, None], torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))

    for winners in ([[1.0, 0.0], [0.0, 0.5]], [[0.0, 1.0], [0.5, 0.0]]):
        descriptions = torch.tensor([*winners, [0.1, 0.1]])
        stays, beaten_by = stages.resolve_ambiguity(
            images,
            selected(torch.stack([twins] * 3)[None], np.ones((1, 3), dtype=bool)),
            descriptions,
            encode,
            (4, 4),
            0.7,
        )
        assert stays.tolist() == [[True, True, False]] and beaten_by.tolist() == [[-1, -1, 0]]


def test_a_class_of_the_threshold_itself_is_removed():
    p, attention = random(1, 3, 4, 5), random(1, 20, 20, seed=1)
    arguments = (p, stages.normalize(p), attention, 0)
    _, score, _ = stages.purify_maps(*arguments, 0.0)
    for index, value in enumerate(score[0].tolist()):
        _, _, kept = stages.purify_maps(*arguments, value)
        assert not kept[0, index]
        assert kept[0].equal(score[0] > score[0, index])


def test_a_class_alone_has_no_rival(monkeypatch):
    monkeypatch.setattr(stages, "ambiguous_groups", None)
    kept = np.array([[True, False], [False, False], [False, True]])
    arguments = (torch.zeros(3, 3, 24, 24), selected(random(3, 2, 6, 6), kept), torch.eye(2))
    stays, beaten_by = stages.resolve_ambiguity(*arguments, lambda crops: crops, (4, 4), 0.7)
    assert stays.tolist() == kept.tolist() and beaten_by.eq(-1).all()


def test_only_classes_that_stayed_compete():
    twins = blob((1, 3, 1, 3))
    refined = torch.stack([twins, twins, twins])[None]
    for kept, expected in (
        (np.array([[True, False, False]]), [[True, False, False]]),
        (np.array([[True, False, True]]), [[False, False, True]]),
    ):
        stays, _ = stages.resolve_ambiguity(
            torch.zeros(1, 3, 24, 24),
            selected(refined, kept),
            torch.eye(3),
            lambda crops: torch.tensor([[0.1, 0.9, 0.5]]),
            (4, 4),
            0.7,
        )
        assert stays.tolist() == expected


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9), st.integers(0, 12))
def test_the_classes_that_stay_are_compared_in_their_order(seed, batch, classes, count):
    refined, kept = random(batch, classes, 3, 4, seed=seed), random(batch, classes) > 0.4
    maps, soft_iou = stages.compared(refined, kept, count)
    assert maps.shape == (batch, min(count, classes), 3, 4)
    for window in range(batch):
        expected = refined[window, kept[window]][:count]
        assert maps[window, : len(expected)].equal(expected)
        found = soft_iou[window, : len(expected), : len(expected)]
        assert found.equal(ops.soft_iou(expected))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 7), st.floats(0.1, 0.9))
def test_ambiguity_by_brute_force(seed, batch, classes, threshold):
    refined = (random(batch, classes, 6, 6, seed=seed) * 1.5 - 0.5).clamp(min=0)
    kept = random(batch, classes, seed=seed + 1) > 0.3
    images = random(batch, 3, 24, 24, seed=seed + 2)
    descriptions = random(classes, 3, seed=seed + 3)

    def encode(crops: torch.Tensor) -> torch.Tensor:
        return crops.mean((2, 3)) - 0.5

    stays, beaten_by = torch.zeros_like(kept), torch.full_like(kept, -1, dtype=torch.int64)
    for b in range(batch):
        present = kept[b].nonzero()[:, 0].tolist()
        iou = ops.soft_iou(refined[b, present]) if present else None
        for group in stages.ambiguous_groups(iou.numpy(), threshold) if present else []:
            members = [present[i] for i in group]
            if len(members) == 1:
                stays[b, members] = True
                continue
            best = -math.inf
            winner = -1
            for _, x0, y0, x1, y1 in ops.component_boxes(refined[b, members].mean(0)[None]):
                if x1 <= x0 or y1 <= y0:
                    stays[b, members] = True
                    continue
                crop = images[b : b + 1, :, 4 * y0 : 4 * y1, 4 * x0 : 4 * x1]
                crop = F.interpolate(crop, (112, 112), mode="bilinear", align_corners=False)
                scores = encode(crop)[0] @ descriptions[members].T
                stays[b, members[int(scores.argmax())]] = True
                if scores.max() > best:
                    best, winner = scores.max(), members[int(scores.argmax())]
            for member in members:
                beaten_by[b, member] = winner
    beaten_by[stays] = -1
    stay, winner = stages.resolve_ambiguity(
        images, selected(refined, kept.numpy()), descriptions, encode, (4, 4), threshold
    )
    assert stay.equal(stays) and winner.equal(beaten_by)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 150), st.integers(1, 150))
def test_crops_are_resized_as_interpolate_does(seed, count, height, width):
    """By both ways, from a pixel to beyond the crop's size; a box may end outside of the image."""
    rng = np.random.default_rng(seed)
    images = random(3, 3, height, width, seed=seed)
    top, left = rng.integers(0, height, count), rng.integers(0, width, count)
    bottom, right = (
        top + 1 + rng.integers(0, height, count),
        left + 1 + rng.integers(0, width, count),
    )
    boxes = [
        tuple(box) for box in zip(rng.integers(0, 3, count), top, bottom, left, right, strict=True)
    ]
    expected = torch.cat(
        [
            F.interpolate(images[i : i + 1, :, y0:y1, x0:x1], (112, 112), mode="bilinear")
            for i, y0, y1, x0, x1 in boxes
        ]
    )
    assert torch.equal(stages.crops_one_by_one(list(images), boxes), expected)
    samples = transfers.to_device(stages.crop_samples(boxes, (height, width)), images.device)
    crops = stages.crops_at_once(images, samples)
    torch.testing.assert_close(crops, expected, rtol=0, atol=5e-7)


@pytest.mark.parametrize("at_once", [1, 2, 256])
def test_crops_are_cut_together_where_calls_are_launches(at_once, monkeypatch):
    """In pieces of at most so many, to the same crops and winners but for rounding."""
    refined = (random(2, 5, 6, 6) * 1.5 - 0.5).clamp(min=0)
    kept = np.ones((2, 5), dtype=bool)
    crops = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        crops.append(images)
        return images.mean((2, 3)) - 0.5

    images = list(random(2, 3, 24, 24, seed=1))
    arguments = (images, selected(refined, kept), random(5, 3, seed=2), encode, (4, 4), 0.3)
    expected = stages.resolve_ambiguity(*arguments)
    monkeypatch.setattr(transfers, "is_accelerator", lambda device: True)
    monkeypatch.setattr(stages, "crops_one_by_one", None)
    monkeypatch.setattr(stages, "CROPS_AT_ONCE", at_once)
    for value, other in zip(stages.resolve_ambiguity(*arguments), expected, strict=True):
        assert value.equal(other)
    assert len(crops[0]) > 2 and (expected[1] >= 0).any()
    torch.testing.assert_close(crops[1], crops[0], rtol=0, atol=5e-7)


def test_selection_compiles_as_one_graph_and_ignores_autocast():
    patches = F.normalize(random(2, 20, 8), dim=-1)
    arguments = (patches, random(2, 20, 20), F.normalize(random(7, 8, seed=1), dim=-1), 30.0)
    arguments += ((4, 5), 2, 0.1)
    expected = stages.select_candidates(*arguments)
    compiled = torch.compile(stages.select_candidates, fullgraph=True, backend="aot_eager")
    for value, other in zip(compiled(*arguments), expected, strict=True):
        torch.testing.assert_close(value, other)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for value, other in zip(stages.select_candidates(*arguments), expected, strict=True):
            assert value.dtype == other.dtype and value.equal(other)


class HostReads(TorchDispatchMode):
    """Notes the operators that make the host wait for a CUDA device."""

    WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean_index = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if boolean_index or name in self.WAITING:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_the_device_is_waited_for_once(monkeypatch, encoder, inputs, cases):
    """On a GPU any wait outside of `to_host` is an error; on a CPU no such operator may run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    counts = []

    def on_the_host(function):
        def unchecked(*args, **options):
            with _disable_current_modes(), waiting("default"):
                return function(*args, **options)

        return unchecked

    @contextmanager
    def waiting(mode):
        previous = torch.cuda.get_sync_debug_mode() if device.type == "cuda" else None
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)
        yield
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode(previous)

    to_host, component_boxes = transfers.to_host, ops.component_boxes

    @on_the_host
    def counted(tensors):
        counts.append(len(tensors))
        return to_host(tensors)

    @on_the_host
    def boxes(maps, **options):
        assert maps.device.type == "cpu"
        return component_boxes(maps, **options)

    monkeypatch.setattr(transfers, "is_accelerator", lambda device: True)
    monkeypatch.setattr(transfers, "to_host", counted)
    monkeypatch.setattr(ops, "component_boxes", boxes)
    clip = encoder("clearclip").to(device)
    images = torch.cat([inputs["image"], inputs["image"].flip(3)]).to(device)
    features = clip(images)
    text, descriptions = inputs["text"].to(device), inputs["descriptions"].to(device)
    case = cases["clearclip"]
    head = PurificationHead(case["redundancy_threshold"], case["ambiguity_threshold"])
    with waiting("error"), HostReads() as reads:
        candidates, _ = head.select(features, text, descriptions, clip.logit_scale)
        assert counts == []
        (fetched,) = head.fetch([candidates])
        _, beaten_by = head.compete(images, fetched, descriptions, clip)
    assert len(counts) == 1 and reads.names == []
    assert (beaten_by >= 0).any()
