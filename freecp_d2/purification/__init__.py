"""Class purification: affinity, refinement, redundancy and ambiguity."""

from .head import (
    Candidates,
    Encoder,
    NonFiniteInput,
    PurificationHead,
    PurifiedMaps,
    kept_classes,
)

__all__ = [
    "Candidates",
    "Encoder",
    "NonFiniteInput",
    "PurificationHead",
    "PurifiedMaps",
    "kept_classes",
]
