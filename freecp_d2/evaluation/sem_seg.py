"""A Detectron2 evaluator with the mean IoU that the field publishes, and of the purification."""

import csv
import difflib
import io
import logging
import os
from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image
from torch import Tensor

from ..data import Vocabulary, normalized_name
from ..data.benchmarks.layout import BENCHMARKS
from ..data.mapper import ground_truth
from ..distributed import from_main
from ..files import require_writable, write_whole
from ..journal import Journal
from ..separability import silhouettes
from .coco import segments_of, write_segments
from .facts import differing_keys, label_settings
from .metrics import (
    STAGES,
    Counts,
    NoClass,
    class_ious,
    confusion_matrix,
    distinct_names,
    mean,
    segmentation_metrics,
    worst_confusions,
)
from .recognition import (
    dependency_results,
    presence_results,
    presence_thresholds,
    separability_results,
)
from .records import RECORDS, Records, confusion_of, image_record
from .report import Example, palette_of, write_report
from .results import METRICS, load_results, printable, without_nan, write_results

MOST_CONFUSIONS = 20
"""So many pairs of classes that are confused are in results.json."""
RESULTS = "results.json", "per_class.csv", "report.html", "sem_seg_predictions.json"
"""What an evaluation writes, beside its records."""
log = logging.getLogger(__name__)
T = TypeVar("T")


class ImageFault(ValueError):
    """An image, or its ground truth, is broken; others may be evaluated."""


class FreeCPSemSegEvaluator(DatasetEvaluator):
    """Segmentation metrics, quality of the purification, and time by stage.

    Attributes:
        results: what results.json holds, after :meth:`evaluate` on rank 0.
        facts: what goes into results.json beside the figures; may be added to until then.

    `mIoU` is the paper's: IoU = TP / (GT + predicted - TP) over the whole set, without ignored
    pixels, averaged over the classes present or predicted, so that a class predicted but never
    present counts 0 (METHOD.md section 9). Detectron2's, over the classes present, is
    `mIoU-detectron2`. What the images bring is counted and forgotten: memory does not grow with
    their number. All counts are integers that rank 0 sums, so the figures do not depend on the
    number of ranks. An image that several ranks process would count several times; Detectron2's
    `InferenceSampler`, which `build_detection_test_loader` uses, gives each image to one rank.

    Several classes of one name are several classes, numbered in the figures
    (:func:`freecp_d2.evaluation.metrics.distinct_names`). One warning names them, and one, after
    the evaluation, the classes without a ground-truth pixel.

    With `output_dir`, rank 0 writes results.json (figures; NaN as null), per_class.csv and then
    report.html. Should the report fail, that is logged, and the figures stand. Meanwhile each rank
    keeps a record of each image below `output_dir`/records, from which :meth:`resume` goes on.

    Args:
        dataset_name: in Detectron2's catalogs, with `stuff_classes`. Without `ignore_label` in its
            metadata every pixel counts.
        distributed: sum over all ranks; otherwise each evaluates what it has seen.
        output_dir: folder of the results, or None.
        facts: the first of :attr:`facts`; `method` and `enabled` name the row of the table.
        stage_seconds: gives stage -> seconds of the model so far; what is spent between
            :meth:`reset` and :meth:`evaluate` is reported, summed over ranks.
        coco_predictions: also write sem_seg_predictions.json, COCO's RLE segments with the data
            set's own category ids.
        compare_with: results.json of the base method, drawn beside this one in the report.
        segment, segment_base: give the label map (H, W) of the model, and of the base method, of an
            image of the data set, a dict with `file_name`. Asked on rank 0 for images that the
            report shows, the first only for those that were evaluated before :meth:`resume`.
        pictures: how many of the best and of the worst images the report shows.

    Raises:
        FileNotFoundError: ground-truth files are missing, or `compare_with` is.
        OSError: `output_dir` cannot be written.
        ValueError: there is no such data set; it has no images, no classes, or bad colours; an
            image without a ground truth or in two records; `compare_with` is of other classes, or
            no such file; or the metadata have no category id of a class.
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
        segment: Callable[[dict[str, Any]], Tensor] | None = None,
        segment_base: Callable[[dict[str, Any]], Tensor] | None = None,
        pictures: int = 5,
    ):
        if coco_predictions and output_dir is None:
            raise ValueError("coco_predictions needs an output_dir to write them to")
        require_registered(dataset_name)
        self.facts = dict(facts or {})
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._stage_seconds = stage_seconds
        self._segment = segment
        self._segment_base = segment_base
        self._pictures = pictures
        records = DatasetCatalog.get(dataset_name)  # some set their metadata only now
        self._metadata = MetadataCatalog.get(dataset_name)
        self._names = self._load_names()
        self._ignore_label = self._metadata.get("ignore_label")
        if self._ignore_label is None:
            log.info("%s has no ignore_label: every pixel counts", dataset_name)
        self._truth_files = self._load_truth_files(records)
        self._category_ids = self._load_category_ids() if coco_predictions else None
        self._base = None if compare_with is None else self._load_base(compare_with)
        self._records: Records | None = None
        self._journal: Journal | None = None
        if self._output_dir is not None:
            self._palette = palette_of(self._metadata)
            require_writable(self._output_dir)
            self._records = Records(self._output_dir / RECORDS)

    @property
    def records_folder(self) -> Path:
        """Where a record of each image is kept; there is none without `output_dir`."""
        assert self._records is not None
        return self._records.folder

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """See that a model with these classes can be evaluated here, before it segments anything.

        Raises:
            ValueError: they are more or fewer than the data set has, or they have a background
                that the data set has not.
        """
        classes = vocabulary.class_names
        if len(classes) != len(self._names):
            raise ValueError(
                f"{self._dataset_name}: the vocabulary has {len(classes)} classes "
                f"({_listed(classes)}), the data set has {len(self._names)} "
                f"({_listed(self._names)}); check MODEL.FREECP.VOCABULARY and BACKGROUND"
            )
        background = {"background", *map(normalized_name, vocabulary.background)}
        if vocabulary.num_background and normalized_name(self._names[0]) not in background:
            raise ValueError(
                f"{self._dataset_name}: the vocabulary has a background, and the data set's first "
                f"class is {self._names[0]!r}; check MODEL.FREECP.VOCABULARY, or put that name "
                "among those of the background"
            )

    def reset(self) -> None:
        """Forget all images, and remove what `output_dir` has of an earlier evaluation."""
        self._forget()
        if self._records is None or self._output_dir is None:
            return
        if self._rank == 0:
            for name in RESULTS:
                (self._output_dir / name).unlink(missing_ok=True)
            self._records.begin(self._settings())
        self._open_journal(self._records)

    def resume(self) -> frozenset[str]:
        """Go on with the evaluation that `output_dir` has records of; begin where it has none.

        To be called by all ranks in place of :meth:`reset`, when :attr:`facts` are complete.

        Returns:
            The files of the images that were evaluated. Those that failed are not among them.

        Raises:
            ValueError: there is no `output_dir` or no `segment`, or the records are of another
                configuration, whose keys are named.
        """
        if self._records is None or self._segment is None:
            raise ValueError("to resume takes an output_dir, and segment for the report")
        settings = self._settings()
        former = self._from_main(self._records.settings)
        if former is None:
            self.reset()
            return frozenset()
        changed = differing_keys(former, settings)
        if changed:
            raise ValueError(
                f"{self._output_dir} holds an evaluation of another configuration "
                f"({', '.join(changed)}); leave out --resume to begin anew, or choose another "
                "OUTPUT_DIR"
            )
        self._forget()
        records = self._records
        done = self._from_main(lambda: self._count_former(records))
        self._open_journal(records)
        return done

    def _settings(self) -> dict[str, Any]:
        """What the records depend on."""
        predictions = self._category_ids is not None
        return {
            "data set": self._dataset_name,
            "--coco-predictions": predictions,
            **{f"TEST.{key}": asked for key, asked in self._details_asked().items() if asked},
            **label_settings(self.facts),
        }

    def _details_asked(self) -> dict[str, Any]:
        """TEST.PRESENCE and TEST.SEPARABILITY, as far as :attr:`facts` have them."""
        test = self.facts.get("config", {}).get("TEST", {})
        return {key: test.get(key) for key in ("PRESENCE", "SEPARABILITY")}

    def flush(self) -> None:
        """Close this rank's records, before the process ends without :meth:`evaluate`."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _forget(self) -> None:
        self._counts = Counts(np.zeros((len(self._names),) * 2, dtype=np.int64))
        self._best: list[tuple[float, str, bytes]] = []
        self._worst: list[tuple[float, str, bytes]] = []
        self._failed: dict[str, str] = {}
        self._seconds_before = Counter(self._stage_seconds())

    def _open_journal(self, records: Records) -> None:
        if self._distributed:
            comm.synchronize()  # rank 0 has made the folder
        self.flush()
        self._journal = records.journal(self._rank)

    def _count_former(self, records: Records) -> frozenset[str]:
        done = []
        for record in records.evaluated():
            if record["file_name"] in self._truth_files:
                self._add(record, None)
                done.append(record["file_name"])
        return frozenset(done)

    def _from_main(self, function: Callable[[], T]) -> T:
        return from_main(function) if self._distributed else function()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: dicts with `file_name`, and optionally what
                :func:`freecp_d2.data.mapper.ground_truth` gives, so that it is not read here.
            outputs: dicts with `label_map`, (H, W) of class ids, and optionally `scores`, (K,), one
                a class; or with `sem_seg`, (K, H, W), whose argmax is taken; H and W are the ground
                truth's. Optionally `kept_redundancy` and `kept`, (C,) bool, the classes that stayed
                after each stage, without a scored background; and `ambiguous_losses`, pairs of
                class ids (loser, winner). Optionally `presence`, `dependency` and `patches`, as
                :meth:`freecp_d2.FreeCP.segment` has them.

        Raises:
            ImageFault: the ground truth cannot be read, is of another size than the prediction, or
                holds an id that is no class. Others may be processed, see :meth:`fail`.
            ValueError: a prediction has another number of classes, or the image is none of the
                data set's.
        """
        since = self._seconds_since()
        for x, output in zip(inputs, outputs, strict=True):
            predicted = self._label_map(output)
            file = x["file_name"]
            truth = self._truth(x)
            confusion = self._confusion(file, predicted, truth)
            ignored = predicted.numel() - int(confusion.sum())
            kept, losses = self._purification(output)
            record = image_record(file, confusion, ignored, kept, losses, since)
            since = Counter()
            details = self._details(output, predicted, truth)
            if details:
                record["details"] = details
            if self._category_ids is not None:
                labels = predicted.cpu().numpy()
                record["segments"] = segments_of(x, labels, self._category_ids)
            self._add(record, predicted)
            if self._journal is not None:
                self._journal.add(record)

    def _seconds_since(self) -> Counter[str]:
        """Stage -> time since this was asked last."""
        before, self._seconds_before = self._seconds_before, Counter(self._stage_seconds())
        return Counter({stage: s - before[stage] for stage, s in self._seconds_before.items()})

    def fail(self, file: str, error: str) -> None:
        """Count an image as one that could not be evaluated; the figures are then incomplete.

        Args:
            file: the image's.
            error: why, in a sentence.
        """
        log.error("%s: %s", self._dataset_name, error)
        self._failed[file] = error
        if self._journal is not None:
            self._journal.add({"file_name": file, "error": error})

    def _add(self, record: Mapping[str, Any], labels: Tensor | None) -> None:
        """Count an image; without its label map it is segmented again where the report shows it."""
        self._counts.add(record)
        score = mean(class_ious(confusion_of(record, len(self._names))))
        if self._output_dir is not None and not np.isnan(score):
            self._remember(self._best, -score, record["file_name"], labels)
            self._remember(self._worst, score, record["file_name"], labels)

    def evaluate(self) -> OrderedDict | None:
        """Sum over all ranks and write the results.

        Images that failed are in `results`, and named in the log.

        Returns:
            On rank 0 {"sem_seg": {metric: percent}, "purification": {stage/metric: figure}}, the
            second only where the model said which classes stayed, and likewise "presence" and
            "separability"; None on the other ranks.

        Raises:
            FileNotFoundError: COCO predictions of another rank are not in this `output_dir`.
        """
        self.flush()
        self._counts.seconds.update(self._seconds_since())
        ranks = [(self._counts, self._best, self._worst, self._failed)]
        if self._distributed:
            comm.synchronize()
            ranks = comm.gather(ranks[0], dst=0)
            if not comm.is_main_process():
                return None
        total = Counts(np.zeros_like(self._counts.confusion))
        failed: dict[str, str] = {}
        for counts, _, _, errors in ranks:
            total += counts
            failed |= errors
        self.results = results = without_nan(self._results(total, failed))
        sem_seg = segmentation_metrics(total.confusion, self._names)
        if self._output_dir is not None:
            write_results(results, self._output_dir / "results.json")
            csv_text = _csv(results["classes"])
            write_whole(self._output_dir / "per_class.csv", csv_text.encode())
        log.info(
            f"{self._dataset_name}, {total.images} images: mIoU {sem_seg['mIoU']:.2f}; "
            f"Detectron2's, over the classes present: {sem_seg['mIoU-detectron2']:.2f}"
        )
        self._warn_of_absent_classes(total)
        self._say_failed(failed, total.images)
        if self._category_ids is not None and self._records is not None:
            self._write_predictions(self._records, total.images)
        if self._output_dir is not None:
            self._write_report(self._output_dir, ranks)
        flat = OrderedDict(sem_seg=sem_seg)
        if total.purified:
            flat["purification"] = {
                f"{stage}/{name}": value
                for stage, metrics in total.purification_metrics().items()
                for name, value in metrics.items()
            }
        for task in ("presence", "separability"):
            if task in results:
                flat[task] = {
                    f"{key}/{name}": float("nan") if value is None else value
                    for key, figures in results[task].items()
                    for name, value in figures.items()
                }
        return flat

    @property
    def _rank(self) -> int:
        return comm.get_rank() if self._distributed else 0

    def _label_map(self, output: dict) -> Tensor:
        if "label_map" in output:
            labels = output["label_map"]
            # Without a score a class, ids say at least how many there are.
            channels = int(labels.max()) + 1 if labels.numel() else 0
            channels = max(len(output.get("scores", self._names)), channels)
        else:
            labels = output["sem_seg"].argmax(dim=0)
            channels = len(output["sem_seg"])
        if channels != len(self._names):
            raise ValueError(
                f"{self._dataset_name}: the model predicts {channels} classes, the data set has "
                f"{len(self._names)}; check MODEL.FREECP.VOCABULARY"
            )
        return labels

    def _truth(self, x: Mapping[str, Any]) -> Tensor:
        """(H, W) ids of an image of the data set."""
        file = x["file_name"]
        path = self._truth_files.get(file)
        if path is None:
            raise ValueError(
                f"{file}: not an image of {self._dataset_name}; evaluate the images of one data set"
            )
        if "sem_seg" not in x and "sem_seg_fault" not in x:
            x = ground_truth(path)
        if "sem_seg_fault" in x:
            raise ImageFault(x["sem_seg_fault"])
        return x["sem_seg"]

    def _confusion(self, file: str, predicted: Tensor, truth: Tensor) -> np.ndarray:
        path = self._truth_files[file]
        if truth.shape != predicted.shape:
            raise ImageFault(
                f"{path}: the ground truth has size {tuple(truth.shape)}, the prediction "
                f"{tuple(predicted.shape)}; {_where_to_look(self._dataset_name)}"
            )
        try:
            return confusion_matrix(predicted, truth, len(self._names), self._ignore_label)
        except NoClass as error:
            ignored = "" if self._ignore_label is None else f" {self._ignore_label}"
            raise ImageFault(
                f"{path}: id {error.id} is neither one of the {len(self._names)} "
                f"classes nor ignore_label{ignored or ', which is not set'}; check the metadata of "
                f"{self._dataset_name}"
            ) from None

    def _purification(self, output: dict) -> tuple[dict[str, np.ndarray], list[tuple[int, int]]]:
        """Stage -> (C,) bool, the classes that stayed after it; and pairs of class ids."""
        kept = {stage: output[key].cpu().numpy() for stage, key in STAGES.items() if key in output}
        if not kept:
            return {}, []
        classes = len(next(iter(kept.values())))
        background = len(self._names) - classes
        if background not in (0, 1):
            raise ValueError(
                f"{self._dataset_name}: the model has purified {classes} classes, the data set has "
                f"{len(self._names)}; check MODEL.FREECP.VOCABULARY"
            )
        losses = output.get("ambiguous_losses", ())
        return kept, [(a + background, b + background) for a, b in losses]

    def _details(self, output: dict, predicted: Tensor, truth: Tensor) -> dict[str, Any]:
        """What :mod:`.recognition` reads of an image; nothing where the model was not asked."""
        details: dict[str, Any] = {}
        if "presence" in output:
            background = len(self._names) - len(next(iter(output["presence"].values())))
            details["presence"] = {
                score: [round(value, 7) for value in values.tolist()]
                for score, values in output["presence"].items()
            }
            if "dependency" in output:
                ids, matrix = output["dependency"]
                rows = [[round(value, 6) for value in row] for row in matrix.tolist()]
                details["dependency"] = [(ids + background).tolist(), rows]
        if "patches" in output:
            classes = len(self._names)
            truth = truth.masked_fill(truth == self._ignore_label, classes)
            details["silhouettes"] = silhouettes(output["patches"], truth, predicted, classes)
        return details

    def _remember(
        self,
        entries: list[tuple[float, str, bytes]],
        key: float,
        file: str,
        labels: Tensor | None,
    ) -> None:
        """Keep the label map while it is among the first by `key`, then file name."""
        if len(entries) < self._pictures or (key, file) < entries[-1][:2]:
            insort(entries, (key, file, b"" if labels is None else self._png(labels)))
            del entries[self._pictures :]

    def _png(self, labels: Tensor) -> bytes:
        png = io.BytesIO()
        dtype = np.uint8 if len(self._names) <= 256 else np.uint16
        image = Image.fromarray(labels.cpu().numpy().astype(dtype))
        image.save(png, "PNG", compress_level=1)
        return png.getvalue()

    def _example(self, score: float, file: str, png: bytes) -> Example:
        if png:
            with Image.open(io.BytesIO(png)) as image:
                predicted = torch.from_numpy(np.array(image, dtype=int))
        else:
            assert self._segment is not None  # resume() has seen to it
            predicted = self._segment({"file_name": file}).cpu()
        truth = self._truth({"file_name": file})
        shown = file, truth.numpy(), predicted.numpy(), 100 * score
        if self._segment_base is None:
            return Example(*shown)
        base = self._segment_base({"file_name": file}).cpu()
        iou = mean(class_ious(self._confusion(file, base, truth)))
        return Example(*shown, base.numpy(), 100 * iou)

    def _write_report(self, folder: Path, ranks: Sequence[tuple]) -> None:
        best = sorted(entry for _, entries, _, _ in ranks for entry in entries)[: self._pictures]
        worst = sorted(entry for _, _, entries, _ in ranks for entry in entries)[: self._pictures]
        try:
            write_report(
                folder / "report.html",
                self.results,
                self._base,
                self._palette,
                best=[self._example(-score, file, png) for score, file, png in best],
                worst=[self._example(*entry) for entry in worst],
            )
        except Exception as error:  # whatever it is, the figures are right and must not be lost
            log.error(
                "%s: the report could not be drawn (%s: %s); all figures are in %s",
                self._dataset_name,
                type(error).__name__,
                " ".join(printable(str(error)).split()),
                folder / "results.json",
            )

    def _write_predictions(self, records: Records, images: int) -> None:
        """COCO's segments of all images, from the records, in the order of the data set."""
        number = 0

        def segments() -> Iterator[dict[str, Any]]:
            nonlocal number
            for record in records.in_order(list(self._truth_files)):
                number += 1
                yield from record["segments"]

        path = records.folder.with_name("sem_seg_predictions.json")
        write_segments(path, segments())
        if number != images:
            path.unlink()
            raise FileNotFoundError(
                f"{records.folder} has {number} of {images} images; COCO predictions need an "
                "OUTPUT_DIR that all machines share"
            )

    def _say_failed(self, failed: Mapping[str, str], images: int) -> None:
        if failed:
            log.error(
                "%s: INCOMPLETE, %d of %d images could not be evaluated: %s",
                *(self._dataset_name, len(failed), len(failed) + images, _listed(sorted(failed))),
            )

    def _warn_of_absent_classes(self, total: Counts) -> None:
        absent = self._absent(total)
        if absent:
            advice = ""
            if total.ignored:
                advice = (
                    f"; {total.ignored} pixels have the ignore_label {self._ignore_label}: if they "
                    "are objects, as in masks of 0 and 255, give them a class id"
                )
            log.warning(
                "%s: %d of %d classes have no ground-truth pixel (%s)%s",
                self._dataset_name,
                len(absent),
                len(self._names),
                printable(", ".join(absent)),
                advice,
            )

    def _absent(self, total: Counts) -> list[str]:
        pixels = total.confusion.sum(axis=0).tolist()
        return [key for key, count in zip(self._names, pixels, strict=True) if not count]

    def _results(self, total: Counts, failed: Mapping[str, str]) -> dict[str, Any]:
        figures = segmentation_metrics(total.confusion, self._names)
        results = {
            "dataset": self._dataset_name,
            **self.facts,
            "images": total.images,
            **({"failed": dict(sorted(failed.items()))} if failed else {}),
            "ignored_pixels": total.ignored,
            "absent_classes": self._absent(total),
            "label_maps_as_published": self._metadata.get("label_maps_as_published"),
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
                for index, name in enumerate(self._names)
            ],
            "seconds_per_image": {
                stage: seconds / max(total.images, 1) for stage, seconds in total.seconds.items()
            },
        }
        results["confusions"] = worst_confusions(total.confusion, self._names, MOST_CONFUSIONS)
        if total.purified:
            results["purification"] = total.purification_metrics()
            results["ambiguous_losses"] = total.resolved(self._names)
        return results | self._detailed_results(total, results["classes"])

    def _detailed_results(self, total: Counts, classes: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Of presence and separability, as far as the model was asked; `classes` get columns."""
        results: dict[str, Any] = {}
        details = sorted(total.details, key=lambda of_image: of_image["file_name"])
        if not details:
            return results
        columns: dict[str, Sequence[float]] = {}
        if "presence" in details[0]:
            thresholds = presence_thresholds(self.facts.get("config", {}))
            results["presence"], of_classes = presence_results(
                details, len(self._names), thresholds
            )
            columns |= {f"AP {score}": values for score, values in of_classes.items()}
            if "erasing" in of_classes:
                results["dependency"] = dependency_results(details, self._names)
        if "silhouettes" in details[0]:
            results["separability"], of_classes = separability_results(details, len(self._names))
            columns |= {f"silhouette {key}": values for key, values in of_classes.items()}
        for column, values in columns.items():
            for entry, value in zip(classes, values, strict=True):
                entry[column] = value
        return results

    def _load_names(self) -> list[str]:
        names = list(self._metadata.get("stuff_classes") or ())
        if not names:
            raise ValueError(
                f"{self._dataset_name}: no stuff_classes in its metadata; register it with the "
                "names of its classes"
            )
        ids: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            ids.setdefault(name, []).append(index)
        twice = {name: indices for name, indices in ids.items() if len(indices) > 1}
        if twice:
            log.warning(
                "%s: several classes have one name (%s); each is evaluated as a class of its own, "
                "but a model that goes by names cannot tell them apart",
                self._dataset_name,
                printable("; ".join(f"{name}: ids {str(i)[1:-1]}" for name, i in twice.items())),
            )
        return distinct_names(names)

    def _load_truth_files(self, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Image file -> file of its ground truth."""
        if not records:
            raise ValueError(f"{self._dataset_name}: it has no images; check how it is registered")
        truths: dict[str, str] = {}
        for index, record in enumerate(records):
            lacking = [key for key in ("file_name", "sem_seg_file_name") if not record.get(key)]
            if lacking:
                raise ValueError(
                    f"{self._dataset_name}: image {record.get('file_name') or index + 1} has no "
                    f"{lacking[0]}; register each image with its label map"
                )
            file = record["file_name"]
            if file in truths:
                raise ValueError(
                    f"{self._dataset_name}: {file} is in two records, with the label maps "
                    f"{truths[file]} and {record['sem_seg_file_name']}; register each image once, "
                    "or a copy under another name"
                )
            truths[file] = record["sem_seg_file_name"]
        missing = [file for file in truths.values() if not os.path.isfile(file)]
        if missing:
            raise FileNotFoundError(
                f"{self._dataset_name}: {len(missing)} of {len(truths)} ground-truth files are "
                f"missing, the first is {missing[0]}; check the data set's root "
                "(DETECTRON2_DATASETS)"
            )
        return truths

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
        if [entry.get("name") for entry in base["classes"]] != self._names:
            raise ValueError(
                f"{path}: its classes are not those of {self._dataset_name}; evaluate the base "
                "method anew"
            )
        if base["images"] != len(self._truth_files):
            raise ValueError(
                f"{path}: results on {base['images']} images, and {self._dataset_name} has "
                f"{len(self._truth_files)}; evaluate the base method anew"
            )
        lacking = [name for name in METRICS if name not in base["metrics"]]
        if lacking:
            raise ValueError(f"{path}: it has no {lacking[0]}; evaluate the base method anew")
        return base


def require_registered(dataset_name: str) -> None:
    """See that a data set is in Detectron2's catalogs.

    Raises:
        ValueError: it is not.
    """
    known = DatasetCatalog.list()
    if dataset_name not in known:
        close = difflib.get_close_matches(dataset_name, known)
        raise ValueError(
            f"there is no data set {dataset_name!r}"
            + (f"; did you mean {' or '.join(close)}?" if close else "; register it first")
            + " (train_net.py --register runs a file that registers one)"
        )


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return printable(", ".join(names[:5])) + more


def _where_to_look(dataset_name: str) -> str:
    """What to do about images and label maps that do not belong together."""
    for benchmark in BENCHMARKS.values():
        if benchmark.dataset == dataset_name:
            command = f"python -m freecp_d2.data.prepare {benchmark.name} --verify"
            return f"{command} names all such images"
    return "check the data set's height and width"


def _csv(classes: list[dict[str, Any]]) -> str:
    """A line a class, None as an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(classes[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**entry, "name": printable(entry["name"])} for entry in classes)
    return text.getvalue()
