"""Sinkhorn normalisation of attention to a symmetric affinity."""

import cv2
import torch
from torch import Tensor

from ._checks import require_shape


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
    # D = diag(rows) A diag(columns), so a sum of D is a product of A with a vector, and A is only
    # rewritten at the end. Vector on the left: the fast path of bmm for A and for its transpose.
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


@_op.register_fake
def _fake(attention: Tensor, iterations: int = 3) -> Tensor:
    return attention.new_empty(attention.shape)


def sinkhorn_affinity(attention: Tensor, iterations: int = 3) -> Tensor:
    """Symmetric affinity of patches from their attention (METHOD.md step 3: D, before squaring).

    Args:
        attention: (B, N, N) floating, at least 0, no row or column of zeros.
        iterations: how many times to divide by the column sums and then by the row sums.

    Returns:
        (B, N, N) of the same dtype, in [0, 1] after an iteration and exactly symmetric. NaN goes
        through, and a row or column of zeros becomes NaN.

    Raises:
        ValueError: `attention` is not (B, N, N) floating, or `iterations` is negative.
    """
    require_shape("sinkhorn_affinity", "attention", attention, "B", "N", "N")
    if iterations < 0:
        raise ValueError(f"sinkhorn_affinity: iterations must be at least 0, got {iterations}")
    return torch.ops.freecp.sinkhorn_affinity(attention, iterations)
