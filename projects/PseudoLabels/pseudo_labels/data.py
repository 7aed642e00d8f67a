"""Labels of FreeCP on their way from the catalogs to the student."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from freecp_d2.evaluation import load_label_map


class PseudoLabelMapper(DatasetMapper):
    """Detectron2's mapper with label maps of any number of classes, and with confidences.

    Images are read and augmented by Detectron2's own functions; labels and confidences go through
    the same geometric transforms, by nearest neighbour.

    Args:
        is_train: False: the image alone, at the size of the test.
        num_classes, ignore_value: a label is one of the classes or this value.
        with_scores: give `scores`, too.
        options: of Detectron2's mapper.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        num_classes: int,
        ignore_value: int,
        with_scores: bool,
        **options: Any,
    ):
        super().__init__(is_train, **options)
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.with_scores = with_scores

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """The constructor's arguments from a config."""
        return {
            **super().from_config(cfg, is_train),
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "with_scores": cfg.PSEUDO_LABELS.CONFIDENCE_WEIGHTED,
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """A copy of `dataset_dict` with what the model takes.

        Returns:
            `image`, (3, H, W) uint8; in training also `sem_seg`, (H, W) int64, and `scores`,
            (H, W) float32, 0 to 1.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: one cannot be read, has another size than the image, or a label is no class.
        """
        record = copy.deepcopy(dataset_dict)
        label_file = record.pop("sem_seg_file_name", None)
        score_file = record.pop("scores_file_name", None)
        image = utils.read_image(record["file_name"], format=self.image_format)
        utils.check_image_size(record, image)
        augmented = T.AugInput(image)
        if self.is_train:
            augmented.sem_seg = self._read_labels(label_file, image.shape[:2])
        transforms = self.augmentations(augmented)
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        record["image"] = torch.from_numpy(pixels)
        if self.is_train:
            record["sem_seg"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
            if self.with_scores:
                scores = transforms.apply_segmentation(_read(score_file, image.shape[:2], np.uint8))
                record["scores"] = torch.from_numpy(scores.astype(np.float32) / 255)
        return record

    def _read_labels(self, path: str, size: tuple[int, int]) -> np.ndarray:
        # Detectron2 resizes bytes and floats only; all ids of 16 bits are floats, too.
        labels = _read(path, size, np.uint8 if self.ignore_value < 256 else np.float32)
        strange = (labels >= self.num_classes) & (labels != self.ignore_value)
        if strange.any():
            raise ValueError(
                f"{path}: label {labels[strange][0]:.0f} is neither one of the {self.num_classes} "
                f"classes nor {self.ignore_value}, which is ignored; label the image anew"
            )
        return labels


def _read(path: str, size: tuple[int, int], dtype: type) -> np.ndarray:
    values = load_label_map(path, dtype)
    if values.shape != size:
        raise ValueError(
            f"{path}: it has size {values.shape}, its image {size}; label the image anew"
        )
    return values


def check_labels(cfg: CfgNode) -> None:
    """See that the labels of DATASETS.TRAIN, the model and DATASETS.TEST belong together.

    Raises:
        ValueError: there is not one data set each; they differ in their classes; the model has
            another number of classes or ignores another value; or there are no confidences, and
            the loss wants them.
    """
    train, test = (_only_one(cfg, key) for key in ("TRAIN", "TEST"))
    records = DatasetCatalog.get(train)
    metadata = MetadataCatalog.get(train)
    classes = list(metadata.stuff_classes)
    head = cfg.MODEL.SEM_SEG_HEAD
    if head.NUM_CLASSES != len(classes):
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}, but {train} has labels of "
            f"{len(classes)} classes; set it to {len(classes)}"
        )
    if head.IGNORE_VALUE != metadata.ignore_label:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}, but the labels of {train} "
            f"are ignored where they are {metadata.ignore_label}; set it to that"
        )
    DatasetCatalog.get(test)  # some set their metadata only now
    fault = _difference(classes, list(MetadataCatalog.get(test).stuff_classes))
    if fault:
        raise ValueError(
            f"{train} and {test} differ in their classes: {fault}; label with the words of {test}, "
            "in its order"
        )
    if cfg.PSEUDO_LABELS.CONFIDENCE_WEIGHTED:
        without = [x["file_name"] for x in records if "scores_file_name" not in x]
        if without:
            raise ValueError(
                f"PSEUDO_LABELS.CONFIDENCE_WEIGHTED is True, but {len(without)} of {len(records)} "
                f"images of {train} have no scores, such as {without[0]}; label them with --scores"
            )


def _only_one(cfg: CfgNode, key: str) -> str:
    names = cfg.DATASETS[key]
    if len(names) != 1:
        raise ValueError(f"DATASETS.{key} is {tuple(names)}; name one data set")
    return names[0]


def _difference(ours: Sequence[str], theirs: Sequence[str]) -> str | None:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)}"
    pairs = zip(ours, theirs, strict=True)
    return next((f"class {i} is {a!r} and {b!r}" for i, (a, b) in enumerate(pairs) if a != b), None)
