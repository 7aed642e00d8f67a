"""Propagation of class maps along the affinity of patches."""

import torch
from torch import Tensor

from ._checks import require_shape


def refine_composite(affinity: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    dtype = torch.promote_types(maps.dtype, torch.float32)
    transposed = affinity.to(dtype).mT
    with torch.autocast(maps.device.type, enabled=False):
        refined = (mask.to(dtype) * maps.to(dtype)).flatten(2) @ transposed @ transposed
    low, high = refined.aminmax(dim=-1, keepdim=True)
    refined = (refined - low) / (high - low + 1e-8)
    return refined.view(maps.shape).to(maps.dtype)


_op = torch.library.custom_op("freecp::refine", refine_composite, mutates_args=())


@_op.register_fake
def _fake(affinity: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    return maps.new_empty(maps.shape)


def refine(affinity: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    """Spread masked class maps over alike patches: D @ D @ (mask * maps) (METHOD.md step 4).

    Two products with C columns; neither D @ D nor anything of (C, N, N) is formed.

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
