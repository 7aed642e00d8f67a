"""What is shown of an answer, as HTML: two pictures with a line to drag, a sentence, two tables."""

import base64
import html
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from ...predictor import RemovedClass, Segmentation
from .inputs import shorten
from .sessions import Answer

MIN_SHOWN = 640
"""Smaller pictures are shown by a whole number of times larger, at least this long."""
NEARLY = 5
"""How many of the classes that nearly stayed are shown."""


def staying(segmentation: Segmentation) -> np.ndarray:
    """(K,) bool: the classes that purification left, and the background."""
    removed = {entry.name for entry in segmentation.removed}
    asked = np.isfinite(segmentation.consistency)
    return np.array(
        [not (a and n in removed) for a, n in zip(asked, segmentation.class_names, strict=True)]
    )


def advice(purified: Segmentation) -> str:
    """What to do where no class stays; "" where one does."""
    if staying(purified).any():
        return ""
    if len(purified.class_names) == 1:  # its consistency is 0, whatever the picture
        return "One class alone has nothing to be told from; add others, or a background."
    return "Lower the redundancy threshold."


def summary(answer: Answer) -> str:
    """How many classes stayed, and how long it took."""
    removed = answer.purified.removed
    redundant = sum(entry.stage == "redundancy" for entry in removed)
    total = np.isfinite(answer.purified.consistency).sum()
    stay = f"<b>{total - len(removed)} of {total} classes stay</b>"
    reasons = f"{redundant} removed as redundant, {len(removed) - redundant} as look-alikes"
    picture = (
        "picture not encoded again"
        if answer.encode_seconds is None
        else f"picture encoded in {answer.encode_seconds:.2f} s"
    )
    return (
        f'<p class="summary">{stay}: {reasons}. {advice(answer.purified)}<br>'
        f'<span class="hint">Words encoded in {answer.text_seconds:.2f} s, {picture}, segmented in '
        f"{answer.segment_seconds:.2f} s.</span></p>"
    )


def comparison(answer: Answer, method: str) -> str:
    """Both pictures, one on the other, and the line between them, a range input for any hand."""
    left = _img(answer.base, "", f"{method} alone")
    right = _img(answer.purified, "over", f"{method} + FreeCP")
    name = html.escape(method)
    height, width = answer.base.label_map.shape
    return (
        f'<div class="compare" style="max-width:calc(80vh * {width / height:.4f})">{left}{right}'
        '<input type="range" min="0" max="100" value="50" step="1" '
        f'aria-label="Where {name} alone ends and FreeCP begins" oninput="freecp.cut(this.value)">'
        f'<span class="line"></span></div><div class="sides"><span>◀ {name} alone</span>'
        f"<span>{name} + FreeCP ▶</span></div>"
    )


def picture_of(segmentation: Segmentation) -> Image.Image:
    """The drawing, by a whole number of times larger where its names would be too small to read."""
    scale = -(-MIN_SHOWN // max(segmentation.label_map.shape))
    return Image.fromarray(segmentation.draw(scale=scale))


def _img(segmentation: Segmentation, kind: str, title: str) -> str:
    picture, file = picture_of(segmentation), BytesIO()
    picture.save(file, "WEBP", quality=90)
    data = base64.b64encode(file.getvalue()).decode()
    order = np.argsort(-segmentation.shares, kind="stable")[:5]
    shares = [(segmentation.class_names[i], segmentation.shares[i]) for i in order]
    shown = ", ".join(f"{shorten(name)} {share:.0%}" for name, share in shares if share)
    alt = html.escape(f"{title}: {shown or 'no class'}")
    return (
        f'<img class="{kind}" src="data:image/webp;base64,{data}" width="{picture.width}" '
        f'height="{picture.height}" alt="{alt}">'
    )


def legend(answer: Answer) -> str:
    """Swatch, class and its shares of the picture, base method and FreeCP.

    Of all classes that stay, and of those that the base method sees; the rest is folded.
    """
    base, purified, stay = answer.base, answer.purified, staying(answer.purified)
    after = purified.shares
    rows, absent = [], []
    for i in np.lexsort((-base.shares, -after)):
        name = html.escape(purified.class_names[i])
        if not stay[i] and not base.shares[i]:
            absent.append(name)
            continue
        if after[i]:
            with_freecp = _percent(after[i])
        else:
            with_freecp = "no pixel" if stay[i] else "removed"
        rows.append(
            f'<tr><th scope="row">{_swatch(purified.colors[i])}{name}</th>'
            f'<td class="number">{_percent(base.shares[i])}</td>'
            f'<td class="number">{with_freecp}</td></tr>'
        )
    nothing = [max(1 - result.shares.sum(), 0.0) for result in (base, purified)]
    if max(nothing) > 1e-6:
        cells = "".join(f'<td class="number">{_percent(share)}</td>' for share in nothing)
        rows.append(f'<tr><th scope="row">nothing</th>{cells}</tr>')
    folded = _folded(f"{len(absent)} more: removed, and not in the base method's picture", absent)
    return (
        '<div class="legend facts"><table><caption>Shares of the picture</caption><thead><tr>'
        '<th scope="col">class</th><th scope="col" class="number">base</th>'
        '<th scope="col" class="number">FreeCP</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table>{folded}{background_words(answer)}</div>"
    )


def background_words(answer: Answer) -> str:
    """The names that the background went by, folded; nothing where there is no background."""
    names = [html.escape(name) for name in answer.background]
    return _folded(f"Background: {len(names)} words", names)


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "&lt;0.1%" if share else "–"


def _swatch(color: np.ndarray) -> str:
    return f'<span class="swatch" style="background:#{bytes(color.tolist()).hex()}"></span>'


def _folded(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f"<details><summary>{title}</summary><p>{', '.join(items)}</p></details>"


def chart(answer: Answer) -> str:
    """Consistency as bars: of the classes that stay, and of those that nearly stayed.

    Nearly: above half of the threshold, among them look-alikes that lost. The rest is folded.
    """
    purified, threshold = answer.purified, answer.redundancy_threshold
    removed = {entry.name: entry for entry in purified.removed}
    asked = np.flatnonzero(np.isfinite(purified.consistency))  # without the background
    order = asked[np.argsort(-purified.consistency[asked], kind="stable")]
    names = [purified.class_names[i] for i in order]
    values = dict(zip(names, purified.consistency[order].tolist(), strict=True))
    kept = [name for name in names if name not in removed]
    gone = [name for name in names if name in removed]
    nearly = [name for name in gone if values[name] > threshold / 2]
    nearly = nearly[:NEARLY]
    scale = 100 / max([threshold, *values.values(), 1e-6])

    def row(name: str) -> str:
        kind, fate = _fate(removed.get(name))
        return (
            f'<tr class="{kind}"><th scope="row">{html.escape(shorten(name))}</th>'
            f'<td class="bars"><span class="bar" style="width:{scale * values[name]:.1f}%"></span>'
            f'<span class="mark" style="left:{scale * threshold:.1f}%"></span></td>'
            f'<td class="number">{values[name]:.3f}</td><td>{html.escape(fate)}</td></tr>'
        )

    rest = [f"{html.escape(n)} {values[n]:.3f}" for n in gone if n not in nearly]
    return (
        '<div class="chart facts"><table><caption>Consistency; dashed: the redundancy threshold, '
        f'{threshold:g}</caption><thead><tr><th scope="col">class</th>'
        '<td></td><th scope="col" class="number">value</th><th scope="col">fate</th></tr>'
        f"</thead><tbody>{''.join(map(row, kept + nearly))}</tbody></table>"
        f"{_folded(f'{len(rest)} more are removed', rest)}</div>"
    )


def _fate(entry: RemovedClass | None) -> tuple[str, str]:
    """The row's class in CSS, and what is said."""
    if entry is None:
        return "stays", "stays"
    if entry.stage == "redundancy":
        return "redundant", "redundant"
    return "look-alike", f"lost to {shorten(entry.beaten_by or 'its look-alikes')}"
