"""Figures of all settings, and whether FreeCP absorbs distractors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from ..evaluation.metrics import class_ious, mean
from .settings import Setting

METHODS: tuple[str, ...] = ("base", "freecp")
ABSORBED = 0.5
"""FreeCP absorbs distractors if its drop is at most this share of the base method's."""
LEAST_DROP = 0.5
"""Points of mIoU; who drops by less has lost nothing."""


def figures(confusion: np.ndarray, background: bool) -> dict[str, float]:
    """In percent; NaN where there is nothing to count.

    Args:
        confusion: (k + 1, k) pixels by predicted and true class; the last row is distractors'.
        background: class 0 is one. It is what is none of the classes, so that a distractor there
            is right; its pixels are no foreground.

    Returns:
        `mIoU` over the classes present or predicted, `mIoU-present` over those present, and
        `stolen`, the share of foreground pixels that distractors take. A distractor is no class of
        a mean: its pixels are missed by the class that is there.
    """
    k = confusion.shape[1]
    square = np.zeros((k + 1, k + 1), dtype=confusion.dtype)
    square[:, :k] = confusion
    if background:
        square[0] += square[k]
        square[k] = 0
    ious = class_ious(square)[:k]
    foreground = confusion[:, 1:] if background else confusion
    pixels = foreground.sum()
    shares = {
        "mIoU": mean(ious),
        "mIoU-present": mean(ious[confusion.sum(axis=0) > 0]),
        "stolen": foreground[k].sum() / pixels if pixels else np.nan,
    }
    return {name: 100 * float(share) for name, share in shares.items()}


def summed(
    records: Iterable[Mapping[str, Any]], settings: Sequence[Setting], k: int, background: bool
) -> list[dict[str, Any]]:
    """The figures of each setting over all images.

    Args:
        records: of images, `settings` of each as :meth:`.bench.Bench.of_image` gives it.
        k: output channels without distractors.
        background: see :func:`figures`.

    Returns:
        One dict a setting: its `name`, `kind`, `distractors` and `number`; `base` and `freecp`,
        their :func:`figures`; and `left`, how many distractors of an image stay, on average, after
        the redundancy and after the ambiguity stage. That is empty where there are none.
    """
    tables = {
        (setting.name, method): np.zeros((k + 1, k), dtype=np.int64)
        for setting in settings
        for method in METHODS
    }
    left = {setting.name: np.zeros(2 if setting.distractors else 0) for setting in settings}
    images = 0
    for record in records:
        images += 1
        for name, result in record["settings"].items():
            for method in METHODS:
                rows, columns, pixels = np.array(result[method], dtype=np.int64)
                tables[name, method][rows, columns] += pixels
            left[name] += result["left"]
    return [
        {
            "name": setting.name,
            "kind": setting.kind,
            "distractors": setting.distractors,
            "number": setting.number,
            **{method: figures(tables[setting.name, method], background) for method in METHODS},
            "left": (left[setting.name] / max(images, 1)).tolist(),
        }
        for setting in settings
    ]


def grouped(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for all random draws of one size, and one for the worst synonyms of either method.

    Args:
        rows: of :func:`summed`.

    Returns:
        The same without `number`; `spread` of a row has the standard deviation of its mIoU, by
        method, over the draws, and `of`, how many rows it stands for.
    """
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["distractors"]), []).append(row)
    return [_one(kind, distractors, group) for (kind, distractors), group in groups.items()]


def _one(kind: str, distractors: int, group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    name = f"{kind} {distractors}" if distractors else kind
    one: dict[str, Any] = {"kind": kind, "distractors": distractors, "of": len(group)}
    for method in METHODS:
        of_method = [row[method] for row in group]
        if kind == "synonyms":
            one[method] = min(of_method, key=lambda figures: figures["mIoU"])
        else:
            one[method] = {
                key: float(np.mean([row[key] for row in of_method])) for key in of_method[0]
            }
    one["spread"] = {
        method: float(np.std([row[method]["mIoU"] for row in group])) for method in METHODS
    }
    one["left"] = np.mean([row["left"] for row in group], axis=0).tolist()
    if kind == "synonyms":
        name += f", the worst of {len(group)}"
    return {"name": name, **one}


def verdicts(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whether FreeCP absorbs the distractors, for each kind and number of them.

    Args:
        groups: of :func:`grouped`.

    Returns:
        Dicts of `name`, `base` and `freecp`, by how many points of mIoU each has less than without
        distractors, and `absorbed`; None where neither loses :data:`LEAST_DROP` or more.
    """
    official = next(row for row in groups if row["kind"] == "official")
    found = []
    for row in groups:
        if row["distractors"]:
            base, freecp = (official[m]["mIoU"] - row[m]["mIoU"] for m in METHODS)
            found.append(
                {
                    "name": row["name"],
                    "base": base,
                    "freecp": freecp,
                    "absorbed": _is_absorbed(base, freecp),
                }
            )
    return found


def _is_absorbed(base: float, freecp: float) -> bool | None:
    if max(base, freecp) < LEAST_DROP:
        return None
    return freecp < LEAST_DROP or freecp <= ABSORBED * base


def verdict(found: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on all of :func:`verdicts`."""
    lossy = [one for one in found if one["absorbed"] is not None]
    if not lossy:
        return (
            "Neither the base method nor FreeCP loses anything to distractors: there is nothing to "
            "absorb."
        )
    failed = [one["name"] for one in lossy if not one["absorbed"]]
    if not failed:
        return "FreeCP absorbs distractors: its drop is at most half of the base method's."
    if len(failed) == len(lossy):
        return "FreeCP absorbs no distractors: its drop is more than half of the base method's."
    return (
        f"FreeCP absorbs some distractors: its drop with {', '.join(failed)} is more than half of "
        "the base method's."
    )


def table(groups: Sequence[Mapping[str, Any]]) -> str:
    """:func:`grouped` as Markdown, and the :func:`verdict` below it."""
    headers = (
        "words",
        "base mIoU",
        "+ FreeCP",
        "base, present",
        "+ FreeCP, present",
        "base, stolen",
        "+ FreeCP, stolen",
        "distractors left",
    )
    rows = [
        [
            row["name"],
            *(_figure(row[m]["mIoU"], row["spread"][m], row) for m in METHODS),
            *(f"{row[m]['mIoU-present']:.1f}" for m in METHODS),
            *(f"{row[m]['stolen']:.1f} %" if row["distractors"] else "-" for m in METHODS),
            " -> ".join(f"{count:.1f}" for count in row["left"]) or "-",
        ]
        for row in groups
    ]
    align = ("left", *["right"] * 7)
    text = tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)
    drops = [
        f"- {one['name']}: {one['base']:+.1f} points without FreeCP, {one['freecp']:+.1f} with it"
        + (", absorbed" if one["absorbed"] else "")
        for one in ({**v, "base": -v["base"], "freecp": -v["freecp"]} for v in verdicts(groups))
    ]
    return "\n".join([text, "", verdict(verdicts(groups)), "", *drops])


def _figure(value: float, spread: float, row: Mapping[str, Any]) -> str:
    return f"{value:.1f} ± {spread:.1f}" if row["kind"] == "random" else f"{value:.1f}"
