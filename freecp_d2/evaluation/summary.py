"""What is said of an evaluation, from the counts of all its images."""

import csv
import io
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from .dataset import SemSegDataset
from .metrics import Counts, segmentation_metrics, worst_confusions
from .recognition import (
    dependency_results,
    presence_results,
    presence_thresholds,
    separability_results,
)
from .results import METRICS, listed, printable, without_nan

MOST_CONFUSIONS = 20
"""So many pairs of classes that are confused are in results.json."""
log = logging.getLogger(__name__)


def summarize(
    total: Counts, dataset: SemSegDataset, facts: Mapping[str, Any], failed: Mapping[str, str]
) -> dict[str, Any]:
    """The content of results.json; None in place of NaN.

    Args:
        total: of all ranks.
        facts: what goes into it beside the figures.
        failed: image file -> why it could not be evaluated.
    """
    names = dataset.class_names
    figures = segmentation_metrics(total.confusion, names)
    results: dict[str, Any] = {
        "dataset": dataset.name,
        **facts,
        "images": total.images,
        **({"failed": dict(sorted(failed.items()))} if failed else {}),
        "ignored_pixels": total.ignored,
        "absent_classes": absent_classes(total, names),
        "label_maps_as_published": dataset.label_maps_as_published,
        "metrics": {key: figures[key] for key in METRICS},
        "classes": [
            {
                "id": index,
                "name": name,
                "IoU": figures[f"IoU-{name}"],
                "ACC": figures[f"ACC-{name}"],
                "pixels": int(total.confusion[:, index].sum()),
                "predicted_pixels": int(total.confusion[index].sum()),
            }
            for index, name in enumerate(names)
        ],
        "seconds_per_image": {
            stage: seconds / max(total.images, 1) for stage, seconds in total.seconds.items()
        },
        "confusions": worst_confusions(total.confusion, names, MOST_CONFUSIONS),
    }
    if total.purified:
        results["purification"] = total.purification_metrics()
        results["ambiguous_losses"] = total.resolved(names)
    detailed, columns = _detailed_results(total, names, facts)
    for column, values in columns.items():
        for entry, value in zip(results["classes"], values, strict=True):
            entry[column] = value
    return without_nan(results | detailed)


def _detailed_results(
    total: Counts, names: Sequence[str], facts: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Sequence[float]]]:
    """Of presence and separability, as far as the model was asked; and columns of the classes."""
    results: dict[str, Any] = {}
    columns: dict[str, Sequence[float]] = {}
    details = sorted(total.details, key=lambda of_image: of_image["file_name"])
    if not details:
        return results, columns
    if "presence" in details[0]:
        thresholds = presence_thresholds(facts.get("config", {}))
        results["presence"], of_classes = presence_results(details, len(names), thresholds)
        columns |= {f"AP {score}": values for score, values in of_classes.items()}
        if "erasing" in of_classes:
            results["dependency"] = dependency_results(details, names)
    if "silhouettes" in details[0]:
        results["separability"], of_classes = separability_results(details, len(names))
        columns |= {f"silhouette {key}": values for key, values in of_classes.items()}
    return results, columns


def task_metrics(
    total: Counts, results: Mapping[str, Any], names: Sequence[str]
) -> OrderedDict[str, dict[str, float]]:
    """Task -> metric -> figure, as Detectron2's evaluators return them; NaN where there is none.

    Args:
        total: of all ranks.
        results: of :func:`summarize`.
        names: of the classes.
    """
    tasks = OrderedDict(sem_seg=segmentation_metrics(total.confusion, names))
    if total.purified:
        tasks["purification"] = {
            f"{stage}/{name}": value
            for stage, metrics in total.purification_metrics().items()
            for name, value in metrics.items()
        }
    for task in ("presence", "separability"):
        if task in results:
            tasks[task] = {
                f"{key}/{name}": float("nan") if value is None else value
                for key, figures in results[task].items()
                for name, value in figures.items()
            }
    return tasks


def log_summary(
    metrics: Mapping[str, float], total: Counts, dataset: SemSegDataset, failed: Mapping[str, str]
) -> None:
    """Log the mIoU, which classes the ground truth has not, and which images failed.

    Args:
        metrics: of the segmentation, in percent.
        total: of all ranks.
        failed: image file -> why it could not be evaluated.
    """
    log.info(
        f"{dataset.name}, {total.images} images: mIoU {metrics['mIoU']:.2f}; "
        f"Detectron2's, over the classes present: {metrics['mIoU-detectron2']:.2f}"
    )
    absent = absent_classes(total, dataset.class_names)
    if absent:
        advice = ""
        if total.ignored:
            advice = (
                f"; {total.ignored} pixels have the ignore_label {dataset.ignore_label}: if they "
                "are objects, as in masks of 0 and 255, give them a class id"
            )
        log.warning(
            "%s: %d of %d classes have no ground-truth pixel (%s)%s",
            dataset.name,
            len(absent),
            len(dataset.class_names),
            printable(", ".join(absent)),
            advice,
        )
    if failed:
        log.error(
            "%s: INCOMPLETE, %d of %d images could not be evaluated: %s",
            *(dataset.name, len(failed), len(failed) + total.images, listed(sorted(failed))),
        )


def absent_classes(total: Counts, names: Sequence[str]) -> list[str]:
    """Names of the classes without a ground-truth pixel."""
    pixels = total.confusion.sum(axis=0).tolist()
    return [name for name, count in zip(names, pixels, strict=True) if not count]


def per_class_csv(classes: Sequence[Mapping[str, Any]]) -> str:
    """A line a class of :func:`summarize`; None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(classes[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**entry, "name": printable(entry["name"])} for entry in classes)
    return text.getvalue()
