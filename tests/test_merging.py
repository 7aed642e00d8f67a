"""The mean over windows against brute force, and how many windows are upsampled at once."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2 import merging, transfers
from freecp_d2.sliding_window import windows_of


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
def test_coverage_by_brute_force(height, width, window, stride):
    windows = windows_of(0, (height, width), window, min(window, stride))
    expected = np.zeros((height, width))
    for place in windows:
        expected[place.rows, place.columns] += 1
    rows, columns = merging.coverage(windows, (height, width))
    assert (np.outer(rows, columns) == expected).all() and rows.min() > 0
    assert rows.dtype == columns.dtype == np.float32


def window_by_window(windows, maps, kept, size):
    """Every query's sum and number of windows, one after the other."""
    total = torch.zeros(kept.shape[1], *size)
    count = torch.zeros(size)
    for place, stays, of_window in zip(windows, kept, maps, strict=True):
        count[place.rows, place.columns] += 1
        for query in np.nonzero(stays)[0]:
            large = F.interpolate(of_window[query][None, None], place.size, mode="bilinear")[0, 0]
            total[query, place.rows, place.columns] += large
    return (total / count)[kept.any(axis=0)]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 9999),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    batch=st.integers(1, 7),
    at_once=st.sampled_from([None, 1, 3 * 12 * 12, 2**25]),
)
def test_merging_is_window_by_window(seed, share, batch, at_once):
    """In any number of batches and of windows at once."""
    generator = torch.Generator().manual_seed(seed)
    size = (17, 25)
    windows = windows_of(0, size, 12, 5)
    maps = torch.rand(len(windows), 5, 3, 4, generator=generator)
    kept = (torch.rand(len(windows), 5, generator=generator) < share).numpy()
    with pytest.MonkeyPatch.context() as patch:
        if at_once is not None:
            patch.setattr(transfers, "is_accelerator", lambda device: True)
            patch.setattr(merging, "UPSAMPLED_VALUES", at_once)
        merged, queries = merging.merge_windows(windows, maps.split(batch), kept, size)
    assert queries.tolist() == np.nonzero(kept.any(axis=0))[0].tolist()
    expected = window_by_window(windows, maps, kept, size)
    torch.testing.assert_close(merged, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("values", "expected"), [(None, 6 * [1]), (1, 6 * [1]), (2 * 5 * 96, 3 * [2]), (2**25, [6])]
)
def test_windows_are_upsampled_together_where_calls_are_launches(values, expected, monkeypatch):
    """As many as UPSAMPLED_VALUES lets; on a CPU one by one. Nothing changes."""
    windows = windows_of(0, (22, 8), 12, 2)
    maps = torch.rand(6, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    plain = [large for _, large in merging.upsampled(windows, maps, (12, 8))]
    calls, upsample = [], merging.upsample
    monkeypatch.setattr(merging, "upsample", lambda m, s: calls.append(len(m)) or upsample(m, s))
    if values is not None:
        monkeypatch.setattr(transfers, "is_accelerator", lambda device: True)
        monkeypatch.setattr(merging, "UPSAMPLED_VALUES", values)
    found = list(merging.upsampled(windows, maps, (12, 8)))
    assert calls == expected and [window for window, _ in found] == windows
    for (_, large), other, of_window in zip(found, plain, maps, strict=True):
        assert large.equal(other)
        assert large.equal(F.interpolate(of_window[None], (12, 8), mode="bilinear")[0])


@pytest.mark.parametrize(("limit", "expected"), [(3 * 96, 6), (2 * 3 * 96, 3), (2**25, 1)])
def test_merging_upsamples_as_many_values_as_are_allowed(limit, expected, monkeypatch):
    """Of windows with no to 3 maps that stay: as if all had 3."""
    windows = windows_of(0, (22, 8), 12, 2)
    kept = np.arange(6)[:, None] % 4 > np.arange(3)
    calls, upsample = [], merging.upsample
    monkeypatch.setattr(merging, "upsample", lambda m, s: calls.append(len(m)) or upsample(m, s))
    monkeypatch.setattr(transfers, "is_accelerator", lambda device: True)
    monkeypatch.setattr(merging, "UPSAMPLED_VALUES", limit)
    merging.merge_windows(windows, [torch.rand(6, 3, 3, 4)], kept, (22, 8))
    assert len(calls) == expected and sum(calls) == kept.sum()
    assert max(calls) * 96 <= limit
