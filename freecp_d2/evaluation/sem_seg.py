"""Detectron2's semantic segmentation evaluator with the mean IoU that the field publishes."""

import os
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils.file_io import PathManager

from ..data.mapper import open_image


def load_label_map(path: str | os.PathLike, dtype: type = int) -> np.ndarray:
    """Read a label map, of 8 or 16 bits or a palette's indices, as a writable (H, W) array.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is corrupt, or has several channels.
    """
    with open_image(path) as image:
        labels: np.ndarray = np.array(image, dtype=dtype)
    if labels.ndim != 2:
        raise ValueError(
            f"{path}: shape {labels.shape}; a label map has one channel of class ids, so convert it"
        )
    return labels


class MeanIoUEvaluator(SemSegEvaluator):
    """Detectron2's `SemSegEvaluator`, whose `mIoU` counts predicted but absent classes as 0.

    IoU = TP / (GT + predicted - TP) over the whole set, not counting ignored pixels; its mean is
    over the classes whose denominator is not 0. That is what the paper's figures are. Detectron2's
    mean, over the classes present in the ground truth, is kept as `mIoU-detectron2`.

    Args:
        dataset_name, distributed, output_dir: as Detectron2's.
        sem_seg_loading_fn: (file name, dtype=) -> (H, W) array of class ids.
        boundary_iou: compute boundary IoU too, as slowly as Detectron2 does.

    Raises:
        FileNotFoundError: ground-truth files are missing.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        sem_seg_loading_fn: Callable[..., np.ndarray] = load_label_map,
        boundary_iou: bool = False,
    ):
        super().__init__(
            dataset_name,
            distributed,
            output_dir,
            sem_seg_loading_fn=self._load_ground_truth,
        )
        self._read_label_map = sem_seg_loading_fn
        if not boundary_iou:
            self._compute_boundary_iou = False
        files = self.input_file_to_gt_file.values()
        missing = [file for file in files if not PathManager.isfile(file)]
        if missing:
            raise FileNotFoundError(
                f"{dataset_name}: {len(missing)} of {len(files)} ground-truth files are missing, "
                f"the first is {missing[0]}; check the data set's root (DETECTRON2_DATASETS)"
            )

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of a batch.

        Args:
            inputs: dicts with `file_name`.
            outputs: dicts with `sem_seg`, (K, H, W), the size of the ground truth.

        Raises:
            ValueError: K is not the data set's number of classes, or the ground truth cannot be
                read, has another size, or holds an id that is no class.
        """
        for x, output in zip(inputs, outputs, strict=True):
            channels, *self._size = output["sem_seg"].shape
            if channels != self._num_classes:
                raise ValueError(
                    f"{self._dataset_name}: the model predicts {channels} classes, the data set "
                    f"has {self._num_classes}; check MODEL.FREECP.VOCABULARY"
                )
            super().process([x], [output])

    def evaluate(self) -> OrderedDict | None:
        """Sum over all ranks and write the results.

        Returns:
            {"sem_seg": {metric: percent}} on rank 0, None on the others.
        """
        results = super().evaluate()
        if results is None:
            return None
        confusion = self._conf_matrix[:-1, :-1]
        hits = confusion.diagonal()
        union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
        seen = union > 0
        miou = 100 * np.mean(hits[seen] / union[seen]) if seen.any() else np.nan
        theirs = {key: float(value) for key, value in results["sem_seg"].items()}
        sem_seg = {"mIoU": float(miou), "mIoU-detectron2": theirs.pop("mIoU"), **theirs}
        self._logger.info(
            f"mIoU {sem_seg['mIoU']:.2f} over the {seen.sum()} classes present or predicted; "
            f"Detectron2's, over those present: {sem_seg['mIoU-detectron2']:.2f}"
        )
        if self._output_dir:
            # Detectron2 has just written it with the other mIoU.
            _save(sem_seg, os.path.join(self._output_dir, "sem_seg_evaluation.pth"))
        return OrderedDict(sem_seg=sem_seg)

    def _load_ground_truth(self, path: str, dtype: type) -> np.ndarray:
        labels = self._read_label_map(path, dtype=dtype)
        if list(labels.shape) != self._size:
            raise ValueError(
                f"{path}: the ground truth has size {labels.shape}, the prediction "
                f"{tuple(self._size)}; check the data set's height and width"
            )
        no_class = (labels != self._ignore_label) & ((labels < 0) | (labels >= self._num_classes))
        if no_class.any():
            raise ValueError(
                f"{path}: id {labels[no_class][0]} is neither one of the {self._num_classes} "
                f"classes nor ignore_label {self._ignore_label}; check the metadata of "
                f"{self._dataset_name}"
            )
        return labels


def _save(results: dict, path: str) -> None:
    torch.save(results, f"{path}.part")
    os.replace(f"{path}.part", path)
