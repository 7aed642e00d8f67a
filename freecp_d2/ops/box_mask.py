"""Boxes around the connected components of class maps."""

import logging
from functools import cache

import cv2
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ._checks import require_shape

# Sides of a map are rounded up to powers of two from here, so that few kernels are compiled: 16 for
# maps of up to 128x128.
LEAST_SIDE = 16
# Pixels of such a block that a program can hold: 32 a thread.
LARGEST_BLOCK = 128 * 128

log = logging.getLogger(__name__)


@triton.jit
def _box_mask_kernel(
    maps,
    scratch,
    out,
    height,
    width,
    THRESHOLD: tl.constexpr,
    FULL_EXTENT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """A program labels the components of one map, boxes them and paints the boxes.

    `scratch` has four planes a map: labels (later the corners of boxes), and by label the left,
    right and bottom edge of its component. A component's label is its first pixel, so that its top
    edge is that pixel's row. Labels would fit into 16 bits, but neither Triton nor PTX has atomic
    minima and maxima of these. No other program sees the planes: a barrier of the program orders
    what its threads write there, atomically or not, before what they read.
    """
    size = height * width
    index = tl.program_id(0).to(tl.int64)
    labels = scratch + 4 * index * size
    lefts, rights, bottoms = labels + size, labels + 2 * size, labels + 3 * size
    rows = tl.arange(0, BLOCK_ROWS)[:, None]
    columns = tl.arange(0, BLOCK_COLUMNS)[None, :]
    inside = (rows < height) & (columns < width)
    pixels = rows * width + columns

    values = tl.load(maps + index * size + pixels, inside, 0)
    valid = (values >= 0) & (values <= 1)
    quantised = (255 * tl.where(valid, values, 0).to(tl.float32)).to(tl.int32)
    peak = tl.max(quantised).to(tl.float64)
    foreground = inside & (quantised > (tl.full((), THRESHOLD, tl.float64) * peak).to(tl.int32))

    tl.store(labels + pixels, tl.where(foreground, pixels, size), inside)
    tl.store(lefts + pixels, width, inside)
    tl.store(rights + pixels, 0, inside)
    tl.store(bottoms + pixels, 0, inside)
    tl.debug_barrier()
    label = pixels
    changed = 1
    while changed > 0:
        # A label that sees a lower one beside any of its pixels points to it, then pixels take
        # over what their labels point to, until every component has one label.
        label = tl.load(labels + pixels, foreground, size)
        lowest = label
        for down in tl.static_range(-1, 2):
            for right in tl.static_range(-1, 2):
                y, x = rows + down, columns + right
                near = foreground & (y >= 0) & (y < height) & (x >= 0) & (x < width)
                lowest = tl.minimum(lowest, tl.load(labels + y * width + x, near, size))
        tl.debug_barrier()
        tl.atomic_min(labels + label, lowest, foreground & (lowest < label), sem="relaxed")
        tl.debug_barrier()
        target = tl.load(labels + pixels, foreground, size)
        target = tl.load(labels + target, foreground, size)
        target = tl.load(labels + target, foreground, size)
        tl.debug_barrier()
        tl.store(labels + pixels, target, foreground)
        tl.debug_barrier()
        changed = tl.max((foreground & (target != label)).to(tl.int32))

    tl.atomic_min(lefts + label, columns + 0 * rows, foreground, sem="relaxed")
    tl.atomic_max(rights + label, columns + 1 + 0 * rows, foreground, sem="relaxed")
    tl.atomic_max(bottoms + label, rows + 1 + 0 * columns, foreground, sem="relaxed")
    tl.debug_barrier()
    first = foreground & (label == pixels)
    x0 = tl.load(lefts + pixels, first, 0)
    x1 = tl.load(rights + pixels, first, 0)
    y1 = tl.load(bottoms + pixels, first, 0)
    if not FULL_EXTENT:
        x1 = tl.minimum(x1, width - 1)
        y1 = tl.minimum(y1, height - 1)

    # Running sums over +1 and -1 at the corners are above zero inside of boxes.
    one = first.to(tl.int32)
    corners = labels
    tl.store(corners + pixels, 0, inside)
    tl.debug_barrier()
    tl.atomic_add(corners + rows * width + x0, one, first, sem="relaxed")
    tl.atomic_add(corners + rows * width + x1, -one, first & (x1 < width), sem="relaxed")
    tl.atomic_add(corners + y1 * width + x0, -one, first & (y1 < height), sem="relaxed")
    within = first & (x1 < width) & (y1 < height)
    tl.atomic_add(corners + y1 * width + x1, one, within, sem="relaxed")
    tl.debug_barrier()
    cover = tl.cumsum(tl.cumsum(tl.load(corners + pixels, inside, 0), 0), 1)
    mask = tl.where(tl.min(valid.to(tl.int32)) > 0, (cover > 0).to(tl.float32), float("nan"))
    tl.store(out + index * size + pixels, mask.to(out.dtype.element_ty), inside)


def box_mask_triton(maps: Tensor, threshold: float = 0.4, full_extent: bool = False) -> Tensor:
    _require_fraction("box_mask", threshold)
    batch, classes, height, width = maps.shape
    block = _block_side(height), _block_side(width)
    if block[0] * block[1] > LARGEST_BLOCK:
        if maps.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "box_mask: maps of more than 128x128 cells are no part of a CUDA graph; set "
                "MODEL.FREECP.COMPILE False, or MODEL.FREECP.WINDOW smaller"
            )
        _say_that_the_host_waits()
        return box_mask_composite(maps, threshold, full_extent)
    mask = torch.empty(maps.shape, dtype=maps.dtype, device=maps.device)
    if batch * classes:
        scratch = torch.empty(
            batch * classes, 4, height, width, dtype=torch.int32, device=maps.device
        )
        num_warps = min(max(block[0] * block[1] // 256, 1), 16)
        with torch.cuda.device_of(maps):
            _box_mask_kernel[(batch * classes,)](
                *(maps.contiguous(), scratch, mask, height, width, threshold, full_extent, *block),
                num_warps=num_warps,
            )
    return mask


def _block_side(side: int) -> int:
    return max(triton.next_power_of_2(side), LEAST_SIDE)


@cache
def _say_that_the_host_waits() -> None:
    log.warning(
        "box_mask: maps of more than 128x128 cells are boxed in a loop that waits for the GPU at "
        "every step; smaller windows (MODEL.FREECP.WINDOW) avoid it"
    )


def box_mask_composite(maps: Tensor, threshold: float = 0.4, full_extent: bool = False) -> Tensor:
    _require_fraction("box_mask", threshold)
    foreground = _foreground(maps, threshold).flatten(0, 1)
    inside = foreground[:, None]
    y = torch.arange(maps.shape[-2], dtype=torch.float32, device=maps.device)[:, None]
    x = torch.arange(maps.shape[-1], dtype=torch.float32, device=maps.device)
    extents = torch.stack(torch.broadcast_tensors(-x, -y, x, y))
    # Every pixel takes over the extents of its neighbours until a component agrees on its box.
    extents, previous = torch.where(inside, extents, -torch.inf), None
    while previous is None or not torch.equal(extents, previous):
        previous = extents
        extents = torch.where(inside, F.max_pool2d(extents, 3, 1, 1), -torch.inf)
    owner, row, column = foreground.nonzero(as_tuple=True)
    left, top, right, bottom = extents[owner, :, row, column].long().unbind(1)
    mask = _paint(foreground, owner, -left, -top, right + 1, bottom + 1, full_extent)
    return _where_valid(mask, maps)


_op = torch.library.custom_op("freecp::box_mask", box_mask_composite, mutates_args=())


@_op.register_kernel("cpu")
def _cpu(maps: Tensor, threshold: float = 0.4, full_extent: bool = False) -> Tensor:
    _require_fraction("box_mask", threshold)
    if maps.numel() == 0:
        return maps.new_zeros(maps.shape)
    foreground = _foreground(maps, threshold).flatten(0, 1)
    # All maps in one tall image, an empty row after each, so that OpenCV labels them in one call.
    image = F.pad(foreground.view(torch.uint8), (0, 0, 0, 1))
    stats = cv2.connectedComponentsWithStats(image.flatten(0, 1).numpy(), connectivity=8)[2]
    x, y, width, height, _ = torch.from_numpy(stats[1:]).long().unbind(1)
    owner = y // image.shape[1]
    y = y % image.shape[1]
    mask = _paint(foreground, owner, x, y, x + width, y + height, full_extent)
    return _where_valid(mask, maps)


_op.register_kernel("cuda")(box_mask_triton)


@_op.register_fake
def _fake(maps: Tensor, threshold: float = 0.4, full_extent: bool = False) -> Tensor:
    return maps.new_empty(maps.shape)


def box_mask(maps: Tensor, threshold: float = 0.4, full_extent: bool = False) -> Tensor:
    """Union of the boxes around a map's connected components (METHOD.md step 4).

    A map is quantised to floor(255 * map), pixels strictly above int(threshold * maximum) are kept,
    and their 8-connected regions are boxed. Not differentiable: calling backward raises. On CUDA a
    batch is one launch that the host does not wait for, save for maps whose sides, rounded up to
    powers of two of at least 16, have a product above 128 * 128: those take a loop of PyTorch
    calls, which the log says once.

    Args:
        maps: (B, C, h, w) floating, in [0, 1] (h and w at least 1).
        threshold: in [0, 1], a fraction of each map's maximum.
        full_extent: False: a box that touches the right or bottom edge loses its last column or
            row, as published. True: it keeps them.

    Returns:
        (B, C, h, w) of the same dtype, 1 inside a box and 0 elsewhere. A map below 1/255 everywhere
        has no box. A map that holds NaN or a value outside of [0, 1] has NaN everywhere, on every
        device: to raise, the host would have to wait for the values.

    Raises:
        RuntimeError: such a loop is to be captured in a CUDA graph.
        ValueError: `maps` is not (B, C, h, w) floating, or `threshold` is outside of [0, 1].
    """
    require_shape("box_mask", "maps", maps, "B", "C", "h", "w")
    return torch.ops.freecp.box_mask(maps, threshold, full_extent)


def component_boxes(maps: Tensor, threshold: float = 0.4, full_extent: bool = False) -> Tensor:
    """The boxes themselves, one per contour (METHOD.md steps 4 and 6). Not an operator.

    Args:
        maps: (M, h, w) floating, in [0, 1], on any device.
        threshold: in [0, 1], a fraction of each map's maximum.
        full_extent: see :func:`box_mask`.

    Returns:
        (K, 5) int64 on the CPU: index of the map, x0, y0, x1, y1 with x1 and y1 exclusive. By map,
        then in OpenCV's order of contours, those of holes among them. Without `full_extent` a box
        can have no width or no height.

    Raises:
        ValueError: `maps` is not (M, h, w) floating, or a map (NaN included) or `threshold` is
            outside of [0, 1].
    """
    require_shape("component_boxes", "maps", maps, "M", "h", "w")
    _require_fraction("component_boxes", threshold)
    if not _valid(maps).all():
        raise ValueError(
            "component_boxes: maps must be in [0, 1], but hold NaN or a value outside of it"
        )
    foreground = _foreground(maps, threshold)
    boxes = []
    for owner, image in enumerate(foreground.view(torch.uint8).cpu().numpy()):
        contours, _ = cv2.findContours(image, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        for x, y, width, height in map(cv2.boundingRect, contours):
            boxes.append((owner, x, y, x + width, y + height))
    result = torch.tensor(boxes, dtype=torch.int64, device="cpu").view(-1, 5)
    right, bottom = _last_edge(foreground, full_extent)
    result[:, 3].clamp_(max=right)
    result[:, 4].clamp_(max=bottom)
    return result


def _valid(maps: Tensor) -> Tensor:
    """Whether all of a map is in [0, 1], (..., 1, 1)."""
    return ((maps >= 0) & (maps <= 1)).all(-1, keepdim=True).all(-2, keepdim=True)


def _where_valid(mask: Tensor, maps: Tensor) -> Tensor:
    """A bool mask (B * C, h, w) in shape and dtype of its maps, NaN where they leave [0, 1]."""
    return mask.view(maps.shape).to(maps.dtype).masked_fill_(~_valid(maps), torch.nan)


def _foreground(maps: Tensor, threshold: float) -> Tensor:
    """Pixels whose quantised value is above the threshold, bool and contiguous."""
    quantised = (255 * maps.float()).to(torch.uint8)
    peak = quantised.amax(dim=(-2, -1), keepdim=True)
    return (quantised > (threshold * peak.double()).to(torch.uint8)).contiguous()


def _require_fraction(op: str, threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"{op}: threshold must be in [0, 1], got {threshold}")


def _last_edge(foreground: Tensor, full_extent: bool) -> tuple[int, int]:
    """The largest x1 and y1 that a box can have."""
    height, width = foreground.shape[-2:]
    return (width, height) if full_extent else (width - 1, height - 1)


def _paint(
    foreground: Tensor,
    owner: Tensor,
    x0: Tensor,
    y0: Tensor,
    x1: Tensor,
    y1: Tensor,
    full_extent: bool,
) -> Tensor:
    """Union of boxes on maps (M, h, w) as bool: running sums over +1 and -1 at the corners."""
    maps, height, width = foreground.shape
    right, bottom = _last_edge(foreground, full_extent)
    x1, y1 = x1.clamp(max=right), y1.clamp(max=bottom)
    corners = torch.zeros(maps, height + 1, width + 1, dtype=torch.int32, device=foreground.device)
    one = corners.new_ones(len(owner))
    index = (owner.repeat(4), torch.cat((y0, y1, y0, y1)), torch.cat((x0, x1, x1, x0)))
    corners.index_put_(index, torch.cat((one, one, -one, -one)), accumulate=True)
    cover = corners.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    return cover[:, :height, :width] > 0
