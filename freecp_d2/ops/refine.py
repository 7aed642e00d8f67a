"""Propagation of class maps along the affinity of patches."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._checks import require_shape


@triton.jit
def _product_kernel(
    left,
    mask,
    right,
    out,
    rows,
    columns,
    inner,
    left_batch,
    left_row,
    left_inner,
    mask_batch,
    mask_row,
    mask_inner,
    right_batch,
    right_inner,
    right_column,
    MASKED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
):
    """out[b] = (mask[b] * left[b]) @ right[b] in float32; without the mask unless MASKED."""
    batch = tl.program_id(0).to(tl.int64)
    i = (tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS).to(tl.int64))[:, None]
    j = (tl.program_id(2) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS).to(tl.int64))[None, :]
    left += batch * left_batch
    mask += batch * mask_batch
    right += batch * right_batch
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in range(0, inner, BLOCK_INNER):
        k = start + tl.arange(0, BLOCK_INNER).to(tl.int64)
        inside = (i < rows) & (k[None, :] < inner)
        a = tl.load(left + i * left_row + k[None, :] * left_inner, inside, 0).to(tl.float32)
        if MASKED:
            a *= tl.load(mask + i * mask_row + k[None, :] * mask_inner, inside, 0).to(tl.float32)
        inside = (k[:, None] < inner) & (j < columns)
        b = tl.load(right + k[:, None] * right_inner + j * right_column, inside, 0)
        total = tl.dot(a, b.to(tl.float32), total, input_precision="tf32x3")
    out += batch * rows * columns
    tl.store(out + i * columns + j, total, (i < rows) & (j < columns))


@triton.jit
def _min_max_kernel(maps, out, size, BLOCK: tl.constexpr):
    """Every map brought to [0, 1] by its minimum and maximum, 0 where they are equal."""
    maps += tl.program_id(0).to(tl.int64) * size
    out += tl.program_id(0).to(tl.int64) * size
    pixels = tl.arange(0, BLOCK)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, size, BLOCK):
        inside = start + pixels < size
        values = tl.load(maps + start + pixels, inside, 0)
        low = tl.where(inside, tl.minimum(low, values), low)
        high = tl.where(inside, tl.maximum(high, values), high)
    lowest = tl.min(low)
    span = tl.max(high) - lowest + 1e-8
    for start in range(0, size, BLOCK):
        inside = start + pixels < size
        values = tl.div_rn(tl.load(maps + start + pixels, inside, 0) - lowest, span)
        values = tl.clamp(values, 0.0, 1.0, tl.PropagateNan.ALL)
        tl.store(out + start + pixels, values.to(out.dtype.element_ty), inside)


def product_by_kernel(left: Tensor, right: Tensor, mask: Tensor | None = None) -> Tensor:
    batch, rows, inner = left.shape
    columns = right.shape[2]
    out = torch.empty(batch, rows, columns, dtype=torch.float32, device=left.device)
    grid = batch, triton.cdiv(rows, 64), triton.cdiv(columns, 64)
    factor = left if mask is None else mask
    _product_kernel[grid](
        *(left, factor, right, out, rows, columns, inner),
        *(*left.stride(), *factor.stride(), *right.stride()),
        *(mask is not None, 64, 64, 32),
    )
    return out


def product_by_bmm(left: Tensor, right: Tensor, mask: Tensor | None = None) -> Tensor:
    left = left.float() if mask is None else left.float() * mask.float()
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.float()


# (mask * left) @ right in float32. On CUDA, where neither has been measured, the kernel is taken.
def refine_triton(
    affinity: Tensor,
    maps: Tensor,
    mask: Tensor,
    product: Callable[..., Tensor] = product_by_kernel,
) -> Tensor:
    if torch.float64 in (affinity.dtype, maps.dtype, mask.dtype):
        return refine_composite(affinity, maps, mask)
    result = torch.empty(maps.shape, dtype=maps.dtype, device=maps.device)
    if maps.numel() == 0:
        return result
    batch, classes, height, width = maps.shape
    with torch.cuda.device_of(maps):
        if _squaring_is_cheaper(maps):
            squared = product(affinity, affinity)
            refined = product(maps.flatten(2), squared.mT, mask.flatten(2))
        else:
            refined = product(maps.flatten(2), affinity.mT, mask.flatten(2))
            refined = product(refined, affinity.mT)
        size = height * width
        block = min(triton.next_power_of_2(size), 1024)
        _min_max_kernel[(batch * classes,)](refined, result, size, block)
    return result


def refine_composite(affinity: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    dtype = torch.promote_types(maps.dtype, torch.float32)
    affinity = affinity.to(dtype)
    with torch.autocast(maps.device.type, enabled=False):
        refined = (mask.to(dtype) * maps.to(dtype)).flatten(2)
        if _squaring_is_cheaper(maps):
            refined = refined @ (affinity @ affinity).mT
        else:
            refined = refined @ affinity.mT @ affinity.mT
    low, high = refined.aminmax(dim=-1, keepdim=True)
    refined = ((refined - low) / (high - low + 1e-8)).clamp_(0, 1)
    return refined.view(maps.shape).to(maps.dtype)


def _squaring_is_cheaper(maps: Tensor) -> bool:
    """N^3 + C N^2 products for (D D) x instead of the 2 C N^2 of D (D x)."""
    return maps.shape[-2] * maps.shape[-1] < maps.shape[1]


_op = torch.library.custom_op("freecp::refine", refine_composite, mutates_args=())


_op.register_kernel("cuda")(refine_triton)


@_op.register_fake
def _fake(affinity: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return maps.new_empty(maps.shape)


def refine(affinity: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    """Spread masked class maps over alike patches: D @ D @ (mask * maps) (METHOD.md step 4).

    Two products of D with the C maps, or one of D @ D where C exceeds N; nothing of (C, N, N).
    Not differentiable: calling backward raises.

    Args:
        affinity: (B, N, N) floating with N = h * w, D of :func:`sinkhorn_affinity`.
        maps: (B, C, h, w) floating, in [0, 1].
        mask: (B, C, h, w) floating, 0 or 1, of :func:`box_mask`.

    Returns:
        (B, C, h, w) of the dtype of `maps`, every map brought to [0, 1] by its minimum and maximum;
        0 where they are equal. NaN goes through to the maps that it reaches.

    Raises:
        ValueError: a shape is none of these, or they do not fit together.
    """
    require_shape("refine", "affinity", affinity, "B", "N", "N")
    require_shape("refine", "maps", maps, "B", "C", "h", "w")
    require_shape("refine", "mask", mask, "B", "C", "h", "w")
    if maps.shape != mask.shape:
        raise ValueError(
            f"refine: maps {tuple(maps.shape)} and mask {tuple(mask.shape)} differ in shape"
        )
    batch, _, height, width = maps.shape
    if affinity.shape[:2] != (batch, height * width):
        raise ValueError(
            f"refine: maps {tuple(maps.shape)} need an affinity "
            f"{(batch, height * width, height * width)}, got {tuple(affinity.shape)}"
        )
    return torch.ops.freecp.refine(affinity, maps, mask)
