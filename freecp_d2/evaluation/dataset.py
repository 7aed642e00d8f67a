"""What an evaluation knows of a data set in Detectron2's catalogs."""

import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from ..data import Vocabulary, normalized_name
from ..data.benchmarks.layout import BENCHMARKS
from ..data.mapper import ground_truth
from .metrics import NoClass, confusion_matrix, distinct_names
from .results import METRICS, listed, load_results, printable

log = logging.getLogger(__name__)


class ImageFault(ValueError):
    """An image, or its ground truth, is broken; others may be evaluated."""


@dataclass(frozen=True)
class SemSegDataset:
    """A data set with ground-truth label maps (:func:`load_dataset`).

    Attributes:
        name: in Detectron2's catalogs.
        class_names: one a class, each once (:func:`.metrics.distinct_names`).
        ignore_label: None: every pixel counts.
        truth_files: image file -> file of its label map, in the order of the data set.
        label_maps_as_published: None where the metadata do not say.
    """

    name: str
    class_names: Sequence[str]
    ignore_label: int | None
    truth_files: Mapping[str, str]
    label_maps_as_published: bool | None

    def check_vocabulary(self, vocabulary: Vocabulary) -> None:
        """See that a model with these classes can be evaluated here, before it segments anything.

        Raises:
            ValueError: they are more or fewer than the data set has, or they have a background
                that the data set has not.
        """
        classes, names = vocabulary.class_names, self.class_names
        if len(classes) != len(names):
            raise ValueError(
                f"{self.name}: the vocabulary has {len(classes)} classes ({listed(classes)}), the "
                f"data set has {len(names)} ({listed(names)}); check MODEL.FREECP.VOCABULARY and "
                "BACKGROUND"
            )
        background = {"background", *map(normalized_name, vocabulary.background)}
        if vocabulary.num_background and normalized_name(names[0]) not in background:
            raise ValueError(
                f"{self.name}: the vocabulary has a background, and the data set's first class is "
                f"{names[0]!r}; check MODEL.FREECP.VOCABULARY, or put that name among those of "
                "the background"
            )

    def truth(self, image: Mapping[str, Any]) -> Tensor:
        """The ground truth of an image, (H, W) integers, class ids or `ignore_label`.

        Args:
            image: `file_name`, and optionally what :func:`freecp_d2.data.mapper.ground_truth`
                gives, so that it is not read here.

        Raises:
            ImageFault: it cannot be read.
            ValueError: the image is none of the data set's.
        """
        file = image["file_name"]
        path = self.truth_files.get(file)
        if path is None:
            raise ValueError(
                f"{file}: not an image of {self.name}; evaluate the images of one data set"
            )
        if "sem_seg" not in image and "sem_seg_fault" not in image:
            image = ground_truth(path)
        if "sem_seg_fault" in image:
            raise ImageFault(image["sem_seg_fault"])
        return image["sem_seg"]

    def confusion(self, file: str, predicted: Tensor, truth: Tensor) -> np.ndarray:
        """(K, K) int64, see :func:`.metrics.confusion_matrix`.

        Args:
            file: the image's.
            predicted: (H, W) integers, class ids.
            truth: (H, W), of :meth:`truth`.

        Raises:
            ImageFault: the sizes differ, or `truth` holds an id that is no class.
        """
        path = self.truth_files[file]
        if truth.shape != predicted.shape:
            raise ImageFault(
                f"{path}: the ground truth has size {tuple(truth.shape)}, the prediction "
                f"{tuple(predicted.shape)}; {_where_to_look(self.name)}"
            )
        try:
            return confusion_matrix(predicted, truth, len(self.class_names), self.ignore_label)
        except NoClass as error:
            ignored = "" if self.ignore_label is None else f" {self.ignore_label}"
            raise ImageFault(
                f"{path}: id {error.id} is neither one of the {len(self.class_names)} "
                f"classes nor ignore_label{ignored or ', which is not set'}; check the metadata of "
                f"{self.name}"
            ) from None


def load_dataset(name: str) -> SemSegDataset:
    """Read a data set of Detectron2's catalogs.

    Raises:
        FileNotFoundError: ground-truth files are missing.
        ValueError: there is no such data set; it has no images or no classes; an image has no
            ground truth, or is in two records.
    """
    require_registered(name)
    records = DatasetCatalog.get(name)  # some set their metadata only now
    metadata = MetadataCatalog.get(name)
    class_names = _class_names(name, metadata.get("stuff_classes") or ())
    ignore_label = metadata.get("ignore_label")
    if ignore_label is None:
        log.info("%s has no ignore_label: every pixel counts", name)
    return SemSegDataset(
        name,
        class_names,
        ignore_label,
        _truth_files(name, records),
        metadata.get("label_maps_as_published"),
    )


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


def category_ids(dataset: SemSegDataset) -> dict[int, int]:
    """Class id -> the data set's own category id; itself where the metadata have none.

    Raises:
        ValueError: the metadata have those of other classes only.
    """
    contiguous = MetadataCatalog.get(dataset.name).get(
        "stuff_dataset_id_to_contiguous_id", {i: i for i in range(len(dataset.class_names))}
    )
    ids = {index: category for category, index in contiguous.items()}
    lacking = [name for index, name in enumerate(dataset.class_names) if index not in ids]
    if lacking:
        raise ValueError(
            f"{dataset.name}: stuff_dataset_id_to_contiguous_id has no id of "
            f"{lacking[0]!r}; register the data set with one for every class"
        )
    return ids


def load_base(path: str | os.PathLike, dataset: SemSegDataset) -> dict[str, Any]:
    """The results.json of the base method on the same data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, of another data set, other classes or fewer images, or it
            lacks a figure.
    """
    base = load_results(path)
    if base["dataset"] != dataset.name:
        raise ValueError(
            f"{path}: results on {base['dataset']}, not on {dataset.name}; compare "
            "results on one data set"
        )
    if [entry.get("name") for entry in base["classes"]] != list(dataset.class_names):
        raise ValueError(
            f"{path}: its classes are not those of {dataset.name}; evaluate the base method anew"
        )
    if base["images"] != len(dataset.truth_files):
        raise ValueError(
            f"{path}: results on {base['images']} images, and {dataset.name} has "
            f"{len(dataset.truth_files)}; evaluate the base method anew"
        )
    lacking = [name for name in METRICS if name not in base["metrics"]]
    if lacking:
        raise ValueError(f"{path}: it has no {lacking[0]}; evaluate the base method anew")
    return base


def _class_names(dataset_name: str, given: Sequence[str]) -> list[str]:
    if not given:
        raise ValueError(
            f"{dataset_name}: no stuff_classes in its metadata; register it with the "
            "names of its classes"
        )
    ids: dict[str, list[int]] = {}
    for index, name in enumerate(given):
        ids.setdefault(name, []).append(index)
    twice = {name: indices for name, indices in ids.items() if len(indices) > 1}
    if twice:
        log.warning(
            "%s: several classes have one name (%s); each is evaluated as a class of its own, "
            "but a model that goes by names cannot tell them apart",
            dataset_name,
            printable("; ".join(f"{name}: ids {str(i)[1:-1]}" for name, i in twice.items())),
        )
    return distinct_names(given)


def _truth_files(dataset_name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if not records:
        raise ValueError(f"{dataset_name}: it has no images; check how it is registered")
    truths: dict[str, str] = {}
    for index, record in enumerate(records):
        lacking = [key for key in ("file_name", "sem_seg_file_name") if not record.get(key)]
        if lacking:
            raise ValueError(
                f"{dataset_name}: image {record.get('file_name') or index + 1} has no "
                f"{lacking[0]}; register each image with its label map"
            )
        file = record["file_name"]
        if file in truths:
            raise ValueError(
                f"{dataset_name}: {file} is in two records, with the label maps "
                f"{truths[file]} and {record['sem_seg_file_name']}; register each image once, "
                "or a copy under another name"
            )
        truths[file] = record["sem_seg_file_name"]
    missing = [file for file in truths.values() if not os.path.isfile(file)]
    if missing:
        raise FileNotFoundError(
            f"{dataset_name}: {len(missing)} of {len(truths)} ground-truth files are "
            f"missing, the first is {missing[0]}; check the data set's root "
            "(DETECTRON2_DATASETS)"
        )
    return truths


def _where_to_look(dataset_name: str) -> str:
    """What to do about images and label maps that do not belong together."""
    for benchmark in BENCHMARKS.values():
        if benchmark.dataset == dataset_name:
            command = f"python -m freecp_d2.data.prepare {benchmark.name} --verify"
            return f"{command} names all such images"
    return "check the data set's height and width"
