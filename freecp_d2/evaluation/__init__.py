"""Evaluation against ground-truth label maps."""

from .sem_seg import MeanIoUEvaluator, load_label_map

__all__ = ["MeanIoUEvaluator", "load_label_map"]
