"""What an evaluation reads of a model's output for an image, and keeps in its record.

A model purifies all classes of the data set, or all but a background, which is class 0 then.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..separability import silhouettes
from .coco import segments_of
from .dataset import SemSegDataset
from .metrics import STAGES
from .records import image_record


def label_map_of(output: Mapping[str, Any], dataset: SemSegDataset) -> Tensor:
    """(H, W) integers, class ids.

    Args:
        output: `label_map`, (H, W), and optionally `scores`, (K,); or `sem_seg`, (K, H, W).

    Raises:
        ValueError: it is of another number of classes than the data set has.
    """
    names = dataset.class_names
    if "label_map" in output:
        labels = output["label_map"]
        # Without a score a class, ids say at least how many there are.
        channels = int(labels.max()) + 1 if labels.numel() else 0
        channels = max(len(output.get("scores", names)), channels)
    else:
        labels = output["sem_seg"].argmax(dim=0)
        channels = len(output["sem_seg"])
    if channels != len(names):
        raise ValueError(
            f"{dataset.name}: the model predicts {channels} classes, the data set has "
            f"{len(names)}; check MODEL.FREECP.VOCABULARY"
        )
    return labels


def record_of(
    image: Mapping[str, Any],
    output: Mapping[str, Any],
    predicted: Tensor,
    dataset: SemSegDataset,
    category_ids: Mapping[int, int] | None,
) -> dict[str, Any]:
    """The record of an image (:func:`.records.image_record`), with `details` where there are any.

    Args:
        image: as :meth:`.dataset.SemSegDataset.truth` takes it.
        output: optionally `kept_redundancy` and `kept`, (C,) bool, and `ambiguous_losses`, pairs
            of places among these classes (loser, winner); `presence`, `dependency` and `patches`,
            as :meth:`freecp_d2.FreeCP.segment` has them.
        predicted: (H, W) integers, class ids, of :func:`label_map_of`.
        category_ids: class id -> category id of the `segments`; None: there are none.

    Raises:
        ImageFault: the ground truth cannot be read, is of another size than the prediction, or
            holds an id that is no class.
        ValueError: another number of classes is purified, or the image is none of the data set's.
    """
    file = image["file_name"]
    truth = dataset.truth(image)
    confusion = dataset.confusion(file, predicted, truth)
    ignored = predicted.numel() - int(confusion.sum())
    kept, losses = _purification(output, dataset)
    record = image_record(file, confusion, ignored, kept, losses)
    details = _details(output, predicted, truth, dataset)
    if details:
        record["details"] = details
    if category_ids is not None:
        record["segments"] = segments_of(image, predicted.cpu().numpy(), category_ids)
    return record


def _purification(
    output: Mapping[str, Any], dataset: SemSegDataset
) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
    """Stage -> (C,) bool, the classes that stayed after it; and (loser, winner) class ids."""
    kept = {stage: output[key].cpu().numpy() for stage, key in STAGES.items() if key in output}
    if not kept:
        return {}, []
    classes = len(next(iter(kept.values())))
    background = len(dataset.class_names) - classes
    if background not in (0, 1):
        raise ValueError(
            f"{dataset.name}: the model has purified {classes} classes, the data set has "
            f"{len(dataset.class_names)}; check MODEL.FREECP.VOCABULARY"
        )
    losses = output.get("ambiguous_losses", ())
    return kept, [(a + background, b + background) for a, b in losses]


def _details(
    output: Mapping[str, Any], predicted: Tensor, truth: Tensor, dataset: SemSegDataset
) -> dict[str, Any]:
    """What :mod:`.recognition` reads of an image; nothing where the model was not asked."""
    classes = len(dataset.class_names)
    details: dict[str, Any] = {}
    if "presence" in output:
        background = classes - len(next(iter(output["presence"].values())))
        details["presence"] = {
            score: [round(value, 7) for value in values.tolist()]
            for score, values in output["presence"].items()
        }
        if "dependency" in output:
            ids, matrix = output["dependency"]
            rows = [[round(value, 6) for value in row] for row in matrix.tolist()]
            details["dependency"] = [(ids + background).tolist(), rows]
    if "patches" in output:
        if dataset.ignore_label is not None:
            # int: as uint8 it does not hold the number of classes of a large data set
            truth = truth.int().masked_fill(truth == dataset.ignore_label, classes)
        details["silhouettes"] = silhouettes(output["patches"], truth, predicted, classes)
    return details
