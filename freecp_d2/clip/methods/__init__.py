"""The training-free base methods, one file each (METHOD.md step 1)."""

from . import (  # noqa: F401
    clearclip,
    gem,
    maskclip,
    naclip,
    pearl,
    resclip,
    scclip,
    sclip,
    sfp,
    vanilla,
)
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
