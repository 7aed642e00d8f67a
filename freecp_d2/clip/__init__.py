"""The frozen encoder: dense features of an open_clip ViT, and text features."""

from .dense import METHODS, DenseCLIP, DenseFeatures
from .loading import Tokenizer, check_normalisation, load_clip
from .text import TextEncoder

__all__ = [
    "METHODS",
    "DenseCLIP",
    "DenseFeatures",
    "TextEncoder",
    "Tokenizer",
    "check_normalisation",
    "load_clip",
]
