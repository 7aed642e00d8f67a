import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freecp_d2 import ops

SHAPES = [(1, 1, 1), (2, 5, 5), (3, 36, 36), (1, 65, 65), (70, 2, 2)]
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def attention(*shape: int, seed: int = 0, sharpness: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(shape, generator=generator)).softmax(-1)


def reference(matrix: np.ndarray, iterations: int) -> np.ndarray:
    n = len(matrix)
    d = matrix.astype(np.float64)
    for _ in range(iterations):
        for j in range(n):
            d[:, j] /= sum(d[i, j] for i in range(n))
        for i in range(n):
            d[i] /= sum(d[i, j] for j in range(n))
    return np.array([[(d[i, j] + d[j, i]) / 2 for j in range(n)] for i in range(n)])


@pytest.mark.parametrize("shape", [(0, 4, 4), *SHAPES])
@pytest.mark.parametrize("iterations", [0, 3])
def test_opcheck(device, shape, iterations):
    args = attention(*shape).to(device), iterations
    torch.library.opcheck(torch.ops.freecp.sinkhorn_affinity.default, args)


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_dtypes_and_strides(device, dtype):
    x = attention(2, 7, 7).to(device, dtype)
    for view in (x, x.mT, x[:, 1:, 1:]):
        torch.library.opcheck(torch.ops.freecp.sinkhorn_affinity.default, (view,))


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_definition(run, iterations):
    x = attention(2, 20, 20)
    expected = np.stack([reference(matrix, iterations) for matrix in x.numpy()])
    result = run(ops.sinkhorn_affinity, x, iterations)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_accumulates_in_float32(run, shape, dtype):
    """The result is that of the rounded input, rounded once."""
    x = attention(*shape).to(dtype)
    result = run(ops.sinkhorn_affinity, x)
    assert result.dtype == dtype and torch.equal(result, result.mT)
    assert torch.equal(result, run(ops.sinkhorn_affinity, x))
    expected = np.stack([reference(matrix, 3) for matrix in x.double().numpy()])
    atol = 1e-6 + torch.finfo(dtype).eps
    np.testing.assert_allclose(result.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("size", [576, 4096])
def test_large_grids(run, size):
    if run.interpreted and size == 4096:
        pytest.skip("a minute in Triton's interpreter")
    x = attention(1, size, size)
    result = run(ops.sinkhorn_affinity, x)
    assert torch.equal(result, result.mT)
    d = x[0].double()
    for _ in range(3):
        d = d / d.sum(0)
        d = d / d.sum(1, keepdim=True)
    torch.testing.assert_close(result[0].double(), (d + d.T) / 2, rtol=0, atol=1e-6)


def test_no_windows(run):
    assert run(ops.sinkhorn_affinity, torch.zeros(0, 4, 4)).shape == (0, 4, 4)


def test_default_iterations():
    x = attention(1, 6, 6)
    for result in (ops.sinkhorn_affinity(x), torch.ops.freecp.sinkhorn_affinity(x)):
        assert torch.equal(result, ops.sinkhorn_affinity(x, 3))


def test_strides_and_autocast_do_not_matter(run):
    x = attention(2, 10, 10)[:, 1:, 1:]
    expected = run(ops.sinkhorn_affinity, x.contiguous())
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cuda", torch.bfloat16):
        result = run(ops.sinkhorn_affinity, x)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-7)
    for view in (x.mT.contiguous().mT, x.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        result = run(ops.sinkhorn_affinity, view)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-7)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(n=st.integers(1, 12), seed=st.integers(0, 999), scale=st.floats(1e-3, 1e3))
def test_properties(n, seed, scale):
    x = attention(2, n, n, seed=seed, sharpness=1)
    result = ops.sinkhorn_affinity(x)
    assert result.min() >= 0 and result.max() <= 1 + 1e-6
    torch.testing.assert_close(ops.sinkhorn_affinity(scale * x), result, rtol=0, atol=1e-6)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    permuted = ops.sinkhorn_affinity(x[:, order][:, :, order])
    torch.testing.assert_close(permuted, result[:, order][:, :, order], rtol=0, atol=1e-6)
    limit = ops.sinkhorn_affinity(x.double(), 300)
    torch.testing.assert_close(limit.sum(-1), torch.ones(2, n).double(), rtol=0, atol=1e-6)


def test_zero_column_becomes_nan(run):
    x = attention(2, 3, 3)
    good = run(ops.sinkhorn_affinity, x)
    x[0, :, 1] = 0
    result = run(ops.sinkhorn_affinity, x)
    assert result[0, 1].isnan().all() and torch.equal(result[1], good[1])


def test_nan_goes_through(run):
    x = attention(2, 3, 3)
    x[0, 1, 2] = torch.nan
    result = run(ops.sinkhorn_affinity, x)
    assert result[0].isnan().any() and result[1].isfinite().all()


def test_gradient_is_refused_in_words(device):
    x = attention(1, 3, 3).to(device).requires_grad_()
    with pytest.raises(RuntimeError, match="freecp.sinkhorn_affinity"):
        ops.sinkhorn_affinity(x).sum().backward()


@pytest.mark.parametrize(
    "bad", [torch.rand(3, 3), torch.rand(1, 3, 4), torch.rand(1, 0, 0), torch.ones(1, 3, 3).int()]
)
def test_bad_shapes(bad):
    with pytest.raises(ValueError, match=r"^sinkhorn_affinity: attention must be .*\(B, N, N\)"):
        ops.sinkhorn_affinity(bad)


def test_bad_iterations():
    with pytest.raises(ValueError, match="^sinkhorn_affinity: iterations .* -1$"):
        ops.sinkhorn_affinity(attention(1, 3, 3), -1)
