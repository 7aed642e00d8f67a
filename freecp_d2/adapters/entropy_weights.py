"""Views of an image, averaged by how certain CLIP is at each pixel (BaFTA, arXiv 2406.11309).

As printed, the paper's weight grows with uncertainty; this one grows with certainty.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ..clip import DenseCLIP, DenseFeatures
from ..clip.text import TextEncoder
from ..data.vocabulary import in_words
from ..encoding import EncodedImages, EncodedWindows, encode_windows, windows_of_features
from ..sliding_window import Window, upsample, window_batches

NAME = "entropy_weights"


def certainty(probabilities: Tensor, dim: int) -> Tensor:
    """1 - H / log K, with H the Renyi entropy of order 0.5 of the K probabilities along `dim`.

    Returns:
        In [0, 1], without `dim`: 0 where all are equal, 1 where one is 1.
    """
    classes = probabilities.shape[dim]
    entropy = 2 * probabilities.sqrt().sum(dim=dim).log()
    return (1 - entropy / math.log(max(classes, 2))).clamp(0, 1)


@dataclass(frozen=True)
class Views:
    """In what ways an image is seen, beside its overlapping windows.

    Attributes:
        flip: each window also as its mirror image.
        scales: also the image at these scales, in windows of the same size.
        template_sets: the 80 templates are split into so many sets, each a view; 1: all make one.
    """

    flip: bool = True
    scales: tuple[float, ...] = ()
    template_sets: int = 1

    def texts(self, names: Sequence[str], text_encoder: TextEncoder) -> Tensor:
        """(template_sets, Q, D) unit-length text features of each set of templates."""
        words = [in_words(name) for name in names]
        templates, count = open_clip.OPENAI_IMAGENET_TEMPLATES, self.template_sets
        sets = [templates[start::count] for start in range(count)]
        entries = [[fill(word) for fill in chosen] for chosen in sets for word in words]
        return text_encoder.encode(entries).unflatten(0, (count, len(words)))

    def added_to(
        self, encoded: EncodedImages, encoder: DenseCLIP, window: int, stride: int, batch_size: int
    ) -> EncodedImages:
        """The same images with all views of their windows, encoded when they are asked for."""
        scaled = [
            (scale, windows)
            for scale in self.scales
            for windows in window_batches(
                encoded.images, round(window / scale), round(stride / scale), batch_size
            )
        ]
        count = encoded.num_windows + sum(len(windows) for _, windows in scaled)
        return replace(
            encoded,
            num_windows=count * (1 + self.flip),
            batches=self._views(encoded, scaled, encoder),
        )

    def _views(
        self,
        encoded: EncodedImages,
        scaled: Sequence[tuple[float, list[Window]]],
        encoder: DenseCLIP,
    ) -> Iterator[EncodedWindows]:
        for batch in encoded.batches:
            yield from self._with_mirrored(batch, encoder)
        for scale, windows in scaled:
            pixels = torch.stack([encoded.images[w.image][:, w.rows, w.columns] for w in windows])
            size = [
                max(patch, round(side * scale))
                for side, patch in zip(windows[0].size, encoder.patch_size, strict=True)
            ]
            pixels = F.interpolate(
                pixels, size, mode="bilinear", align_corners=False, antialias=True
            )
            yield from self._with_mirrored(encode_windows(encoder, windows, pixels), encoder)

    def _with_mirrored(self, batch: EncodedWindows, encoder: DenseCLIP) -> Iterator[EncodedWindows]:
        yield batch
        if self.flip:
            features = unmirrored(encoder(batch.pixels.flip(-1)))
            yield windows_of_features(batch.windows, batch.pixels, features)


def unmirrored(features: DenseFeatures) -> DenseFeatures:
    """Features of mirrored windows with each row of patches turned round."""
    height, width = features.grid
    count = height * width
    order = torch.arange(count, device=features.patches.device).view(height, width).flip(1)
    order = order.flatten()
    reread = features.reread
    return replace(
        features,
        patches=features.patches[:, order],
        attention=features.attention[:, order][:, :, order],
        reread=None if reread is None else lambda text: reread(text)[:, order],
    )


def weighted_merge(
    windows: Sequence[Window],
    maps: Sequence[Tensor],
    kept: np.ndarray,
    weights: Sequence[Tensor],
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """The mean of :func:`freecp_d2.merging.merge_windows`, weighted at every pixel.

    Args:
        maps: (B, C, h, w) of B windows after the other, of any sizes.
        kept: (windows, C) bool.
        weights: (B, h, w) of at least 0.

    Returns:
        as there.
    """
    device = maps[0].device
    stays = torch.from_numpy(kept).to(device)
    queries = stays.any(dim=0).nonzero()[:, 0]
    total = maps[0].new_zeros(len(queries), *size)
    weight = maps[0].new_zeros(size)
    of_windows = (
        pair for batch in zip(maps, weights, strict=True) for pair in zip(*batch, strict=True)
    )
    for window, flags, (of_queries, of_pixels) in zip(windows, stays, of_windows, strict=True):
        share = upsample(of_pixels[None], window.size)[0] + 1e-6  # nowhere 0
        large = upsample((of_queries * flags[:, None, None])[queries], window.size)
        total[:, window.rows, window.columns] += share * large
        weight[window.rows, window.columns] += share
    return total / weight, queries


def configured_views(cfg: CfgNode) -> Views | None:
    """Of MODEL.FREECP.ENTROPY_WEIGHTS where ADAPTER is entropy_weights, else None.

    Raises:
        ValueError: a scale is not above 0, TEMPLATE_SETS is none from 1 to 80, or the affinity
            comes from elsewhere than CLIP.
    """
    freecp = cfg.MODEL.FREECP
    if freecp.ADAPTER != NAME:
        return None
    options = freecp.ENTROPY_WEIGHTS
    if any(scale <= 0 for scale in options.SCALES):
        raise ValueError(
            f"MODEL.FREECP.ENTROPY_WEIGHTS.SCALES is {tuple(options.SCALES)}; scales are above 0"
        )
    most = len(open_clip.OPENAI_IMAGENET_TEMPLATES)
    if not 1 <= options.TEMPLATE_SETS <= most:
        raise ValueError(
            f"MODEL.FREECP.ENTROPY_WEIGHTS.TEMPLATE_SETS is {options.TEMPLATE_SETS}; choose 1 to "
            f"{most}"
        )
    if freecp.AFFINITY_PROVIDER:
        raise ValueError(
            f"MODEL.FREECP.AFFINITY_PROVIDER is {freecp.AFFINITY_PROVIDER!r}, which knows no "
            "mirrored or scaled windows, and ADAPTER entropy_weights; set one of them"
        )
    return Views(options.FLIP, tuple(options.SCALES), options.TEMPLATE_SETS)
