"""What is said of an answer never contradicts itself."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from freecp_d2.cli.web.sessions import Answer
from freecp_d2.cli.web.views import NEARLY, chart, comparison, legend, staying, summary
from freecp_d2.segmentation import RemovedClass, Segmentation

NAMES = ("background", "sky", "silent", "boat", "ghost", "near", "far")
CONSISTENCY = np.array([np.nan, 0.4, 0.2, 0.3, 0.02, 0.09, 0.01], np.float32)
REMOVED = [
    RemovedClass("boat", "ambiguity", 0.3, "sky"),
    RemovedClass("ghost", "redundancy", 0.02, None),
    RemovedClass("near", "redundancy", 0.09, None),
    RemovedClass("far", "redundancy", 0.01, None),
]


def segmentation_of(shares, removed=(), consistency=None):
    shares = np.array(shares, float)
    labels = np.repeat(np.arange(len(shares)), (shares * 200).round().astype(int)).reshape(10, 20)
    count = len(shares)
    return Segmentation(
        image=np.full((10, 20, 3), 50, np.uint8),
        label_map=labels,
        class_names=NAMES,
        scores=np.ones(count, np.float32),
        confidence=np.ones((10, 20), np.float32),
        shares=shares,
        consistency=np.full(count, np.nan, np.float32) if consistency is None else consistency,
        removed=list(removed),
        colors=np.arange(3 * count, dtype=np.uint8).reshape(count, 3),
    )


@pytest.fixture
def answer():
    """Of the classes sky stays, silent stays without a pixel, and ghost is the base method's."""
    base = segmentation_of([0.1, 0.5, 0, 0, 0.4, 0, 0])
    purified = segmentation_of([0.2, 0.8, 0, 0, 0, 0, 0], REMOVED, CONSISTENCY)
    return Answer("x.png", base, purified, 0.1, None, 1.25, 0.5)


def nothing_stays(answer):
    """The same without a background, where every class is removed."""
    names, values = NAMES[1:], CONSISTENCY[1:]
    purified = replace(
        answer.purified,
        class_names=names,
        colors=answer.purified.colors[1:],
        consistency=values,
        removed=[RemovedClass(name, "redundancy", 0.0, None) for name in names],
        shares=np.zeros(6),
        label_map=np.full((10, 20), 255),
    )
    base = replace(
        purified,
        consistency=values * np.nan,
        removed=[],
        shares=np.array([1.0, 0, 0, 0, 0, 0]),
        label_map=np.zeros((10, 20), int),
    )
    return replace(answer, base=base, purified=purified)


def rows_of(shown):
    """Class -> the other cells, of the table; and the text that is folded."""
    body = shown.partition("<tbody>")[2].partition("</tbody>")[0]
    table = {}
    for row in re.findall("<tr.*?</tr>", body):
        name, *cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
        table[re.sub("<.*?>", "", name)] = [cell for cell in cells if "<span" not in cell]
    return table, shown.partition("<details>")[2]


def test_who_stays(answer):
    assert staying(answer.purified).tolist() == [True, True, True, False, False, False, False]
    named = replace(answer.purified, removed=[RemovedClass("background", "redundancy", 0, None)])
    assert staying(named)[0]  # a class of that name, not the background


def test_the_legend_tells_removed_classes_from_those_without_a_pixel(answer):
    table, folded = rows_of(legend(answer))
    assert list(table) == ["sky", "background", "ghost", "silent"]
    assert table["sky"] == ["50.0%", "80.0%"] and table["background"] == ["10.0%", "20.0%"]
    assert table["ghost"] == ["40.0%", "removed"] and table["silent"] == ["–", "no pixel"]
    assert "3 more: removed" in folded and "boat, near, far" in folded
    assert "silent" not in folded


def test_legend_and_chart_agree_on_who_stays(answer):
    for one in (answer, nothing_stays(answer)):
        (shares, absent), (bars, rest) = rows_of(legend(one)), rows_of(chart(one))
        stays = dict(zip(one.purified.class_names, staying(one.purified), strict=True))
        for name in filter(lambda name: name != "background", stays):
            assert (name in shares and shares[name][1] != "removed") == stays[name]
            assert (name in bars and bars[name][1] == "stays") == stays[name]
            assert (name in absent) == (name not in shares)
            assert (name in rest) == (name not in bars)


def test_the_chart_shows_what_stays_and_what_nearly_stayed(answer):
    bars, folded = rows_of(chart(answer))
    assert list(bars) == ["sky", "silent", "boat", "near"]
    assert bars["boat"] == ["0.300", "lost to sky"] and bars["near"] == ["0.090", "redundant"]
    assert "2 more are removed" in folded and "ghost 0.020, far 0.010" in folded
    widths = [float(w) for w in re.findall(r'class="bar" style="width:([\d.]+)%"', chart(answer))]
    assert widths == pytest.approx([100, 50, 75, 22.5])
    assert set(re.findall(r'class="mark" style="left:([\d.]+)%"', chart(answer))) == {"25.0"}


def test_few_of_those_that_nearly_stayed_are_shown(answer):
    names = tuple(f"class {i}" for i in range(40))
    values = np.linspace(0.06, 0.099, 40, dtype=np.float32)
    removed = [
        RemovedClass(n, "redundancy", float(v), None) for n, v in zip(names, values, strict=True)
    ]
    many = replace(answer.purified, class_names=names, consistency=values, removed=removed)
    bars, folded = rows_of(chart(replace(answer, purified=many)))
    assert list(bars) == [f"class {i}" for i in range(39, 39 - NEARLY, -1)]
    assert f"{40 - NEARLY} more are removed" in folded


def test_where_nothing_stays_no_class_fills_the_picture(answer):
    none = nothing_stays(answer)
    assert "<b>0 of 6 classes stay</b>" in summary(none) and "Lower the redundancy" in summary(none)
    alone = replace(
        none.purified,
        class_names=("sky",),
        consistency=np.zeros(1, np.float32),
        removed=none.purified.removed[:1],
    )
    said = summary(replace(none, purified=alone))
    assert "add others, or a background" in said and "Lower" not in said
    table, _ = rows_of(legend(none))
    assert table == {"sky": ["100.0%", "removed"], "nothing": ["–", "100.0%"]}
    shown = comparison(none, "clearclip")
    assert "clearclip + FreeCP: no class" in shown and "sky 100%" in shown  # of the base
    right = pictures_of(shown)[1].astype(int)
    assert abs(right - 50).max() < 5


def test_pixels_of_no_class_are_shares_too(answer):
    some = replace(answer.purified, shares=np.array([0.2, 0.5, 0, 0, 0, 0, 0]))
    table, _ = rows_of(legend(replace(answer, purified=some)))
    assert table["nothing"] == ["–", "30.0%"]
    assert "nothing" not in rows_of(legend(answer))[0]


def test_the_summary_tells_text_from_image(answer):
    assert "<b>2 of 6 classes stay</b>" in summary(answer)
    assert "3 removed as redundant, 1 as look-alikes" in summary(answer)
    assert "Words encoded in 1.25 s, picture not encoded again, segmented in 0.50 s" in summary(
        answer
    )
    assert "picture encoded in 2.00 s" in summary(replace(answer, encode_seconds=2.0))


def pictures_of(shown):
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        for data in re.findall('data:image/webp;base64,([^"]+)', shown)
    ]


def test_both_pictures_lie_on_each_other_and_say_what_they_show(answer):
    shown = comparison(answer, "clear<clip>")
    left, right = pictures_of(shown)
    assert left.shape == right.shape and max(left.shape) >= 640
    assert left.shape[1] == 2 * left.shape[0]  # as the picture's
    assert 'alt="clear&lt;clip&gt; alone: sky 50%, ghost 40%, background 10%"' in shown
    assert 'alt="clear&lt;clip&gt; + FreeCP: sky 80%, background 20%"' in shown
    assert "clear<clip>" not in shown
    assert 'type="range"' in shown and "aria-label=" in shown


def test_the_words_of_the_background_are_listed(answer):
    assert "Background" not in legend(answer)
    shown = legend(replace(answer, background=("wall", "<sea>")))
    assert "Background: 2 words" in shown and "wall, &lt;sea&gt;" in shown
