"""The frozen encoder: dense features of an open_clip ViT, and text features."""

from .dense import METHODS, DenseCLIP, DenseFeatures

__all__ = ["METHODS", "DenseCLIP", "DenseFeatures"]
