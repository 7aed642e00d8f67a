"""The stages of class purification as functions of tensors (METHOD.md steps 2 to 6).

B counts windows, Q text queries, C the queries that are not background, and (h, w) is the grid.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .. import ops

CROP_SIZE = (112, 112)


def class_activation_maps(
    patches: Tensor, text: Tensor, logit_scale: float, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Probability of every query at every patch (METHOD.md step 2).

    Args:
        patches: (B, N, D) of unit length.
        text: (Q, D) of unit length.

    Returns:
        probabilities (B, Q, h, w), which sum to 1 over the queries, and the same mapped to [0, 1]
        with one minimum and maximum a window. Equal probabilities everywhere map to 0.
    """
    probabilities = (logit_scale * patches @ text.T).softmax(dim=-1)
    probabilities = probabilities.transpose(1, 2).unflatten(2, grid)
    low = probabilities.amin(dim=(1, 2, 3), keepdim=True)
    span = probabilities.amax(dim=(1, 2, 3), keepdim=True) - low
    return probabilities, (probabilities - low) / span.masked_fill(span == 0, 1)


def consistency(probabilities: Tensor, refined: Tensor) -> Tensor:
    """How well a class's activation survives refinement (METHOD.md step 5).

    Args:
        probabilities, refined: (B, C, h, w) in [0, 1].

    Returns:
        (B, C), from 0 to at most 0.5.
    """
    overlap = (probabilities * refined).sum(dim=(2, 3))
    return overlap / (probabilities.sum(dim=(2, 3)) + refined.sum(dim=(2, 3)) + 1e-8)


def ambiguous_groups(maps: Tensor, threshold: float) -> list[list[int]]:
    """Groups of look-alike classes in one window (METHOD.md step 6).

    Args:
        maps: (M, h, w) refined maps of the classes that stayed.
        threshold: classes of at least this soft IoU are linked.

    Returns:
        The connected components of that graph, as lists of indices into `maps`.
    """
    linked = (ops.soft_iou(maps) >= threshold).cpu().numpy()
    count, component = connected_components(linked, directed=False)
    return [(component == i).nonzero()[0].tolist() for i in range(count)]


def resolve_ambiguity(
    images: Tensor,
    refined: Tensor,
    kept: Tensor,
    descriptions: Tensor,
    encode: Callable[[Tensor], Tensor],
    patch_size: tuple[int, int],
    threshold: float,
    full_extent: bool = False,
) -> Tensor:
    """Keep of every group of look-alike classes those that win a crop (METHOD.md step 6).

    Args:
        images: (B, 3, H, W) normalised windows.
        refined: (B, C, h, w) in [0, 1].
        kept: (B, C) bool, the classes that stayed so far.
        descriptions: (C, D) of unit length.
        encode: normalised crops (K, 3, 112, 112) to CLIP embeddings (K, D). Called at most once,
            with the crops of all groups of all windows.
        patch_size: height and width of a patch in pixels.
        threshold: soft IoU from which classes are linked.
        full_extent: see :func:`freecp_d2.ops.component_boxes`.

    Returns:
        (B, C) bool, the classes that stay.
    """
    windows: list[int] = []
    groups: list[Tensor] = []
    winners = torch.zeros_like(kept)
    for window, classes in enumerate(kept):
        classes = classes.nonzero()[:, 0]
        if len(classes) < 2:
            winners[window, classes] = True
            continue
        for group in ambiguous_groups(refined[window, classes], threshold):
            members = classes[group]
            if len(group) == 1:
                winners[window, members] = True
            else:
                windows.append(window)
                groups.append(members)
    if not groups:
        return winners

    averages = torch.stack(
        [refined[window, members].mean(0) for window, members in zip(windows, groups, strict=True)]
    )
    height, width = patch_size
    crops, crop_groups = [], []
    for group, x0, y0, x1, y1 in ops.component_boxes(averages, full_extent=full_extent).tolist():
        if x1 <= x0 or y1 <= y0:
            winners[windows[group], groups[group]] = True
            continue
        rows, columns = slice(y0 * height, y1 * height), slice(x0 * width, x1 * width)
        crop = images[windows[group], :, rows, columns]
        crops.append(F.interpolate(crop[None], CROP_SIZE, mode="bilinear", align_corners=False))
        crop_groups.append(group)
    if not crops:
        return winners

    similarity = encode(torch.cat(crops)) @ descriptions.T
    for scores, group in zip(similarity, crop_groups, strict=True):
        members = groups[group]
        winners[windows[group], members[scores[members].argmax()]] = True
    return winners
