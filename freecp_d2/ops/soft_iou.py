"""Soft IoU of every pair of maps."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._checks import require_shape


@triton.jit
def _soft_iou_kernel(maps, out, count, size, BLOCK_MAPS: tl.constexpr, BLOCK_PIXELS: tl.constexpr):
    """Pairs of a tile on or above the diagonal, written to its mirror image too."""
    if tl.program_id(1) <= tl.program_id(2):
        batch = tl.program_id(0).to(tl.int64)
        maps += batch * count * size
        out += batch * count * count
        first = (tl.program_id(1) * BLOCK_MAPS + tl.arange(0, BLOCK_MAPS).to(tl.int64))[:, None]
        second = (tl.program_id(2) * BLOCK_MAPS + tl.arange(0, BLOCK_MAPS).to(tl.int64))[:, None]
        smaller = tl.zeros((BLOCK_MAPS, BLOCK_MAPS, BLOCK_PIXELS), tl.float32)
        larger = tl.zeros((BLOCK_MAPS, BLOCK_MAPS, BLOCK_PIXELS), tl.float32)
        for start in range(0, size, BLOCK_PIXELS):
            pixels = (start + tl.arange(0, BLOCK_PIXELS))[None, :]
            inside = pixels < size
            a = tl.load(maps + first * size + pixels, inside & (first < count), 0)
            b = tl.load(maps + second * size + pixels, inside & (second < count), 0)
            a, b = a.to(tl.float32)[:, None, :], b.to(tl.float32)[None, :, :]
            smaller += tl.minimum(a, b, tl.PropagateNan.ALL)
            larger += tl.maximum(a, b, tl.PropagateNan.ALL)
        intersection, union = tl.sum(smaller, axis=2), tl.sum(larger, axis=2)
        iou = tl.clamp(tl.div_rn(intersection, union), 0.0, 1.0, tl.PropagateNan.ALL)
        iou = tl.where(union == 0, 0, iou).to(out.dtype.element_ty)
        second = tl.trans(second)
        upper = (first <= second) & (second < count)
        tl.store(out + first * count + second, iou, upper)
        tl.store(out + second * count + first, iou, upper)


def soft_iou_triton(maps: Tensor) -> Tensor:
    if maps.dtype == torch.float64:
        return soft_iou_composite(maps)
    *batch, count, height, width = maps.shape
    iou = maps.new_empty(*batch, count, count)
    if iou.numel():
        blocks = triton.cdiv(count, 16)
        with torch.cuda.device_of(maps):
            _soft_iou_kernel[math.prod(batch), blocks, blocks](
                maps.contiguous(), iou, count, height * width, 16, 16
            )
    return iou


def soft_iou_composite(maps: Tensor) -> Tensor:
    # min(a, b) and max(a, b) are (a + b -/+ |a - b|) / 2: no (M, M, h * w) tensor. In float64,
    # because the difference cancels and the result is compared with a threshold.
    flat = maps.flatten(-2).double()
    total = flat.sum(dim=-1)
    total = total[..., None, :] + total[..., :, None]
    distance = torch.cdist(flat, flat, p=1)
    iou = ((total - distance) / (total + distance)).clamp(0, 1)
    return iou.masked_fill(total == 0, 0).to(maps.dtype)


_op = torch.library.custom_op("freecp::soft_iou", soft_iou_composite, mutates_args=())


_op.register_kernel("cuda")(soft_iou_triton)


@_op.register_fake
def _fake(maps: Tensor) -> Tensor:
    return maps.new_empty(*maps.shape[:-2], maps.shape[-3])


def soft_iou(maps: Tensor) -> Tensor:
    """sum(min(a, b)) / sum(max(a, b)) of every pair of maps (METHOD.md step 6).

    Not differentiable: calling backward raises. On CUDA a batch is one launch.

    Args:
        maps: (M, h, w) or (B, M, h, w) floating, at least 0.

    Returns:
        (M, M) or (B, M, M) of the same dtype, in [0, 1], exactly symmetric, with ones on the
        diagonal. Two maps that are zero everywhere have soft IoU 0, also a map with itself. NaN
        goes through.

    Raises:
        ValueError: `maps` is neither (M, h, w) nor (B, M, h, w) floating.
    """
    dims = ("B", "M", "h", "w") if maps.ndim == 4 else ("M", "h", "w")
    require_shape("soft_iou", "maps", maps, *dims)
    return torch.ops.freecp.soft_iou(maps)
