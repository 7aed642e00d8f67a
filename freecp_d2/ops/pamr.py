"""Pixel-adaptive mask refinement: maps follow the colours of an image.

The weights of a pixel's neighbours are computed once; a step is one weighted sum of them. J counts
the neighbours, eight a dilation.
"""

from collections.abc import Sequence

import cv2
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ._checks import require_shape

_OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)

FEW_MAPS = 5
"""From so many maps on, the CPU gathers the maps of a pixel at once."""

MAPS_AT_ONCE = 32
"""How many maps lie beside each other there."""

STRIP_PIXELS = 2**14
"""How many pixels the CPU handles at once: what belongs to them stays in its cache."""


@triton.jit
def _neighbours_of(pixel, height, width, DILATIONS: tl.constexpr, SLOTS: tl.constexpr):
    """Positions (SLOTS, pixels) of the neighbours of pixels (pixels,), the border repeated."""
    slot = tl.arange(0, SLOTS)
    dilation = tl.zeros((SLOTS,), tl.int32)
    for index in tl.static_range(len(DILATIONS)):
        dilation = tl.where(slot // 8 == index, DILATIONS[index], dilation)
    place = slot % 8
    place += (place >= 4).to(tl.int32)  # the fifth of the 3x3 is the pixel itself
    row = (pixel // width)[None, :] + ((place // 3 - 1) * dilation)[:, None]
    column = (pixel % width)[None, :] + ((place % 3 - 1) * dilation)[:, None]
    row = tl.minimum(tl.maximum(row, 0), height - 1)
    column = tl.minimum(tl.maximum(column, 0), width - 1)
    return row * width + column


@triton.jit
def _weights_kernel(
    image,
    weights,
    height,
    width,
    DILATIONS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """weights[b, j, i]: the softmax over j of the likeness in colour of pixel i's neighbour j."""
    size = height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size
    pixel = tl.where(inside, pixel, 0)
    place = _neighbours_of(pixel, height, width, DILATIONS, SLOTS)
    count = len(DILATIONS)
    used = (tl.arange(0, SLOTS) < 8 * count)[:, None]
    image += tl.program_id(1).to(tl.int64) * CHANNELS * size
    likeness = tl.zeros((SLOTS, BLOCK), tl.float32)
    for _ in range(CHANNELS):
        centre = tl.load(image + pixel).to(tl.float32)
        around = tl.load(image + place).to(tl.float32)
        mean = count * centre + tl.sum(tl.where(used, around, 0), axis=0)
        mean *= 1 / (9 * count)
        away = tl.where(used, around - mean[None, :], 0)
        squares = count * (centre - mean) * (centre - mean) + tl.sum(away * away, axis=0)
        scale = 1e-8 + 0.1 * tl.sqrt_rn(squares * (1 / (9 * count - 1)))
        difference = tl.abs(around - centre[None, :])
        likeness -= tl.div_rn(difference, tl.broadcast_to(scale[None, :], (SLOTS, BLOCK)))
        image += size
    likeness = tl.where(used, likeness * (1 / CHANNELS), float("-inf"))
    shares = tl.exp(likeness - tl.max(likeness, axis=0)[None, :])
    total = tl.broadcast_to(tl.sum(shares, axis=0)[None, :], (SLOTS, BLOCK))
    slot = tl.arange(0, SLOTS).to(tl.int64)[:, None]
    weights += tl.program_id(1).to(tl.int64) * 8 * count * size
    tl.store(
        weights + slot * size + pixel[None, :], tl.div_rn(shares, total), used & inside[None, :]
    )


@triton.jit
def _step_kernel(
    maps,
    weights,
    out,
    classes,
    height,
    width,
    DILATIONS: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[b, c, i] = sum over j of weights[b, j, i] * maps[b, c, neighbour j of i].

    A program holds the weights of its pixels, and goes through all maps.
    """
    size = height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size
    place = _neighbours_of(tl.where(inside, pixel, 0), height, width, DILATIONS, SLOTS)
    slot = tl.arange(0, SLOTS).to(tl.int64)[:, None]
    used = (slot < 8 * len(DILATIONS)) & inside[None, :]
    weights += tl.program_id(1).to(tl.int64) * 8 * len(DILATIONS) * size
    weight = tl.load(weights + slot * size + pixel[None, :], used, 0)
    first = tl.program_id(1).to(tl.int64) * classes * size
    maps += first
    out += first
    for _ in range(classes):
        around = tl.load(maps + place, used, 0).to(tl.float32)
        value = tl.sum(weight * around, axis=0)
        tl.store(out + pixel, value.to(out.dtype.element_ty), inside)
        maps += size
        out += size


def pamr_triton(image: Tensor, maps: Tensor, steps: int, dilations: Sequence[int]) -> Tensor:
    if torch.float64 in (image.dtype, maps.dtype):
        return pamr_composite(image, maps, steps, dilations)
    if steps == 0 or maps.numel() == 0:
        return maps.clone(memory_format=torch.contiguous_format)
    image, maps = image.contiguous(), maps.contiguous()
    batch, classes, height, width = maps.shape
    slots = triton.next_power_of_2(8 * len(dilations))
    block = max(2048 // slots, 32)
    grid = triton.cdiv(height * width, block), batch
    # Beyond the image every neighbour is a border pixel, however far.
    dilations = tuple(min(dilation, max(height, width)) for dilation in dilations)
    shape = height, width, dilations, slots, block
    weights = torch.empty(
        batch, 8 * len(dilations), height, width, dtype=torch.float32, device=maps.device
    )
    # Between the steps float32; the result of the last one alone is rounded.
    between = [torch.empty_like(maps, dtype=torch.float32) for _ in range(min(steps - 1, 2))]
    result = torch.empty_like(maps)
    with torch.cuda.device_of(maps):
        _weights_kernel[grid](image, weights, *shape, image.shape[1], num_warps=1)
        for step in range(steps):
            out = result if step == steps - 1 else between[step % 2]
            _step_kernel[grid](maps, weights, out, classes, *shape, num_warps=1)
            maps = out
    return result


def pamr_composite(image: Tensor, maps: Tensor, steps: int, dilations: Sequence[int]) -> Tensor:
    if steps == 0 or maps.numel() == 0:
        return maps.clone(memory_format=torch.contiguous_format)
    dtype = _dtype(image, maps)
    image = image.to(dtype)
    weights = _likeness(image, _neighbours(image, dilations)).softmax(dim=1)
    return _weighted_means(maps.to(dtype), weights, steps, dilations).to(maps.dtype).contiguous()


def _dtype(image: Tensor, maps: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(image.dtype, maps.dtype), torch.float32)


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> list[Tensor]:
    """What each pixel of `maps` (B, C, H, W) sees in the direction of its J neighbours."""
    height, width = maps.shape[2:]
    views = []
    for dilation in dilations:
        # Beyond the image every neighbour is a border pixel, however far.
        down, right = min(dilation, height - 1), min(dilation, width - 1)
        padded = F.pad(maps, (right, right, down, down), mode="replicate")
        for dy, dx in _OFFSETS:
            top, left = down * (1 + dy), right * (1 + dx)
            views.append(padded[:, :, top : top + height, left : left + width])
    return views


def _likeness(image: Tensor, neighbours: Sequence[Tensor]) -> Tensor:
    """How alike in colour a pixel and its neighbours are: (B, J, H, W), at most 0.

    The difference over a tenth of the standard deviation in the 3x3 stencils of all dilations
    together, as a mean over the channels.

    Args:
        image: (B, K, H, W).
        neighbours: J of the same shape.
    """
    dilations = len(neighbours) // 8
    count = 9 * dilations
    mean = dilations * image  # the centre is in every stencil
    for neighbour in neighbours:
        mean += neighbour
    mean /= count
    squares = dilations * (image - mean).square()
    for neighbour in neighbours:
        squares += (neighbour - mean).square()
    scale = -1 / ((squares / (count - 1)).sqrt_().mul_(0.1).add_(1e-8) * image.shape[1])
    return torch.stack([((image - n).abs_() * scale).sum(dim=1) for n in neighbours], dim=1)


def _weighted_means(maps: Tensor, weights: Tensor, steps: int, dilations: Sequence[int]) -> Tensor:
    """`steps` times the sum over the neighbours of `weights` (B, J, H, W) and `maps`."""
    for _ in range(steps):
        means = torch.zeros_like(maps)
        for index, neighbour in enumerate(_neighbours(maps, dilations)):
            means.addcmul_(weights[:, index : index + 1], neighbour)
        maps = means
    return maps


_op = torch.library.custom_op("freecp::pamr", pamr_composite, mutates_args=())


@_op.register_kernel("cpu")
def _cpu(image: Tensor, maps: Tensor, steps: int, dilations: Sequence[int]) -> Tensor:
    classes = maps.shape[1]
    if _dtype(image, maps) == torch.float64 or classes < FEW_MAPS:
        return pamr_composite(image, maps, steps, dilations)
    result = torch.empty(maps.shape, dtype=maps.dtype)
    strips = _strips(maps.shape[2:], dilations)
    at_once = -(-classes // -(-classes // MAPS_AT_ONCE))
    for guide, given, refined in zip(image.float(), maps, result, strict=True):
        weights = _pixel_weights(guide[None], dilations)
        for start in range(0, classes, at_once):
            chunk = slice(start, start + at_once)
            _gather_means(given[chunk], weights, strips, steps, refined[chunk])
    return result


def _pixel_weights(image: Tensor, dilations: Sequence[int]) -> Tensor:
    """The weights (H * W, J) of an image (1, K, H, W)."""
    height, width = image.shape[2:]
    neighbours = _neighbours(image, dilations)
    weights = image.new_empty(height * width, len(neighbours))
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = slice(top, top + rows)
        likeness = _likeness(image[:, :, strip], [n[:, :, strip] for n in neighbours])
        out = weights[top * width : (top + rows) * width]
        _transpose(likeness[0].flatten(1), out)
        torch.softmax(out, dim=1, out=out)
    return weights


def _strips(size: Sequence[int], dilations: Sequence[int]) -> list[tuple[slice, int, Tensor]]:
    """Strips of rows: pixels, a first pixel, and from it the (pixels * J) neighbours' positions.

    Strips whose neighbours need no row beyond the upper or lower border share the positions.
    """
    height, width = size
    reach = min(max(dilations), height - 1)
    rows = max(1, STRIP_PIXELS // width)
    steps = torch.tensor([[dy * d, dx * d] for d in dilations for dy, dx in _OFFSETS])
    columns = (torch.arange(width)[:, None] + steps[:, 1]).clamp_(0, width - 1)

    def positions(top: int, bottom: int, first: int) -> Tensor:
        row = (torch.arange(top, bottom)[:, None] + steps[:, 0]).clamp_(0, height - 1)
        return ((row - first)[:, None] * width + columns).int().flatten()

    def spans(top: int, bottom: int) -> list[tuple[int, int]]:
        return [(start, min(start + rows, bottom)) for start in range(top, bottom, rows)]

    inner = spans(reach, height - reach)
    outer = spans(0, reach) + spans(max(reach, height - reach), height)
    strips = [(top, bottom, 0, positions(top, bottom, 0)) for top, bottom in outer]
    if inner:
        shared = positions(*inner[0], 0)
        for top, bottom in inner:
            index = shared[: (bottom - top) * width * len(steps)]
            strips.append((top, bottom, top - reach, index))
    return [(slice(t * width, b * width), first * width, index) for t, b, first, index in strips]


def _gather_means(
    maps: Tensor,
    weights: Tensor,
    strips: Sequence[tuple[slice, int, Tensor]],
    steps: int,
    result: Tensor,
) -> None:
    """As :func:`_weighted_means` of maps (C, H, W) that lie beside each other, a pixel's together.

    The sum over a pixel's neighbours is an embedding bag. `result` (C, H, W) serves as a buffer.
    """
    count, pixels = len(maps), len(weights)
    source, target = (
        torch.empty(pixels, count),
        result.view(pixels, count) if result.dtype == torch.float32 else torch.empty(pixels, count),
    )
    if steps % 2:
        source, target = target, source
    _transpose(maps.float().flatten(1), source)
    longest = max(len(index) for *_, index in strips)
    bags = torch.arange(0, longest, weights.shape[1], dtype=torch.int32)
    for _ in range(steps):
        for strip, first, index in strips:
            target[strip] = F.embedding_bag(
                index,
                source[first:],
                bags[: strip.stop - strip.start],
                mode="sum",
                per_sample_weights=weights[strip].flatten(),
            )
        source, target = target, source
    if result.dtype == torch.float32:
        _transpose(source, result.flatten(1))
    else:
        result.flatten(1).copy_(source.T)


def _transpose(source: Tensor, target: Tensor) -> None:
    """OpenCV transposes block by block, several times as fast as torch copies such a view."""
    cv2.transpose(source.numpy(), target.numpy())


_op.register_kernel("cuda")(pamr_triton)


@_op.register_fake
def _fake(image: Tensor, maps: Tensor, steps: int, dilations: Sequence[int]) -> Tensor:
    return maps.new_empty(maps.shape)


def pamr(image: Tensor, maps: Tensor, steps: int, dilations: Sequence[int]) -> Tensor:
    """Let every pixel take the mean of its neighbours of like colour, `steps` times.

    PAMR of METHOD.md section 8. Beside its input and result it needs 8 values a pixel and dilation
    for the weights of an image, and as many maps again, on the CPU at most 32. Not differentiable:
    calling backward raises.

    Args:
        image: (B, K, H, W) floating, of any range.
        maps: (B, C, h, w) floating, of any range, resampled to (H, W) with aligned corners.
        steps: how many times.
        dilations: distances in pixels of the eight neighbours; they may exceed the image, whose
            border is repeated outside.

    Returns:
        (B, C, H, W) of the dtype of `maps`, within the range of each map but for rounding. NaN goes
        through to the pixels that it reaches.

    Raises:
        ValueError: a shape is none of these, `steps` is negative, or there is no dilation or one
            below 1.
    """
    require_shape("pamr", "image", image, "B", "K", "H", "W")
    require_shape("pamr", "maps", maps, "B", "C", "h", "w")
    if len(image) != len(maps) or not image.shape[1]:
        raise ValueError(
            f"pamr: image {tuple(image.shape)} and maps {tuple(maps.shape)} differ in their batch, "
            "or the image has no channel"
        )
    if steps < 0:
        raise ValueError(f"pamr: steps must be at least 0, got {steps}")
    if not dilations or min(dilations) < 1:
        raise ValueError(f"pamr: dilations must be at least 1, got {tuple(dilations)}")
    size, dtype = image.shape[2:], maps.dtype
    if maps.shape[2:] != size and maps.numel():
        maps = maps.to(_dtype(image, maps))
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
    elif maps.shape[2:] != size:
        maps = maps.new_empty(*maps.shape[:2], *size)
    return torch.ops.freecp.pamr(image, maps, steps, list(dilations)).to(dtype)
