"""Class features that follow the images (MODEL.FREECP.ADAPTER): see docs/adapters.md."""

from .adapter import (
    ADAPTERS,
    Adapter,
    AdapterBuilder,
    build_adapter,
    load_state,
    region_features,
    save_state,
)
from .bafta import BaFTA
from .clip_ot import ClipOT, transport_codes
from .entropy_weights import Views, certainty, configured_views

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterBuilder",
    "BaFTA",
    "ClipOT",
    "Views",
    "build_adapter",
    "certainty",
    "configured_views",
    "load_state",
    "region_features",
    "save_state",
    "transport_codes",
]
