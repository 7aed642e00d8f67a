"""Drawings of the thing classes: polygons and ellipses in a 100 x 100 box."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw

from .textures import Color, Rng, choose, jitter, mix, noise, randint, shade, weaken

# Points of the unit circle from its rational parametrisation: no sine, so no platform's last bit.
_QUARTER = [((64 - k * k) / (64 + k * k), 16 * k / (64 + k * k)) for k in range(8)]
CIRCLE: tuple[tuple[float, float], ...] = tuple(
    point
    for sx, sy, swap in ((1, 1, 0), (-1, 1, 1), (-1, -1, 0), (1, -1, 1))
    for point in (((sx * x, sy * y) if not swap else (sx * y, sy * x)) for x, y in _QUARTER)
)


class Brush:
    """Draws one thing at twice its size, then reduces it to a smooth sprite.

    Coordinates run from 0 to 100 from left to right and from top to bottom of the box; `flip`
    mirrors the drawing and `tilt` turns it about the middle by twice the arctangent of `tilt`.
    """

    def __init__(self, width: int, height: int, flip: bool, tilt: float):
        self.size = (2 * width, 2 * height)
        self.flip = flip
        self.cos = (1 - tilt * tilt) / (1 + tilt * tilt)
        self.sin = 2 * tilt / (1 + tilt * tilt)
        self.color = Image.new("RGB", self.size)
        self.mask = Image.new("L", self.size)
        self._draw_color = ImageDraw.Draw(self.color)
        self._draw_mask = ImageDraw.Draw(self.mask)

    def polygon(self, points: Sequence[tuple[float, float]], color: Color) -> None:
        """Fill a polygon."""
        width, height = self.size
        mapped = []
        for x, y in points:
            x = (50 - x if self.flip else x - 50) * width / 100
            y = (y - 50) * height / 100
            mapped.append(
                (
                    int(width / 2 + x * self.cos - y * self.sin),
                    int(height / 2 + x * self.sin + y * self.cos),
                )
            )
        self._draw_color.polygon(mapped, color)
        self._draw_mask.polygon(mapped, 255)

    def box(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        """Fill a rectangle."""
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), color)

    def oval(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        """Fill an ellipse with its centre at (x, y)."""
        self.polygon([(x + rx * cx, y + ry * cy) for cx, cy in CIRCLE], color)

    def sprite(self, rng: Rng) -> tuple[Image.Image, Image.Image]:
        """The drawing (RGB) and its opacity (L) at the asked size, shaded and a little rough."""
        image = mix(self.color, (0, 0, 0), weaken(noise(rng, self.size, (60, 60)), 30))
        grain = noise(rng, self.size, (5, 5))
        image = ImageChops.add(image, Image.merge("RGB", [weaken(grain, 12)] * 3))
        return image.reduce(2), self.mask.reduce(2)


BRIGHT: tuple[Color, ...] = (
    (200, 40, 40),
    (40, 80, 180),
    (235, 190, 40),
    (240, 240, 235),
    (60, 150, 80),
    (230, 120, 40),
    (120, 60, 150),
    (60, 180, 190),
)
FUR: tuple[Color, ...] = (
    (120, 80, 50),
    (70, 60, 55),
    (215, 195, 165),
    (190, 130, 70),
    (165, 160, 155),
)
SKIN: tuple[Color, ...] = ((240, 205, 175), (200, 150, 115), (120, 80, 55))
GLASS: Color = (150, 190, 215)
DARK: Color = (35, 35, 40)


def sun(b: Brush, rng: Rng) -> None:
    yellow = jitter(rng, choose(rng, ((255, 225, 80), (255, 200, 60), (255, 240, 160))), 10)
    if randint(rng, 0, 1):
        for x, y in CIRCLE[::2]:
            b.polygon(
                ((50 + 50 * x, 50 + 50 * y), (50 - 9 * y, 50 + 9 * x), (50 + 9 * y, 50 - 9 * x)),
                shade(yellow, 95),
            )
        b.oval(50, 50, 33, 33, yellow)
    else:
        b.oval(50, 50, 48, 48, shade(yellow, 93))
        b.oval(50, 50, 38, 38, yellow)


def moon(b: Brush, rng: Rng) -> None:
    pale = jitter(rng, choose(rng, ((235, 235, 215), (225, 225, 230), (240, 225, 180))), 8)
    if randint(rng, 0, 1):
        outer = [(50 + 48 * x, 50 + 48 * y) for x, y in CIRCLE[8:24]]
        bite = randint(rng, 10, 28)
        inner = [(50 + bite * x, 50 + 48 * y) for x, y in reversed(CIRCLE[8:24])]
        b.polygon([(50, 98), *outer, (50, 2), *inner], pale)
    else:
        b.oval(50, 50, 48, 48, pale)
        for _ in range(randint(rng, 3, 5)):
            r = randint(rng, 5, 10)
            b.oval(randint(rng, 25, 75), randint(rng, 25, 75), r, r, shade(pale, 84))


def cloud(b: Brush, rng: Rng) -> None:
    white = jitter(rng, choose(rng, ((245, 245, 248), (225, 228, 235), (180, 185, 195))), 8)
    b.oval(50, 72, 46, 24, shade(white, 92))
    for x in range(18, 90, 16):
        rx, ry = randint(rng, 15, 22), randint(rng, 22, 38)
        b.oval(x, 62 - ry // 3, rx, ry, white)
    b.oval(50, 70, 40, 18, white)


def airplane(b: Brush, rng: Rng) -> None:
    body, mark = jitter(rng, (225, 228, 232), 15), jitter(rng, choose(rng, BRIGHT), 15)
    b.polygon(((48, 42), (68, 42), (44, 8), (34, 8)), shade(body, 82))
    b.polygon(((2, 18), (12, 18), (24, 48), (8, 48)), mark)
    b.box(8, 40, 84, 62, body)
    b.oval(84, 51, 15, 11, body)
    b.polygon(((46, 56), (68, 56), (36, 96), (24, 96)), shade(body, 74))
    for x in range(26, 78, 9):
        b.box(x, 45, x + 4, 51, (60, 80, 110))


def balloon(b: Brush, rng: Rng) -> None:
    one, two = jitter(rng, choose(rng, BRIGHT), 15), jitter(rng, choose(rng, BRIGHT), 15)
    b.polygon(((14, 50), (86, 50), (60, 80), (40, 80)), two)
    b.oval(50, 37, 42, 36, one)
    b.oval(50, 37, 27, 36, two)
    b.oval(50, 37, 10, 36, one)
    b.polygon(((40, 78), (43, 78), (43, 90), (40, 90)), DARK)
    b.polygon(((57, 78), (60, 78), (60, 90), (57, 90)), DARK)
    b.box(39, 87, 61, 99, (140, 95, 50))


def bird(b: Brush, rng: Rng) -> None:
    feather = jitter(
        rng, choose(rng, ((60, 60, 70), (230, 230, 230), (170, 60, 50), (60, 100, 170))), 15
    )
    b.polygon(((2, 40), (30, 48), (28, 64), (0, 56)), shade(feather, 75))
    b.oval(48, 56, 27, 17, feather)
    b.oval(76, 42, 13, 14, feather)
    b.polygon(((86, 38), (100, 44), (86, 48)), (235, 165, 50))
    b.oval(79, 39, 3, 3, DARK if feather[0] > 100 else (240, 240, 240))
    if randint(rng, 0, 1):
        b.polygon(((34, 54), (60, 52), (30, 6), (14, 10)), shade(feather, 82))
    else:
        b.polygon(((28, 50), (60, 50), (20, 74)), shade(feather, 70))
        b.box(44, 70, 47, 92, (200, 140, 50))
        b.box(54, 70, 57, 92, (200, 140, 50))


def house(b: Brush, rng: Rng) -> None:
    wall = jitter(
        rng, choose(rng, ((225, 210, 185), (200, 205, 210), (215, 175, 140), (180, 195, 165))), 18
    )
    roof = jitter(rng, choose(rng, ((150, 60, 50), (90, 70, 65), (70, 80, 100))), 15)
    if randint(rng, 0, 1):
        b.box(70, 6, 80, 40, shade(roof, 75))
    b.box(10, 42, 90, 100, wall)
    b.polygon(((2, 44), (50, 4), (98, 44)), roof)
    door = randint(rng, 0, 2) * 26 + 14
    for x in (14, 40, 66):
        if x == door:
            b.box(x + 2, 62, x + 18, 100, jitter(rng, (110, 70, 45), 15))
        else:
            b.box(x, 56, x + 20, 78, (240, 240, 235))
            b.box(x + 2, 58, x + 18, 76, shade(GLASS, randint(rng, 50, 105)))
            b.box(x + 9, 56, x + 11, 78, (240, 240, 235))


def lighthouse(b: Brush, rng: Rng) -> None:
    stripe = jitter(rng, choose(rng, ((200, 45, 45), (40, 60, 120), (50, 50, 55))), 12)
    white = jitter(rng, (238, 238, 232), 8)
    bands = randint(rng, 4, 6)
    for i in range(bands):
        y0, y1 = 24 + 76 * i / bands, 24 + 76 * (i + 1) / bands
        w0, w1 = 18 + 20 * i / bands, 18 + 20 * (i + 1) / bands
        b.polygon(
            ((50 - w0, y0), (50 + w0, y0), (50 + w1, y1), (50 - w1, y1)), stripe if i % 2 else white
        )
    b.box(24, 20, 76, 25, DARK)
    b.box(34, 9, 66, 20, (255, 230, 130))
    b.polygon(((28, 10), (50, 0), (72, 10)), stripe)


def tree(b: Brush, rng: Rng) -> None:
    leaf = jitter(
        rng, choose(rng, ((70, 130, 50), (55, 110, 50), (180, 120, 40), (110, 140, 50))), 18
    )
    b.polygon(((43, 100), (46, 50), (54, 50), (57, 100)), jitter(rng, (100, 70, 45), 12))
    for x, y in ((30, 46), (70, 46), (50, 24), (38, 30), (62, 30), (50, 50)):
        r = randint(rng, 18, 24)
        b.oval(x + randint(rng, -4, 4), y, r + 4, r, shade(leaf, randint(rng, 84, 112)))


def fir(b: Brush, rng: Rng) -> None:
    leaf = jitter(rng, choose(rng, ((40, 90, 60), (55, 110, 50), (35, 80, 75), (70, 130, 50))), 16)
    b.box(44, 84, 56, 100, jitter(rng, (90, 62, 42), 12))
    for i, top in enumerate((46, 24, 2)):
        reach = 44 - 11 * i
        b.polygon(
            ((50, top), (50 + reach, top + 42), (50 - reach, top + 42)), shade(leaf, 88 + 11 * i)
        )


def _wheels(b: Brush, xs: Sequence[int], y: float, rx: float, ry: float) -> None:
    for x in xs:
        b.oval(x, y, rx, ry, DARK)
        b.oval(x, y, rx / 2, ry / 2, (170, 170, 175))


def car(b: Brush, rng: Rng) -> None:
    paint = jitter(rng, choose(rng, BRIGHT), 18)
    b.polygon(((18, 50), (32, 12), (68, 12), (86, 50)), shade(paint, 90))
    b.polygon(((25, 46), (36, 18), (48, 18), (48, 46)), GLASS)
    b.polygon(((52, 46), (52, 18), (65, 18), (78, 46)), GLASS)
    b.polygon(((2, 48), (92, 44), (99, 58), (99, 80), (2, 80)), paint)
    b.box(93, 54, 99, 62, (250, 235, 160))
    b.box(1, 54, 5, 62, (200, 30, 30))
    _wheels(b, (24, 76), 80, 11, 19)


def bus(b: Brush, rng: Rng) -> None:
    paint = jitter(rng, choose(rng, BRIGHT), 18)
    b.box(2, 8, 98, 84, paint)
    b.box(2, 60, 98, 68, choose(rng, ((240, 240, 235), shade(paint, 65))))
    for x in range(6, 76, 14):
        b.box(x, 18, x + 11, 46, shade(GLASS, 92))
    b.box(79, 18, 98, 52, GLASS)
    b.box(94, 62, 98, 72, (250, 235, 160))
    _wheels(b, (22, 78), 84, 8, 15)


def boat(b: Brush, rng: Rng) -> None:
    hull, sail = jitter(rng, choose(rng, BRIGHT), 18), jitter(rng, (240, 238, 228), 10)
    b.box(47, 4, 51, 76, (110, 80, 55))
    b.polygon(((53, 6), (53, 68), (88, 68)), sail)
    b.polygon(
        ((45, 14), (45, 68), (16, 68)),
        choose(rng, (shade(sail, 88), jitter(rng, choose(rng, BRIGHT), 10))),
    )
    b.polygon(((2, 74), (98, 74), (80, 99), (18, 99)), hull)
    b.polygon(((2, 74), (98, 74), (94, 80), (6, 80)), (240, 240, 240))


def person(b: Brush, rng: Rng) -> None:
    skin, shirt = jitter(rng, choose(rng, SKIN), 10), jitter(rng, choose(rng, BRIGHT), 20)
    trousers = jitter(rng, choose(rng, ((50, 60, 100), (60, 60, 60), (130, 100, 70))), 15)
    hair = choose(rng, ((50, 35, 25), (25, 22, 22), (190, 150, 80), (130, 70, 40)))
    stride = randint(rng, 0, 10)
    b.polygon(((34, 58), (50, 58), (46 - stride, 98), (30 - stride, 98)), trousers)
    b.polygon(((50, 58), (66, 58), (70 + stride, 98), (54 + stride, 98)), trousers)
    reach = randint(rng, 4, 22)
    b.polygon(((32, 27), (42, 30), (26 - reach // 2, 60), (14 - reach // 2, 56)), shade(shirt, 84))
    b.polygon(((68, 27), (58, 30), (74 + reach, 58), (84 + reach, 53)), shade(shirt, 84))
    b.polygon(((30, 25), (70, 25), (68, 62), (32, 62)), shirt)
    b.oval(50, 11, 17, 11, hair)
    b.oval(50, 14, 14, 10, skin)


def dog(b: Brush, rng: Rng) -> None:
    fur = jitter(rng, choose(rng, FUR), 14)
    b.polygon(((4, 18), (10, 16), (20, 44), (12, 50)), fur)
    for x in (14, 24, 56, 66):
        b.box(x, 56, x + 8, 99, shade(fur, 80 if x in (24, 56) else 95))
    b.oval(42, 52, 34, 17, fur)
    b.polygon(((60, 44), (72, 60), (86, 34), (70, 22)), fur)
    b.oval(77, 26, 14, 16, fur)
    b.polygon(((82, 22), (99, 28), (98, 38), (80, 40)), shade(fur, 108))
    b.polygon(((64, 14), (74, 14), (72, 42), (62, 38)), shade(fur, 62))
    b.oval(97, 30, 3, 4, DARK)
    b.oval(82, 22, 2, 3, DARK)


def cat(b: Brush, rng: Rng) -> None:
    fur = jitter(rng, choose(rng, FUR), 14)
    b.polygon(((2, 12), (9, 8), (16, 36), (26, 50), (16, 58), (6, 40)), fur)
    for x in (16, 27, 54, 64):
        b.box(x, 60, x + 7, 99, shade(fur, 80 if x in (27, 54) else 95))
    b.oval(42, 58, 32, 16, fur)
    for x in range(26, 58, 10):
        b.polygon(((x, 43), (x + 4, 43), (x + 3, 62)), shade(fur, 66))
    b.polygon(((64, 26), (66, 2), (78, 16)), fur)
    b.polygon(((82, 16), (94, 2), (96, 26)), fur)
    b.oval(80, 32, 18, 20, fur)
    b.oval(74, 29, 3, 4, (120, 180, 70))
    b.oval(86, 29, 3, 4, (120, 180, 70))
    b.polygon(((77, 38), (83, 38), (80, 43)), (220, 130, 130))


def ball(b: Brush, rng: Rng) -> None:
    one, two = jitter(rng, choose(rng, BRIGHT), 15), jitter(rng, choose(rng, BRIGHT), 15)
    b.oval(50, 50, 49, 49, one)
    if randint(rng, 0, 1):
        b.oval(50, 50, 20, 49, two)
        b.oval(50, 50, 49, 12, (240, 240, 240))
    else:
        for x, y in CIRCLE[::6]:
            b.oval(50 + 32 * x, 50 + 32 * y, 11, 11, two)
        b.oval(50, 50, 12, 12, two)
    b.oval(34, 30, 8, 7, (250, 250, 250))


def flower(b: Brush, rng: Rng) -> None:
    petal = jitter(
        rng, choose(rng, ((225, 60, 90), (245, 240, 240), (160, 90, 200), (240, 150, 50))), 15
    )
    b.polygon(((47, 50), (53, 50), (54, 100), (46, 100)), (60, 130, 50))
    b.polygon(((50, 88), (84, 62), (70, 88)), (70, 145, 55))
    b.polygon(((50, 94), (16, 70), (32, 94)), (60, 125, 50))
    for x, y in CIRCLE[:: choose(rng, (4, 5, 6))]:
        b.oval(50 + 24 * x, 32 + 19 * y, 16, 13, shade(petal, randint(rng, 90, 106)))
    b.oval(50, 32, 14, 11, jitter(rng, (240, 200, 60), 15))


def mushroom(b: Brush, rng: Rng) -> None:
    cap = jitter(rng, choose(rng, ((200, 40, 35), (160, 105, 60), (215, 150, 80))), 15)
    b.polygon(((38, 50), (62, 50), (68, 99), (32, 99)), jitter(rng, (235, 225, 205), 10))
    b.polygon([(50 + 48 * x, 54 + 50 * y) for x, y in CIRCLE[16:]] + [(98, 54), (50, 64)], cap)
    for x, y, r in ((30, 38, 7), (54, 22, 8), (72, 42, 6), (48, 46, 5)):
        b.oval(x, y, r, r, (245, 240, 230))


def umbrella(b: Brush, rng: Rng) -> None:
    one, two = jitter(rng, choose(rng, BRIGHT), 15), jitter(rng, choose(rng, BRIGHT), 15)
    b.box(48, 30, 52, 100, (120, 90, 65))
    arc = [(50 + 49 * x, 50 + 46 * y) for x, y in CIRCLE[16:]] + [(99, 50)]
    b.polygon(arc, one)
    for i in range(0, 16, 4):
        b.polygon((arc[i], arc[i + 2], (50, 4)) if i else ((1, 50), arc[2], (50, 4)), two)
    b.polygon(((1, 50), (26, 44), (50, 52), (74, 44), (99, 50), (50, 40)), shade(one, 80))


def chair(b: Brush, rng: Rng) -> None:
    wood = jitter(
        rng, choose(rng, ((150, 100, 55), (95, 65, 45), (225, 220, 210), (170, 50, 45))), 15
    )
    b.box(14, 0, 24, 100, wood)
    for y in (4, 20, 36):
        b.box(24, y, 36, y + 9, shade(wood, 85))
    b.box(30, 2, 38, 56, shade(wood, 90))
    b.polygon(((14, 52), (84, 52), (92, 64), (14, 64)), shade(wood, 110))
    b.box(80, 62, 90, 100, wood)
    b.box(34, 62, 41, 90, shade(wood, 70))
    b.box(66, 62, 73, 90, shade(wood, 70))


def lamp(b: Brush, rng: Rng) -> None:
    cover = jitter(rng, choose(rng, ((250, 230, 170), (240, 240, 225), (225, 130, 80))), 12)
    metal = choose(rng, (DARK, (185, 150, 80), (150, 150, 155)))
    b.box(46, 34, 54, 96, metal)
    b.oval(50, 96, 26, 4, metal)
    b.polygon(((30, 2), (70, 2), (92, 40), (8, 40)), cover)
    b.polygon(((10, 36), (90, 36), (92, 40), (8, 40)), shade(cover, 80))


def clock(b: Brush, rng: Rng) -> None:
    rim = jitter(rng, choose(rng, ((60, 45, 40), (190, 150, 70), (180, 40, 40), (60, 70, 90))), 12)
    b.oval(50, 50, 49, 49, rim)
    b.oval(50, 50, 40, 40, (245, 243, 235))
    for x, y in CIRCLE[::4]:
        b.oval(50 + 33 * x, 50 + 33 * y, 3, 3, DARK)
    for length, half in ((22, 4), (31, 3)):
        x, y = choose(rng, CIRCLE)
        b.polygon(
            (
                (50 + half * y, 50 - half * x),
                (50 + length * x, 50 + length * y),
                (50 - half * y, 50 + half * x),
            ),
            DARK,
        )


def snowman(b: Brush, rng: Rng) -> None:
    white, scarf = jitter(rng, (236, 240, 246), 8), jitter(rng, choose(rng, BRIGHT), 15)
    b.oval(50, 80, 38, 20, shade(white, 95))
    b.oval(50, 52, 28, 17, white)
    b.oval(50, 26, 20, 13, white)
    b.box(34, 34, 66, 40, scarf)
    b.box(28, 13, 72, 17, DARK)
    b.box(36, 0, 64, 14, DARK)
    b.polygon(((50, 25), (76, 28), (50, 31)), (235, 130, 40))
    for x, y in ((42, 22), (57, 22), (50, 48), (50, 58)):
        b.oval(x, y, 3, 2, DARK)


def rock(b: Brush, rng: Rng) -> None:
    grey = jitter(rng, choose(rng, ((130, 128, 125), (110, 105, 100), (150, 140, 125))), 15)
    outline = [
        (50 + randint(rng, 36, 49) * x, 60 + randint(rng, 34, 58) * y) for x, y in CIRCLE[16::2]
    ]
    b.polygon([(2, 98), *outline, (98, 98)], shade(grey, 82))
    b.polygon(
        [(50 + (x - 50) * 0.7, 50 + (y - 50) * 0.9) for x, y in outline[1:-1]], shade(grey, 112)
    )
    b.polygon(((60, 60), (96, 96), (50, 98)), shade(grey, 66))


@dataclass(frozen=True)
class Thing:
    """How one class of things is drawn and where it is seen.

    `aspect`: width in percent of the height. `height`: smallest and largest height in percent of
    the image's. `tilt`: largest turn, in percent. `places`: the stuff classes that it stands on
    (or hangs in).
    """

    draw: Callable[[Brush, Rng], None]
    aspect: int
    height: tuple[int, int]
    tilt: int
    places: tuple[str, ...]


_AIR = ("sky",)
_GRASS = ("lawn", "meadow")
_LAND = (*_GRASS, "wheat field", "sand", "snow")
_FLOOR = ("wood floor", "tiles", "carpet")
_WATER = ("sea", "river")
_WALL = ("brick wall", "wallpaper")

THINGS_BY_NAME: dict[str, Thing] = {
    "sun": Thing(sun, 100, (16, 32), 0, _AIR),
    "moon": Thing(moon, 100, (16, 30), 10, _AIR),
    "cloud": Thing(cloud, 200, (15, 27), 2, _AIR),
    "airplane": Thing(airplane, 210, (17, 28), 12, _AIR),
    "balloon": Thing(balloon, 72, (26, 46), 4, _AIR),
    "bird": Thing(bird, 130, (15, 30), 8, (*_AIR, *_LAND, *_WATER, "road")),
    "house": Thing(house, 115, (34, 60), 0, (*_LAND, "road")),
    "lighthouse": Thing(lighthouse, 48, (42, 70), 0, (*_LAND, "sea")),
    "tree": Thing(tree, 85, (34, 66), 3, (*_LAND, "road")),
    "fir": Thing(fir, 72, (34, 66), 3, (*_LAND, "road")),
    "car": Thing(car, 210, (18, 34), 3, ("road", "road", *_LAND)),
    "bus": Thing(bus, 205, (24, 40), 2, ("road", "road", *_LAND)),
    "boat": Thing(boat, 100, (24, 46), 5, _WATER),
    "person": Thing(person, 52, (32, 62), 4, (*_LAND, "road", *_FLOOR)),
    "dog": Thing(dog, 125, (20, 38), 4, (*_LAND, "road", *_FLOOR)),
    "cat": Thing(cat, 115, (20, 38), 4, (*_LAND, "road", *_FLOOR)),
    "ball": Thing(ball, 100, (14, 30), 40, (*_LAND, "road", *_FLOOR, *_WATER)),
    "flower": Thing(flower, 80, (22, 46), 6, (*_GRASS, "wheat field", "sand")),
    "mushroom": Thing(mushroom, 90, (18, 36), 6, (*_GRASS, "wheat field")),
    "umbrella": Thing(umbrella, 100, (24, 50), 12, ("sand", "sand", "lawn", "road", *_FLOOR)),
    "chair": Thing(chair, 68, (30, 54), 2, (*_FLOOR, "lawn", "sand")),
    "lamp": Thing(lamp, 60, (36, 66), 2, _FLOOR),
    "clock": Thing(clock, 100, (18, 34), 0, _WALL),
    "snowman": Thing(snowman, 70, (30, 58), 4, ("snow",)),
    "rock": Thing(rock, 150, (16, 34), 3, (*_LAND, *_WATER)),
}
"""Class -> how and where it is drawn."""
