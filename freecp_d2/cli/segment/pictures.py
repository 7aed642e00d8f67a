"""Pictures of results: overlays with a legend, and class activation maps."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ...data import Vocabulary
from ...fonts import draw_text, set_fonts, text_length
from ...predictor import EncodedImage, FreeCPPredictor
from ...segmentation import Segmentation

LONG_SIDE = 600, 1600
"""Pixels that the long side of an overlay's pictures has at least and at most."""
LISTED = 24
"""Classes that a legend lists at most."""
PICTURED_KEPT, PICTURED_REMOVED = 5, 3
"""Classes in the figure of class activation maps at most."""
NOTHING = 200
"""Grey of pixels without a class."""


def overlay(results: dict[str, Segmentation]) -> Image.Image:
    """Pictures side by side under their titles, with one legend.

    Args:
        results: method -> segmentation, of one image and vocabulary.
    """
    pictures = [_picture(result) for result in results.values()]
    height, width = pictures[0].shape[:2]
    size = max(13, round(max(height, width) / 55))
    line, gap = round(1.6 * size), size
    legend = _legend(results, size, line)
    top = line + gap // 2
    count = len(pictures)
    sheet = Image.new(
        "RGB",
        (
            gap + count * (width + gap) + legend.width + gap,
            max(top + height, legend.height) + gap,
        ),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    titles = [f"{method}{_nothing(result)}" for method, result in results.items()]
    for index, (title, picture) in enumerate(zip(titles, pictures, strict=True)):
        left = gap + index * (width + gap)
        draw_text(pen, (left, gap // 2), title, size, "black")
        sheet.paste(Image.fromarray(picture), (left, top))
    sheet.paste(legend, (gap + count * (width + gap), 0))
    return sheet


def _picture(result: Segmentation) -> np.ndarray:
    """`result.draw()` in a size in which names are legible and a photograph takes no minute."""
    height, width = result.label_map.shape
    least, most = LONG_SIDE
    long_side = max(height, width)
    if long_side > most:
        size = max(1, width * most // long_side), max(1, height * most // long_side)
        labels = result.label_map.astype(np.int32)
        result = replace(
            result,
            image=cv2.resize(result.image, size, interpolation=cv2.INTER_AREA),
            label_map=cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST),
        )
    return result.draw(scale=max(1.0, least / long_side))


def _share_of_nothing(result: Segmentation) -> float:
    return float((result.label_map == result.nothing).mean())


def _nothing(result: Segmentation) -> str:
    """What a title adds where some pixels have no class."""
    share = _share_of_nothing(result)
    return f", {_percent(share)} nothing" if share else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"


def _legend(results: dict[str, Segmentation], size: int, line: int) -> Image.Image:
    """Classes by their share, a column of shares a picture, and how many were removed.

    Pixels without a class have a grey row, "nothing".
    """
    shares = np.stack([result.shares for result in results.values()])
    nothing = [_share_of_nothing(result) for result in results.values()]
    last = list(results.values())[-1]
    shown = [i for i in np.argsort(-shares[-1], kind="stable") if shares[:, i].any()]
    rows = [
        (_shortened(last.class_names[i]), tuple(last.colors[i].tolist()), shares[:, i], "black")
        for i in shown[:LISTED]
    ]
    if any(nothing):
        rows.append(("nothing", (NOTHING,) * 3, np.array(nothing), "dimgray"))
    notes = [f"and {len(shown) - LISTED} more"] if len(shown) > LISTED else []
    for stage in ("redundancy", "ambiguity"):
        count = sum(removed.stage == stage for removed in last.removed)
        notes += [f"{count} removed by {stage}"] if count else []

    def widest(lines: Sequence[str]) -> int:
        return round(max(text_length(text, size) for text in lines))

    def write(x: int, text: str, ink: str) -> None:
        draw_text(pen, (x, y), text, size, ink)

    def write_to(right: int, text: str, ink: str) -> None:
        draw_text(pen, (right - text_length(text, size), y), text, size, ink)

    column = widest([" 100.0 %"]) + line // 2
    names = widest([*(name for name, *_ in rows), "class"]) + 2 * line
    width = max(names + column * len(results), widest([*notes, ""]) + line)
    image = Image.new("RGB", (width, line * (len(rows) + len(notes) + 2)), "white")
    pen = ImageDraw.Draw(image)
    y = line // 2
    for place, method in enumerate(results if len(results) > 1 else ()):
        write_to(names + column * (place + 1), method.split()[-1], "black")
    y += line
    for name, color, shares_of_row, ink in rows:
        box = (0, y + line // 8, line, y + line - line // 4)
        pen.rectangle(box, color, "black")
        write(line + line // 2, name, ink)
        for place, share in enumerate(shares_of_row):
            value = _percent(share) if share else "–"
            write_to(names + column * (place + 1), value, ink)
        y += line
    for note in notes:
        write(0, note, "dimgray")
        y += line
    return image


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def maps_figure(
    predictor: FreeCPPredictor, encoded: EncodedImage, result: Segmentation, words: Vocabulary
) -> Figure:
    """Class activation maps before and after refinement: classes that stay, and a few that do not.

    Those that stay are the ones of the largest shares, the others the ones of the highest
    consistency.
    """
    removed = sorted(result.removed, key=lambda r: -r.consistency)[:PICTURED_REMOVED]
    gone = {r.name for r in result.removed}
    order = np.argsort(-result.shares, kind="stable")
    names = [synonyms[0] for synonyms in words.classes]
    first = len(result.class_names) - len(names)
    kept = [names[i - first] for i in order if i >= first and names[i - first] not in gone]
    verdicts = {name: "stays" for name in kept[:PICTURED_KEPT]}
    for r in removed:
        verdicts[r.name] = f"beaten by {r.beaten_by}" if r.beaten_by else "redundant"
    maps = predictor.class_maps(encoded, list(verdicts), words)
    consistency = dict(zip(result.class_names[first:], result.consistency[first:], strict=True))
    height, width = result.label_map.shape
    row = min(max(2 * height / width, 0.8), 4)
    figure = Figure(figsize=(2.1 * (1 + len(verdicts)), 2 * row + 0.9), layout="constrained")
    grid = figure.subplots(2, 1 + len(verdicts), squeeze=False)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
    grid[0, 0].imshow(result.image)
    grid[0, 0].set_title("image", fontsize=9)
    colors = np.vstack([result.colors, np.full((1, 3), NOTHING, np.uint8)])
    grid[1, 0].imshow(colors[np.minimum(result.label_map, len(result.colors))])
    grid[1, 0].set_title(f"label map{_nothing(result)}", fontsize=9)
    columns = zip(grid[:, 1:].T, verdicts.items(), maps.activation, maps.refined, strict=True)
    for (above, below), (name, verdict), activation, refined in columns:
        title = f"{_shortened(name)}\n{verdict}, {consistency[name]:.3f}"
        above.imshow(activation, cmap="magma", vmin=0)
        above.set_title(title, fontsize=9)
        above.set_xlabel(f"highest {activation.max():.2g}", fontsize=8)
        below.imshow(refined, cmap="magma", vmin=0, vmax=1)
    if verdicts:
        grid[0, 1].set_ylabel("before refinement", fontsize=9)
        grid[1, 1].set_ylabel("after refinement", fontsize=9)
    figure.suptitle("Class activation maps; the number is the consistency", fontsize=10)
    set_fonts(figure)
    return figure
