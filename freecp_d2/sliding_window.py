"""Sliding windows over images, and maps at another size (METHOD.md steps 7 and 8)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """One window: which image of the batch, and where in it."""

    image: int
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def check_windows(window: int, stride: int, batch_size: int) -> None:
    """Of MODEL.FREECP.

    Raises:
        ValueError: one of them is too small, or pixels would lie between the windows.
    """
    for key, value, least in (
        ("WINDOW", window, 0),
        ("STRIDE", stride, 0),
        ("BATCH_SIZE", batch_size, 1),
    ):
        if value < least:
            raise ValueError(f"MODEL.FREECP.{key} is {value}; it must be at least {least}")
    if window and stride > window:
        raise ValueError(
            f"MODEL.FREECP.STRIDE is {stride} and WINDOW {window}: pixels between the windows "
            "would never be seen; choose a stride of at most the window"
        )


def windows_of(image: int, size: Sequence[int], window: int, stride: int) -> list[Window]:
    """Sliding windows of an image of `size` (height, width), row by row (METHOD.md step 7).

    The last ones are shifted back inside. A window larger than the image is cut to the image, and
    a window or stride of 0 means the whole image.
    """
    spans = []
    for side in size:
        extent = min(window, side) if window and stride else side
        count = max(side - extent + stride - 1, 0) // stride + 1 if stride else 1
        starts = [min(i * stride, side - extent) for i in range(count)]
        spans.append([slice(start, start + extent) for start in starts])
    return [Window(image, rows, columns) for rows in spans[0] for columns in spans[1]]


def window_batches(
    images: Sequence[Tensor], window: int, stride: int, batch_size: int
) -> list[list[Window]]:
    """Windows of images (3, H, W), in batches of windows of equal size."""
    by_size = defaultdict(list)
    for index, image in enumerate(images):
        for place in windows_of(index, image.shape[1:], window, stride):
            by_size[place.size].append(place)
    return [
        windows[start : start + batch_size]
        for windows in by_size.values()
        for start in range(0, len(windows), batch_size)
    ]


def patch_padding(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) pixels that make `size` (height, width) whole patches."""
    (height, width), (p_height, p_width) = size, patch
    vertical, horizontal = -height % p_height, -width % p_width
    left, top = horizontal // 2, vertical // 2
    return left, horizontal - left, top, vertical - top


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps ([B,] C, h, w) resampled bilinearly to `size`."""
    if not len(maps):
        return maps.new_zeros(*maps.shape[:-2], *size)
    batched = maps if maps.ndim == 4 else maps[None]
    batched = F.interpolate(batched, tuple(size), mode="bilinear", align_corners=False)
    return batched if maps.ndim == 4 else batched[0]


def upsample_rows(maps: Tensor, size: Sequence[int], rows: slice) -> Tensor:
    """Rows of maps (C, h, w) resampled bilinearly to `size`: (C, rows, width)."""
    height, width = maps.shape[1], size[1]
    position = torch.arange(rows.start, rows.stop, device=maps.device, dtype=torch.float32)
    position = ((position + 0.5) * (height / size[0]) - 0.5).clamp_(0, height - 1)
    above = position.floor().long()
    weight = (position - above)[:, None].to(maps.dtype)
    below = (above + 1).clamp_(max=height - 1)
    band = torch.lerp(maps[:, above], maps[:, below], weight)
    return upsample(band, (len(position), width))
