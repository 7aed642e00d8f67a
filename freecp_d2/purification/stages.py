"""The stages of class purification as functions of tensors (METHOD.md steps 2 to 6).

B counts windows, Q text queries, C the queries that are not background, and (h, w) is the grid.
Nothing here waits for a device but :func:`to_host`: :func:`select_candidates` (steps 2 to 5) and
its second half, :func:`purify_maps`, never call it, and :func:`resolve_ambiguity` (step 6) calls it
once.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops

CROP_SIZE = (112, 112)

CROPS_AT_ONCE = 256
"""How many crops are cut together on a GPU, 1 MB each meanwhile."""


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    """The tensors as float32 arrays by one transfer: their device is waited for once."""
    flat = torch.cat([tensor.flatten().float() for tensor in tensors]).cpu().numpy()
    ends = np.cumsum([tensor.numel() for tensor in tensors])
    arrays = np.split(flat, ends[:-1])
    return [array.reshape(tensor.shape) for array, tensor in zip(arrays, tensors, strict=True)]


def to_device(values: Any, device: torch.device) -> Tensor:
    """A tensor of the values on `device`, without waiting for it."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


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


def ambiguous_groups(soft_iou: np.ndarray, threshold: float) -> list[np.ndarray]:
    """Groups of look-alike classes in one window (METHOD.md step 6).

    Args:
        soft_iou: (M, M) of the refined maps of the classes that stayed.
        threshold: classes of at least this soft IoU are linked.

    Returns:
        The connected components of that graph, as sorted indices.
    """
    from scipy.sparse.csgraph import connected_components  # 0.1 s that few need

    count, component = connected_components(soft_iou >= threshold, directed=False)
    return [(component == i).nonzero()[0] for i in range(count)]


def resized_crops(
    images: Tensor | Sequence[Tensor], boxes: Sequence[tuple[int, int, int, int, int]]
) -> Tensor:
    """Crops of images (3, H, W), (K, 3, *CROP_SIZE), bilinear as :func:`F.interpolate` has it.

    On a CPU by that function, crop by crop. Elsewhere, where every call is a launch, all at once:
    the four neighbours of every pixel by one index, and two interpolations.

    Args:
        images: of equal size.
        boxes: K times image, top, bottom, left, right in pixels; bottom and right exclusive, and
            cut to the image.
    """
    if images[0].device.type == "cpu":
        crops = [images[i][None, :, y0:y1, x0:x1] for i, y0, y1, x0, x1 in boxes]
        return torch.cat([F.interpolate(crop, CROP_SIZE, mode="bilinear") for crop in crops])
    pixels = images if isinstance(images, Tensor) else torch.stack(list(images))
    chunks = [boxes[i : i + CROPS_AT_ONCE] for i in range(0, len(boxes), CROPS_AT_ONCE)]
    return torch.cat([crops_by_one_index(pixels, chunk) for chunk in chunks])


def crops_by_one_index(images: Tensor, boxes: Sequence[tuple[int, int, int, int, int]]) -> Tensor:
    """:func:`resized_crops` of images (B, 3, H, W) on any device, but for rounding."""
    index, *spans = np.array(boxes).T
    weights, neighbours = [], []
    for start, end, size, side in zip(
        spans[::2], spans[1::2], images.shape[2:], CROP_SIZE, strict=True
    ):
        extent = (np.minimum(end, size) - start)[:, None]
        # The scale in float32, what comes of it rounded once: as PyTorch does where it fuses.
        position = (np.arange(side) + 0.5) * (extent / side).astype(np.float32).astype(float) - 0.5
        position = np.maximum(position, 0).astype(np.float32)
        low = position.astype(np.int64)
        high = np.minimum(low + 1, extent - 1)
        weights.append(position - low.astype(np.float32))
        neighbours.append(start[:, None] + np.concatenate((low, high), axis=1))
    rows, columns = to_device(np.stack(neighbours), images.device)
    down, right = to_device(np.stack(weights), images.device).to(images.dtype)
    near = images[
        to_device(index, images.device)[:, None, None, None],
        torch.arange(images.shape[1], device=images.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    height, width = CROP_SIZE
    lines = near[..., :width].lerp(near[..., width:], right[:, None, None, :])
    return lines[:, :, :height].lerp(lines[:, :, height:], down[:, None, :, None])


def resolve_ambiguity(
    images: Tensor | Sequence[Tensor],
    refined: Tensor,
    kept: np.ndarray,
    descriptions: Tensor,
    encode: Callable[[Tensor], Tensor],
    patch_size: tuple[int, int],
    threshold: float,
    full_extent: bool = False,
) -> tuple[Tensor, Tensor]:
    """Keep of every group of look-alike classes those that win a crop (METHOD.md step 6).

    Args:
        images: B normalised windows (3, H, W).
        refined: (B, C, h, w) in [0, 1].
        kept: (B, C) bool, the classes that stayed so far.
        descriptions: (C, D) of unit length.
        encode: normalised crops (K, 3, 112, 112) to CLIP embeddings (K, D). Called at most once,
            with the crops of all groups of all windows.
        patch_size: height and width of a patch in pixels.
        threshold: soft IoU from which classes are linked.
        full_extent: see :func:`freecp_d2.ops.component_boxes`.

    Returns:
        (B, C) bool, the classes that stay, and (B, C) int64, for a class that goes the one of its
        group that won a crop with the highest score, -1 for others; on the device of `refined`.
    """
    winners, count = kept.copy(), kept.shape[1]
    groups, averages = _groups(refined, kept, threshold)
    boxes = ops.component_boxes(averages, full_extent=full_extent).tolist() if groups else []
    empty = {group for group, x0, y0, x1, y1 in boxes if x1 <= x0 or y1 <= y0}
    for index, (window, members) in enumerate(groups):
        winners[window, members] = index in empty
    height, width = patch_size
    cut = [
        (group, y0 * height, y1 * height, x0 * width, x1 * width)
        for group, x0, y0, x1, y1 in boxes
        if x1 > x0 and y1 > y0
    ]
    stays = to_device(winners, refined.device).flatten()
    beaten_by = torch.full_like(stays, -1, dtype=torch.int64)
    if cut:
        owners = [group for group, *_ in cut]
        crops = resized_crops(images, [(groups[group][0], *box) for group, *box in cut])
        # Rows of a group's members, the first one again where others have more.
        size = max(len(members) for _, members in groups)
        padded = [np.pad(m, (0, size - len(m)), constant_values=m[0]) for _, m in groups]
        rivals = to_device(np.stack(padded), refined.device)
        first = to_device([window * count for window, _ in groups], refined.device)
        owner = to_device(owners, refined.device)
        embeddings = encode(crops)
        with torch.autocast(embeddings.device.type, enabled=False):
            similarity = (embeddings @ descriptions.T).gather(1, rivals[owner])
        score, best = similarity.max(dim=1)
        winner = rivals[owner].gather(1, best[:, None])[:, 0]
        stays.index_fill_(0, first[owner] + winner, True)
        # Of a group's winners the one with the highest score.
        top = score.new_full((len(groups),), -torch.inf).scatter_reduce_(0, owner, score, "amax")
        winner = winner.where(score == top[owner], -1)
        champion = winner.new_full((len(groups),), -1).scatter_reduce_(0, owner, winner, "amax")
        beaten_by.index_put_((first[:, None] + rivals,), champion[:, None].expand_as(rivals))
    return stays.view(kept.shape), beaten_by.masked_fill(stays, -1).view(kept.shape)


def _groups(
    refined: Tensor, kept: np.ndarray, threshold: float
) -> tuple[list[tuple[int, np.ndarray]], Tensor]:
    """Window and members of every group of several classes, and their average maps on the host."""
    crowded = (kept.sum(axis=1) > 1).nonzero()[0]
    if not len(crowded):
        return [], refined[:0, 0]
    present = [kept[window].nonzero()[0] for window in crowded]
    counts = [len(classes) for classes in present]
    # As many of every window, filled up with its first.
    index = np.stack([np.pad(p, (0, max(counts) - len(p)), constant_values=p[0]) for p in present])
    candidates = refined[
        to_device(crowded[:, None], refined.device), to_device(index, refined.device)
    ]
    groups, averages = [], []
    maps, matrices = to_host([candidates, ops.soft_iou(candidates)])
    for row, (window, classes) in enumerate(zip(crowded, present, strict=True)):
        for group in ambiguous_groups(matrices[row, : len(classes), : len(classes)], threshold):
            if len(group) > 1:
                groups.append((int(window), classes[group]))
                averages.append(maps[row, group].mean(axis=0))
    return groups, torch.from_numpy(np.stack(averages) if averages else maps[:0, 0])
