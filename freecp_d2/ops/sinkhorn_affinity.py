"""Sinkhorn normalisation of attention to a symmetric affinity.

D = diag(r) A diag(c) with vectors r and c. So a column sum of D is a product of A with a vector,
and A is rewritten only once, at the end.
"""

import cv2
import torch
import triton
import triton.language as tl
from torch import Tensor

from ._checks import require_shape


@triton.jit
def _reciprocal_sum_kernel(
    matrix,
    weights,
    out,
    size,
    stride_batch,
    stride_row,
    stride_column,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """out[b, j] = 1 / sum over i of weights[b, i] * matrix[b, i, j]."""
    batch = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS).to(tl.int64)
    total = tl.zeros((BLOCK_COLUMNS,), tl.float32)
    for start in range(0, size, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = (rows[:, None] < size) & (columns[None, :] < size)
        pointers = matrix + batch * stride_batch
        pointers += rows[:, None] * stride_row + columns[None, :] * stride_column
        tile = tl.load(pointers, mask=inside, other=0).to(tl.float32)
        weight = tl.load(weights + batch * size + rows, mask=rows < size, other=0)
        total += tl.sum(tile * weight[:, None], axis=0)
    tl.store(out + batch * size + columns, tl.div_rn(1.0, total), mask=columns < size)


@triton.jit
def _symmetrise_kernel(
    matrix,
    row_scale,
    column_scale,
    out,
    size,
    stride_batch,
    stride_row,
    stride_column,
    BLOCK: tl.constexpr,
):
    """out = (S + S^T) / 2 of S[b, i, j] = row_scale[b, i] * matrix[b, i, j] * column_scale[b, j].

    A program computes a tile on or above the diagonal and writes its mirror image too.
    """
    tile_row, tile_column = tl.program_id(1), tl.program_id(2)
    if tile_row <= tile_column:
        batch = tl.program_id(0).to(tl.int64)
        rows = (tile_row * BLOCK + tl.arange(0, BLOCK).to(tl.int64))[:, None]
        columns = (tile_column * BLOCK + tl.arange(0, BLOCK).to(tl.int64))[None, :]
        inside = (rows < size) & (columns < size)
        matrix += batch * stride_batch
        upper = tl.load(matrix + rows * stride_row + columns * stride_column, inside, 0)
        lower = tl.load(matrix + columns * stride_row + rows * stride_column, inside, 0)
        row_scale += batch * size
        column_scale += batch * size
        upper *= tl.load(row_scale + rows, rows < size, 0)
        upper *= tl.load(column_scale + columns, columns < size, 0)
        lower *= tl.load(row_scale + columns, columns < size, 0)
        lower *= tl.load(column_scale + rows, rows < size, 0)
        mean = (0.5 * (upper + lower)).to(out.dtype.element_ty)
        out += batch * size * size
        tl.store(out + rows * size + columns, mean, inside & (rows <= columns))
        tl.store(out + columns * size + rows, mean, inside & (rows < columns))


def sinkhorn_affinity_triton(attention: Tensor, iterations: int = 3) -> Tensor:
    if attention.dtype == torch.float64:
        return sinkhorn_affinity_composite(attention, iterations)
    batch, size, _ = attention.shape
    affinity = torch.empty(attention.shape, dtype=attention.dtype, device=attention.device)
    if batch == 0:
        return affinity
    by_batch, by_row, by_column = attention.stride()
    rows = torch.ones(batch, size, dtype=torch.float32, device=attention.device)
    columns = torch.ones_like(rows)
    blocks = triton.cdiv(size, 32)
    with torch.cuda.device_of(attention):
        for _ in range(iterations):
            for weights, out, strides in (
                (rows, columns, (by_row, by_column)),
                (columns, rows, (by_column, by_row)),
            ):
                _reciprocal_sum_kernel[batch, blocks](
                    attention, weights, out, size, by_batch, *strides, 64, 32
                )
        _symmetrise_kernel[batch, blocks, blocks](
            attention, rows, columns, affinity, size, by_batch, by_row, by_column, 32
        )
    return affinity


def sinkhorn_affinity_composite(attention: Tensor, iterations: int = 3) -> Tensor:
    affinity = attention.to(torch.promote_types(attention.dtype, torch.float32))
    for _ in range(iterations):
        affinity = affinity / affinity.sum(dim=-2, keepdim=True)
        affinity = affinity / affinity.sum(dim=-1, keepdim=True)
    return ((affinity + affinity.mT) / 2).to(attention.dtype).contiguous()


_op = torch.library.custom_op(
    "freecp::sinkhorn_affinity", sinkhorn_affinity_composite, mutates_args=()
)


@_op.register_kernel("cpu")
def _cpu(attention: Tensor, iterations: int = 3) -> Tensor:
    # Vector on the left: the fast path of bmm for A and for its transpose.
    matrix = attention.to(torch.promote_types(attention.dtype, torch.float32))
    rows = columns = matrix.new_ones(matrix.shape[0], 1, matrix.shape[1])
    with torch.autocast("cpu", enabled=False):
        for _ in range(iterations):
            columns = (rows @ matrix).reciprocal()
            rows = (columns @ matrix.mT).reciprocal()
    half = matrix.new_empty(matrix.shape)
    torch.mul(matrix, (rows / 2).mT, out=half).mul_(columns)
    # OpenCV transposes block by block; adding a transposed view takes several times as long.
    affinity = torch.empty_like(half)
    for source, target in zip(half.numpy(), affinity.numpy(), strict=True):
        cv2.transpose(source, target)
    return affinity.add_(half).to(attention.dtype)


_op.register_kernel("cuda")(sinkhorn_affinity_triton)


@_op.register_fake
def _fake(attention: Tensor, iterations: int = 3) -> Tensor:
    return attention.new_empty(attention.shape)


def sinkhorn_affinity(attention: Tensor, iterations: int = 3) -> Tensor:
    """Symmetric affinity of patches from their attention (METHOD.md step 3: D, before squaring).

    Not differentiable: calling backward raises.

    Args:
        attention: (B, N, N) floating, at least 0, no row or column of zeros.
        iterations: how many times to divide by the column sums and then by the row sums.

    Returns:
        (B, N, N) of the same dtype and exactly symmetric; after an iteration in [0, 1], but for
        rounding. NaN goes through, and a row or column of zeros becomes NaN.

    Raises:
        ValueError: `attention` is not (B, N, N) floating, or `iterations` is negative.
    """
    require_shape("sinkhorn_affinity", "attention", attention, "B", "N", "N")
    if iterations < 0:
        raise ValueError(f"sinkhorn_affinity: iterations must be at least 0, got {iterations}")
    return torch.ops.freecp.sinkhorn_affinity(attention, iterations)
