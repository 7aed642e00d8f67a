"""Figures of a segmentation, and of a purification, from counts that can be summed over ranks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .records import confusion_of

STAGES = {"redundancy": "kept_redundancy", "ambiguity": "kept"}
"""Stage of the purification -> the key of the model's output with the classes left after it."""


class NoClass(ValueError):
    """A ground truth holds an id that is neither a class nor ignored.

    Attributes:
        id: the smallest one.
    """

    def __init__(self, id: int):
        super().__init__(f"id {id} of the ground truth is no class")
        self.id = id


def confusion_matrix(
    predicted: Tensor | np.ndarray,
    truth: Tensor | np.ndarray,
    num_classes: int,
    ignore_label: int | None,
) -> np.ndarray:
    """Pixels by predicted (row) and true (column) class, without those of `ignore_label`.

    They are counted where `predicted` is, in one pass over uint8.

    Args:
        predicted: (H, W) integers, class ids from 0 to `num_classes` - 1.
        truth: (H, W) integers, class ids likewise, or `ignore_label`.
        ignore_label: None: every pixel counts.

    Returns:
        (num_classes, num_classes) int64.

    Raises:
        NoClass: `truth` holds another id.
    """
    predicted = torch.as_tensor(predicted)
    truth = torch.as_tensor(truth).to(predicted.device)
    ids = np.arange(256)
    if truth.dtype != torch.uint8:
        outside = (truth < 0) | (truth >= num_classes)
        foreign = outside if ignore_label is None else outside & (truth != ignore_label)
        if foreign.any():
            raise NoClass(int(truth[foreign].min()))
        truth = truth.masked_fill(outside, num_classes)
        ids = np.append(
            np.arange(num_classes), num_classes if ignore_label is None else ignore_label
        )
    cells = (len(ids) * predicted.to(torch.int32)).add_(truth).flatten()
    counts = cells.bincount(minlength=len(ids) * num_classes).cpu().numpy()
    table = counts.reshape(num_classes, len(ids))
    is_class = ids < num_classes
    if ignore_label is not None:
        is_class &= ids != ignore_label
    no_class = table.any(axis=0) & ~is_class & (ids != ignore_label)
    if no_class.any():
        raise NoClass(int(ids[no_class][0]))
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    confusion[:, ids[is_class]] = table[:, is_class]
    return confusion


def class_ious(confusion: np.ndarray) -> np.ndarray:
    """(K,) intersection over union in 0-1; NaN for a class neither present nor predicted.

    A class that is predicted but never present has 0 (METHOD.md section 9).
    """
    hits = confusion.diagonal()
    return _divide(hits, confusion.sum(axis=0) + confusion.sum(axis=1) - hits)


def distinct_names(names: Sequence[str]) -> list[str]:
    """`names`, where a name that others before it have is numbered: "screen", "screen (2)".

    Figures are kept by name, and data sets such as ADE20K-847 have a name several times.
    """
    distinct: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in distinct:
            number += 1
            unique = f"{name} ({number})"
        distinct.append(unique)
    return distinct


def mean(values: np.ndarray) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def segmentation_metrics(confusion: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Percentages under Detectron2's names; what cannot be computed is NaN.

    `mIoU` is the paper's: over the classes present or predicted. `mIoU-detectron2` is over the
    classes present, and so are `mACC` and `fwIoU`.

    Args:
        confusion: see :func:`confusion_matrix`.
        names: of the classes, for `IoU-name` and `ACC-name`, each once (:func:`distinct_names`).
    """
    truth = confusion.sum(axis=0)
    ious = class_ious(confusion)
    accuracies = _divide(confusion.diagonal(), truth)
    present = truth > 0
    total = truth.sum()
    figures = {
        "mIoU": mean(ious),
        "mIoU-detectron2": mean(ious[present]),
        "fwIoU": float((ious[present] * truth[present]).sum() / total) if total else np.nan,
        "mACC": mean(accuracies),
        "pACC": float(confusion.trace() / total) if total else np.nan,
        **{f"IoU-{name}": float(iou) for name, iou in zip(names, ious, strict=True)},
        **{f"ACC-{name}": float(acc) for name, acc in zip(names, accuracies, strict=True)},
    }
    return {key: 100 * value for key, value in figures.items()}


def worst_confusions(
    confusion: np.ndarray, names: Sequence[str], count: int
) -> list[dict[str, Any]]:
    """The pairs of a true and a predicted class with the most pixels, the most first.

    Args:
        confusion: see :func:`confusion_matrix`.
        names: of the classes.
        count: at most so many pairs; a pair without a pixel is none.

    Returns:
        Dicts of `truth` and `predicted`, names; `pixels`; and `share`, their percentage of the
        pixels of the true class.
    """
    wrong = confusion.T.copy()
    np.fill_diagonal(wrong, 0)
    most = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = zip(*(index.tolist() for index in np.unravel_index(most, wrong.shape)), strict=True)
    return [
        {
            "truth": names[truth],
            "predicted": names[predicted],
            "pixels": int(wrong[truth, predicted]),
            "share": _percent(int(wrong[truth, predicted]), int(confusion[:, truth].sum())),
        }
        for truth, predicted in pairs
        if wrong[truth, predicted]
    ]


@dataclass
class Counts:
    """What is counted over images; its size does not depend on how many they are.

    Attributes:
        confusion: see :func:`confusion_matrix`.
        images: how many.
        ignored: pixels of `ignore_label`.
        purified: images whose outputs say which classes stayed.
        present: classes in the ground truth of those images, summed.
        kept: stage -> classes that stayed after it, summed over images.
        right: stage -> those of them in the ground truth.
        losses, losses_right, losses_wrong: (loser, winner) -> images in which the ambiguity stage
            let the class id `loser` lose to `winner`; those whose ground truth has the winner only;
            those whose ground truth has the loser only.
        seconds: stage of the model -> time.
        details: what is kept of each image where TEST.PRESENCE or TEST.SEPARABILITY asks for it,
            and then grows with their number: see :mod:`.recognition`.
    """

    confusion: np.ndarray
    images: int = 0
    ignored: int = 0
    purified: int = 0
    present: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)
    losses: Counter[tuple[int, int]] = field(default_factory=Counter)
    losses_right: Counter[tuple[int, int]] = field(default_factory=Counter)
    losses_wrong: Counter[tuple[int, int]] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    details: list[dict[str, Any]] = field(default_factory=list)

    def __iadd__(self, other: "Counts") -> "Counts":
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)
        return self

    def add(self, record: Mapping[str, Any]) -> None:
        """Count an image.

        Args:
            record: of :func:`.records.image_record`, with its seconds. With a scored background,
                which is class 0, one class less is purified than there are; the background itself
                does not count.
        """
        confusion = confusion_of(record, len(self.confusion))
        self.confusion += confusion
        self.images += 1
        self.ignored += record["ignored"]
        self.seconds.update(record["seconds"])
        if "kept" in record:
            background = len(self.confusion) - record["purifiable"]
            self._add_purification(record, confusion.sum(axis=0) > 0, background)
        if "details" in record:
            score = mean(class_ious(confusion))
            image = {
                "file_name": record["file_name"],
                "present": confusion.sum(axis=0).nonzero()[0].tolist(),
                "IoU": None if np.isnan(score) else score,
            }
            self.details.append(image | record["details"])

    def _add_purification(
        self, record: Mapping[str, Any], present: np.ndarray, background: int
    ) -> None:
        """`present`: (K,) bool, the classes in the ground truth."""
        self.purified += 1
        self.present += int(present[background:].sum())
        for stage, classes in record["kept"].items():
            self.kept[stage] += len(classes)
            self.right[stage] += int(present[background:][classes].sum())
        for loser, winner in record["losses"]:
            self.losses[loser, winner] += 1
            self.losses_right[loser, winner] += int(present[winner] and not present[loser])
            self.losses_wrong[loser, winner] += int(present[loser] and not present[winner])

    def purification_metrics(self) -> dict[str, dict[str, float]]:
        """Stage -> precision, recall and f1 in percent, and `classes`, how many stay on average.

        Precision and recall are over all pairs of an image and a class. `truth` has the `classes`
        of the ground truth. Empty where no output said which classes stayed.
        """
        if not self.purified:
            return {}
        metrics = {"truth": {"classes": self.present / self.purified}}
        for stage, kept in self.kept.items():
            right = self.right[stage]
            metrics[stage] = {
                "precision": _percent(right, kept),
                "recall": _percent(right, self.present),
                "f1": _percent(2 * right, kept + self.present),
                "classes": kept / self.purified,
            }
        return metrics

    def resolved(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """What the ambiguity stage decided, by class name, the most frequent first."""
        pairs = sorted(self.losses, key=lambda pair: (-self.losses[pair], pair))
        return [
            {
                "loser": names[pair[0]],
                "winner": names[pair[1]],
                "images": self.losses[pair],
                "right": self.losses_right[pair],
                "wrong": self.losses_wrong[pair],
            }
            for pair in pairs
        ]


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def _percent(a: int, b: int) -> float:
    return 100 * a / b if b else float("nan")
