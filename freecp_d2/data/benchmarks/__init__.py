"""The eight benchmarks of the paper: files, ids, words, and their names in the catalogs."""

from .catalog import (
    KINDS,
    PROTOCOLS,
    class_names,
    load_benchmark,
    register_benchmarks,
    vocabulary_of,
)
from .layout import BENCHMARKS, Benchmark, Layout

DESCRIPTIONS_FILE: str = "freecp_d2://benchmarks/descriptions.json"
"""Class -> sentences, for every name of the eight vocabularies (MODEL.FREECP.DESCRIPTIONS)."""

__all__ = [
    "BENCHMARKS",
    "DESCRIPTIONS_FILE",
    "KINDS",
    "PROTOCOLS",
    "Benchmark",
    "Layout",
    "class_names",
    "load_benchmark",
    "register_benchmarks",
    "vocabulary_of",
]
