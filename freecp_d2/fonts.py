"""Fonts for the class names in pictures, whatever script they are in.

Matplotlib and Pillow draw with DejaVu Sans, which has no Chinese, Japanese or Korean, few symbols
and few of India's scripts. What it lacks is drawn in another font of this machine that has it; what
none has is drawn as a box, and said once.
"""

import logging
import threading
import unicodedata
from collections.abc import Collection
from functools import lru_cache

from matplotlib import get_data_path
from matplotlib.artist import Artist
from matplotlib.font_manager import findSystemFonts, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import ImageDraw, ImageFont

log = logging.getLogger(__name__)

DEJAVU = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
BOX = "\N{WHITE SQUARE}"
"""What is drawn for a character that no font has; DejaVu Sans has it."""
UPRIGHT = "regular", "book", "roman", "normal", "medium"
"""Styles that are neither bold nor slanted."""
JOINER = "\N{ZERO WIDTH JOINER}"
_said: set[str] = set()
_lock = threading.Lock()


def set_fonts(artist: Artist) -> None:
    """Give every text of a matplotlib figure or axes fonts that have its characters.

    Texts are drawn as they are: a pair of $ encloses no mathematics.
    """
    for text in artist.findobj(Text):
        runs = split_by_font(text.get_text())
        text.set_parse_math(False)
        text.set_text("".join(piece for piece, _ in runs))
        paths = dict.fromkeys([DEJAVU, *(path for _, path in runs)])
        text.set_fontfamily([_family(path) for path in paths])


def draw_text(
    pen: ImageDraw.ImageDraw, position: tuple[float, float], text: str, size: int, fill: str
) -> None:
    """Draw a line on a Pillow image.

    Args:
        position: left end, and top of the tallest letters of DejaVu Sans.
        size: of the letters, in pixels.
    """
    x, y = position
    baseline = y + _font(DEJAVU, size).getmetrics()[0]
    for piece, path in split_by_font(text):
        font = _font(path, size)
        pen.text((x, baseline), piece, fill, font, anchor="ls")
        x += font.getlength(piece)


def text_length(text: str, size: int) -> float:
    """How wide :func:`draw_text` draws a line, in pixels."""
    return sum(_font(path, size).getlength(piece) for piece, path in split_by_font(text))


def line_height(size: int) -> int:
    """From line to line, in pixels: the tallest and the deepest letters of DejaVu Sans."""
    return sum(_font(DEJAVU, size).getmetrics())


def wrap_text(text: str, size: int, width: float) -> list[str]:
    """Lines that :func:`draw_text` draws no wider than `width` pixels.

    They break at spaces, and where a word alone is wider, within it, but never before a mark that
    belongs to the letter before it.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if text_length(joined, size) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in _letters(word):
            if lines[-1] and text_length(lines[-1] + letter, size) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _letters(word: str) -> list[str]:
    """Characters, each with its marks and what a joiner binds to it."""
    letters: list[str] = []
    for character in word:
        category = unicodedata.category(character)
        bound = (
            category.startswith("M") or category == "Cf" or letters and letters[-1][-1] == JOINER
        )
        if letters and bound:
            letters[-1] += character
        else:
            letters.append(character)
    return letters


def split_by_font(text: str) -> list[tuple[str, str]]:
    """Pieces of a text, and the file of the font that has each of them.

    DejaVu Sans is taken wherever it has a character. A character that no font has has become a box,
    and a warning names it, once a process.
    """
    paths = [DEJAVU, *_fallbacks(frozenset(filter(_is_drawn, text)) - _characters(DEJAVU))]
    missing = {c for c in text if _is_drawn(c) and not any(c in _characters(p) for p in paths)}
    _say(missing)
    runs: list[tuple[str, str]] = []
    for character in text:
        if character in missing:
            character = BOX
        last = runs[-1][1] if runs else DEJAVU
        mark = unicodedata.category(character).startswith("M") and character in _characters(last)
        if _is_drawn(character) and not mark:
            path = next(path for path in paths if character in _characters(path))
        else:  # a space, or what belongs to the letter before it
            path = last
        if runs and path == last:
            runs[-1] = runs[-1][0] + character, path
        else:
            runs.append((character, path))
    return runs


@lru_cache(maxsize=1)
def system_fonts() -> tuple[str, ...]:
    """Files of this machine's fonts that can be drawn in any size, upright ones first."""
    faces = []
    for path in sorted(findSystemFonts()):
        try:
            face = FT2Font(path)
        except (RuntimeError, OSError):  # damaged, or coloured pictures of one size
            continue
        if face.scalable and "last resort" not in face.family_name.lower():
            faces.append((face.style_name.lower() not in UPRIGHT, path))
    return tuple(path for _, path in sorted(faces))


@lru_cache(maxsize=512)
def _fallbacks(characters: frozenset[str]) -> tuple[str, ...]:
    """As few fonts as have all of these characters that any font has."""
    chosen = []
    left = set(characters)
    while left:
        best = max(system_fonts(), key=lambda path: len(left & _characters(path)), default=None)
        if best is None or not left & _characters(best):
            break
        chosen.append(best)
        left -= _characters(best)
    return tuple(chosen)


@lru_cache(maxsize=4096)
def _characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, FT2Font(path).get_charmap()))


def _is_drawn(character: str) -> bool:
    """Whether a character needs a glyph: no space, joiner, or selector of a variant."""
    category = unicodedata.category(character)
    return not (
        character.isspace() or category in ("Cc", "Cf") or "\ufe00" <= character <= "\ufe0f"
    )


def _say(missing: Collection[str]) -> None:
    with _lock:
        new = sorted(set(missing) - _said)
        _said.update(new)
    if new:
        named = ", ".join(f"{c} (U+{ord(c):04X})" for c in new[:8])
        more = f" and {len(new) - 8} more" if len(new) > 8 else ""
        log.warning(
            "No font of this machine has %s%s: pictures show %s instead; install one that has, of "
            "Debian's packages fonts-noto-cjk for Chinese, Japanese and Korean, fonts-noto-core "
            "for other scripts, or fonts-symbola for emoji",
            named,
            more,
            BOX,
        )


@lru_cache(maxsize=512)
def _family(path: str) -> str:
    """The name by which matplotlib finds a font, after it has been told of it."""
    if path != DEJAVU and all(entry.fname != path for entry in fontManager.ttflist):
        fontManager.addfont(path)
    return FT2Font(path).family_name


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
