"""The frozen encoder: dense features of an open_clip ViT, and text features."""

from .dense import METHODS, DenseCLIP, DenseFeatures
from .loading import Tokenizer, check_normalisation, load_clip

__all__ = ["METHODS", "DenseCLIP", "DenseFeatures", "Tokenizer", "check_normalisation", "load_clip"]
