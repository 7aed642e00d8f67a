"""results.json: what an evaluation leaves for the report of another one and for the table."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_whole

METRICS: tuple[str, ...] = ("mIoU", "mIoU-detectron2", "fwIoU", "mACC", "pACC")
"""The figures of a whole data set, in percent."""


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write JSON, UTF-8; there may be no NaN in it. Lone surrogates are escaped."""
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    write_whole(path, f"{text}\n".encode())


def load_results(path: str | os.PathLike) -> dict[str, Any]:
    """Read what :func:`write_results` wrote for an evaluation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or a figure in it is missing or no number.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; name the results.json of an evaluation"
        ) from None
    except UnicodeDecodeError:
        text = ""
    try:
        results = json.loads(text, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        results = None
    fault = _fault(results)
    if fault:
        raise ValueError(
            f"{path}: not the results.json of an evaluation by FreeCPSemSegEvaluator ({fault}); "
            "name one, or evaluate anew"
        )
    return results


def _fault(results: Any) -> str | None:
    """What keeps `results` from being those of an evaluation, in a few words."""
    if not isinstance(results, dict):
        return "no JSON object"
    if not isinstance(results.get("dataset"), str):
        return "no data set"
    if not _is_number(results.get("images")):
        return "no number of images"
    if not isinstance(results.get("metrics"), dict):
        return "no metrics"
    for name, value in results["metrics"].items():
        if value is not None and not _is_number(value):
            return f"{name} is {value!r}"
    if "mIoU" not in results["metrics"]:
        return "no mIoU"
    classes = results.get("classes")
    if not isinstance(classes, list) or not classes:
        return "no classes"
    for index, entry in enumerate(classes):
        if not isinstance(entry, dict) or "IoU" not in entry:
            return f"class {index} has no IoU"
        if entry["IoU"] is not None and not _is_number(entry["IoU"]):
            return f"the IoU of class {index} is {entry['IoU']!r}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def printable(text: str) -> str:
    """`text` with control characters and lone surrogates, which no file takes, as escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], text)


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return printable(", ".join(names[:5])) + more


def method_of(results: Mapping[str, Any]) -> str:
    """What was evaluated, as a row of the paper's table is called: clearclip + FreeCP."""
    method = str(results.get("method", "model"))
    if results.get("enabled"):
        off = [stage for stage in ("redundancy", "ambiguity") if results.get(stage) is False]
        method += " + FreeCP" + (f" without {' and '.join(off)}" if off else "")
    refine = str(results.get("refine", "none"))
    return method if refine == "none" else f"{method} + {refine.upper()}"


def settings_of(results: Mapping[str, Any]) -> dict[str, str]:
    """What a result was made with, as text: the facts, then every key of the config.

    Hashes are cut to twelve characters. OUTPUT_DIR is none of them.
    """
    settings = {key: results[key] for key in ("device", "precision") if key in results}
    for key in ("words", "descriptions", "relations", "weights", "affinity_weights"):
        if key in results:
            settings[f"{key} (SHA-256)"] = str(results[key])[:12] if results[key] else "none"
    if results.get("label_maps_as_published") is not None:
        settings["label maps as published"] = results["label_maps_as_published"]
    settings |= _flat(results.get("versions"), "version of ")
    settings |= _flat(results.get("config"))
    settings.pop("OUTPUT_DIR", None)
    return {key: str(value) for key, value in settings.items()}


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config by keys such as MODEL.CLIP.NAME; what is none has no keys."""
    keys: dict[str, Any] = {}
    for key, value in config.items() if isinstance(config, Mapping) else ():
        name = f"{prefix}{key}"
        keys |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return keys


def without_nan(value: Any) -> Any:
    """The same with None in place of NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
