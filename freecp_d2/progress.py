"""Progress bars, which say little where nobody watches them."""

import math
import sys
from collections.abc import Collection
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Collection[T], *, desc: str, unit: str, disable: bool = False) -> "tqdm[T]":
    """`items` with a bar on the standard error; where that is no terminal, every twentieth part."""
    rarely: dict[str, Any] = {}
    if not sys.stderr.isatty():
        miniters = max(len(items) // 20, 1)
        rarely = {"miniters": miniters, "mininterval": 0, "maxinterval": math.inf}
    return tqdm(items, desc=desc, unit=unit, disable=disable, **rarely)
