"""What is shown of an answer: two pictures, a line, a legend and a chart."""

import html
from dataclasses import replace
from io import StringIO
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ...predictor import Segmentation
from .inputs import shorten
from .sessions import Answer

MIN_SHOWN = 640
"""Smaller pictures are shown by a whole number of times larger, at least this long."""
KEPT, REDUNDANT, AMBIGUOUS = "#2a9d8f", "#9aa0a6", "#e76f51"
INK = "#123456"
"""Colour of a chart's text and lines; becomes the page's text colour, light or dark."""
CHART_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "freecp"} | dict.fromkeys(
    ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], INK
)


def summary(answer: Answer) -> str:
    """One line of HTML: how many classes stayed, and how long it took."""
    removed = answer.purified.removed
    redundant = sum(entry.stage == "redundancy" for entry in removed)
    total = np.isfinite(answer.purified.consistency).sum()
    encoded = (
        "picture not encoded again"
        if answer.encode_seconds is None
        else f"picture encoded in {answer.encode_seconds:.2f} s"
    )
    return (
        f"<b>{total - len(removed)} of {total} classes stay</b>: {redundant} removed as redundant, "
        f"{len(removed) - redundant} as look-alikes · {encoded}, "
        f"segmented in {answer.segment_seconds:.2f} s"
    )


def picture_of(segmentation: Segmentation) -> Image.Image:
    """The drawing, enlarged before it is drawn where its class names would be too small to read."""
    height, width = segmentation.label_map.shape
    scale = -(-MIN_SHOWN // max(height, width))
    size = width * scale, height * scale
    larger = replace(
        segmentation,
        image=cv2.resize(segmentation.image, size, interpolation=cv2.INTER_CUBIC),
        label_map=segmentation.label_map.repeat(scale, axis=0).repeat(scale, axis=1),
    )
    return Image.fromarray(larger.draw())


def legend(answer: Answer) -> str:
    """A table of swatch, class and its shares of the picture, base method and FreeCP."""
    base, purified = answer.base, answer.purified
    rows, absent = [], []
    for i in np.argsort(-purified.shares, kind="stable"):
        name = html.escape(purified.class_names[i])
        if base.shares[i] == purified.shares[i] == 0:
            absent.append(name)
            continue
        color = "#{:02x}{:02x}{:02x}".format(*purified.colors[i].tolist())
        shares = "".join(
            f"<td>{share:.1%}</td>" if share else "<td>–</td>"
            for share in (base.shares[i], purified.shares[i])
        )
        swatch = f'<span class="swatch" style="background:{color}"></span>'
        rows.append(f"<tr><td>{swatch}</td><th>{name}</th>{shares}</tr>")
    nowhere = f"<p>Nowhere: {', '.join(absent)}</p>" if absent else ""
    return (
        '<div class="legend"><table><thead><tr><td></td><th>class</th><td>base</td><td>FreeCP</td>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>{nowhere}</div>"
    )


@matplotlib.rc_context(CHART_STYLE)
def chart(answer: Answer) -> str:
    """Every class's consistency as a bar, its fate beside it, and the threshold: SVG."""
    asked = np.isfinite(answer.purified.consistency)  # without the background
    names = np.array(answer.purified.class_names, dtype=object)[asked]
    scores = answer.purified.consistency[asked]
    removed = {entry.name: entry for entry in answer.purified.removed}
    order = np.argsort(scores, kind="stable")
    figure = Figure(figsize=(5, 0.19 * len(names) + 0.8), layout="constrained")
    axes = figure.subplots()
    for y, i in enumerate(order):
        entry = removed.get(names[i])
        color, fate = KEPT, ""
        if entry is not None and entry.stage == "redundancy":
            color, fate = REDUNDANT, "redundant"
        elif entry is not None:
            color, fate = AMBIGUOUS, f"lost to {shorten(entry.beaten_by or 'its look-alikes')}"
        axes.barh(y, scores[i], height=0.7, color=color)
        axes.annotate(
            f"{scores[i]:.3f} {fate}",
            (scores[i], y),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=8,
            parse_math=False,
        )
    labels = axes.set_yticks(range(len(names)), [shorten(names[i]) for i in order], size=8)
    for label in labels:
        label.label1.set_parse_math(False)
    axes.axvline(
        answer.redundancy_threshold, color=INK, alpha=0.5, linewidth=1, linestyle="--", zorder=0
    )
    axes.set_xlabel(
        f"consistency; dashed: the redundancy threshold, {answer.redundancy_threshold:g}", size=8
    )
    axes.set_xlim(0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    key = "".join(
        f'<span class="swatch" style="background:{color}"></span>{label} '
        for color, label in ((KEPT, "stays"), (REDUNDANT, "redundant"), (AMBIGUOUS, "look-alike"))
    )
    return (
        f'<div class="chart"><p>{key}</p>{svg[svg.index("<svg") :].replace(INK, "currentColor")}'
        "</div>"
    )
