"""Synthetic scenes with exact label maps, drawn from a seed: a benchmark that needs no download."""

import json
from pathlib import Path

from .catalog import VAL_SEEDS, register_scenes
from .classes import CLASSES, COLORS
from .scene import HEIGHT, WIDTH, Scene, draw_scene

DESCRIPTIONS_FILE: Path = Path(__file__).with_name("descriptions.json")
DESCRIPTIONS: dict[str, list[str]] = json.loads(DESCRIPTIONS_FILE.read_text(encoding="utf-8"))
"""Class -> sentences about what it looks like."""
SYNONYMS_FILE: Path = Path(__file__).with_name("synonyms.json")
"""A vocabulary: each class's name, and what else it is called in English."""

__all__ = [
    "CLASSES",
    "COLORS",
    "DESCRIPTIONS",
    "DESCRIPTIONS_FILE",
    "HEIGHT",
    "SYNONYMS_FILE",
    "VAL_SEEDS",
    "WIDTH",
    "Scene",
    "draw_scene",
    "register_scenes",
]
