"""Vocabularies, class descriptions, and benchmarks in Detectron2's catalogs."""

from . import scenes
from .vocabulary import Vocabulary, dataset_vocabulary, load_descriptions, load_vocabulary

__all__ = [
    "Vocabulary",
    "dataset_vocabulary",
    "load_descriptions",
    "load_vocabulary",
    "scenes",
]
