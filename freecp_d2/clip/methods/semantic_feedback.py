"""Semantic feedback refinement (SFR) of ResCLIP (Yang et al., CVPR 2025).

A first segmentation of a window by the words gives every patch a label. Patches of one label get a
bonus in the attention logits of the last block, by which the window is read a second time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import pamr

PAMR_STEPS = 10
PAMR_DILATIONS = (8, 16)
PIXEL_VALUES = 2**23
"""How many similarities of queries at pixels exist at once."""


def patch_labels(
    similarities: Tensor,
    pixels: Tensor,
    patch_size: tuple[int, int],
    logit_scale: float,
    threshold: float,
) -> Tensor:
    """The query that most pixels of a patch belong to, of several the first.

    The similarities are resampled to the window's pixels, refined by PAMR, and each pixel takes its
    best query, or query 0 where the probability of the best is below the threshold.

    Args:
        similarities: (B, Q, h, w) float32 cosines of patches and queries.
        pixels: (B, 3, H, W) normalised, of h x w whole patches and perhaps a rim.
        patch_size: height and width of a patch in pixels.
        logit_scale: what cosines are multiplied by before the softmax over queries.
        threshold: in [0, 1].

    Returns:
        (B, h, w) int64.
    """
    size, queries = pixels.shape[2:], similarities.shape[1]
    at_once = max(1, PIXEL_VALUES // (queries * size.numel()))
    labels = [
        _pixel_labels(similarity, guide, logit_scale, threshold)
        for similarity, guide in zip(
            similarities.split(at_once), pixels.split(at_once), strict=True
        )
    ]
    height, width = patch_size
    patches = torch.cat(labels).unfold(1, height, height).unfold(2, width, width).flatten(3)
    votes = torch.zeros(*patches.shape[:3], queries, dtype=torch.int32, device=patches.device)
    votes.scatter_add_(3, patches, torch.ones_like(patches, dtype=torch.int32))
    return votes.argmax(dim=3)


def _pixel_labels(
    similarity: Tensor, guide: Tensor, logit_scale: float, threshold: float
) -> Tensor:
    """(B, H, W) int64 queries."""
    similarity = F.interpolate(similarity, guide.shape[2:], mode="bilinear", align_corners=False)
    refined = pamr(guide.float(), similarity, PAMR_STEPS, PAMR_DILATIONS)
    probability, label = (logit_scale * refined).softmax(dim=1).max(dim=1)
    return label.masked_fill(probability < threshold, 0)


def label_bonus(labels: Tensor, check_paths: bool, std: float) -> Tensor:
    """What a patch gains in attending to patches of its own label.

    1 to a patch of the same label, 0 to others. With s their Chebyshev distance and D the largest
    in the grid, the straight way from one to the other is sampled at 0/D, 1/D, ..., s/D; where a
    sample has another label, the bonus is exp(-s/D). These are the first samples of D + 1: as
    published only the share s/D of the way is looked at, and the bonus is not symmetric. Each row
    is then smoothed by a Gaussian along the patches in row-major order, across the ends of the
    grid's rows as published, and divided by its sum; all is divided by its largest value.

    Args:
        labels: (B, h, w) integers.
        check_paths: False: all patches of a label count in full.
        std: of the Gaussian, in patches.

    Returns:
        (B, N, N) float32 in [0, 1], N = h * w.
    """
    batch, height, width = labels.shape
    same = labels[:, :, None, :, None] == labels[:, None, :, None, :]  # (B, h, h, w, w)
    bonus = same.float()
    if check_paths:
        bonus.mul_(_path_weights(labels))
    bonus = bonus.transpose(2, 3).reshape(batch, height * width, height * width)
    bonus = _smooth_rows(bonus, std)
    bonus /= bonus.sum(dim=2, keepdim=True)  # each patch has its own label: no sum is 0
    return bonus / bonus.amax(dim=(1, 2), keepdim=True)


def _path_weights(labels: Tensor) -> Tensor:
    """(B, h, h, w, w): exp(-s/D) where the way leaves the label of its start, 1 elsewhere."""
    _, height, width = labels.shape
    device = labels.device
    rows, columns = torch.arange(height), torch.arange(width)
    row_distance = (rows[:, None] - rows).abs()[:, :, None, None]
    distance = row_distance.maximum((columns[:, None] - columns).abs()).to(device)
    longest = max(height, width, 2) - 1
    labels = labels.int()
    start = labels[:, :, None, :, None]
    leaves = torch.zeros(len(labels), *distance.shape, dtype=torch.bool, device=device)
    # On the CPU, whatever the labels' device: which cell half a step falls into hangs on rounding.
    shares = torch.linspace(0, 1, longest + 1)[:, None, None]
    samples = (
        ((1 - shares) * places[:, None] + shares * places).round().long().to(device)
        for places in (rows, columns)
    )
    for step, (row, column) in enumerate(zip(*samples, strict=True)):
        seen = labels[:, :, column].index_select(1, row.flatten()).view(leaves.shape)
        leaves |= seen.ne(start).logical_and_(distance >= step)
    return torch.where(leaves, torch.exp(-distance / longest), 1.0)


def _smooth_rows(values: Tensor, std: float) -> Tensor:
    """Rows of (B, M, N) convolved with a Gaussian of height 1, zeros beyond their ends."""
    positions = torch.arange(values.shape[2], device=values.device)
    reach = min(len(positions), int(6 * std + 1)) // 2
    offsets = (positions[:, None] - positions).abs()
    weights = torch.exp(-offsets.square() / (2 * std**2)).masked_fill(offsets > reach, 0)
    return values @ weights


def attention_bonus(bonus: Tensor, temperature: float, weight: float) -> Tensor:
    """What a bonus (B, N, N) adds to attention logits (B, 1, 1+N, 1+N), CLS first, float32.

    `temperature * weight * bonus`, 0 for the CLS token, of a bonus and a product in half precision:
    the published figures are made so.
    """
    return temperature * F.pad((weight * bonus.half()).float(), (1, 0, 1, 0))[:, None]
