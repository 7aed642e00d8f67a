"""Textures of the stuff classes.

Everything here is integer arithmetic on uint8 images, so that the same seed gives the same bits on
every machine: random integers, Pillow's fixed-point resize, composite and polygon filling.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Rng = np.random.Generator
Color = tuple[int, int, int]
Size = tuple[int, int]


def randint(rng: Rng, low: int, high: int) -> int:
    """A Python int drawn uniformly from [low, high], both included."""
    return int(rng.integers(low, high + 1))


def choose(rng: Rng, options):
    """One element of a sequence, uniformly."""
    return options[randint(rng, 0, len(options) - 1)]


def jitter(rng: Rng, color: Color, amount: int) -> Color:
    """`color` with up to `amount` added to or taken from the whole and from each channel."""
    common = randint(rng, -amount, amount)
    red, green, blue = (
        min(255, max(0, c + common + randint(rng, -amount // 2, amount // 2))) for c in color
    )
    return red, green, blue


def noise(rng: Rng, size: Size, cell: Size) -> Image.Image:
    """Smooth noise, mode L, of `size` (width, height), with features of about `cell` pixels."""
    (width, height), (cell_x, cell_y) = size, cell
    shape = (height // cell_y + 2, width // cell_x + 2)
    grid = rng.integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)


def level(mask: Image.Image, low: int, high: int) -> Image.Image:
    """Stretch a mode-L image so that `low` becomes 0 and `high` 255, clipped outside."""
    return mask.point([min(255, max(0, (v - low) * 255 // (high - low))) for v in range(256)])


def weaken(mask: Image.Image, percent: int) -> Image.Image:
    """Scale a mode-L image by `percent` / 100."""
    return mask.point([v * percent // 100 for v in range(256)])


def mix(base: Color | Image.Image, top: Color | Image.Image, mask: Image.Image) -> Image.Image:
    """`top` over `base` (colours or RGB images) with the mode-L `mask` as opacity."""
    base, top = (Image.new("RGB", mask.size, x) if isinstance(x, tuple) else x for x in (base, top))
    return Image.composite(top, base, mask)


def gradient(size: Size, rng: Rng, jitter_by: int = 0) -> Image.Image:
    """A vertical ramp, mode L, 0 at the top and 255 at the bottom, its ends moved at random."""
    start, end = randint(rng, 0, jitter_by), 255 - randint(rng, 0, jitter_by)
    height = size[1]
    ramp = [start + (end - start) * y // max(1, height - 1) for y in range(height)]
    return Image.fromarray(np.array(ramp, np.uint8)[:, None]).resize(size, Image.Resampling.NEAREST)


def shade(color: Color, percent: int) -> Color:
    """`color` made darker (below 100) or lighter (above)."""
    red, green, blue = (min(255, c * percent // 100) for c in color)
    return red, green, blue


def dots(rng: Rng, image: Image.Image, count: int, radius: tuple[int, int], colors) -> None:
    """Scatter `count` small discs over `image`, in place."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for _ in range(count):
        x, y = randint(rng, 0, width - 1), randint(rng, 0, height - 1)
        r = randint(rng, *radius)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=choose(rng, colors))


DAY = (((70, 130, 210), (180, 210, 240)), ((120, 170, 225), (215, 225, 235)))
DULL = (((150, 160, 172), (205, 210, 214)), ((180, 185, 190), (222, 222, 222)))
DUSK = (((90, 90, 160), (245, 170, 110)), ((150, 100, 140), (250, 200, 140)))
NIGHT = (((8, 12, 40), (40, 50, 90)), ((15, 15, 25), (45, 40, 70)))


def sky(rng: Rng, size: Size) -> Image.Image:
    kind = choose(rng, (DAY, DAY, DAY, DULL, DUSK, NIGHT))
    top, bottom = (jitter(rng, c, 12) for c in choose(rng, kind))
    image = mix(top, bottom, gradient(size, rng, 60))
    image = mix(image, shade(bottom, 108), weaken(noise(rng, size, (90, 40)), 35))
    if kind is NIGHT:
        dots(rng, image, randint(rng, 5, 30), (0, 1), ((230, 230, 210),))
    return image


GREENS = ((70, 135, 45), (88, 150, 60), (60, 120, 60), (110, 145, 60))


def lawn(rng: Rng, size: Size) -> Image.Image:
    green = jitter(rng, choose(rng, GREENS), 18)
    image = mix(shade(green, 82), shade(green, 118), noise(rng, size, (2, 2)))
    if randint(rng, 0, 2):
        image = mix(image, shade(green, 122), weaken(stripes(rng, size, (18, 44)), 40))
    return mix(image, shade(green, 70), weaken(noise(rng, size, (60, 40)), 35))


def meadow(rng: Rng, size: Size) -> Image.Image:
    green = jitter(rng, choose(rng, GREENS), 18)
    blades = level(noise(rng, size, (2, 11)), 60, 195)
    image = mix(shade(green, 65), shade(green, 125), blades)
    image = mix(image, (190, 180, 90), weaken(noise(rng, size, (30, 14)), 30))
    colors = [choose(rng, ((240, 225, 70), (245, 245, 240), (170, 110, 200), (220, 80, 90)))]
    dots(rng, image, size[0] * size[1] // randint(rng, 350, 1100), (1, 1), colors)
    return image


def stripes(rng: Rng, size: Size, period: tuple[int, int], slant: int = 0) -> Image.Image:
    """Hard parallel bands, mode L 0 or 255, tilted by a random slope of up to 1."""
    (width, height), step = size, randint(rng, *period)
    slope = slant or randint(rng, -64, 64)
    y, x = np.mgrid[:height, :width]
    along = x * 64 + y * slope if randint(rng, 0, 1) else y * 64 + x * slope
    band = (along // (32 * step)) % 2
    return Image.fromarray((band * 255).astype(np.uint8))


def wheat_field(rng: Rng, size: Size) -> Image.Image:
    gold = jitter(rng, choose(rng, ((205, 165, 75), (222, 188, 98), (185, 145, 62))), 15)
    image = mix(shade(gold, 72), shade(gold, 116), level(noise(rng, size, (2, 8)), 50, 205))
    return mix(image, shade(gold, 78), weaken(stripes(rng, size, (8, 16)), 45))


def sand(rng: Rng, size: Size) -> Image.Image:
    beige = jitter(rng, choose(rng, ((215, 190, 145), (228, 208, 170), (200, 172, 122))), 14)
    image = mix(shade(beige, 90), shade(beige, 108), noise(rng, size, (2, 2)))
    ripples = weaken(level(noise(rng, size, (26, 6)), 90, 170), 38)
    return mix(image, shade(beige, 82), ripples)


def snow(rng: Rng, size: Size) -> Image.Image:
    white = jitter(rng, (238, 243, 249), 8)
    image = mix(white, shade(jitter(rng, (185, 205, 230), 12), 100), noise(rng, size, (46, 24)))
    return mix(image, (255, 255, 255), weaken(level(noise(rng, size, (2, 2)), 120, 220), 60))


WATERS = ((45, 100, 145), (60, 125, 150), (40, 85, 115), (75, 130, 135), (65, 105, 110))


def sea(rng: Rng, size: Size) -> Image.Image:
    blue = jitter(rng, choose(rng, WATERS), 16)
    image = mix(shade(blue, 78), shade(blue, 118), noise(rng, size, (16, 4)))
    crests = level(noise(rng, size, (13, 3)), randint(rng, 165, 190), 225)
    return mix(image, jitter(rng, (225, 235, 238), 8), weaken(crests, 80))


def river(rng: Rng, size: Size) -> Image.Image:
    blue = jitter(rng, choose(rng, WATERS), 16)
    image = mix(shade(blue, 82), shade(blue, 120), noise(rng, size, (7, 30)))
    flow = level(noise(rng, size, (4, 40)), 150, 215)
    return mix(image, shade(blue, 140), weaken(flow, 42))


def road(rng: Rng, size: Size) -> Image.Image:
    grey = jitter(rng, choose(rng, ((95, 95, 100), (120, 118, 116), (75, 77, 82))), 14)
    image = mix(shade(grey, 86), shade(grey, 114), noise(rng, size, (1, 1)))
    image = mix(image, shade(grey, 80), weaken(noise(rng, size, (50, 18)), 40))
    if randint(rng, 0, 3):
        draw = ImageDraw.Draw(image)
        paint = choose(rng, ((235, 235, 230), (235, 200, 80)))
        y, lean = randint(rng, size[1] // 3, size[1] - 6), randint(rng, -20, 20)
        dash, thick = randint(rng, 18, 34), randint(rng, 3, 5)
        for x in range(randint(rng, 0, dash), size[0], 2 * dash):
            top = y + lean * x // size[0]
            draw.polygon(
                ((x, top), (x + dash, top), (x + dash, top + thick), (x, top + thick)), paint
            )
    return image


def mountain(rng: Rng, size: Size) -> Image.Image:
    stone = jitter(rng, choose(rng, ((125, 115, 110), (105, 110, 122), (140, 122, 100))), 15)
    image = mix(shade(stone, 70), shade(stone, 122), level(noise(rng, size, (16, 26)), 90, 165))
    return mix(image, shade(stone, 62), weaken(level(noise(rng, size, (5, 7)), 130, 200), 55))


def forest(rng: Rng, size: Size) -> Image.Image:
    green = jitter(rng, choose(rng, ((35, 75, 38), (45, 85, 50), (60, 85, 35))), 12)
    image = mix(shade(green, 55), shade(green, 140), level(noise(rng, size, (9, 8)), 70, 190))
    return mix(image, shade(green, 160), weaken(level(noise(rng, size, (3, 3)), 140, 220), 45))


def brick_wall(rng: Rng, size: Size) -> Image.Image:
    brick = jitter(rng, choose(rng, ((165, 82, 62), (150, 95, 75), (185, 110, 80))), 16)
    tall = randint(rng, 9, 14)
    long = tall * 2 + randint(rng, 0, 8)
    y, x = np.mgrid[: size[1], : size[0]]
    row = y // tall
    x = x + (row % 2) * (long // 2)
    column = x // long
    tones = rng.integers(0, 256, (int(row.max()) + 1, int(column.max()) + 1), dtype=np.uint8)
    joints = ((y % tall < 2) | (x % long < 2)).astype(np.uint8) * 255
    image = mix(shade(brick, 82), shade(brick, 112), Image.fromarray(tones[row, column]))
    image = mix(image, shade(brick, 75), weaken(noise(rng, size, (3, 3)), 35))
    return mix(image, jitter(rng, (190, 182, 170), 15), Image.fromarray(joints))


def wallpaper(rng: Rng, size: Size) -> Image.Image:
    base = jitter(
        rng, choose(rng, ((222, 205, 190), (195, 210, 205), (205, 195, 220), (230, 215, 160))), 16
    )
    other = jitter(rng, shade(base, choose(rng, (78, 86, 110))), 12)
    if randint(rng, 0, 1):
        image = mix(base, other, stripes(rng, size, (10, 22), slant=1))
    else:
        image = Image.new("RGB", size, base)
        draw, step = ImageDraw.Draw(image), randint(rng, 16, 24)
        for j, y in enumerate(range(0, size[1] + step, step)):
            for x in range((j % 2) * step // 2, size[0] + step, step):
                draw.polygon(((x - 4, y), (x, y - 5), (x + 4, y), (x, y + 5)), other)
    return mix(image, shade(base, 84), weaken(noise(rng, size, (80, 80)), 40))


def wood_floor(rng: Rng, size: Size) -> Image.Image:
    wood = jitter(rng, choose(rng, ((165, 115, 70), (140, 92, 55), (190, 145, 95))), 14)
    plank, board = randint(rng, 14, 22), randint(rng, 70, 120)
    y, x = np.mgrid[: size[1], : size[0]]
    row = y // plank
    offsets = rng.integers(0, board, int(row.max()) + 1)
    x = x + offsets[row]
    column = x // board
    tones = rng.integers(0, 256, (int(row.max()) + 1, int(column.max()) + 1), dtype=np.uint8)
    image = mix(shade(wood, 84), shade(wood, 110), Image.fromarray(tones[row, column]))
    image = mix(image, shade(wood, 76), weaken(noise(rng, size, (36, 2)), 45))
    joints = ((y % plank == 0) | (x % board == 0)).astype(np.uint8) * 255
    return mix(image, shade(wood, 50), Image.fromarray(joints))


def tiles(rng: Rng, size: Size) -> Image.Image:
    light = jitter(rng, choose(rng, ((225, 222, 210), (205, 212, 215), (230, 215, 195))), 12)
    dark = jitter(rng, choose(rng, (light, (90, 95, 105), (150, 100, 85), (120, 140, 150))), 10)
    side = randint(rng, 18, 30)
    y, x = np.mgrid[: size[1], : size[0]]
    checker = ((y // side + x // side) % 2).astype(np.uint8) * 255
    joints = ((y % side < 2) | (x % side < 2)).astype(np.uint8) * 255
    image = mix(light, dark, Image.fromarray(checker))
    image = mix(image, (255, 255, 255), weaken(noise(rng, size, (50, 30)), 25))
    return mix(image, (160, 158, 150), Image.fromarray(joints))


def carpet(rng: Rng, size: Size) -> Image.Image:
    base = jitter(
        rng, choose(rng, ((140, 40, 50), (50, 60, 110), (60, 95, 80), (120, 85, 110))), 16
    )
    accent = jitter(rng, choose(rng, ((210, 170, 90), (215, 200, 180), (90, 40, 60))), 12)
    image = mix(shade(base, 84), shade(base, 116), noise(rng, size, (1, 2)))
    draw, step = ImageDraw.Draw(image), randint(rng, 20, 32)
    for y in range(0, size[1] + step, step):
        for x in range(0, size[0] + step, step):
            for r, color in ((step * 2 // 5, accent), (step // 4, base), (step // 8, accent)):
                draw.polygon(((x - r, y), (x, y - r), (x + r, y), (x, y + r)), color)
    return mix(image, shade(base, 70), weaken(noise(rng, size, (2, 2)), 35))


TEXTURES: dict[str, Callable[[Rng, Size], Image.Image]] = {
    "sky": sky,
    "lawn": lawn,
    "meadow": meadow,
    "wheat field": wheat_field,
    "sand": sand,
    "snow": snow,
    "sea": sea,
    "river": river,
    "road": road,
    "mountain": mountain,
    "forest": forest,
    "brick wall": brick_wall,
    "wallpaper": wallpaper,
    "wood floor": wood_floor,
    "tiles": tiles,
    "carpet": carpet,
}
"""Class -> function of (rng, (width, height)) that paints an RGB image of that size."""
