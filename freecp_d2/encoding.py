"""Images as CLIP sees them, window by window."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .clip import DenseCLIP, DenseFeatures
from .sliding_window import Window, patch_padding


@dataclass(frozen=True)
class EncodedWindows:
    """Windows of equal size of a batch of images.

    Attributes:
        windows: B of them.
        pixels: (B, 3, H, W) normalised, padded.
        padding: pixels at the left, right, top and bottom that belong to no window.
        patches: (B, N, D) unit-length features.
        grid: (h, w) with N = h * w.
        features: all that CLIP sees, `patches` among it; None for a base method alone.
    """

    windows: list[Window]
    pixels: Tensor
    padding: tuple[int, int, int, int]
    patches: Tensor
    grid: tuple[int, int]
    features: DenseFeatures | None


@dataclass(frozen=True)
class EncodedImages:
    """What CLIP sees in a batch of images.

    Attributes:
        names: of their files, for messages.
        images: each (3, H, W) normalised.
        output_sizes: height and width that its segmentation is to have.
        batches: their windows.
    """

    names: list[str]
    images: list[Tensor]
    output_sizes: list[tuple[int, int]]
    batches: Iterable[EncodedWindows]


def encode_windows(encoder: DenseCLIP, windows: list[Window], pixels: Tensor) -> EncodedWindows:
    """All that CLIP sees in windows (B, 3, H, W)."""
    features = encoder(pixels)
    return EncodedWindows(windows, pixels, (0, 0, 0, 0), features.patches, features.grid, features)


def encode_base_windows(
    encoder: DenseCLIP, pad: bool, windows: list[Window], pixels: Tensor
) -> EncodedWindows:
    """What a base method alone needs of it, zero-padded to whole patches with `pad`."""
    padding = patch_padding(windows[0].size, encoder.patch_size) if pad else (0, 0, 0, 0)
    pixels = F.pad(pixels, padding)
    patches, grid = encoder.encode_patches(pixels)
    return EncodedWindows(windows, pixels, padding, patches, grid, None)


def at_least_a_patch(image: Tensor, patch: Sequence[int]) -> Tensor:
    """An image (3, H, W), resampled where a side is shorter than a patch's."""
    size = [max(side, least) for side, least in zip(image.shape[1:], patch, strict=True)]
    if list(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


def name_of(x: dict) -> str:
    """Of the file of one of Detectron2's dicts, for messages."""
    return str(x.get("file_name", "an image of the batch"))
