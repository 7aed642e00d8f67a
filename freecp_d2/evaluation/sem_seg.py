"""A Detectron2 evaluator with the mean IoU that the field publishes, and of the purification."""

import csv
import io
import logging
import os
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

from ..data.mapper import load_label_map
from ..files import write_whole
from .coco import CocoWriter
from .metrics import (
    STAGES,
    Counts,
    class_ious,
    confusion_matrix,
    distinct_names,
    mean,
    segmentation_metrics,
)
from .report import Example, write_report
from .results import load_results, without_nan, write_results

log = logging.getLogger(__name__)


class FreeCPSemSegEvaluator(DatasetEvaluator):
    """Segmentation metrics, quality of the purification, and time by stage.

    Attributes:
        results: what results.json holds, after :meth:`evaluate` on rank 0.

    `mIoU` is the paper's: IoU = TP / (GT + predicted - TP) over the whole set, without ignored
    pixels, averaged over the classes present or predicted, so that a class predicted but never
    present counts 0 (METHOD.md section 9). Detectron2's, over the classes present, is
    `mIoU-detectron2`. What the images bring is counted and forgotten: memory does not grow with
    their number. All counts are integers that rank 0 sums, so the figures do not depend on the
    number of ranks. An image that several ranks process would count several times; Detectron2's
    `InferenceSampler`, which `build_detection_test_loader` uses, gives each image to one rank.

    With `output_dir`, rank 0 writes results.json (figures; NaN as null), per_class.csv and
    report.html.

    Args:
        dataset_name: in Detectron2's catalogs, with `stuff_classes` and `ignore_label`.
        distributed: sum over all ranks; otherwise each evaluates what it has seen.
        output_dir: folder of the results, or None.
        facts: goes into results.json; `method` and `enabled` name the row of the table.
        stage_seconds: gives stage -> seconds of the model so far; what is spent between
            :meth:`reset` and :meth:`evaluate` is reported, summed over ranks.
        coco_predictions: also write sem_seg_predictions.json, COCO's RLE segments with the data
            set's own category ids.
        compare_with: results.json of the base method, drawn beside this one in the report.
        pictures: how many of the best and of the worst images the report shows.

    Raises:
        FileNotFoundError: ground-truth files are missing, or `compare_with` is.
        ValueError: `compare_with` is of other classes, or the metadata have no category id of a
            class.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | os.PathLike | None = None,
        *,
        facts: Mapping[str, Any] | None = None,
        stage_seconds: Callable[[], Mapping[str, float]] = dict,
        coco_predictions: bool = False,
        compare_with: str | os.PathLike | None = None,
        pictures: int = 5,
    ):
        if coco_predictions and output_dir is None:
            raise ValueError("coco_predictions needs an output_dir to write them to")
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._facts = dict(facts or {})
        self._stage_seconds = stage_seconds
        self._pictures = pictures
        self._metadata = MetadataCatalog.get(dataset_name)
        self._names = distinct_names(self._metadata.stuff_classes)
        self._ignore_label = self._metadata.ignore_label
        self._truth_files = {
            record["file_name"]: record["sem_seg_file_name"]
            for record in DatasetCatalog.get(dataset_name)
        }
        files = self._truth_files.values()
        missing = [file for file in files if not os.path.isfile(file)]
        if missing:
            raise FileNotFoundError(
                f"{dataset_name}: {len(missing)} of {len(files)} ground-truth files are missing, "
                f"the first is {missing[0]}; check the data set's root (DETECTRON2_DATASETS)"
            )
        self._category_ids = self._load_category_ids() if coco_predictions else None
        self._base = None if compare_with is None else self._load_base(compare_with)

    def reset(self) -> None:
        """Forget all images."""
        self._counts = Counts(np.zeros((len(self._names),) * 2, dtype=np.int64))
        self._best: list[tuple[float, str, bytes]] = []
        self._worst: list[tuple[float, str, bytes]] = []
        self._seconds_before = dict(self._stage_seconds())
        self._coco = None
        if self._output_dir is not None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            if self._category_ids is not None:
                path = self._output_dir / "sem_seg_predictions.json"
                self._coco = CocoWriter(path, self._rank, self._category_ids)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: dicts with `file_name`.
            outputs: dicts with `label_map`, (H, W) of class ids, or `sem_seg`, (K, H, W), whose
                argmax is taken; H and W are the ground truth's. Optionally `kept_redundancy` and
                `kept`, (C,) bool, the classes that stayed after each stage, without a scored
                background; and `ambiguous_losses`, pairs of class ids (loser, winner).

        Raises:
            ValueError: a prediction has another number of classes or another size, or the ground
                truth cannot be read or holds an id that is no class.
        """
        for x, output in zip(inputs, outputs, strict=True):
            predicted = self._label_map(output)
            file = x["file_name"]
            truth = self._load_truth(file, predicted.shape)
            confusion = confusion_matrix(predicted, truth, len(self._names), self._ignore_label)
            self._counts.confusion += confusion
            self._counts.images += 1
            self._count_purification(output, confusion.sum(axis=0) > 0)
            if self._coco is not None:
                self._coco.add(x, predicted)
            score = mean(class_ious(confusion))
            if self._output_dir is not None and not np.isnan(score):
                self._remember(self._best, -score, file, predicted)
                self._remember(self._worst, score, file, predicted)

    def evaluate(self) -> OrderedDict | None:
        """Sum over all ranks and write the results.

        Returns:
            On rank 0 {"sem_seg": {metric: percent}, "purification": {stage/metric: figure}}, the
            second only where the model said which classes stayed; None on the other ranks.

        Raises:
            FileNotFoundError: COCO predictions of another rank are not in this `output_dir`.
        """
        seconds = Counter(self._stage_seconds())
        seconds.subtract(self._seconds_before)
        self._counts.seconds = seconds
        if self._coco is not None:
            self._coco.close()
        parts = [(self._counts, self._best, self._worst)]
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(parts[0], dst=0)
            if not comm.is_main_process():
                return None
        total = Counts(np.zeros_like(self._counts.confusion))
        for counts, *_ in parts:
            total += counts
        if self._coco is not None:
            self._coco.join(len(parts))
        self.results = results = without_nan(self._results(total))
        best = sorted(entry for _, entries, _ in parts for entry in entries)[: self._pictures]
        worst = sorted(entry for *_, entries in parts for entry in entries)[: self._pictures]
        if self._output_dir is not None:
            write_results(results, self._output_dir / "results.json")
            csv_text = _csv(results["classes"])
            write_whole(self._output_dir / "per_class.csv", csv_text.encode())
            write_report(
                self._output_dir / "report.html",
                results,
                self._base,
                self._metadata,
                best=[self._example(-score, file, png) for score, file, png in best],
                worst=[self._example(*entry) for entry in worst],
            )
        sem_seg = segmentation_metrics(total.confusion, self._names)
        log.info(
            f"{self._dataset_name}, {total.images} images: mIoU {sem_seg['mIoU']:.2f}; "
            f"Detectron2's, over the classes present: {sem_seg['mIoU-detectron2']:.2f}"
        )
        flat = OrderedDict(sem_seg=sem_seg)
        if total.purified:
            flat["purification"] = {
                f"{stage}/{name}": value
                for stage, metrics in total.purification_metrics().items()
                for name, value in metrics.items()
            }
        return flat

    @property
    def _rank(self) -> int:
        return comm.get_rank() if self._distributed else 0

    def _label_map(self, output: dict) -> np.ndarray:
        if "label_map" in output:
            labels = output["label_map"].cpu().numpy()
            channels = int(labels.max(initial=0)) + 1
            wrong = channels > len(self._names)
        else:
            channels = len(output["sem_seg"])
            wrong = channels != len(self._names)
            labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
        if wrong:
            raise ValueError(
                f"{self._dataset_name}: the model predicts {channels} classes, the data set has "
                f"{len(self._names)}; check MODEL.FREECP.VOCABULARY"
            )
        return labels

    def _load_truth(self, file: str, size: tuple[int, ...]) -> np.ndarray:
        path = self._truth_files[file]
        labels = load_label_map(path)
        if labels.shape != size:
            raise ValueError(
                f"{path}: the ground truth has size {labels.shape}, the prediction {size}; check "
                "the data set's height and width"
            )
        no_class = (labels != self._ignore_label) & ((labels < 0) | (labels >= len(self._names)))
        if no_class.any():
            raise ValueError(
                f"{path}: id {labels[no_class][0]} is neither one of the {len(self._names)} "
                f"classes nor ignore_label {self._ignore_label}; check the metadata of "
                f"{self._dataset_name}"
            )
        return labels

    def _count_purification(self, output: dict, present: np.ndarray) -> None:
        kept = {stage: output[key].cpu().numpy() for stage, key in STAGES.items() if key in output}
        if not kept:
            return
        background = len(present) - len(next(iter(kept.values())))
        if background not in (0, 1):
            raise ValueError(
                f"{self._dataset_name}: the model has purified {len(present) - background} "
                f"classes, the data set has {len(present)}; check MODEL.FREECP.VOCABULARY"
            )
        losses = [(a + background, b + background) for a, b in output.get("ambiguous_losses", ())]
        self._counts.add_purification(present, background, kept, losses)

    def _remember(
        self, entries: list[tuple[float, str, bytes]], key: float, file: str, labels: np.ndarray
    ) -> None:
        """Keep the label map while it is among the first by `key`, then file name."""
        if len(entries) < self._pictures or (key, file) < entries[-1][:2]:
            png = io.BytesIO()
            dtype = np.uint8 if len(self._names) <= 256 else np.uint16
            Image.fromarray(labels.astype(dtype)).save(png, "PNG")
            insort(entries, (key, file, png.getvalue()))
            del entries[self._pictures :]

    def _example(self, score: float, file: str, png: bytes) -> Example:
        with Image.open(io.BytesIO(png)) as image:
            predicted = np.array(image, dtype=int)
        return Example(file, 100 * score, predicted, self._load_truth(file, predicted.shape))

    def _results(self, total: Counts) -> dict[str, Any]:
        figures = segmentation_metrics(total.confusion, self._names)
        results = {
            "dataset": self._dataset_name,
            **self._facts,
            "images": total.images,
            "metrics": {
                key: value for key, value in figures.items() if not key.startswith(("IoU-", "ACC-"))
            },
            "classes": [
                {
                    "id": index,
                    "name": name,
                    "IoU": figures[f"IoU-{name}"],
                    "ACC": figures[f"ACC-{name}"],
                    "pixels": int(total.confusion[:, index].sum()),
                    "predicted_pixels": int(total.confusion[index].sum()),
                }
                for index, name in enumerate(self._names)
            ],
            "seconds_per_image": {
                stage: seconds / max(total.images, 1) for stage, seconds in total.seconds.items()
            },
        }
        if total.purified:
            results["purification"] = total.purification_metrics()
            results["ambiguous_losses"] = total.resolved(self._names)
        return results

    def _load_category_ids(self) -> dict[int, int]:
        contiguous = self._metadata.get(
            "stuff_dataset_id_to_contiguous_id", {i: i for i in range(len(self._names))}
        )
        ids = {index: category for category, index in contiguous.items()}
        lacking = [name for index, name in enumerate(self._names) if index not in ids]
        if lacking:
            raise ValueError(
                f"{self._dataset_name}: stuff_dataset_id_to_contiguous_id has no id of "
                f"{lacking[0]!r}; register the data set with one for every class"
            )
        return ids

    def _load_base(self, path: str | os.PathLike) -> dict[str, Any]:
        base = load_results(path)
        if base["dataset"] != self._dataset_name:
            raise ValueError(
                f"{path}: results on {base['dataset']}, not on {self._dataset_name}; compare "
                "results on one data set"
            )
        if [entry["name"] for entry in base["classes"]] != self._names:
            raise ValueError(
                f"{path}: its classes are not those of {self._dataset_name}; evaluate the base "
                "method anew"
            )
        return base


def _csv(classes: list[dict[str, Any]]) -> str:
    """A line a class, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(classes[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(classes)
    return text.getvalue()
