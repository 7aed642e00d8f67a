"""FreeCP: training-free class purification for open-vocabulary semantic segmentation."""

from . import data, ops
from .config import add_freecp_config, load_config
from .meta_arch import FreeCP
from .predictor import FreeCPPredictor, RemovedClass, Segmentation

__all__ = [
    "FreeCP",
    "FreeCPPredictor",
    "RemovedClass",
    "Segmentation",
    "add_freecp_config",
    "data",
    "load_config",
    "ops",
]
