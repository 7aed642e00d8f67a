"""Class purification: affinity, refinement, redundancy and ambiguity."""

from .head import Candidates, NonFiniteInput, PurificationHead, PurifiedMaps

__all__ = ["Candidates", "NonFiniteInput", "PurificationHead", "PurifiedMaps"]
