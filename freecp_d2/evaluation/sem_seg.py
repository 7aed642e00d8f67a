"""A Detectron2 evaluator with the mean IoU that the field publishes, and of the purification."""

import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from ..data import Vocabulary
from ..distributed import from_main
from ..files import require_writable, write_whole
from ..journal import Journal
from .coco import write_predictions
from .dataset import category_ids, load_base, load_dataset
from .examples import Extremes, Segment, examples_of
from .facts import differing_keys, evaluation_settings
from .metrics import Counts, class_ious, mean
from .outputs import label_map_of, record_of
from .records import RECORDS, Records, confusion_of
from .report import palette_of, write_report
from .results import printable, write_results
from .summary import log_summary, per_class_csv, summarize, task_metrics

RESULTS = "results.json", "per_class.csv", "report.html", "sem_seg_predictions.json"
"""What an evaluation writes, beside its records."""
log = logging.getLogger(__name__)
T = TypeVar("T")


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
        segment: Segment | None = None,
        segment_base: Segment | None = None,
        pictures: int = 5,
    ):
        if coco_predictions and output_dir is None:
            raise ValueError("coco_predictions needs an output_dir to write them to")
        self.facts = dict(facts or {})
        self._distributed = distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._stage_seconds = stage_seconds
        self._segment = segment
        self._segment_base = segment_base
        self._pictures = pictures
        self._dataset = load_dataset(dataset_name)
        self._category_ids = category_ids(self._dataset) if coco_predictions else None
        self._base = None if compare_with is None else load_base(compare_with, self._dataset)
        self._records: Records | None = None
        self._journal: Journal | None = None
        if self._output_dir is not None:
            self._palette = palette_of(MetadataCatalog.get(dataset_name))
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
        self._dataset.check_vocabulary(vocabulary)

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
        coco_predictions = self._category_ids is not None
        name, ignore_label = self._dataset.name, self._dataset.ignore_label
        return evaluation_settings(name, ignore_label, coco_predictions, self.facts)

    def flush(self) -> None:
        """Close this rank's records, before the process ends without :meth:`evaluate`."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _forget(self) -> None:
        self._counts, self._extremes = self._nothing()
        self._failed: dict[str, str] = {}
        self._seconds_before = Counter(self._stage_seconds())

    def _nothing(self) -> tuple[Counts, Extremes]:
        classes = len(self._dataset.class_names)
        counts = Counts(np.zeros((classes, classes), dtype=np.int64))
        return counts, Extremes(self._pictures, classes)

    def _open_journal(self, records: Records) -> None:
        if self._distributed:
            comm.synchronize()  # rank 0 has made the folder
        self.flush()
        self._journal = records.journal(self._rank)

    def _count_former(self, records: Records) -> frozenset[str]:
        done = []
        for record in records.evaluated():
            if record["file_name"] in self._dataset.truth_files:
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
            freecp_d2.evaluation.dataset.ImageFault: the ground truth cannot be read, is of another
                size than the prediction, or holds an id that is no class. Others may be processed,
                see :meth:`fail`.
            ValueError: a prediction has another number of classes, or the image is none of the
                data set's.
        """
        for x, output in zip(inputs, outputs, strict=True):
            predicted = label_map_of(output, self._dataset)
            record = record_of(x, output, predicted, self._dataset, self._category_ids)
            record["seconds"] = self._seconds_since()  # also those of images that failed before it
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
        log.error("%s: %s", self._dataset.name, error)
        self._failed[file] = error
        if self._journal is not None:
            self._journal.add({"file_name": file, "error": error})

    def _add(self, record: Mapping[str, Any], labels: Tensor | None) -> None:
        """Count an image; without its label map it is segmented again where the report shows it."""
        self._counts.add(record)
        score = mean(class_ious(confusion_of(record, len(self._dataset.class_names))))
        if self._output_dir is not None and not np.isnan(score):
            self._extremes.add(record["file_name"], score, labels)

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
        ranks = [(self._counts, self._extremes, self._failed)]
        if self._distributed:
            comm.synchronize()
            ranks = comm.gather(ranks[0], dst=0)
            if not comm.is_main_process():
                return None
        total, extremes = self._nothing()
        failed: dict[str, str] = {}
        for counts, of_rank, errors in ranks:
            total += counts
            extremes += of_rank
            failed |= errors
        self.results = summarize(total, self._dataset, self.facts, failed)
        tasks = task_metrics(total, self.results, self._dataset.class_names)
        folder, records = self._output_dir, self._records
        if folder is not None:
            write_results(self.results, folder / "results.json")
            write_whole(folder / "per_class.csv", per_class_csv(self.results["classes"]).encode())
        log_summary(tasks["sem_seg"], total, self._dataset, failed)
        if records is not None and self._category_ids is not None:
            path = records.folder.with_name("sem_seg_predictions.json")
            write_predictions(path, records, list(self._dataset.truth_files), total.images)
        if folder is not None:
            self._write_report(folder, extremes)
        return tasks

    @property
    def _rank(self) -> int:
        return comm.get_rank() if self._distributed else 0

    def _write_report(self, folder: Path, extremes: Extremes) -> None:
        try:
            write_report(
                folder / "report.html",
                self.results,
                self._base,
                self._palette,
                *examples_of(extremes, self._dataset, self._segment, self._segment_base),
            )
        except Exception as error:  # whatever it is, the figures are right and must not be lost
            log.error(
                "%s: the report could not be drawn (%s: %s); all figures are in %s",
                self._dataset.name,
                type(error).__name__,
                " ".join(printable(str(error)).split()),
                folder / "results.json",
            )
