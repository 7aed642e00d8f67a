"""The paper's eight benchmarks and two of more classes: files, ids, words, catalogs."""

import os

from .layout import BENCHMARKS, Benchmark, Layout

if "FREECP_D2_PREPARE_WORKER" not in os.environ:  # see freecp_d2/__init__.py
    from .catalog import (
        KINDS,
        PROTOCOL_WORDS,
        class_names,
        load_benchmark,
        register_benchmarks,
        vocabulary_of,
    )

DESCRIPTIONS_FILE: str = "freecp_d2://benchmarks/descriptions.json"
"""Class -> sentences, for every name of the eight vocabularies (MODEL.FREECP.DESCRIPTIONS)."""

__all__ = [
    "BENCHMARKS",
    "DESCRIPTIONS_FILE",
    "KINDS",
    "PROTOCOL_WORDS",
    "Benchmark",
    "Layout",
    "class_names",
    "load_benchmark",
    "register_benchmarks",
    "vocabulary_of",
]
