"""Soft IoU of every pair of maps."""

import torch
from torch import Tensor

from ._checks import require_shape


def soft_iou_composite(maps: Tensor) -> Tensor:
    # min(a, b) and max(a, b) are (a + b -/+ |a - b|) / 2: no (M, M, h * w) tensor. In float64,
    # because the difference cancels and the result is compared with a threshold.
    flat = maps.flatten(1).double()
    total = flat.sum(dim=1)
    total = total + total[:, None]
    distance = torch.cdist(flat, flat, p=1)
    iou = ((total - distance) / (total + distance)).clamp(min=0)
    return iou.masked_fill(total == 0, 0).to(maps.dtype)


_op = torch.library.custom_op("freecp::soft_iou", soft_iou_composite, mutates_args=())


@_op.register_fake
def _fake(maps: Tensor) -> Tensor:
    return maps.new_empty(maps.shape[0], maps.shape[0])


def soft_iou(maps: Tensor) -> Tensor:
    """sum(min(a, b)) / sum(max(a, b)) of every pair of maps (METHOD.md step 6).

    Args:
        maps: (M, h, w) floating, at least 0.

    Returns:
        (M, M) of the same dtype, in [0, 1], exactly symmetric, with ones on the diagonal. Two maps
        that are zero everywhere have soft IoU 0, also a map with itself. NaN goes through.

    Raises:
        ValueError: `maps` is not (M, h, w) floating.
    """
    require_shape("soft_iou", "maps", maps, "M", "h", "w")
    return torch.ops.freecp.soft_iou(maps)
