"""What SC-CLIP and SFP share: outliers, their repair, similarities, the calibrated last block.

Functions of patch tokens (B, N, W), N = h * w row by row, without the CLS token. Whatever is
compared with a threshold is float32, and each image of a batch has thresholds of its own.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from ..blocks import project_out, project_qkv
from .base import Trunk

log = logging.getLogger(__name__)

NEIGHBOURS = 30
"""How many nearest tokens the outlier factor of a token looks at."""

CONTAMINATION = 0.05
"""Share of the tokens that are taken for outliers."""

THRESHOLD = 0.4
"""Cosine similarities below it count as 0."""

CONTRAST = 3.0
"""Factor of the similarity above its mean, before the softmax."""


def check_blocks(section: str, num_blocks: int, limits: Mapping[str, tuple[int, int, int]]) -> None:
    """Refuse numbers of blocks that an image tower has not.

    Args:
        section: whose keys they are, such as "SCCLIP".
        num_blocks: of the tower.
        limits: key -> its value, the least and the greatest that it may have.

    Raises:
        ValueError: a value is outside its limits; the key is named.
    """
    for key, (value, least, greatest) in limits.items():
        if not least <= value <= greatest:
            raise ValueError(
                f"MODEL.CLIP.{section}.{key} is {value}; with the {num_blocks} blocks of this "
                f"image tower it must be from {least} to {greatest}"
            )


def outlier_factors(tokens: Tensor) -> Tensor:
    """SC-CLIP's local outlier factors, which are not the textbook's.

    With k the squared distance to a token's 30th nearest, a token's factor is its k times the mean
    of 1/k over its 30 nearest: its own k stands where the textbook has the neighbours'.

    Args:
        tokens: (B, N, W) with N above 30.

    Returns:
        (B, N) float32, about 1 for a token that lies as densely as its neighbours.
    """
    centred = tokens.float()
    centred = centred - centred.mean(dim=1, keepdim=True)  # distances stay, and lose fewer digits
    square = centred.square().sum(dim=-1)
    distance = square[:, :, None] + square[:, None] - 2 * centred @ centred.transpose(1, 2)
    distance.clamp_(min=0).masked_fill_(_itself(distance), torch.inf)
    nearest, neighbours = distance.topk(NEIGHBOURS, largest=False)
    radius = nearest.amax(dim=-1)
    inverse = radius.reciprocal()[:, None].expand_as(distance)
    return radius * inverse.gather(2, neighbours).mean(dim=-1)


def local_outliers(tokens: Tensor) -> Tensor:
    """The tokens (B, N) bool whose outlier factor is above the 95 % quantile of their image's.

    None where an image has too few tokens for 30 neighbours each, which the log says once.
    """
    count = tokens.shape[1]
    if count <= NEIGHBOURS:
        _say_that_there_are_too_few()
        return tokens.new_zeros(tokens.shape[:2], dtype=torch.bool)
    factors = outlier_factors(tokens)
    return factors > factors.quantile(1 - CONTAMINATION, dim=1, keepdim=True)


@cache
def _say_that_there_are_too_few() -> None:
    log.warning(
        "windows of %d patches or fewer: outliers among them are neither looked for nor repaired, "
        "since an outlier factor compares a patch with its %d nearest",
        NEIGHBOURS,
        NEIGHBOURS,
    )


def strongest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` largest of each row of `scores` (B, N) are, those of -inf left out."""
    best = scores.topk(min(count, scores.shape[1])).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True) & (scores > -torch.inf)


def repair(tokens: Tensor, outliers: Tensor, grid: tuple[int, int], lonely: str) -> Tensor:
    """Put the mean of its sound neighbours in the place of each outlier.

    Neighbours are the up to 8 patches around it in the grid that are no outliers themselves.

    Args:
        tokens: (B, N, W).
        outliers: (B, N) bool.
        grid: (h, w).
        lonely: what becomes of an outlier without sound neighbours: "kept" or "zero".

    Returns:
        (B, N, W) of the dtype of `tokens`.
    """
    sound = (~outliers).unflatten(1, grid)[:, None].float()
    maps = tokens.transpose(1, 2).unflatten(2, grid).float()
    # An outlier's own place adds nothing to the sum over 3 x 3 places around it.
    total, count = (
        9 * F.avg_pool2d(values, 3, stride=1, padding=1).flatten(2).transpose(1, 2)
        for values in (maps * sound, sound)
    )
    repaired = outliers[..., None]
    if lonely == "kept":
        repaired = repaired & (count > 0)
    return torch.where(repaired, (total / count.clamp(min=1)).to(tokens.dtype), tokens)


def cosine_similarity(tokens: Tensor) -> Tensor:
    """Cosines (B, N, N) float32 between the patches (B, N, W) of each image.

    A patch is similar to itself by 1, also one of zeros.
    """
    tokens = F.normalize(tokens.float(), dim=-1)
    similarity = tokens @ tokens.transpose(1, 2)
    return similarity.masked_fill_(_itself(similarity), 1)


def thresholded(similarity: Tensor) -> Tensor:
    """`similarity` with 0 in place of what is below :data:`THRESHOLD`."""
    return similarity.where(similarity >= THRESHOLD, 0)


def aggregate(similarity: Tensor, tokens: Tensor) -> Tensor:
    """Means of `tokens`, weighted by rows of `similarity` over their sums (plus 1e-6).

    Args:
        similarity: (B, N, N) float32 of at least 0.
        tokens: (B, N, W).

    Returns:
        (B, N, W) of the dtype of `tokens`.
    """
    total = similarity.sum(dim=-1, keepdim=True) + 1e-6
    return (similarity @ tokens.float() / total).to(tokens.dtype)


def calibrated_attention(similarity: Tensor) -> Tensor:
    """Attention to what is more similar than the mean over all pairs of an image.

    Args:
        similarity: (B, N, N) float32.

    Returns:
        (B, N, N) float32, the softmax of rows of 3 (similarity - mean), without what is below the
        mean. Each patch attends to itself at least.
    """
    logits = CONTRAST * (similarity - similarity.mean(dim=(1, 2), keepdim=True))
    return logits.masked_fill((logits < 0) & ~_itself(logits), -torch.inf).softmax(dim=-1)


def _itself(pairs: Tensor) -> Tensor:
    """(N, N) bool, where pairs (B, N, N) are of a patch and itself."""
    return torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)


def calibrated_block(
    block: ResidualAttentionBlock, patches: Tensor, attention: Tensor, selves: Sequence[str]
) -> Tensor:
    """The last block's attention by the mean of several weights; no residual and no MLP.

    Args:
        patches: (B, N, W) that enter the block; the CLS token is not among the keys.
        attention: (B, N, N) float32 weights, the same for every head.
        selves: of "query" and "key": whose attention to themselves counts as much as `attention`.

    Returns:
        (B, N, W), what the output projection gives.
    """
    query, key, value = project_qkv(block, block.ln_1(patches))
    of_all_heads = attention.to(value.dtype) @ value.transpose(1, 2).flatten(2)
    attended = of_all_heads.unflatten(2, (value.shape[1], -1)).transpose(1, 2)
    for name in selves:
        source = {"query": query, "key": key}[name]
        attended = attended + F.scaled_dot_product_attention(source, source, value)
    return project_out(block, attended / (1 + len(selves)))


def read_calibrated(
    trunk: Trunk,
    patches: Tensor,
    total: Tensor,
    attention: Tensor,
    *,
    first: Sequence[str],
    second: Sequence[str],
    early: int,
    cls_share: float,
) -> Tensor:
    """The calibrated last block of patches and of a sum of blocks, averaged over similar patches.

    Args:
        patches: (B, N, W) that enter it first.
        total: (B, T, W), the sum; its patches enter it second.
        attention: as :func:`calibrated_block` takes it.
        first, second: its `selves` for the one and for the other.
        early: the block whose patches say which are similar.
        cls_share: of the CLS tokens that are added to the patches.

    Returns:
        (B, N, W).
    """
    attended = calibrated_block(trunk.last, patches, attention, first)
    attended = attended + cls_share * trunk.tokens[:, :1]
    of_total = calibrated_block(trunk.last, total[:, 1:], attention, second)
    of_total = of_total + cls_share * total[:, :1]
    similar = thresholded(cosine_similarity(trunk.block_tokens[early][:, 1:]))
    return aggregate(similar, attended + of_total)


def sum_of_blocks(block_tokens: Mapping[int, Tensor], start: int, end: int) -> Tensor:
    """The sum (B, T, W) of the outputs of blocks `start` to `end` - 1, of their dtype."""
    return torch.stack([block_tokens[block] for block in range(start, end)]).sum(dim=0)
