"""FreeCP's affinity (METHOD.md step 3) from elsewhere than CLIP: see docs/affinity.md."""

from .mask_files import read_masks
from .masks import MaskFolder, mask_affinity, overlap
from .provider import (
    AFFINITY_PROVIDERS,
    AffinityFault,
    AffinityProvider,
    SourceImage,
    WindowAffinity,
    build_affinity,
)
from .vit import TimmViT, cosine_affinity, load_vit

__all__ = [
    "AFFINITY_PROVIDERS",
    "AffinityFault",
    "AffinityProvider",
    "MaskFolder",
    "SourceImage",
    "TimmViT",
    "WindowAffinity",
    "build_affinity",
    "cosine_affinity",
    "load_vit",
    "mask_affinity",
    "overlap",
    "read_masks",
]
