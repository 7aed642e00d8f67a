"""The frozen encoder: dense features of an open_clip ViT, and text features."""

from .dense import DenseCLIP, DenseFeatures, Reread
from .loading import Tokenizer, check_normalisation, load_clip
from .methods import BASE_METHODS, base_method_names
from .text import TextEncoder

__all__ = [
    "BASE_METHODS",
    "DenseCLIP",
    "DenseFeatures",
    "Reread",
    "TextEncoder",
    "Tokenizer",
    "base_method_names",
    "check_normalisation",
    "load_clip",
]
