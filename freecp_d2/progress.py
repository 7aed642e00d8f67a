"""Progress bars, which say little where nobody watches them."""

import math
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], *, total: int, desc: str, unit: str, disable: bool = False
) -> "tqdm[T]":
    """`items` with a bar on the standard error; where that is no terminal, every twentieth part."""
    rarely: dict[str, Any] = {}
    if not sys.stderr.isatty():
        miniters = max(total // 20, 1)
        rarely = {"miniters": miniters, "mininterval": 0, "maxinterval": math.inf}
    return tqdm(items, total=total, desc=desc, unit=unit, disable=disable, **rarely)
