"""Train Detectron2's semantic segmentation models on labels that FreeCP has given."""

from .config import add_pseudo_labels_config, load_student_config
from .data import PseudoLabelMapper, check_labels
from .losses import region_means, relation_loss, weighted_cross_entropy
from .segmentor import PseudoLabelSegmentor
from .teacher import teacher_metrics, text_features

__all__ = [
    "PseudoLabelMapper",
    "PseudoLabelSegmentor",
    "add_pseudo_labels_config",
    "check_labels",
    "load_student_config",
    "region_means",
    "relation_loss",
    "teacher_metrics",
    "text_features",
    "weighted_cross_entropy",
]
