import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freecp_d2 import ops
from freecp_d2.ops.soft_iou import soft_iou_composite

SHAPES = [(1, 1, 1), (2, 3, 4), (7, 1, 5), (33, 14, 14)]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def maps_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def reference(maps: np.ndarray) -> np.ndarray:
    maps = maps.astype(np.float64)
    result = np.zeros((len(maps), len(maps)))
    for i, j in np.ndindex(result.shape):
        union = np.maximum(maps[i], maps[j]).sum()
        result[i, j] = np.minimum(maps[i], maps[j]).sum() / union if union else 0
    return result


@pytest.mark.parametrize("shape", [(0, 3, 3), *SHAPES])
def test_opcheck(device, shape):
    torch.library.opcheck(torch.ops.freecp.soft_iou.default, (maps_of(*shape).to(device),))


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_dtypes_and_strides(device, dtype):
    maps = maps_of(4, 5, 6).to(device, dtype)
    for view in (maps, maps.mT, maps[::2, 1:]):
        torch.library.opcheck(torch.ops.freecp.soft_iou.default, (view,))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_definition(run, shape, dtype):
    maps = maps_of(*shape).to(dtype)
    iou = run(ops.soft_iou, maps)
    assert iou.dtype == dtype and torch.equal(iou, run(ops.soft_iou, maps))
    assert torch.equal(iou, iou.T) and (iou.diagonal() == 1).all()
    expected = reference(maps.double().numpy())
    np.testing.assert_allclose(iou.double(), expected, rtol=0, atol=1e-6 + torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 2, 3, 4), (2, 33, 5, 5), (0, 3, 2, 2)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_batch_is_its_windows_one_by_one(run, shape, dtype):
    maps = maps_of(*shape).to(dtype)
    torch.library.opcheck(torch.ops.freecp.soft_iou.default, (maps,))
    iou = run(ops.soft_iou, maps)
    assert iou.shape == (*shape[:2], shape[1]) and iou.dtype == dtype
    for window, windows_iou in zip(maps, iou, strict=True):
        assert torch.equal(windows_iou, run(ops.soft_iou, window))
    if len(maps) > 1:
        view = maps.transpose(0, 1)[: len(maps)].mT
        assert torch.equal(run(ops.soft_iou, view), run(ops.soft_iou, view.contiguous()))


@pytest.mark.parametrize("shape", [(1000, 1, 3), (3, 64, 64)])
def test_many_and_large_maps(run, shape):
    maps = maps_of(*shape)
    flat = maps.double().flatten(1)
    expected = torch.stack(
        [torch.minimum(x, flat).sum(1) / torch.maximum(x, flat).sum(1) for x in flat]
    )
    torch.testing.assert_close(run(ops.soft_iou, maps).double(), expected, rtol=0, atol=1e-6)


def test_alike_and_disjoint_maps(run):
    maps = maps_of(1, 28, 28).repeat(4, 1, 1)
    maps[1] *= 1 - 1e-5
    maps[2, :14], maps[3, 14:] = 0, 0
    iou = run(ops.soft_iou, maps)
    assert iou[2, 3] == 0
    np.testing.assert_allclose(iou, reference(maps.numpy()), rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_stays_in_range_where_quotients_are_rounded_up(run, sloppy_division, dtype):
    """As by Triton's own division on a GPU."""
    maps = maps_of(5, 4, 4).to(dtype)
    with sloppy_division:
        iou = run(ops.soft_iou, maps)
    assert (iou.diagonal() == 1).all() and iou.max() == 1


def test_zero_maps(run):
    maps = maps_of(3, 4, 4)
    maps[[0, 2]] = 0
    assert run(ops.soft_iou, maps).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_no_maps(run):
    assert run(ops.soft_iou, torch.zeros(0, 3, 3)).shape == (0, 0)


def test_nan_goes_through(run):
    maps = maps_of(3, 4, 4)
    maps[1, 2, 3] = torch.nan
    iou = run(ops.soft_iou, maps)
    assert iou[1].isnan().all() and iou[:, 1].isnan().all() and iou[::2, ::2].isfinite().all()


def test_gradient_is_refused_in_words(device):
    maps = maps_of(2, 3, 3).to(device).requires_grad_()
    with pytest.raises(RuntimeError, match="freecp.soft_iou"):
        ops.soft_iou(maps).sum().backward()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3), seed=st.integers(0, 999), scale=st.floats(0.01, 100)
)
def test_properties(shape, seed, scale):
    maps = maps_of(*shape, seed=seed)
    iou = ops.soft_iou(maps)
    assert iou.min() >= 0 and iou.max() <= 1 and torch.equal(iou, iou.T)
    order = torch.randperm(len(maps), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(ops.soft_iou(maps[order]), iou[order][:, order])
    torch.testing.assert_close(ops.soft_iou(scale * maps), iou, rtol=0, atol=1e-6)


def test_strides_and_autocast_do_not_matter(run):
    maps = maps_of(5, 6, 7)
    expected = run(ops.soft_iou, maps)
    assert torch.equal(run(ops.soft_iou, maps.mT.contiguous().mT), expected)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(run(ops.soft_iou, maps), expected)
    view = maps[::2, 1:, ::3]
    np.testing.assert_allclose(run(ops.soft_iou, view), reference(view.numpy()), rtol=0, atol=1e-6)


def test_memory(largest_tensor):
    assert largest_tensor(soft_iou_composite, maps_of(20, 14, 14)) == 20 * 14 * 14
    assert largest_tensor(soft_iou_composite, maps_of(3, 20, 14, 14)) == 3 * 20 * 14 * 14


@pytest.mark.parametrize(
    "bad",
    [*(torch.rand(3, 3), torch.rand(2, 0, 3), torch.rand(1, 2, 3, 0), torch.rand(1, 1, 2, 3, 3))]
    + [torch.ones(2, 3, 3).int()],
)
def test_bad_shapes(bad):
    with pytest.raises(ValueError, match=r"^soft_iou: maps must be .*M, h, w\)"):
        ops.soft_iou(bad)
