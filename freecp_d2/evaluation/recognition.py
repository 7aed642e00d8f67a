"""Presence as multi-label recognition, and silhouettes, over the images of an evaluation.

An image's *details* are JSON: `file_name`; `present`, ids of the classes of its ground truth;
`IoU`, its own mIoU in 0-1; and as far as the model was asked for them `presence` (score -> a value
a class), `dependency` (class ids, rows) and `silhouettes` (:func:`freecp_d2.separability.
silhouettes`). Ids count the background.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..separability import LABELLINGS

THRESHOLDS_TRIED = 200
"""How many quantiles of the scores may become the best threshold."""
MOST_PICTURED = 40
"""Classes in the picture of what depends on what."""


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """The mean precision at the ranks of the true ones; equal scores share a rank.

    Args:
        truth: (N,) bool.
        scores: (N,).

    Returns:
        0-1; NaN where nothing is true.
    """
    if not truth.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_rank = np.append(np.diff(scores[order]) != 0, True)
    hits = truth[order].cumsum()[last_of_rank]
    precision = hits / (last_of_rank.nonzero()[0] + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def mean_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """The mean over the classes that are true somewhere of 2 TP / (true + predicted), 0-1.

    Args:
        truth, predicted: (images, classes) bool.
    """
    somewhere = truth.any(axis=0)
    if not somewhere.any():
        return float("nan")
    hits = (truth & predicted).sum(axis=0)
    f1 = 2 * hits / np.maximum(truth.sum(axis=0) + predicted.sum(axis=0), 1)
    return float(f1[somewhere].mean())


def best_threshold(truth: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """The best :func:`mean_f1` of classes whose score is above one threshold, and that one."""
    quantiles = np.unique(np.quantile(scores, np.linspace(0, 1, THRESHOLDS_TRIED)))
    figures = [mean_f1(truth, scores > threshold) for threshold in quantiles]
    best = int(np.nanargmax(figures)) if np.isfinite(figures).any() else 0
    return figures[best], float(quantiles[best])


def presence_results(
    details: Sequence[Mapping[str, Any]],
    num_classes: int,
    thresholds: Mapping[str, float],
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Figures of each score, and the average precisions of the classes.

    Args:
        details: of images with `presence`; the scores may leave the background out.
        num_classes: with the background.
        thresholds: score -> above which a class counts as present; others have none.

    Returns:
        Score -> `mAP` over the classes that are present somewhere, `mF1` at its `threshold`, and
        `best mF1` with the `best threshold`, which were chosen by the ground truth; score -> an
        average precision a class. In percent, but for thresholds; NaN where there is none.
    """
    present = np.zeros((len(details), num_classes), dtype=bool)
    for row, of_image in zip(present, details, strict=True):
        row[of_image["present"]] = True
    figures, precisions = {}, {}
    for score in details[0]["presence"]:
        values = np.array([of_image["presence"][score] for of_image in details])
        background = num_classes - values.shape[1]
        truth = present[:, background:]
        of_classes = [average_precision(*pair) for pair in zip(truth.T, values.T, strict=True)]
        threshold = thresholds.get(score)
        best, at = best_threshold(truth, values)
        known = [value for value in of_classes if not np.isnan(value)]
        figures[score] = {
            "mAP": 100 * float(np.mean(known)) if known else float("nan"),
            "mF1": float("nan") if threshold is None else 100 * mean_f1(truth, values > threshold),
            "threshold": threshold,
            "best mF1": 100 * best,
            "best threshold": at,
        }
        precisions[score] = [float("nan")] * background + [100 * value for value in of_classes]
    return figures, precisions


def dependency_results(
    details: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The mean over images of what a class loses where another, or itself, is painted over.

    Returns:
        Dicts of `erased` and `read`, names of classes; `loss`, the mean of what the share of `read`
        loses; and `images`, in how many both stayed. Sorted by the ids of the classes.
    """
    totals: dict[tuple[int, int], list[float]] = {}
    for of_image in details:
        ids, matrix = of_image.get("dependency", ([], []))
        for erased, row in zip(ids, matrix, strict=True):
            for read, loss in zip(ids, row, strict=True):
                totals.setdefault((erased, read), []).append(loss)
    return [
        {
            "erased": names[erased],
            "read": names[read],
            "loss": float(np.mean(losses)),
            "images": len(losses),
        }
        for (erased, read), losses in sorted(totals.items())
    ]


def separability_results(
    details: Sequence[Mapping[str, Any]], num_classes: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Figures of each labelling, and the mean silhouettes of the patches of each class.

    Returns:
        Labelling -> `silhouette`, the mean over images of the mean over patches; `images` with two
        classes at least; and the `spearman` and `pearson` correlation over them of an image's
        silhouette and its own mIoU. Labelling -> a mean a class. NaN where there is none.
    """
    figures, means = {}, {}
    for labelling in LABELLINGS:
        sums, counts = np.zeros(num_classes), np.zeros(num_classes)
        of_images, ious = [], []
        for of_image in details:
            ids, of_classes, patches = of_image["silhouettes"][labelling]
            if not ids:
                continue
            sums[ids] += of_classes
            counts[ids] += patches
            if of_image["IoU"] is not None:
                of_images.append(sum(of_classes) / sum(patches))
                ious.append(of_image["IoU"])
        figures[labelling] = {
            "silhouette": float(np.mean(of_images)) if of_images else float("nan"),
            "images": len(of_images),
            **_correlations(of_images, ious),
        }
        mean = np.divide(sums, counts, out=np.full(num_classes, np.nan), where=counts > 0)
        means[labelling] = mean.tolist()
    return figures, means


def _correlations(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """NaN where there are fewer than three, or one side does not vary."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return {"spearman": float("nan"), "pearson": float("nan")}
    from scipy.stats import pearsonr, spearmanr  # 0.5 s that few need

    return {
        "spearman": float(spearmanr(a, b).statistic),
        "pearson": float(pearsonr(a, b).statistic),
    }


def dependency_picture(pairs: Sequence[Mapping[str, Any]]) -> bytes:
    """A PNG of what :func:`dependency_results` gives, of the classes that stay most often."""
    from matplotlib.figure import Figure

    images = {pair["read"]: pair["images"] for pair in pairs if pair["erased"] == pair["read"]}
    shown = set(sorted(images, key=lambda name: -images[name])[:MOST_PICTURED])
    names = [name for name in images if name in shown]  # in the order of their ids
    place = {name: index for index, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for pair in pairs:
        if pair["erased"] in place and pair["read"] in place:
            matrix[place[pair["erased"]], place[pair["read"]]] = pair["loss"]
    side = 2 + 0.22 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.9")
    # A few large losses would leave all others white.
    limit = max(float(np.nanpercentile(np.abs(matrix), 98)), 1e-3)
    picture = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel("what is read")
    axes.set_ylabel("what is painted over")
    figure.colorbar(picture, label="share of belief that is lost", shrink=0.7, extend="both")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def presence_thresholds(config: Mapping[str, Any]) -> dict[str, float]:
    """Score -> the threshold that it has by itself; `config` as results.json has it."""
    freecp = config.get("MODEL", {}).get("FREECP", {})
    thresholds = {"erasing": 0.0}
    if "REDUNDANCY_THRESHOLD" in freecp:
        thresholds["consistency"] = freecp["REDUNDANCY_THRESHOLD"]
    return thresholds
