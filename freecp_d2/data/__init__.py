"""Vocabularies, class descriptions, and benchmarks in Detectron2's catalogs."""

import os

if "FREECP_D2_PREPARE_WORKER" not in os.environ:  # see freecp_d2/__init__.py
    from . import benchmarks, scenes
    from .registration import register_dataset
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
    "register_dataset",
    "scenes",
]
