"""results.json: what an evaluation leaves for the report of another one and for the table."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_whole


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write JSON; there may be no NaN in it."""
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode())


def load_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read what :func:`write_results` wrote for an evaluation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        results["dataset"], results["metrics"]["mIoU"], results["classes"][0]["IoU"]
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; name the results.json of an evaluation"
        ) from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(
            f"{path}: not the results.json of an evaluation by FreeCPSemSegEvaluator; name one"
        ) from None
    return results


def method_of(results: Mapping[str, Any]) -> str:
    """What was evaluated, as a row of the paper's table is called: clearclip + FreeCP."""
    method = str(results.get("method", "model"))
    if not results.get("enabled"):
        return method
    off = [stage for stage in ("redundancy", "ambiguity") if results.get(stage) is False]
    return f"{method} + FreeCP" + (f" without {' and '.join(off)}" if off else "")


def without_nan(value: Any) -> Any:
    """The same with None in place of NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
