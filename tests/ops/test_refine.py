import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freecp_d2 import ops
from freecp_d2.ops.refine import refine_composite

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 20, 3, 3), (3, 2, 1, 7)]
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
        transition = affinity[b].astype(np.float64) @ affinity[b]
        values = (transition @ (mask[b, c] * maps[b, c]).ravel()).reshape(maps.shape[2:])
        result[b, c] = (values - values.min()) / (values.max() - values.min() + 1e-8)
    return result


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), *SHAPES])
def test_opcheck(shape):
    torch.library.opcheck(torch.ops.freecp.refine.default, arguments(*shape))


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_dtypes_and_strides(dtype):
    affinity, maps, mask = (x.to(dtype) for x in arguments(2, 3, 4, 4))
    for args in ((affinity, maps, mask), (affinity.mT, maps.mT, mask.mT)):
        torch.library.opcheck(torch.ops.freecp.refine.default, args)


@pytest.mark.parametrize("shape", SHAPES)
def test_definition(shape):
    args = arguments(*shape)
    expected = reference(*(x.numpy() for x in args))
    doubles = tuple(x.double() for x in args)
    np.testing.assert_allclose(ops.refine(*doubles), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ops.refine(*args), expected, rtol=0, atol=1e-4)


def test_returns_the_dtype_of_the_maps():
    affinity, maps, mask = arguments(1, 3, 4, 4)
    for dtype in FLOATS:
        result = ops.refine(affinity, maps.to(dtype), mask.to(dtype))
        assert result.dtype == dtype and result.is_contiguous()
        torch.testing.assert_close(
            result.float(), ops.refine(affinity, maps.to(dtype).float(), mask), rtol=0, atol=5e-3
        )


def test_strides_and_autocast_do_not_matter():
    affinity, maps, mask = arguments(2, 3, 4, 4)
    expected = ops.refine(affinity, maps, mask)
    strided = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (affinity, maps, mask))
    torch.testing.assert_close(ops.refine(*strided), expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.refine(affinity, maps, mask), expected)


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


def test_flat_maps_become_zero():
    affinity, maps, mask = arguments(1, 2, 3, 3)
    assert not ops.refine(affinity, maps, 0 * mask).any()
    assert not ops.refine(torch.full_like(affinity, 0.5), maps, mask).any()


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
        ((affinity[:1], maps, mask), r"need an affinity \(2, 20, 20\), got \(1, 20, 20\)"),
        ((affinity, maps[..., :4], mask[..., :4]), r"need an affinity \(2, 16, 16\)"),
    ):
        with pytest.raises(ValueError, match="^refine: .*" + message):
            ops.refine(*args)
