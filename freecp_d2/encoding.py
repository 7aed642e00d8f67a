"""Images as CLIP sees them, window by window."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import transfers
from .affinity import AffinityProvider, SourceImage, WindowAffinity
from .clip import DenseCLIP, DenseFeatures, Reread
from .sliding_window import Window, patch_padding
from .timing import StageTimer

WindowsDone: TypeAlias = Callable[[int, int], None] | None
"""Told how many windows of how many are encoded, after every batch of them."""


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
        reread: as :attr:`DenseFeatures.reread`.
    """

    windows: list[Window]
    pixels: Tensor
    padding: tuple[int, int, int, int]
    patches: Tensor
    grid: tuple[int, int]
    features: DenseFeatures | None
    reread: Reread | None = None

    def patches_for(self, text: Tensor) -> Tensor:
        """As :meth:`DenseFeatures.patches_for`."""
        return self.patches if self.reread is None else self.reread(text)


@dataclass(frozen=True)
class EncodedImages:
    """What CLIP sees in a batch of images.

    Attributes:
        names: of their files, for messages.
        images: each (3, H, W) normalised.
        output_sizes: height and width that its segmentation is to have.
        num_windows: of all.
        batches: their windows.
    """

    names: list[str]
    images: list[Tensor]
    output_sizes: list[tuple[int, int]]
    num_windows: int
    batches: Iterable[EncodedWindows]

    def in_memory(self, windows_done: WindowsDone = None) -> "EncodedImages":
        """The same with all windows encoded, to be used any number of times."""
        batches: list[EncodedWindows] = []
        done = 0
        for batch in self.batches:
            batches.append(batch)
            done += len(batch.windows)
            if windows_done is not None:
                windows_done(done, self.num_windows)
        return replace(self, batches=batches)


class Normalize(nn.Module):
    """Images of Detectron2's dicts as CLIP wants them. It has no parameters.

    Args:
        pixel_mean, pixel_std: of RGB, 0-255.
        input_format: the order of the images' channels, RGB or BGR.
        device: where images go until the module is moved.

    Raises:
        ValueError: another input_format; or not three finite numbers, those of pixel_std above 0.
    """

    def __init__(
        self,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
        device: torch.device | None = None,
    ):
        super().__init__()
        if input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {input_format!r}; choose RGB or BGR")
        self.input_format = input_format
        for name, values in (("mean", pixel_mean), ("std", pixel_std)):
            check_pixel_values(name, values)
            buffer = torch.tensor(values, device=device).view(3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where images go."""
        return self.get_buffer("mean").device

    def forward(self, x: dict) -> Tensor:
        """(3, H, W) float32, RGB.

        Raises:
            ValueError: an image of another shape; it names the file.
        """
        image = transfers.upload(x["image"], self.device).float()
        if image.ndim != 3 or len(image) != 3:
            raise ValueError(
                f"{name_of(x)}: an image has shape (3, H, W), not {tuple(image.shape)}"
            )
        image = image.flip(0) if self.input_format == "BGR" else image
        return (image - self.get_buffer("mean")) / self.get_buffer("std")


def check_pixel_values(name: str, values: Sequence[float]) -> None:
    """MODEL.PIXEL_MEAN or MODEL.PIXEL_STD, by the name "mean" or "std".

    Raises:
        ValueError: they are not three finite numbers, or a standard deviation is not above 0.
    """
    numbers = [v for v in values if isinstance(v, int | float) and math.isfinite(v)]
    if len(values) != 3 or len(numbers) < 3 or (name == "std" and min(numbers) <= 0):
        above = " above 0" if name == "std" else ""
        raise ValueError(
            f"MODEL.PIXEL_{name.upper()} is {list(values)}; give three numbers{above}, of red, "
            "green and blue"
        )


def encode_windows(
    encoder: DenseCLIP,
    windows: list[Window],
    pixels: Tensor,
    affinity: WindowAffinity | None = None,
) -> EncodedWindows:
    """All that CLIP sees in windows (B, 3, H, W), with `affinity` in place of its attention."""
    features = encoder(pixels) if affinity is None else encoder(pixels, affinity(windows, pixels))
    return windows_of_features(windows, pixels, features)


def windows_of_features(
    windows: list[Window], pixels: Tensor, features: DenseFeatures
) -> EncodedWindows:
    """Windows (B, 3, H, W) without padding, of which CLIP sees `features`."""
    patches, grid, reread = features.patches, features.grid, features.reread
    return EncodedWindows(windows, pixels, (0, 0, 0, 0), patches, grid, features, reread)


def encode_base_windows(
    encoder: DenseCLIP, windows: list[Window], pixels: Tensor, pad: bool
) -> EncodedWindows:
    """What a base method alone needs of it, zero-padded to whole patches with `pad`."""
    padding = patch_padding(windows[0].size, encoder.patch_size) if pad else (0, 0, 0, 0)
    pixels = F.pad(pixels, padding)
    patches, grid, reread = encoder.encode_dense(pixels)
    return EncodedWindows(windows, pixels, padding, patches, grid, None, reread)


def encode_images(
    batched_inputs: Sequence[dict],
    images: list[Tensor],
    batches: Sequence[list[Window]],
    encoder: DenseCLIP,
    provider: AffinityProvider | None,
    timer: StageTimer,
    *,
    base: bool,
    pad: bool,
) -> EncodedImages:
    """Images of Detectron2's dicts, whose windows are encoded when they are asked for.

    Args:
        images: (3, H, W) of each, normalised.
        batches: their windows, those of a batch of equal size.
        provider: of the affinity; None: CLIP's attention.
        timer: of the stage "encode".
        base: what a base method alone needs, and nothing else.
        pad: for it, windows are zero-padded to whole patches.

    Raises:
        AffinityFault: the provider lacks something of an image; it names the file.
    """
    names = [name_of(x) for x in batched_inputs]
    sizes = [
        (x.get("height", x["image"].shape[1]), x.get("width", x["image"].shape[2]))
        for x in batched_inputs
    ]
    affinity: WindowAffinity | None = None
    if provider is not None and not base:
        with timer.stage("encode", images[0].device):
            sources = _sources(names, sizes, images, batches)
            affinity = provider.of_images(sources, encoder.patch_size)

    def timed(windows: list[Window]) -> EncodedWindows:
        pixels = torch.stack([images[w.image][:, w.rows, w.columns] for w in windows])
        with timer.stage("encode", pixels.device):
            if base:
                return encode_base_windows(encoder, windows, pixels, pad)
            return encode_windows(encoder, windows, pixels, affinity)

    return EncodedImages(
        names=names,
        images=images,
        output_sizes=sizes,
        num_windows=sum(map(len, batches)),
        batches=(timed(batch) for batch in batches),
    )


def _sources(
    names: Sequence[str],
    sizes: Sequence[tuple[int, int]],
    images: Sequence[Tensor],
    batches: Sequence[list[Window]],
) -> list[SourceImage]:
    windows: list[list[Window]] = [[] for _ in images]
    for batch in batches:
        for window in batch:
            windows[window.image].append(window)
    return [
        SourceImage(name, size, (image.shape[1], image.shape[2]), of_image)
        for name, size, image, of_image in zip(names, sizes, images, windows, strict=True)
    ]


def at_least_a_patch(image: Tensor, patch: Sequence[int]) -> Tensor:
    """An image (3, H, W), resampled where a side is shorter than a patch's."""
    size = [max(side, least) for side, least in zip(image.shape[1:], patch, strict=True)]
    if list(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


def name_of(x: dict) -> str:
    """Of the file of one of Detectron2's dicts, for messages."""
    return str(x.get("file_name", "an image of the batch"))
