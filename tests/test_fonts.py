"""Class names in any script: by a font of the machine that has it, or as a box that is said.

The machine of these tests has one font beside DejaVu Sans, made here, and it has three characters.
"""

import itertools
import logging

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from freecp_d2 import fonts
from freecp_d2.overlay import draw_overlay

DOG, FAMILY, KA = "\u72d7", "\U0001f46a", "\u0915"
"""A Chinese character; an emoji that DejaVu Sans has not; a letter of Devanagari."""
LACKED = "\u732b"
"""A Chinese character that no font here has."""


@pytest.fixture
def font(tmp_path, monkeypatch) -> str:
    """A font whose glyphs are full squares; the only one of the machine."""
    path = str(tmp_path / "tiny.ttf")
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", "dog", "family", "ka"]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, (DOG, FAMILY, KA)), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "FreeCP Tiny", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, sTypoDescender=-100)
    builder.setupPost()
    builder.save(path)
    forget()
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [path, str(tmp_path / "no font.ttf")])
    yield path
    forget()
    fonts.fontManager.ttflist = [e for e in fonts.fontManager.ttflist if e.fname != path]


def forget() -> None:
    for cached in (fonts.system_fonts, fonts._fallbacks, fonts._characters, fonts._family):
        cached.cache_clear()
    fonts._said.clear()


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("dog", [("dog", False)]),
        ("", []),
        (DOG, [(DOG, True)]),
        (
            f"dog {DOG}{FAMILY}, caf\u00e9",
            [("dog ", False), (DOG + FAMILY, True), (", caf\u00e9", False)],
        ),
        (f"{DOG} {KA}", [(f"{DOG} {KA}", True)]),
        (f"{FAMILY}\ufe0f\u200d{FAMILY}", [(f"{FAMILY}\ufe0f\u200d{FAMILY}", True)]),
    ],
)
def test_a_text_in_pieces(font, caplog, text, pieces):
    want = [(piece, font if own else fonts.DEJAVU) for piece, own in pieces]
    assert fonts.split_by_font(text) == want
    assert not warnings_of(caplog)


def test_what_no_font_has_is_a_box_and_said_once(font, caplog):
    assert fonts.split_by_font(f"{LACKED} {DOG}") == [("□ ", fonts.DEJAVU), (DOG, font)]
    fonts.split_by_font(LACKED)
    (warning,) = warnings_of(caplog)
    assert f"{LACKED} (U+732B)" in warning and "fonts-noto-cjk" in warning
    assert DOG not in warning
    fonts.split_by_font(f"{LACKED}\u9ce5")
    assert len(warnings_of(caplog)) == 2 and "U+732B" not in warnings_of(caplog)[1]


def dark(image: np.ndarray) -> int:
    return int((image < 128).sum())


def pillow_picture(text: str) -> np.ndarray:
    image = Image.new("L", (300, 60), "white")
    fonts.draw_text(ImageDraw.Draw(image), (10, 10), text, 30, "black")
    return np.asarray(image)


def test_pillow_draws_the_fonts_glyph(font):
    """A full square of 0.9 of the letters' size, on the line; a box has a border alone."""
    picture = pillow_picture(DOG)
    assert dark(picture) == pytest.approx(27 * 27, abs=60)
    assert 0 < dark(pillow_picture(LACKED)) < 300
    assert fonts.text_length(DOG, 30) == pytest.approx(30, abs=1)
    alone, after = fonts.text_length("dog", 30), fonts.text_length(f"dog{DOG}", 30)
    assert after == pytest.approx(alone + 30, abs=1)
    both = pillow_picture(f"dog{DOG}")
    assert np.array_equal(both[:, : 10 + int(alone)], pillow_picture("dog")[:, : 10 + int(alone)])
    assert dark(both[:, 10 + int(alone) :]) == pytest.approx(27 * 27, abs=60)


def matplotlib_picture(text: str) -> np.ndarray:
    figure = Figure(figsize=(3, 1), dpi=100)
    canvas = FigureCanvasAgg(figure)
    figure.text(0.1, 0.4, text, size=30)
    fonts.set_fonts(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, 0]


@pytest.mark.filterwarnings("error")
def test_matplotlib_draws_the_fonts_glyph(font):
    size = 30 * 100 / 72 * 0.9
    assert dark(matplotlib_picture(DOG)) == pytest.approx(size**2, rel=0.1)
    assert 0 < dark(matplotlib_picture(LACKED)) < 0.5 * size**2
    assert dark(matplotlib_picture(f"a {DOG}")) > dark(matplotlib_picture(DOG))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("text", ["$x^2$", "$\\frac{$", "$5 and $$x", "\\$", "a_b ^ {"])
def test_matplotlib_draws_plain_text(font, text):
    """As many letters as the text has: mathematics would be less wide, or an error."""
    figure = Figure(figsize=(4, 1), dpi=100)
    canvas = FigureCanvasAgg(figure)
    artist = figure.text(0, 0.4, text, size=20)
    fonts.set_fonts(figure)
    canvas.draw()
    width = artist.get_window_extent().width
    assert width == pytest.approx(fonts.text_length(text, round(20 * 100 / 72)), rel=0.15)


def test_an_overlay_is_drawn_with_them(font, caplog):
    white = {}
    for text in (DOG, LACKED, KA):
        image = np.zeros((200, 300, 3), np.uint8)
        labels = np.zeros((200, 300), np.int64)
        drawn = draw_overlay(image, labels, [text], np.zeros((1, 3), np.uint8), -1)
        white[text] = int((drawn > 64).all(axis=2).sum())
    # Tiny's glyphs are full squares; the box is a border.
    assert white[DOG] > 100 and white[KA] == pytest.approx(white[DOG], abs=3)
    assert 0 < white[LACKED] < white[DOG] / 2
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 100, [""]),
        ("dog", 1, ["d", "o", "g"]),
        ("a dog", 1000, ["a dog"]),
        (" a  dog\n", 1000, ["a dog"]),
        ("traffic light", 100, ["traffic", "light"]),
        (f"{DOG}{DOG}{DOG} a", 55, [DOG + DOG, f"{DOG} a"]),
        # Neither a mark nor what a joiner binds begins a line.
        ("e\u0301\u0302e\u0301", 1, ["e\u0301\u0302", "e\u0301"]),
        (f"{FAMILY}\ufe0f\u200d{FAMILY}{DOG}", 1, [f"{FAMILY}\ufe0f\u200d{FAMILY}", DOG]),
    ],
)
def test_lines(font, text, width, lines):
    assert fonts.wrap_text(text, 20, width) == lines


def test_lines_are_as_wide_as_they_may_be(font):
    words = "an uncommonly long name of a class of things".split()
    for width in (110, 140, 200, 300):
        lines = fonts.wrap_text(" ".join(words), 16, width)
        assert " ".join(lines).split() == words
        assert all(fonts.text_length(line, 16) <= width for line in lines)
        for line, following in itertools.pairwise(lines):
            assert fonts.text_length(f"{line} {following.split()[0]}", 16) > width


def test_letters_keep_within_their_line(font):
    height = fonts.line_height(30)
    image = Image.new("L", (300, 3 * height), "white")
    fonts.draw_text(ImageDraw.Draw(image), (0, height), "\u00c5gj|", 30, "black")
    rows = np.flatnonzero((np.asarray(image) < 128).any(axis=1))
    assert height <= rows[0] and rows[-1] < 2 * height
    assert rows[-1] - rows[0] > 0.8 * height


def test_upright_fonts_come_first(monkeypatch, tmp_path):
    forget()
    names = ("DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf", "DejaVuSans.ttf")
    folder = fonts.DEJAVU.rpartition("/")[0]
    monkeypatch.setattr(fonts, "findSystemFonts", lambda: [f"{folder}/{name}" for name in names])
    try:
        assert fonts.system_fonts()[0] == fonts.DEJAVU and len(fonts.system_fonts()) == 3
    finally:
        forget()
