"""A picture of what other words and distractors do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import whole_file
from .figures import METHODS

LABELS = {"base": "base method", "freecp": "with FreeCP"}
INKS = {"base": "0.55", "freecp": "tab:blue"}
LINES = {"near": "-", "random": "--"}


def write_picture(groups: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A PNG: names, mIoU by number of distractors, and the share of foreground that these take.

    Args:
        groups: of :func:`.figures.grouped`.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    names, drop, stolen = figure.subplots(1, 3)
    _names(names, [row for row in groups if not row["distractors"]])
    official = next(row for row in groups if row["kind"] == "official")
    with_distractors = [row for row in groups if row["distractors"]]
    counts = sorted({0, *(row["distractors"] for row in with_distractors)})
    for axes, key, title in (
        (drop, "mIoU", "mIoU (%)"),
        (stolen, "stolen", "foreground that distractors take (%)"),
    ):
        for kind, line in LINES.items():
            rows = [official, *(row for row in with_distractors if row["kind"] == kind)]
            if len(rows) == 1:
                continue
            for method in METHODS:
                axes.errorbar(
                    [counts.index(row["distractors"]) for row in rows],
                    [row[method][key] for row in rows],
                    yerr=[row["spread"][method] if key == "mIoU" else 0 for row in rows],
                    color=INKS[method],
                    linestyle=line,
                    marker="o",
                    capsize=3,
                    label=f"{LABELS[method]}, {kind}",
                )
        axes.set_xticks(range(len(counts)), [str(count) for count in counts])
        axes.set_xlabel("distractors in the vocabulary")
        axes.set_title(title)
        axes.set_ylim(bottom=0)
    if with_distractors:
        drop.legend(fontsize="small")
    with whole_file(path) as part:
        figure.savefig(part, format="png", dpi=100)


def _names(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for shift, method in zip((-0.2, 0.2), METHODS, strict=True):
        places = [place + shift for place in range(len(rows))]
        bars = axes.bar(places, [row[method]["mIoU"] for row in rows], 0.4, color=INKS[method])
        axes.bar_label(bars, fmt="%.1f", fontsize="small")
        bars.set_label(LABELS[method])
    axes.set_xticks(range(len(rows)), [row["name"].replace(", ", ",\n") for row in rows])
    axes.set_title("names: mIoU (%)")
    axes.legend(fontsize="small", loc="lower right")
