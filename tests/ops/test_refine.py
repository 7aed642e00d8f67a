from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freecp_d2 import ops
from freecp_d2.ops.refine import refine_composite

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 20, 3, 3), (3, 2, 1, 7), (1, 1000, 1, 3), (1, 70, 9, 11)]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def arguments(
    batch: int, classes: int, height: int, width: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    patches = height * width
    affinity = torch.randn(batch, patches, patches, generator=generator).softmax(-1)
    maps = torch.rand(batch, classes, height, width, generator=generator)
    mask = (torch.rand(maps.shape, generator=generator) > 0.5).float()
    return affinity, maps, mask


def reference(affinity: np.ndarray, maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    result = np.empty(maps.shape)
    for b, c in np.ndindex(maps.shape[:2]):
        d = affinity[b].astype(np.float64)
        values = (d @ (d @ (mask[b, c] * maps[b, c]).ravel())).reshape(maps.shape[2:])
        result[b, c] = (values - values.min()) / (values.max() - values.min() + 1e-8)
    return result


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), *SHAPES])
def test_opcheck(device, shape):
    args = tuple(x.to(device) for x in arguments(*shape))
    torch.library.opcheck(torch.ops.freecp.refine.default, args)


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_dtypes_and_strides(device, dtype):
    affinity, maps, mask = (x.to(device, dtype) for x in arguments(2, 3, 4, 4))
    for args in ((affinity, maps, mask), (affinity.mT, maps.mT, mask.mT)):
        torch.library.opcheck(torch.ops.freecp.refine.default, args)


@pytest.mark.parametrize("shape", SHAPES)
def test_definition(run, shape):
    args = arguments(*shape)
    expected = reference(*(x.numpy() for x in args))
    doubles = tuple(x.double() for x in args)
    np.testing.assert_allclose(run(ops.refine, *doubles), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(run(ops.refine, *args), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_either_product_will_do(device_of_triton, shape, dtype):
    module = import_module("freecp_d2.ops.refine")
    args = tuple(x.to(device_of_triton, dtype) for x in arguments(*shape))
    results = []
    for product in (module.product_by_kernel, module.product_by_bmm):
        with torch.autocast("cpu", torch.bfloat16), torch.autocast("cuda", torch.bfloat16):
            results.append(module.refine_triton(*args, product=product).float())
    atol = 1e-4 + torch.finfo(dtype).eps
    torch.testing.assert_close(*results, rtol=0, atol=atol)


@pytest.mark.parametrize("side", [32, 64])
def test_large_grids(run, side):
    if run.interpreted and side == 64:
        pytest.skip("half a minute in Triton's interpreter")
    affinity, maps, mask = arguments(1, 2, side, side)
    # As peaked as attention is: the product of a flat one has no span to speak of.
    affinity = (affinity + 20 * torch.eye(side * side)) / 21
    expected = reference(affinity.numpy(), maps.numpy(), mask.numpy())
    np.testing.assert_allclose(run(ops.refine, affinity, maps, mask), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 20, 3, 3)])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("affinity_dtype", FLOATS)
def test_accumulates_in_float32(run, shape, dtype, affinity_dtype):
    """The result is that of the rounded inputs, rounded once."""
    affinity, maps, mask = arguments(*shape)
    affinity, maps, mask = affinity.to(affinity_dtype), maps.to(dtype), mask.to(dtype)
    result = run(ops.refine, affinity, maps, mask)
    assert result.dtype == dtype
    expected = reference(*(x.double().numpy() for x in (affinity, maps, mask)))
    atol = 2e-5 + torch.finfo(dtype).eps
    np.testing.assert_allclose(result.double(), expected, rtol=0, atol=atol)


def test_strides_and_autocast_do_not_matter(run):
    affinity, maps, mask = arguments(2, 3, 4, 4)
    expected = run(ops.refine, affinity, maps, mask)
    strided = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (affinity, maps, mask))
    torch.testing.assert_close(run(ops.refine, *strided), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(run(ops.refine, affinity, maps, mask), expected)
    part = run(ops.refine, affinity[:, :9, :9], maps[:, ::2, :3, 1:], mask[:, ::2, :3, 1:])
    views = affinity[:, :9, :9], maps[:, ::2, :3, 1:], mask[:, ::2, :3, 1:]
    np.testing.assert_allclose(part, reference(*(x.numpy() for x in views)), rtol=0, atol=1e-5)


def test_same_bits_again(run):
    args = arguments(2, 5, 9, 8)
    assert torch.equal(run(ops.refine, *args), run(ops.refine, *args))


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (2, 0, 3, 3)])
def test_no_maps(run, shape):
    assert run(ops.refine, *arguments(*shape)).shape == shape


def test_nan_goes_through(run):
    affinity, maps, mask = arguments(2, 3, 2, 2)
    good = run(ops.refine, affinity, maps, mask)
    for poisoned in (maps, mask):
        bad = poisoned.clone()
        bad[1, 2, 0, 1] = torch.nan
        args = (affinity, bad, mask) if poisoned is maps else (affinity, maps, bad)
        result = run(ops.refine, *args)
        assert result[1, 2].isnan().all()
        assert torch.equal(result[0], good[0]) and torch.equal(result[1, :2], good[1, :2])
    affinity[0, 1, 2] = torch.nan
    result = run(ops.refine, affinity, maps, mask)
    assert result[0].isnan().all() and torch.equal(result[1], good[1])


def test_gradient_is_refused_in_words(device):
    args = tuple(x.to(device).requires_grad_() for x in arguments(1, 2, 2, 2))
    with pytest.raises(RuntimeError, match="freecp.refine"):
        ops.refine(*args).sum().backward()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4), seed=st.integers(0, 999), scale=st.floats(0.1, 10)
)
def test_properties(shape, seed, scale):
    affinity, maps, mask = (x.double() for x in arguments(*shape, seed=seed))
    result = ops.refine(affinity, maps, mask)
    assert result.min() >= 0 and result.max() <= 1
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(
        ops.refine(affinity, maps[:, order], mask[:, order]), result[:, order]
    )
    # Up to the 1e-8 of the denominator, which is small beside the span of a map that has one.
    scaled = ops.refine(scale * affinity, maps, mask)
    torch.testing.assert_close(scaled, result, rtol=0, atol=1e-3)
    outside = ops.refine(affinity, torch.where(mask > 0, maps, 1 - maps), mask)
    assert torch.equal(outside, result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_maps_stay_in_range_where_quotients_are_rounded_up(run, sloppy_division, dtype):
    """As by Triton's own division on a GPU: what is above 1 would stop an evaluation."""
    # A span so large that the 1e-8 of the denominator is lost in it, so that the largest is 1.
    args = [x.to(dtype) for x in arguments(2, 5, 4, 4)]
    args[0] = 50 * args[0]
    low, high = run(ops.refine, *args).aminmax()
    assert low == 0 and high == 1
    with sloppy_division:
        low, high = run(ops.refine, *args).aminmax()
    assert low == 0 and high == 1


def test_flat_maps_become_zero(run):
    affinity, maps, mask = arguments(1, 2, 3, 3)
    assert not run(ops.refine, affinity, maps, 0 * mask).any()
    # Quarters, so that no product rounds.
    flat, quarters = torch.full_like(affinity, 0.5), (4 * maps).round() / 4
    assert not run(ops.refine, flat, quarters, torch.ones_like(mask)).any()


def test_memory(largest_tensor):
    batch, classes, height, width = shape = (1, 12, 7, 7)
    limit = batch * height * width * max(classes, height * width)
    assert largest_tensor(refine_composite, *arguments(*shape)) <= limit


def test_bad_shapes():
    affinity, maps, mask = arguments(2, 3, 4, 5)
    for args, message in (
        ((affinity[0], maps, mask), r"affinity must be .*\(B, N, N\)"),
        ((affinity, maps[0], mask), r"maps must be .*\(B, C, h, w\)"),
        ((affinity, maps, mask.bool()), r"mask must be .*\(B, C, h, w\), got torch.bool"),
        ((affinity, maps, mask[:, :1]), "maps .* and mask .* differ in shape"),
        ((affinity[..., :19], maps, mask), r"affinity must be .*\(B, N, N\)"),
        ((affinity[:1], maps, mask), r"need an affinity \(2, 20, 20\), got \(1, 20, 20\)"),
        ((affinity, maps[..., :4], mask[..., :4]), r"need an affinity \(2, 16, 16\)"),
    ):
        with pytest.raises(ValueError, match="^refine: .*" + message):
            ops.refine(*args)
