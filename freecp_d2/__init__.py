"""FreeCP: training-free class purification for open-vocabulary semantic segmentation."""

import os
import warnings

__version__ = "0.1.0"

# The processes of freecp_d2.data.prepare start with this variable, and need neither torch nor
# Detectron2: only their own modules are imported there.
if "FREECP_D2_PREPARE_WORKER" not in os.environ:
    with warnings.catch_warnings():
        # fvcore and Detectron2 script functions when they are imported.
        warnings.filterwarnings("ignore", r"`torch\.jit\.script")
        from . import data, ops
        from .config import add_freecp_config, get_config, list_configs, load_config
        from .meta_arch import FreeCP
        from .predictor import FreeCPPredictor, RemovedClass, Segmentation

__all__ = [
    "FreeCP",
    "FreeCPPredictor",
    "RemovedClass",
    "Segmentation",
    "add_freecp_config",
    "data",
    "get_config",
    "list_configs",
    "load_config",
    "ops",
]
