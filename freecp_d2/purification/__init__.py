"""Class purification: affinity, refinement, redundancy and ambiguity."""

from .head import (
    Candidates,
    Encoder,
    NonFiniteInput,
    PurificationHead,
    PurifiedMaps,
)
from .stages import Selected

__all__ = [
    "Candidates",
    "Encoder",
    "NonFiniteInput",
    "PurificationHead",
    "PurifiedMaps",
    "Selected",
]
