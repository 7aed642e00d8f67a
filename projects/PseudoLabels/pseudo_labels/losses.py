"""Losses on pseudo-labels, as functions of tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor, ignore_value: int
) -> Tensor:
    """Cross entropy averaged over the pixels with a weight each.

    Args:
        logits: (B, K, H, W) float.
        labels: (B, H, W) int64, 0 to K - 1 or `ignore_value`, which does not count.
        weights: (B, H, W) float of at least 0. All equal: the ordinary mean.

    Returns:
        A scalar; 0 where no pixel has a weight.
    """
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=ignore_value)
    weights = weights * (labels != ignore_value)
    total = weights.sum()
    return (weights * losses).sum() / torch.where(total > 0, total, 1)


def region_means(features: Tensor, labels: Tensor, ignore_value: int) -> tuple[Tensor, Tensor]:
    """The mean feature of each class over all its pixels in the batch.

    Args:
        features: (B, D, h, w) float.
        labels: (B, h, w) int64.

    Returns:
        (n, D) means and (n,) int64, the classes they are of, ascending, without `ignore_value`.
    """
    counted = labels != ignore_value
    classes, region = labels[counted].unique(return_inverse=True)
    pixels = features.movedim(1, -1)[counted]
    sums = pixels.new_zeros(len(classes), pixels.shape[1]).index_add(0, region, pixels)
    return sums / region.bincount(minlength=len(classes))[:, None], classes


def relation_loss(regions: Tensor, text: Tensor) -> Tensor:
    """How far the student's classes lie from each other otherwise than their names do.

    L_rel = |D(regions) - D(text)|_1 / n^2, D the pairwise cosine distances (Global Knowledge
    Calibration for Fast Open-Vocabulary Segmentation).

    Args:
        regions: (n, D) float, the student's feature of each class.
        text: (n, E) float, the text feature of each of these classes.

    Returns:
        A scalar; 0 for fewer than two classes.
    """
    difference = _cosine_distances(regions) - _cosine_distances(text)
    return difference.abs().sum() / max(len(regions), 1) ** 2


def _cosine_distances(features: Tensor) -> Tensor:
    unit = F.normalize(features, dim=1)
    return 1 - unit @ unit.T
