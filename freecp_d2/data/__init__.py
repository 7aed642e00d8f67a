"""Vocabularies, class descriptions, and benchmarks in Detectron2's catalogs."""

from . import benchmarks, scenes
from .vocabulary import (
    Vocabulary,
    dataset_vocabulary,
    describe,
    load_descriptions,
    load_vocabulary,
    normalized_name,
)

__all__ = [
    "Vocabulary",
    "benchmarks",
    "dataset_vocabulary",
    "describe",
    "load_descriptions",
    "load_vocabulary",
    "normalized_name",
    "scenes",
]
