"""Names of a class that do not fit what is in an image do not count in it.

After "Global Knowledge Calibration for Fast Open-Vocabulary Segmentation" (ICCV 2023), with the
class's region in place of a mask proposal.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def check_synonym_threshold(threshold: float) -> float:
    """`threshold`, MODEL.FREECP.SYNONYM_THRESHOLD.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"MODEL.FREECP.SYNONYM_THRESHOLD is {threshold}; give a number from 0 to 1"
        )
    return threshold


def fitting_names(
    maps: Sequence[Tensor],
    patches: Sequence[Tensor],
    kept: np.ndarray,
    text: Tensor,
    query_class: Sequence[int],
    logit_scale: float,
    threshold: float,
) -> np.ndarray:
    """Which names of the classes count in one image.

    p = softmax of logit_scale * cosine over the names of a class that stay in any window, to the
    mean of the patches of all windows, each weighted by the largest map of these names. Names with
    p <= threshold go, but never the best, so that no class goes.

    Args:
        maps: (B, C, h, w) of the image's windows in batches, which make W windows.
        patches: (B, h * w, D) of the same.
        kept: (W, C) bool, the names that stay.
        text: (C, D) of unit length.
        query_class: of C queries.

    Returns:
        (C,) bool; True for names that stay nowhere, too.
    """
    fits = np.ones(len(query_class), dtype=bool)
    staying = np.flatnonzero(kept.any(axis=0)).tolist()
    names_of = Counter(query_class[index] for index in staying)
    for label in [label for label, count in names_of.items() if count > 1]:
        names = [index for index in staying if query_class[index] == label]
        region = text.new_zeros(text.shape[1])
        start = 0
        for batch, features in zip(maps, patches, strict=True):
            stays = torch.from_numpy(kept[start : start + len(batch), names]).to(batch)
            weights = (batch[:, names] * stays[:, :, None, None]).amax(dim=1)
            region += torch.einsum("bn,bnd->d", weights.flatten(1), features.to(weights.dtype))
            start += len(batch)
        cosines = text[names] @ F.normalize(region, dim=0)
        p = (logit_scale * cosines).softmax(dim=0).cpu().numpy()
        fits[names] = p > threshold
        fits[names[int(p.argmax())]] = True
    return fits
