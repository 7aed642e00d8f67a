"""How separable the patch features of an image's classes are: simplified silhouettes.

After Latent Boost. Distances are cosine distances to the mean features of classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoding import EncodedImages
from .words import Words

LABELLINGS = ("truth", "before", "after")
"""By what patches have classes: the ground truth, the base method, FreeCP."""


@dataclass(frozen=True)
class Patches:
    """The P patches of all windows of an image. Where windows overlap, each has its own.

    Attributes:
        features: (P, D) float32 of unit length.
        rows, columns: (P,) in [0, 1), where their centres are.
        before: (P,) int64, the output channel of the text that is most like each: what the base
            method takes it for.
    """

    features: Tensor
    rows: Tensor
    columns: Tensor
    before: Tensor

    def labels_of(self, label_map: Tensor) -> Tensor:
        """(P,) int64: the label of (H, W) at the centre of each patch."""
        height, width = label_map.shape
        rows, columns = (self.rows * height).long(), (self.columns * width).long()
        return label_map.to(self.features.device)[rows, columns].long()


def add_patches(results: Sequence[dict[str, Any]], encoded: EncodedImages, words: Words) -> None:
    """Add `patches`, :class:`Patches`, to the result of every image of `encoded`."""
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in results]
    for batch in encoded.batches:
        features = batch.patches_for(words.text)
        height, width = batch.grid
        rows = torch.arange(height, device=features.device).repeat_interleave(width) + 0.5
        columns = torch.arange(width, device=features.device).repeat(height) + 0.5
        for window, of_window in zip(batch.windows, features, strict=True):
            sides = encoded.images[window.image].shape[1:]
            row = (window.rows.start + rows * (window.size[0] / height)) / sides[0]
            column = (window.columns.start + columns * (window.size[1] / width)) / sides[1]
            parts[window.image].append((of_window, row, column))
    for result, of_image in zip(results, parts, strict=True):
        features, row, column = (torch.cat(tensors) for tensors in zip(*of_image, strict=True))
        before = words.query_channel[(features @ words.text.T).argmax(dim=1)]
        result["patches"] = Patches(features, row, column, before)


def silhouette(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The simplified silhouette of every patch that has a class.

    (b - a) / max(a, b), with a the cosine distance to the mean of its own class, itself included,
    and b that to the nearest mean of another; 0 where both are 0.

    Args:
        features: (P, D) of unit length.
        labels: (P,) int64 classes; patches below 0 have none and count nowhere.

    Returns:
        (M,) float32 in [-1, 1] and (M,) int64, the classes of the patches that have one. M is 0
        where there are fewer than two classes.
    """
    features, labels = features[labels >= 0], labels[labels >= 0]
    classes, own = labels.unique(return_inverse=True)
    if len(classes) < 2:
        return features.new_zeros(0), labels[:0]
    means = features.new_zeros(len(classes), features.shape[1]).index_add_(0, own, features)
    distances = (1 - features @ F.normalize(means, dim=1).T).clamp_(min=0)
    a = distances.gather(1, own[:, None])[:, 0]
    b = distances.scatter(1, own[:, None], torch.inf).amin(dim=1)
    return (b - a) / a.maximum(b).clamp(min=1e-12), labels


def silhouettes(
    patches: Patches, truth: Tensor, predicted: Tensor, num_classes: int
) -> dict[str, list[list[float]]]:
    """The silhouettes of an image by each of :data:`LABELLINGS`, summed by class.

    Args:
        truth, predicted: (H, W) class ids; what is no class, such as an ignore_label, counts
            nowhere.

    Returns:
        Labelling -> class ids, sums and numbers of patches, three lists of one length.
    """
    sums = {}
    labels = {
        "truth": patches.labels_of(truth),
        "before": patches.before,
        "after": patches.labels_of(predicted),
    }
    for labelling in LABELLINGS:
        of_patches = labels[labelling]
        no_class = (of_patches < 0) | (of_patches >= num_classes)
        values, classes = silhouette(patches.features, of_patches.masked_fill(no_class, -1))
        ids, inverse, counts = classes.unique(return_inverse=True, return_counts=True)
        total = values.new_zeros(len(ids), dtype=torch.float64)
        total.index_add_(0, inverse, values.double())
        sums[labelling] = [
            ids.tolist(),
            [round(value, 6) for value in total.tolist()],
            counts.tolist(),
        ]
    return sums
