"""Pixel-adaptive mask refinement, as NACLIP and SCLIP use it (METHOD.md section 8)."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


def pamr(image: Tensor, maps: Tensor, steps: int, dilations: Sequence[int]) -> Tensor:
    """Let every pixel take the mean of its neighbours of like colour, `steps` times.

    Args:
        image: (B, 3, H, W) of any range.
        maps: (B, C, h, w) of any range, resampled to (H, W) with aligned corners.
        steps: how many times.
        dilations: distances in pixels of the eight neighbours; they may exceed the image, whose
            border is repeated outside.

    Returns:
        (B, C, H, W) of `maps`' dtype, within the range of each map.
    """
    if maps.shape[2:] != image.shape[2:]:
        maps = F.interpolate(maps, image.shape[2:], mode="bilinear", align_corners=True)
    weights = neighbour_weights(image, dilations).to(maps.dtype)
    for _ in range(steps):
        refined = torch.zeros_like(maps)
        for index, neighbour in enumerate(_neighbours(maps, dilations)):
            refined.addcmul_(weights[:, index : index + 1], neighbour)
        maps = refined
    return maps


def neighbour_weights(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """How much a pixel takes of each neighbour.

    The difference in colour, over a tenth of the deviation in the 3x3 stencils of all dilations
    together, is averaged over the channels; the softmax is over the neighbours of all dilations.

    Args:
        image: (B, 3, H, W).
        dilations: D distances in pixels.

    Returns:
        (B, 8 * D, H, W) of image's dtype; they sum to 1 over the neighbours.
    """
    count = 9 * len(dilations)
    mean = len(dilations) * image  # the centre is in every stencil
    for neighbour in _neighbours(image, dilations):
        mean = mean + neighbour
    mean = mean / count
    squares = len(dilations) * (image - mean).square()
    for neighbour in _neighbours(image, dilations):
        squares = squares + (neighbour - mean).square()
    scale = 1e-8 + 0.1 * (squares / (count - 1)).sqrt()
    likeness = [
        -((image - neighbour).abs() / scale).mean(dim=1)
        for neighbour in _neighbours(image, dilations)
    ]
    return torch.stack(likeness, dim=1).softmax(dim=1)


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """`maps` (B, C, H, W) seen from each pixel's eight neighbours of every dilation."""
    height, width = maps.shape[2:]
    for dilation in dilations:
        padded = F.pad(maps, (dilation,) * 4, mode="replicate")
        for dy, dx in _OFFSETS:
            if dy or dx:
                top, left = dilation * (1 + dy), dilation * (1 + dx)
                yield padded[:, :, top : top + height, left : left + width]
