"""The stages of class purification as functions of tensors (METHOD.md steps 2 to 6).

B counts windows, Q text queries, C the queries that are not background, and (h, w) is the grid.
Nothing here waits for a device: what the host must know comes to it between steps 5 and 6, by
:meth:`freecp_d2.purification.PurificationHead.fetch`, and as the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops, transfers

CROP_SIZE = (112, 112)

CROPS_AT_ONCE = 256
"""How many crops are cut together on a GPU, 1 MB each meanwhile."""

COMPARED = 64
"""How many classes that stay are compared in a window of a GPU before the host knows their number.

Of 6 windows of 24x24 patches, their maps and soft IoU are 1 MB."""


@dataclass(frozen=True)
class Selected:
    """What the host knows of B windows after redundancy purification.

    Attributes:
        kept: (B, C) bool, the classes that stay.
        consistency: (B, C) float32.
        maps: (B, M, h, w) float32, the refined maps of a window's classes that stay, in their
            order. Where fewer than M stay, the rest are those of others. M is 0 where no window has
            two, or no class competes.
        soft_iou: (B, M, M) float32 of `maps`.
    """

    kept: np.ndarray
    consistency: np.ndarray
    maps: np.ndarray
    soft_iou: np.ndarray


def class_activation_maps(
    patches: Tensor, text: Tensor, logit_scale: float, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Probability of every query at every patch (METHOD.md step 2).

    Args:
        patches: (B, N, D) of unit length.
        text: (Q, D) of unit length.

    Returns:
        probabilities (B, Q, h, w), which sum to 1 over the queries, and :func:`normalize` of them.
    """
    with torch.autocast(patches.device.type, enabled=False):
        probabilities = (logit_scale * patches @ text.T).softmax(dim=-1)
    probabilities = probabilities.transpose(1, 2).unflatten(2, grid)
    return probabilities, normalize(probabilities)


def normalize(probabilities: Tensor) -> Tensor:
    """(B, Q, h, w) mapped to [0, 1] with one minimum and maximum a window (METHOD.md step 2).

    Equal probabilities everywhere map to 0.
    """
    low = probabilities.amin(dim=(1, 2, 3), keepdim=True)
    span = probabilities.amax(dim=(1, 2, 3), keepdim=True) - low
    # Clamped, since what `torch.compile` makes of the quotient for a GPU is not rounded exactly.
    return ((probabilities - low) / span.masked_fill(span == 0, 1)).clamp(0, 1)


def consistency(probabilities: Tensor, refined: Tensor, true_iou: bool = False) -> Tensor:
    """How well a class's activation survives refinement (METHOD.md step 5).

    Args:
        probabilities, refined: (B, C, h, w) in [0, 1].
        true_iou: False, as the published code: the overlap over the sum of both. True: over the
            sum less the overlap.

    Returns:
        (B, C), from 0 to at most 0.5, or to at most 1 as a true IoU.
    """
    overlap = (probabilities * refined).sum(dim=(2, 3))
    total = probabilities.sum(dim=(2, 3)) + refined.sum(dim=(2, 3))
    if true_iou:
        total = total - overlap
    return overlap / (total + 1e-8)


def select_candidates(
    patches: Tensor,
    attention: Tensor,
    text: Tensor,
    logit_scale: float,
    grid: tuple[int, int],
    num_background: int,
    redundancy_threshold: float,
    full_extent: bool = False,
    true_iou: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Redundancy purification, METHOD.md steps 2 to 5. `torch.compile` takes it as one graph.

    Args:
        patches: (B, N, D) of unit length.
        attention: (B, N, N) of patches to patches.
        text: (Q, D) of unit length, the background's first.
        num_background: how many of the queries are background.
        redundancy_threshold: classes stay whose consistency is above this.
        full_extent: see :func:`freecp_d2.ops.box_mask`.
        true_iou: see :func:`consistency`.

    Returns:
        probabilities (B, Q, h, w), refined maps (B, C, h, w), consistency (B, C) and which classes
        stay (B, C). NaN or infinity in a window's features makes its consistency NaN.
    """
    probabilities, normalized = class_activation_maps(patches, text, logit_scale, grid)
    refined, score, stays = purify_maps(
        probabilities,
        normalized,
        attention,
        num_background,
        redundancy_threshold,
        full_extent,
        true_iou,
    )
    return probabilities, refined, score, stays


def purify_maps(
    probabilities: Tensor,
    normalized: Tensor,
    attention: Tensor,
    num_background: int,
    redundancy_threshold: float,
    full_extent: bool = False,
    true_iou: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Redundancy purification of any model's maps, METHOD.md steps 3 to 5.

    Args:
        probabilities: (B, Q, h, w) in [0, 1], the background's first.
        normalized: :func:`normalize` of them.
        attention: (B, N, N) of at least 0, how much a cell of the grid has to do with another; no
            row or column is zero.
        num_background, redundancy_threshold, full_extent, true_iou: see
            :func:`select_candidates`.

    Returns:
        refined maps (B, C, h, w), consistency (B, C) and which classes stay (B, C).
    """
    normalized = normalized[:, num_background:]
    mask = ops.box_mask(normalized, full_extent=full_extent)
    refined = ops.refine(ops.sinkhorn_affinity(attention), normalized, mask)
    score = consistency(probabilities[:, num_background:], refined, true_iou)
    return refined, score, score > redundancy_threshold


def compared(refined: Tensor, kept: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`maps` and `soft_iou` of :class:`Selected`, with M = `count` or C where there are fewer.

    Args:
        refined: (B, C, h, w) in [0, 1].
        kept: (B, C) bool, the classes that stay.
    """
    order = kept.byte().argsort(dim=1, descending=True, stable=True)[:, :count]
    maps = refined.gather(1, order[:, :, None, None].expand(-1, -1, *refined.shape[2:]))
    return maps, ops.soft_iou(maps)


def ambiguous_groups(
    soft_iou: np.ndarray, threshold: float, related: np.ndarray | None = None
) -> list[np.ndarray]:
    """Groups of look-alike classes in one window (METHOD.md step 6).

    Args:
        soft_iou: (M, M) of the refined maps of the classes that stayed.
        threshold: classes of at least this soft IoU are linked.
        related: (M, M) bool, symmetric, pairs that no group may have; None: there are none.

    Returns:
        The connected components of that graph, as sorted indices. With related pairs, links join
        groups one by one, that of the largest soft IoU first, unless a related pair would meet.
    """
    if related is not None and related.any():
        return _groups_apart(soft_iou, threshold, related)
    from scipy.sparse.csgraph import connected_components  # 0.1 s that few need

    count, component = connected_components(soft_iou >= threshold, directed=False)
    return [(component == i).nonzero()[0] for i in range(count)]


def _groups_apart(soft_iou: np.ndarray, threshold: float, related: np.ndarray) -> list[np.ndarray]:
    """:func:`ambiguous_groups` with related pairs."""
    group = np.arange(len(soft_iou))
    rows, columns = np.nonzero(np.triu(soft_iou >= threshold, 1))
    for link in np.argsort(-soft_iou[rows, columns], kind="stable"):
        first, second = sorted((group[rows[link]], group[columns[link]]))
        if not related[np.ix_(group == first, group == second)].any():
            group[group == second] = first
    return [(group == i).nonzero()[0] for i in np.unique(group)]


def crops_one_by_one(
    images: Tensor | Sequence[Tensor], boxes: Sequence[tuple[int, int, int, int, int]]
) -> Tensor:
    """Crops of images (3, H, W), (K, 3, *CROP_SIZE), by :func:`F.interpolate`, bilinear.

    Args:
        boxes: K times image, top, bottom, left, right in pixels; bottom and right exclusive, and
            cut to the image.
    """
    crops = [images[i][None, :, y0:y1, x0:x1] for i, y0, y1, x0, x1 in boxes]
    return torch.cat([F.interpolate(crop, CROP_SIZE, mode="bilinear") for crop in crops])


def crop_samples(
    boxes: Sequence[tuple[int, int, int, int, int]], size: Sequence[int]
) -> list[np.ndarray]:
    """Where :func:`crops_at_once` reads images of `size` (height, width) for K crops.

    Args:
        boxes: as those of :func:`crops_one_by_one`.

    Returns:
        image (K,), rows and columns (K, 2 * side) int64 of the neighbours of every pixel of a crop,
        and the weights (K, side) float32 of the second neighbours, down and to the right.
    """
    index, *spans = np.array(boxes).T
    neighbours, weights = [], []
    for start, end, extent_of_image, side in zip(
        spans[::2], spans[1::2], size, CROP_SIZE, strict=True
    ):
        extent = (np.minimum(end, extent_of_image) - start)[:, None]
        # The scale in float32, what comes of it rounded once: as PyTorch does where it fuses.
        position = (np.arange(side) + 0.5) * (extent / side).astype(np.float32).astype(float) - 0.5
        position = np.maximum(position, 0).astype(np.float32)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, extent - 1)
        weights.append(position - low.astype(np.float32))
        neighbours.append(start[:, None] + np.concatenate((low, high), axis=1))
    return [index, *neighbours, *weights]


def crops_at_once(images: Tensor, samples: Sequence[Tensor]) -> Tensor:
    """:func:`crops_one_by_one` but for rounding, by one index and two interpolations.

    Args:
        images: (B, 3, H, W).
        samples: of :func:`crop_samples`, on the device of `images`.
    """
    index, rows, columns, down, right = samples
    near = images[
        index[:, None, None, None],
        torch.arange(images.shape[1], device=images.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    height, width = CROP_SIZE
    lines = near[..., :width].lerp(near[..., width:], right.to(images.dtype)[:, None, None, :])
    return lines[:, :, :height].lerp(lines[:, :, height:], down.to(images.dtype)[:, None, :, None])


def resolve_ambiguity(
    images: Tensor | Sequence[Tensor],
    selected: Selected,
    descriptions: Tensor,
    encode: Callable[[Tensor], Tensor],
    patch_size: tuple[int, int],
    threshold: float,
    full_extent: bool = False,
    related: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """Keep of every group of look-alike classes those that win a crop (METHOD.md step 6).

    Crops are cut one by one on a CPU, and together, :data:`CROPS_AT_ONCE`, where every call is a
    launch. All that the device must know comes to it by one upload.

    Args:
        images: B normalised windows (3, H, W).
        selected: their classes that stayed so far.
        descriptions: (C, D) of unit length.
        encode: normalised crops (K, 3, 112, 112) to CLIP embeddings (K, D). Called at most once,
            with the crops of all groups of all windows.
        patch_size: height and width of a patch in pixels.
        threshold: soft IoU from which classes are linked.
        full_extent: see :func:`freecp_d2.ops.component_boxes`.
        related: (C, C) bool, symmetric, the classes that are never in one group; None: any may.

    Returns:
        (B, C) bool, the classes that stay, and (B, C) int64, for a class that goes the one of its
        group that won a crop with the highest score, -1 for others; on the device of `images`.
    """
    device, shape = images[0].device, selected.kept.shape
    winners = selected.kept.copy()
    groups, averages = _groups(selected, threshold, related)
    maps = torch.from_numpy(averages)
    boxes = ops.component_boxes(maps, full_extent=full_extent).tolist() if groups else []
    empty = {group for group, x0, y0, x1, y1 in boxes if x1 <= x0 or y1 <= y0}
    for index, (window, members) in enumerate(groups):
        winners[window, members] = index in empty
    height, width = patch_size
    cut = [
        (group, y0 * height, y1 * height, x0 * width, x1 * width)
        for group, x0, y0, x1, y1 in boxes
        if x1 > x0 and y1 > y0
    ]
    if not cut:
        (stays,) = transfers.to_device([winners], device)
        return stays, torch.full_like(stays, -1, dtype=torch.int64)
    owners = np.array([group for group, *_ in cut])
    places = [(groups[group][0], *box) for group, *box in cut]
    # Rows of a group's members, the first one again where others have more.
    size = max(len(members) for _, members in groups)
    padded = [np.pad(m, (0, size - len(m)), constant_values=m[0]) for _, m in groups]
    firsts = np.array([window * shape[1] for window, _ in groups])
    together = transfers.is_accelerator(device)
    samples = crop_samples(places, images[0].shape[1:]) if together else []
    arrays = [winners, np.stack(padded), firsts, owners, *samples]
    stays, rivals, first, owner, *on_device = transfers.to_device(arrays, device)
    if together:
        pixels = images if isinstance(images, Tensor) else torch.stack(list(images))
        chunks = zip(*(values.split(CROPS_AT_ONCE) for values in on_device), strict=True)
        crops = torch.cat([crops_at_once(pixels, chunk) for chunk in chunks])
    else:
        crops = crops_one_by_one(images, places)
    embeddings = encode(crops)
    with torch.autocast(embeddings.device.type, enabled=False):
        similarity = (embeddings @ descriptions.T).gather(1, rivals[owner])
    score, best = similarity.max(dim=1)
    winner = rivals[owner].gather(1, best[:, None])[:, 0]
    stays = stays.flatten().index_fill_(0, first[owner] + winner, True)
    # Of a group's winners the one with the highest score.
    top = score.new_full((len(groups),), -torch.inf).scatter_reduce_(0, owner, score, "amax")
    winner = winner.where(score == top[owner], -1)
    champion = winner.new_full((len(groups),), -1).scatter_reduce_(0, owner, winner, "amax")
    beaten_by = torch.full_like(stays, -1, dtype=torch.int64)
    beaten_by.index_put_((first[:, None] + rivals,), champion[:, None].expand_as(rivals))
    return stays.view(shape), beaten_by.masked_fill(stays, -1).view(shape)


def _groups(
    selected: Selected, threshold: float, related: np.ndarray | None
) -> tuple[list[tuple[int, np.ndarray]], np.ndarray]:
    """Window and members of every group of several classes, and their average maps (G, h, w)."""
    groups, averages = [], [np.zeros((0, *selected.maps.shape[2:]), dtype=np.float32)]
    for window in (selected.kept.sum(axis=1) > 1).nonzero()[0]:
        classes = selected.kept[window].nonzero()[0]
        matrix = selected.soft_iou[window, : len(classes), : len(classes)]
        apart = None if related is None else related[np.ix_(classes, classes)]
        for group in ambiguous_groups(matrix, threshold, apart):
            if len(group) > 1:
                groups.append((int(window), classes[group]))
                averages.append(selected.maps[window, group].mean(axis=0, keepdims=True))
    return groups, np.concatenate(averages)
