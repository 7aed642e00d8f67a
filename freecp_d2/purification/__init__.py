"""Class purification: affinity, refinement, redundancy and ambiguity."""

from .head import PurificationHead, PurifiedMaps

__all__ = ["PurificationHead", "PurifiedMaps"]
