"""Evaluation against ground-truth label maps, its report, and the paper's figures beside it."""

from ..data.mapper import load_label_map
from .hook import SemSegEvalHook
from .sem_seg import FreeCPSemSegEvaluator

__all__ = ["FreeCPSemSegEvaluator", "SemSegEvalHook", "load_label_map"]
