"""Affinity by class-agnostic masks: every mask averages maps inside it."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..files import local_path
from ..sliding_window import Window
from .mask_files import read_masks
from .provider import AFFINITY_PROVIDERS, SourceImage, WindowAffinity


def mask_affinity(shares: Tensor) -> Tensor:
    """Affinity of patches that lie in masks.

    A patch divides itself among its masks by its share of each; where these exceed the whole of
    it, because masks overlap, in proportion to them. What is in no mask stays with itself. Where
    patch i gives w[m, i] to mask m, A[i, j] is the sum over m of w[m, i] w[m, j] / sum_k w[m, k],
    and on the diagonal 1 - sum_m w[m, i] more. So A times a map averages it inside every mask.

    Args:
        shares: (B, M, N) floating in [0, 1], how much of patch n mask m covers. Masks of zeros
            count for nothing.

    Returns:
        (B, N, N) of at least 0, symmetric, whose rows and columns sum to 1: Sinkhorn normalisation
        changes nothing, and with masks of whole patches neither does squaring.
    """
    with torch.autocast(shares.device.type, enabled=False):
        given = shares / shares.sum(dim=1, keepdim=True).clamp(min=1)
        mass = given.sum(dim=2, keepdim=True).clamp(min=torch.finfo(given.dtype).tiny)
        # Both factors alike, so that the product is symmetric.
        factor = given / mass.sqrt()
        rest = (1 - given.sum(dim=1)).clamp(min=0)
        return factor.mT @ factor + torch.diag_embed(rest)


def overlap(starts: Sequence[int], count: int, side: int, size: int, original: int) -> Tensor:
    """How much of a patch lies in each pixel of the image on disk, along one axis.

    Args:
        starts: of windows, in pixels of the resized image.
        count: of patches of a window.
        side: of a patch, in pixels of the resized image.
        size, original: of the resized image and of that on disk, in pixels.

    Returns:
        (len(starts), count, original) float32; over the last dimension it sums to 1.
    """
    scale = original / size
    first = torch.tensor(starts, dtype=torch.float64)[:, None, None]
    begin = (first + side * torch.arange(count)[:, None]) * scale
    pixel = torch.arange(original)
    end = begin + side * scale
    inside = torch.minimum(end, pixel + 1) - torch.maximum(begin, pixel)
    return (inside.clamp(min=0) / (side * scale)).float()


def window_shares(
    masks: Iterable[np.ndarray],
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    """How much of each patch of the windows of an image each mask covers.

    Args:
        masks: M of (H, W) bool, of the image on disk.
        rows, columns: (R, h, H) and (C, w, W), of :func:`overlap`.

    Returns:
        (M, R, C, h * w) float32, M without empty masks.
    """
    shares = [rows.new_zeros(0, rows.shape[0], columns.shape[0], rows.shape[1] * columns.shape[1])]
    for mask in masks:
        if mask.any():
            y, x = _extent(mask, along=0), _extent(mask, along=1)
            covered = torch.from_numpy(mask[y, x].astype(np.float32))
            share = torch.einsum("rhy,yx,cwx->rchw", rows[..., y], covered, columns[..., x])
            shares.append(share.flatten(2)[None])
    return torch.cat(shares)


def _extent(mask: np.ndarray, along: int) -> slice:
    """From the first row that a mask (H, W) bool covers to the last, or, along 1, column."""
    positions = np.flatnonzero(mask.any(axis=1 - along))
    return slice(positions[0], positions[-1] + 1)


@AFFINITY_PROVIDERS.register()
class MaskFolder:
    """Masks of SAM or anything, on disk: see :func:`.mask_files.read_masks`.

    They are made of the image as FreeCP reads it: upright where INPUT.EXIF_ORIENTATION is set.

    Args:
        folder: with the masks of every image by its name.

    Raises:
        FileNotFoundError: there is no such folder.
    """

    @configurable
    def __init__(self, *, folder: str | Path):
        self.folder = local_path(folder)
        if not str(folder) or not self.folder.is_dir():
            raise FileNotFoundError(
                f"MODEL.FREECP.AFFINITY_MASKS: there is no folder {str(folder)!r}; check the path"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments from a config."""
        return {"folder": cfg.MODEL.FREECP.AFFINITY_MASKS}

    def of_images(
        self, images: Sequence[SourceImage], patch_size: tuple[int, int]
    ) -> WindowAffinity:
        """See :class:`.provider.AffinityProvider`. The files of all images are read here."""
        shares = [self._shares(image, patch_size) for image in images]

        def affinity(windows: Sequence[Window], pixels: Tensor) -> Tensor:
            of_windows = [
                shares[window.image][window.rows.start, window.columns.start] for window in windows
            ]
            return mask_affinity(pad_sequence(of_windows, batch_first=True).to(pixels.device))

        return affinity

    def _shares(
        self, image: SourceImage, patch_size: tuple[int, int]
    ) -> dict[tuple[int, int], Tensor]:
        """First row and column of a window -> :func:`mask_affinity`'s shares (M, N) of it."""
        starts = (
            sorted({window.rows.start for window in image.windows}),
            sorted({window.columns.start for window in image.windows}),
        )
        rows, columns = (
            overlap(first, side // patch, patch, size, original)
            for first, side, patch, size, original in zip(
                starts,
                image.windows[0].size,
                patch_size,
                image.size,
                image.original_size,
                strict=True,
            )
        )
        masks = read_masks(self.folder, image.file_name, image.original_size)
        shares = window_shares(masks, rows, columns)
        return {
            (top, left): shares[:, row, column]
            for row, top in enumerate(starts[0])
            for column, left in enumerate(starts[1])
        }
