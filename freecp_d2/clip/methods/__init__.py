"""The training-free base methods, one file each (METHOD.md step 1)."""

from . import clearclip, gem, maskclip, naclip, scclip, sclip, sfp, vanilla  # noqa: F401
from .base import (
    BASE_METHODS,
    BaseMethod,
    LastBlockMethod,
    Reads,
    Trunk,
    base_method,
    base_method_names,
)

__all__ = [
    "BASE_METHODS",
    "BaseMethod",
    "LastBlockMethod",
    "Reads",
    "Trunk",
    "base_method",
    "base_method_names",
]
