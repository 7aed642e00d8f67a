"""Evaluation of a semantic segmentation model while Detectron2 trains."""

import math
from collections.abc import Iterable

from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from torch import nn

from .sem_seg import FreeCPSemSegEvaluator


class SemSegEvalHook(EvalHook):
    """Evaluates a model every `period` iterations and after training.

    The figures go to the trainer's EventStorage as `prefix`/task/metric, such as
    freecp/sem_seg/mIoU; what is NaN is not logged. The model may be the trained one, a
    :class:`freecp_d2.FreeCP`, or a FreeCP around a CLIP that is being trained; its text features
    stay those of its last `set_vocabulary`. Every rank must have the hook, with its own share of
    the images in `data_loader` (Detectron2's `build_detection_test_loader` sees to that).

    Args:
        period: in iterations; 0: after training only.
        model: takes and returns Detectron2's dicts.
        data_loader: of batches of such dicts; it has a length.
        evaluator: such as :class:`freecp_d2.evaluation.FreeCPSemSegEvaluator`.
        prefix: of the names of the figures.

    A `vocabulary` of the model with more or fewer classes than the evaluator's data set is a
    ValueError before an image is segmented.
    """

    def __init__(
        self,
        period: int,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        evaluator: DatasetEvaluator,
        prefix: str = "freecp",
    ):
        super().__init__(period, self._evaluate)
        self._model = model
        self._data_loader = data_loader
        self._evaluator = evaluator
        self._prefix = prefix

    def _evaluate(self) -> dict[str, dict[str, float]]:
        vocabulary = getattr(self._model, "vocabulary", None)
        if vocabulary is not None and isinstance(self._evaluator, FreeCPSemSegEvaluator):
            self._evaluator.check_vocabulary(vocabulary)
        # Detectron2 gives the mode of the model to all its modules, and these may differ.
        training = [(module, module.training) for module in self._model.modules()]
        try:
            results = inference_on_dataset(self._model, self._data_loader, self._evaluator)
        finally:
            for module, mode in training:
                module.training = mode
        return {
            f"{self._prefix}/{task}": {k: v for k, v in metrics.items() if not math.isnan(v)}
            for task, metrics in results.items()
        }
