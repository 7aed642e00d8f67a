"""One synthetic scene from a seed: image, exact label map and caption."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from .classes import CLASSES, STUFF, THINGS
from .textures import TEXTURES, Rng, choose, mix, noise, randint
from .things import THINGS_BY_NAME, Brush

HEIGHT, WIDTH = 224, 288
MIN_CLASSES, MAX_CLASSES = 3, 6
MIN_AREA_PERMILLE = 7
"""A class that shows on fewer pixels than this share of the image makes the draw invalid."""

_ID = {name: i for i, name in enumerate(CLASSES)}
_GROUNDS = ("lawn", "meadow", "wheat field", "sand", "snow")
_WALLS = ("brick wall", "wallpaper")
_FLOORS = ("wood floor", "tiles", "carpet")


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    `image` (H,W,3) uint8 RGB; `labels` (H,W) uint8, ids of `CLASSES`; `nouns`, the class names that
    the caption mentions, which are those of the label map; `caption`, one English sentence.
    """

    image: np.ndarray
    labels: np.ndarray
    nouns: tuple[str, ...]
    caption: str


def draw_scene(seed: int, height: int = HEIGHT, width: int = WIDTH) -> Scene:
    """Draw the scene of `seed`: the same bits on every machine with the same Pillow.

    Args:
        seed: a non-negative integer.
        height, width: size in pixels, at least 64 each.

    Raises:
        ValueError: when the size is too small or the seed negative.
    """
    if min(height, width) < 64:
        raise ValueError(f"a scene needs at least 64 x 64 pixels, not {height} x {width}")
    rng = np.random.Generator(np.random.PCG64(seed))
    while True:
        image, labels = _draw(rng, height, width)
        counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
        present = np.flatnonzero(counts)
        if not MIN_CLASSES <= len(present) <= MAX_CLASSES:
            continue
        if counts[present].min() * 1000 >= MIN_AREA_PERMILLE * labels.size:
            break
    nouns = tuple(CLASSES[i] for i in present)
    return Scene(_light(rng, image), labels, nouns, _caption(rng, nouns))


def _draw(rng: Rng, height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """Stuff, then things from back to front. Returns the RGB image and (H,W) uint8 labels."""
    labels = _layout(rng, height, width)
    image = Image.new("RGB", (width, height))
    stuff = [CLASSES[i] for i in np.unique(labels)]
    for name in stuff:
        region = Image.fromarray((labels == _ID[name]).astype(np.uint8) * 255)
        image.paste(TEXTURES[name](rng, (width, height)), (0, 0), region)

    wanted = max(randint(rng, MIN_CLASSES, MAX_CLASSES) - len(stuff), 1)
    fitting = [name for name in THINGS if set(THINGS_BY_NAME[name].places) & set(stuff)]
    names = [fitting[i] for i in rng.permutation(len(fitting))[:wanted]]
    placed = []
    for name in names:
        for _ in range(choose(rng, (1, 1, 1, 2, 2, 3)) if name not in ("sun", "moon") else 1):
            spot = _spot(rng, name, labels)
            if spot is not None:
                placed.append((spot[1], spot[0], name))
    for bottom, middle, name in sorted(placed):
        _paste(rng, image, labels, name, middle, bottom)
    return image, labels


def _edge(rng: Rng, length: int, base: int, swing: int, cell: int) -> np.ndarray:
    """A wavy line: (length,) int64 around `base`, at most about `swing` away."""
    wave = np.asarray(noise(rng, (length, 1), (cell, 1)), np.int64)[0]
    return base + (wave - 128) * swing // 128


def _layout(rng: Rng, height: int, width: int) -> np.ndarray:
    """The stuff regions: (H,W) uint8 labels."""
    rows, columns = np.mgrid[:height, :width]
    labels = np.empty((height, width), np.uint8)

    def below(name: str, percent: int, swing: int, cell: int = 60) -> None:
        edge = _edge(rng, width, height * percent // 100, height * swing // 100, cell)
        labels[rows >= edge[None, :]] = _ID[name]

    def stream(name: str) -> None:
        widen = randint(rng, 20, 70)
        middle = _edge(
            rng, height, randint(rng, width // 4, width * 3 // 4), width // 4, height // 3
        )
        half = width * (12 + np.arange(height) * widen // (2 * height)) // 200 + width // 20
        inside = abs(columns - middle[:, None]) <= half[:, None]
        labels[inside & (labels != _ID["sky"])] = _ID[name]

    setting = choose(rng, ("open", "open", "shore", "river", "street", "close", "room", "room"))
    horizon = randint(rng, 25, 62)
    ground = choose(rng, _GROUNDS)
    if setting == "room":
        labels[:] = _ID[choose(rng, _WALLS)]
        below(choose(rng, _FLOORS), randint(rng, 38, 75), 0)
    elif setting == "close":
        labels[:] = _ID[ground]
        other = choose(rng, (*_GROUNDS, "sea", "river", "road"))
        if randint(rng, 0, 2):
            below(other, randint(rng, 30, 70), randint(rng, 4, 25))
    else:
        labels[:] = _ID["sky"]
        if setting in ("open", "river") and randint(rng, 0, 1):
            behind = choose(rng, ("mountain", "forest"))
            swing, cell = (18, 55) if behind == "mountain" else (6, 22)
            below(behind, max(horizon - randint(rng, 10, 24), 10), swing, cell)
        if setting == "shore":
            below("sea", horizon, 0)
            if randint(rng, 0, 2):
                beach = choose(rng, ("sand", "sand", *_GROUNDS))
                below(beach, horizon + randint(rng, 16, 35), randint(rng, 2, 10))
        elif setting == "street":
            if randint(rng, 0, 2):
                below(ground, horizon, 2)
                below("road", horizon + randint(rng, 12, 30), randint(rng, 0, 4))
            else:
                below("road", horizon, 0)
        else:
            below(ground, horizon, randint(rng, 0, 6))
            if setting == "river":
                stream("river")
    return labels


def _spot(rng: Rng, name: str, labels: np.ndarray) -> tuple[int, int] | None:
    """Where a thing may stand: (column of its middle, row of its foot), or None."""
    height, width = labels.shape
    places = THINGS_BY_NAME[name].places
    allowed = {_ID[place] for place in places}
    for _ in range(20):
        x, y = randint(rng, width // 20, width * 19 // 20), randint(rng, height // 8, height - 1)
        if int(labels[y, x]) in allowed:
            return x, y
    return None


def _paste(
    rng: Rng, image: Image.Image, labels: np.ndarray, name: str, middle: int, bottom: int
) -> None:
    """Draw one thing with its shadow into `image` and `labels`, in place."""
    thing = THINGS_BY_NAME[name]
    height, width = labels.shape
    tall = height * randint(rng, *thing.height) // 100
    hangs = CLASSES[labels[bottom, middle]] in ("sky", *_WALLS)
    if not hangs:
        tall = tall * (70 + 40 * bottom // height) // 100
    wide = max(4, tall * thing.aspect * randint(rng, 88, 112) // 10000)
    tilt = randint(rng, -thing.tilt, thing.tilt) / 200
    brush = Brush(wide, tall, bool(randint(rng, 0, 1)), tilt)
    thing.draw(brush, rng)
    sprite, opacity = brush.sprite(rng)
    left, top = middle - wide // 2, bottom - tall if not hangs else bottom - tall // 2

    if not hangs and randint(rng, 0, 1):
        flat = opacity.resize((wide, max(2, tall // 4))).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        shadow = flat.point([v * 2 // 5 for v in range(256)])
        image.paste((20, 20, 25), (left + randint(rng, -wide // 6, wide // 6), bottom - 2), shadow)
    image.paste(sprite, (left, top), opacity)

    y0, y1, x0, x1 = max(top, 0), min(top + tall, height), max(left, 0), min(left + wide, width)
    solid = np.asarray(opacity)[y0 - top : y1 - top, x0 - left : x1 - left] >= 128
    labels[y0:y1, x0:x1][solid] = _ID[name]


def _light(rng: Rng, image: Image.Image) -> np.ndarray:
    """Brightness, contrast, colour cast, uneven light, softness and sensor noise: (H,W,3) uint8."""
    contrast, brightness = randint(rng, 70, 125), randint(rng, -32, 28)
    table = []
    for _ in range(3):
        gain, offset = contrast + randint(rng, -9, 9), brightness + randint(rng, -8, 8)
        table += [min(255, max(0, 128 + (v - 128) * gain // 100 + offset)) for v in range(256)]
    image = image.point(table)
    if randint(rng, 0, 1):
        size = (max(image.width // 2, 1), max(image.height // 2, 1))
        patchy = noise(rng, image.size, size).point([v * 2 // 5 for v in range(256)])
        image = mix(image, choose(rng, ((10, 10, 20), (255, 245, 225))), patchy)
    if randint(rng, 0, 2) == 0:
        image = image.filter(ImageFilter.BoxBlur(1))
    strength = randint(rng, 2, 14)
    pixels = np.asarray(image, np.int16)
    grain = rng.integers(-strength, strength + 1, pixels.shape, dtype=np.int16)
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


_OPENINGS = ("", "a picture of ", "a view of ", "this is ", "an image with ", "there is ")


def _caption(rng: Rng, nouns: tuple[str, ...]) -> str:
    """One sentence that mentions every noun, in random order."""
    words = [nouns[i] for i in rng.permutation(len(nouns))]
    words = [_with_article(rng, word) for word in words]
    return choose(rng, _OPENINGS) + ", ".join(words[:-1]) + " and " + words[-1]


def _with_article(rng: Rng, noun: str) -> str:
    if noun in STUFF:
        return choose(rng, ("", "the ", "some ")) + noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun
