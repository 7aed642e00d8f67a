"""Evaluation against ground-truth label maps, its report, and the paper's figures beside it."""

from .hook import SemSegEvalHook
from .sem_seg import FreeCPSemSegEvaluator, load_label_map

__all__ = ["FreeCPSemSegEvaluator", "SemSegEvalHook", "load_label_map"]
