"""Overlays against brute force: colours, outlines, and names where they can be read."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage
from skimage.color import rgb2lab

from freecp_d2.fonts import text_length
from freecp_d2.overlay import Name, _ink, draw_overlay, palette, place_names

NO_ROOM = "W" * 100
"""A name that fits in none of the small pictures."""


def distances(colors: np.ndarray) -> np.ndarray:
    """Between all pairs, in CIELAB; infinite between a colour and itself."""
    lab = rgb2lab(colors[None])[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return distance


def test_colors_are_far_apart():
    assert distances(palette(12, False)).min() > 50
    assert distances(palette(20, False)).min() > 34
    assert distances(palette(171, True)).min() > 12
    colors = palette(847, False)
    apart = distances(colors)
    assert apart.min() > 4
    near = np.abs(np.subtract.outer(np.arange(847), np.arange(847))) <= 3
    assert apart[near].min() > 49.5


def test_no_color_looks_like_background():
    grey, *colors = rgb2lab(palette(301, True)[None])[0]
    assert np.hypot(grey[1], grey[2]) < 0.1
    assert np.linalg.norm(np.array(colors) - grey, axis=1).min() > 29
    lightness = np.array(colors)[:, 0]
    assert lightness.min() > 34 and lightness.max() < 89


def test_the_same_list_has_the_same_colors():
    colors = palette(40, False)
    assert colors.shape == (40, 3) and colors.dtype == np.uint8
    colors[:] = 0  # theirs who asked
    assert np.array_equal(palette(40, False), palette(300, False)[:40])
    assert np.array_equal(palette(41, True)[1:], palette(40, False))
    assert palette(0, False).shape == (0, 3) and palette(1, True).shape == (1, 3)
    assert np.array_equal(palette(1030, False)[1024:], palette(6, False))


@pytest.mark.parametrize("alpha", [0, 0.6, 1])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_pixels(alpha, dtype):
    """Fill and outline of every pixel, by a loop over them; single pixels among them."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 30, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, (6, 6)).repeat(4, axis=0).repeat(5, axis=1)
    labels[rng.random(labels.shape) < 0.05] = 4
    labels[8:12, 10:20] = 200
    colors = palette(5, True)
    before = image.copy(), labels.copy()
    drawn = draw_overlay(image, labels.astype(dtype), [NO_ROOM] * 5, colors, 200, alpha)
    assert np.array_equal(image, before[0]) and np.array_equal(labels, before[1])
    assert drawn.flags.writeable
    pixels = {label: (labels == label).sum() for label in range(5)} | {200: np.inf}
    grey = image @ (0.299, 0.587, 0.114)
    outlined = 0
    for y, x in np.ndindex(labels.shape):
        label = labels[y, x]
        color = np.full(3, grey[y, x]) if label == 200 else colors[label]
        want = alpha * color + (1 - alpha) * image[y, x]
        around = labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].ravel()
        if any(pixels[other] < pixels[label] for other in around):
            want, outlined = 0.35 * want, outlined + 1
        assert drawn[y, x] == pytest.approx(want, abs=1.5)
    assert 100 < outlined < 500


def test_outlines_grow_with_the_picture():
    labels = np.zeros((1200, 1600), np.int64)
    labels[400:800, 500:900] = 1
    drawn = draw_overlay(
        np.zeros((1200, 1600, 3), np.uint8), labels, ["", ""], np.full((2, 3), 200, np.uint8), -1, 1
    )
    row = drawn[450, :, 0]
    assert np.array_equal(np.flatnonzero(row == 70), [498, 499, 900, 901])


def test_scales():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels = np.arange(600).reshape(20, 30) // 150 % 2 * 3
    names, colors = [NO_ROOM] * 4, palette(4, False)
    twice = draw_overlay(image, labels, names, colors, -1, 1, scale=2)
    assert twice.shape == (40, 60, 3) and twice.dtype == np.uint8
    larger = labels.repeat(2, axis=0).repeat(2, axis=1)
    outlined = (twice != colors[larger]).any(axis=2)
    assert np.array_equal(twice[outlined], (0.35 * colors[larger][outlined]).astype(np.uint8))
    assert 0 < outlined.sum() < 0.2 * outlined.size
    assert draw_overlay(image, labels, names, colors, -1, scale=0.5).shape == (10, 15, 3)
    assert draw_overlay(image, labels, names, colors, -1, scale=0.001).shape == (1, 1, 3)


def test_the_smallest_picture():
    dot = draw_overlay(
        np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), int), ["a"], palette(1, 0), 9, 1
    )
    assert np.array_equal(dot[0], palette(1, False))


def test_threads_draw_the_same():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    labels = rng.integers(0, 6, (4, 5)).repeat(50, axis=0).repeat(60, axis=1)

    def draw(_) -> np.ndarray:
        return draw_overlay(image, labels, [f"class {i}" for i in range(6)], palette(6, False), -1)

    alone = draw(None)
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(drawn, alone) for drawn in pool.map(draw, range(12)))


# Names


def disks(height: int, width: int, radius: float) -> np.ndarray:
    """Class 0, with disks of 1 to 12 in a grid; radius is in short sides."""
    y, x = np.ogrid[:height, :width]
    labels = np.zeros((height, width), np.uint16)
    for i in range(12):
        middle = height * (i // 3 + 0.5) / 4, width * (i % 3 + 0.5) / 3
        labels[np.hypot(y - middle[0], x - middle[1]) < radius * min(height, width)] = i + 1
    return labels


def check(names: list[Name], labels: np.ndarray, class_names: list[str]) -> None:
    """What holds of names in any picture."""
    height, width = labels.shape
    assert len({name.label for name in names}) == len(names)
    taken = np.zeros(labels.shape, bool)
    for name in names:
        assert 0 <= name.left and name.left + name.width <= width
        assert 0 <= name.top and name.top + name.height <= height
        box = slice(name.top, name.top + name.height), slice(name.left, name.left + name.width)
        assert not taken[box].any()
        taken[box] = True
        assert name.size >= 12
        assert "".join(name.lines).replace(" ", "") == class_names[name.label].replace(" ", "")
        assert all(text_length(line, name.size) < name.width for line in name.lines)
        assert name.height > len(name.lines) * name.size
        pieces, _ = ndimage.label(labels == name.label)
        largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
        reach = name.size
        around = (
            slice(max(0, name.top - reach), name.top + name.height + reach),
            slice(max(0, name.left - reach), name.left + name.width + reach),
        )
        assert largest[around].any(), "on or beside the largest piece"


@pytest.mark.parametrize("radius", [0.1, 0.04])
@pytest.mark.parametrize("size", [(300, 225), (225, 300), (480, 360), (600, 800), (3000, 4000)])
def test_every_class_with_room_has_a_name(size, radius):
    labels = disks(*size, radius)
    class_names = [f"name {i}" for i in range(13)]
    names = place_names(labels, class_names)
    check(names, labels, class_names)
    assert {name.label for name in names} == set(range(13))
    for name in names:
        box = labels[name.top : name.top + name.height, name.left : name.left + name.width]
        for label in range(1, 13):
            hidden = (box == label).sum() / (labels == label).sum()
            assert hidden < 0.9, "no piece is hidden, not by its own name either"
    usual = max(12, round((size[0] * size[1]) ** 0.5 / 36))
    assert {name.size for name in names} == {usual}


def test_a_name_lies_in_the_middle_of_the_largest_piece():
    labels = np.zeros((400, 600), np.uint16)
    labels[20:80, 20:80] = 1
    labels[150:250, 100:500] = 1
    labels[250:390, 100:160] = 1
    (name,) = (name for name in place_names(labels, ["a", "dog"]) if name.label == 1)
    assert name.top + name.height / 2 == pytest.approx(200, abs=8)
    assert 150 < name.left < 450


def test_long_names_on_portraits():
    class_names = ["wall of bricks and stones of the old town hall", "person in a red jacket", "ok"]
    labels = np.zeros((400, 240), np.uint16)
    labels[200:380, 40:200] = 1
    labels[20:60, 180:230] = 2
    names = place_names(labels, class_names)
    check(names, labels, class_names)
    assert {name.label for name in names} == {0, 1, 2}
    assert len(names[0].lines) > 1


def test_lines_are_narrower_where_the_piece_is():
    labels = np.zeros((200, 300), np.uint16)
    labels[:, 220:275] = 1
    class_names = ["the sky above", "traffic light"]
    names = place_names(labels, class_names)
    check(names, labels, class_names)
    assert [name.lines for name in names] == [["the sky above"], ["traffic", "light"]]
    assert names[1].left + names[1].width / 2 == pytest.approx(247, abs=6)


def test_letters_are_smaller_where_there_is_less_room():
    labels = np.arange(64, dtype=np.uint16).reshape(8, 8).repeat(150, axis=0).repeat(200, axis=1)
    class_names = [f"quite a name, {i}" for i in range(64)]
    names = place_names(labels, class_names)
    check(names, labels, class_names)
    assert len(names) == 64
    assert {name.size for name in names} < set(range(12, 39))


def test_noise_has_no_names():
    labels = np.random.default_rng(0).integers(0, 171, (200, 300)).astype(np.uint16)
    assert place_names(labels, ["a"] * 171) == []


def test_no_name_hides_others_whole():
    """Every piece is smaller than its name."""
    labels = np.arange(625, dtype=np.uint16).reshape(25, 25).repeat(8, axis=0).repeat(8, axis=1)
    assert place_names(labels, ["name"] * 625) == []


def test_no_name_away_from_its_piece():
    """A thin L among many small pieces, which its name would hide; in its bend there is room."""
    labels = np.zeros((300, 300), np.uint16)
    noise = np.random.default_rng(0).integers(2, 9, (300, 300))
    labels[20:280, 20:80] = noise[20:280, 20:80]
    labels[220:280, 20:280] = noise[220:280, 20:280]
    labels[50:250, 48:52] = labels[248:252, 48:250] = 1
    names = place_names(labels, ["a"] * 9)
    assert [name.label for name in names] == [0]


def test_no_names_without_room():
    labels = np.zeros((300, 200), np.uint16)
    labels[:, 100:] = 1
    class_names = ["word " * 200, "ok"]
    (name,) = place_names(labels, class_names)
    assert name.label == 1


def test_specks_have_no_name():
    labels = np.zeros((200, 300), np.uint16)
    labels[50:55, 50:55] = 1
    labels[100:106, 50:56] = 2
    assert [name.label for name in place_names(labels, ["a", "b", "c"])] == [0, 2]


def test_pieces_that_touch_at_a_corner_are_two():
    labels = np.zeros((200, 300), np.uint16)
    labels[20:60, 20:60] = labels[60:100, 60:100] = 1
    labels[120:170, 220:270] = 1
    (name,) = (name for name in place_names(labels, ["a", "b"]) if name.label == 1)
    assert 220 < name.left < 270


def test_ignored_pixels_have_no_name_and_may_be_hidden():
    blocks = np.arange(625, dtype=np.uint16).reshape(25, 25).repeat(8, axis=0).repeat(8, axis=1)
    blocks[96:118, 80:128] = 625
    (name,) = place_names(blocks, ["name"] * 625)
    box = blocks[name.top : name.top + name.height, name.left : name.left + name.width]
    assert (box == 625).mean() > 0.9

    labels = np.full((100, 100), 1, np.uint16)
    assert place_names(labels, ["sky"]) == []
    labels[40:50, 40:50] = 0
    names = place_names(labels, ["sky"])
    check(names, labels, ["sky"])
    assert len(names) == 1


def test_names_are_drawn_on_boxes_of_their_color():
    colors = palette(2, False)
    labels = np.zeros((200, 300), np.int64)
    labels[:, 150:] = 1
    class_names = ["sky", "dog"]
    drawn = draw_overlay(np.zeros((200, 300, 3), np.uint8), labels, class_names, colors, -1, 0)
    for name in place_names(labels.astype(np.uint16), class_names):
        box = drawn[name.top : name.top + name.height, name.left : name.left + name.width]
        assert np.array_equal(box[1, name.width // 2], colors[name.label])
        letters = np.abs(box - colors[name.label].astype(int)).sum(axis=2) > 100
        letters[:3, :4] = letters[:3, -4:] = letters[-3:, :4] = letters[-3:, -4:] = False
        assert letters.sum() > 40
        rows, columns = np.nonzero(letters)
        assert columns.min() >= 2 and columns.max() < name.width - 2
        middle = (columns.min() + columns.max()) / 2
        assert middle == pytest.approx(name.width / 2, abs=1.5)


def test_names_contrast_with_their_boxes():
    """By WCAG 2's formula, at least 4.5 to 1."""
    for color in palette(300, True):
        part = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color / 255]
        luminance = 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2]
        ratios = {"black": (luminance + 0.05) / 0.05, "white": 1.05 / (luminance + 0.05)}
        assert ratios[_ink(color)] == max(ratios.values()) >= 4.5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image": np.zeros((4, 4), np.uint8)}, r"image is \(4, 4\) uint8; give \(H, W, 3\)"),
        ({"image": np.zeros((4, 4, 3))}, "float64; give"),
        ({"label_map": np.zeros((5, 4), int)}, r"label_map is \(5, 4\) and image \(4, 4, 3\)"),
        ({"label_map": np.full((4, 4), 2)}, "the label 2; there are 2 class names"),
        ({"label_map": np.full((4, 4), -1)}, "the label -1; .* ignore_label is 255"),
        ({"colors": np.zeros((3, 3), np.uint8)}, r"colors is \(3, 3\); give \(2, 3\)"),
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"scale": 0}, "scale is 0"),
    ],
)
def test_what_cannot_be_drawn(change, sentence):
    arguments = {
        "image": np.zeros((4, 4, 3), np.uint8),
        "label_map": np.zeros((4, 4), int),
        "class_names": ["a", "b"],
        "colors": palette(2, False),
        "ignore_label": 255,
    }
    draw_overlay(**arguments)
    with pytest.raises(ValueError, match=sentence):
        draw_overlay(**arguments | change)
