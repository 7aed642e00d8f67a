import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freecp_d2 import ops
from freecp_d2.ops.box_mask import box_mask_composite

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [ops.box_mask, box_mask_composite])
EIGHT = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]


def regions(image: np.ndarray, neighbours: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """(x0, y0, x1, y1), exclusive, of every connected region, by flood fill."""
    height, width = image.shape
    left = {(y, x) for y in range(height) for x in range(width) if image[y, x]}
    boxes = []
    while left:
        stack = [left.pop()]
        ys, xs = [], []
        while stack:
            y, x = stack.pop()
            ys.append(y)
            xs.append(x)
            for dy, dx in neighbours:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    stack.append((y + dy, x + dx))
        boxes.append((min(xs), min(ys), max(xs) + 1, max(ys) + 1))
    return boxes


def foreground(values: Tensor, threshold: float) -> np.ndarray:
    quantised = [[int(np.float32(255) * v) for v in row] for row in values.float().numpy()]
    limit = int(threshold * max(map(max, quantised)))
    return np.array([[v > limit for v in row] for row in quantised])


def cut(box: tuple[int, ...], shape: tuple[int, ...], full_extent: bool) -> tuple[int, ...]:
    x0, y0, x1, y1 = box
    height, width = shape
    return box if full_extent else (x0, y0, min(x1, width - 1), min(y1, height - 1))


def reference_mask(maps: Tensor, threshold: float = 0.4, full_extent: bool = False) -> Tensor:
    result = torch.zeros_like(maps)
    for values, mask in zip(maps.flatten(0, 1), result.flatten(0, 1), strict=True):
        image = foreground(values, threshold)
        for box in regions(image, EIGHT):
            x0, y0, x1, y1 = cut(box, image.shape, full_extent)
            mask[y0:y1, x0:x1] = 1
    return result


def reference_boxes(values: Tensor, threshold: float, full_extent: bool) -> list[tuple[int, ...]]:
    """Boxes of components and of the contours of holes, which run one pixel around a hole."""
    image = foreground(values, threshold)
    outside = (0, 0, image.shape[1] + 2, image.shape[0] + 2)
    holes = regions(np.pad(~image, 1, constant_values=True), FOUR)
    # From a hole of the padded image to its contour in the image itself.
    holes = [(x0 - 2, y0 - 2, x1, y1) for x0, y0, x1, y1 in holes if (x0, y0, x1, y1) != outside]
    return [cut(box, image.shape, full_extent) for box in regions(image, EIGHT) + holes]


def draw(*rows: str) -> Tensor:
    return torch.tensor([[float(c == "#") for c in row] for row in rows])


def snake(size: int) -> Tensor:
    image = torch.zeros(size, size)
    image[::2] = 1
    image[1::4, -1] = 1
    image[3::4, 0] = 1
    return image


PATTERNS = {
    "zero": torch.zeros(6, 7),
    "full": torch.ones(6, 7),
    "snake": snake(15),
    "snake on its side": snake(14).T,
    "checkerboard": torch.arange(64).view(8, 8).add(torch.arange(8)[:, None]).remainder(2).float(),
    "diagonal": torch.eye(9),
    "two diagonals": (torch.eye(9) + torch.eye(9).flip(1)).clamp(max=1),
    "ring": draw("#####", "#...#", "#...#", "#####", "....."),
    "ring around a dot": draw(".......", ".#####.", ".#...#.", ".#.#.#.", ".#...#.", ".#####."),
    "diamond, open for eight neighbours": draw(".....", "..#..", ".#.#.", "..#..", "....."),
    "overlapping boxes": draw("#...", "#.#.", "#..#", "####", "....", "..##"),
    "frame": draw("#####", "#...#", "#####"),
    "last column": draw("...#", "...#", "...#"),
    "last row": draw("....", "....", "####"),
    "last corner": draw("....", "....", "...#"),
    "first corner": draw("#...", "....", "...."),
    "one pixel": draw(".....", ".....", "..#..", ".....", "....."),
    "1x1": draw("#"),
    "1x1 empty": draw("."),
    "1xN": draw("##.##.#"),
    "Nx1": draw("##.##.#").T,
}
PATTERN = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
EXTENT = pytest.mark.parametrize("full_extent", [False, True])


@st.composite
def grids(draw_value) -> Tensor:
    """(1, 3, h, w) of few distinct values, so that plateaus and ties are common."""
    height, width = draw_value(st.integers(1, 8)), draw_value(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw_value(st.integers(0, 9999)))
    levels = draw_value(st.integers(2, 6))
    maps = torch.randint(levels, (1, 3, height, width), generator=generator) / (levels - 1)
    return maps * draw_value(st.sampled_from([1.0, 0.6, 0.01]))


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 3), (1, 0, 3, 3), (1, 1, 1, 1), (2, 3, 5, 4), (1, 2, 1, 6), (1, 9, 14, 14)]
)
@EXTENT
def test_opcheck(random_maps, shape, full_extent):
    maps = random_maps(*shape) if 0 not in shape else torch.rand(shape)
    torch.library.opcheck(torch.ops.freecp.box_mask.default, (maps, 0.4, full_extent))


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_dtypes_and_strides(random_maps, dtype):
    maps = random_maps(2, 3, 6, 5, dtype=dtype)
    for view in (maps, maps.mT, maps.transpose(0, 1), maps[:, 1:, ::2]):
        torch.library.opcheck(torch.ops.freecp.box_mask.default, (view,))


@IMPLEMENTATIONS
@PATTERN
@EXTENT
def test_patterns(implementation, pattern, full_extent):
    maps = pattern[None, None]
    expected = reference_mask(maps, 0.4, full_extent)
    assert torch.equal(implementation(maps, 0.4, full_extent), expected)


@IMPLEMENTATIONS
@settings(max_examples=100, deadline=None, derandomize=True)
@given(maps=grids(), threshold=st.sampled_from([0.0, 0.4, 0.5, 1.0]), full_extent=st.booleans())
def test_definition(implementation, maps, threshold, full_extent):
    mask = implementation(maps, threshold, full_extent)
    assert torch.equal(mask, reference_mask(maps, threshold, full_extent))


@pytest.mark.parametrize("dtype", FLOATS)
@EXTENT
def test_cpu_equals_composite(random_maps, dtype, full_extent):
    maps = random_maps(3, 20, 14, 17, dtype=dtype)
    maps[1] = torch.rand(maps[1].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = ops.box_mask(maps, full_extent=full_extent)
    assert mask.dtype == dtype and mask.is_contiguous() and 0 < mask.mean() < 1
    assert torch.equal(mask, box_mask_composite(maps, full_extent=full_extent))


def test_neighbouring_maps_do_not_touch():
    """Maps are labelled together: what fills the rows where two meet must stay two components."""
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 0, 3, :2] = maps[0, 1, 0, 2:] = maps[0, 2, 0, 0] = 1
    assert torch.equal(ops.box_mask(maps, full_extent=True), maps)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(maps=grids(), order=st.permutations(range(3)))
def test_properties(maps, order):
    mask, full = ops.box_mask(maps), ops.box_mask(maps, full_extent=True)
    assert set(full.unique().tolist()) <= {0.0, 1.0} and (mask <= full).all()
    assert torch.equal(ops.box_mask(maps[:, order]), mask[:, order])
    assert torch.equal(ops.box_mask(maps.mT, full_extent=True), full.mT)
    assert torch.equal(ops.box_mask(maps.flip(-1), full_extent=True), full.flip(-1))
    # Boxing the boxes can only join and grow them.
    assert (ops.box_mask(full, full_extent=True) >= full).all()


def test_quantisation_is_float32_and_the_threshold_strict():
    # int(0.4 * 255) is 102: a value that quantises to it is out, one that quantises to 103 is in.
    steps = torch.tensor([255.0, 102.0, 102.999, 103.0]) / 255
    maps = torch.zeros(1, 4, 3, 3)
    maps[..., 0, 0] = 1
    maps[0, :, 2, 2] = steps
    mask = ops.box_mask(maps, full_extent=True)
    assert mask[0, :, 2, 2].tolist() == [1, 0, 0, 1]
    assert torch.equal(mask, box_mask_composite(maps, full_extent=True))
    # Less than half a float32 step under 1.
    nearly = torch.full((1, 1, 2, 2), 1 - 1e-12, dtype=torch.float64)
    assert ops.box_mask(nearly, 254 / 255, full_extent=True).all()


def test_defaults():
    maps = PATTERNS["overlapping boxes"][None, None]
    for mask in (ops.box_mask(maps), torch.ops.freecp.box_mask(maps)):
        assert torch.equal(mask, ops.box_mask(maps, threshold=0.4, full_extent=False))


def test_input_with_gradient():
    maps = PATTERNS["ring"][None, None]
    assert torch.equal(ops.box_mask(maps.clone().requires_grad_()), ops.box_mask(maps))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1])
def test_values_outside_of_the_range(random_maps, value):
    maps = random_maps(1, 2, 3, 3)
    maps[0, 1, 2, 0] = value
    for call in (ops.box_mask, torch.ops.freecp.box_mask, box_mask_composite):
        with pytest.raises(ValueError, match=r"^box_mask: maps must be in \[0, 1\].*NaN"):
            call(maps)
    with pytest.raises(ValueError, match=r"^component_boxes: maps must be in \[0, 1\].*NaN"):
        ops.component_boxes(maps[0])


def test_bad_arguments(random_maps):
    for bad in (torch.rand(2, 3, 3), torch.rand(1, 1, 0, 3), torch.ones(1, 1, 2, 2).int()):
        with pytest.raises(ValueError, match=r"^box_mask: maps must be .*\(B, C, h, w\)"):
            ops.box_mask(bad)
    with pytest.raises(ValueError, match=r"^component_boxes: maps must be .*\(M, h, w\)"):
        ops.component_boxes(torch.rand(3, 3))
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="^box_mask: threshold"):
            ops.box_mask(random_maps(1, 1, 3, 3), threshold)
        with pytest.raises(ValueError, match="^component_boxes: threshold"):
            ops.component_boxes(random_maps(1, 3, 3), threshold)


@PATTERN
@EXTENT
def test_component_boxes_patterns(pattern, full_extent):
    boxes = ops.component_boxes(pattern[None], full_extent=full_extent)
    assert boxes.dtype == torch.int64 and boxes.shape[1] == 5
    expected = reference_boxes(pattern, 0.4, full_extent)
    assert sorted(map(tuple, boxes[:, 1:].tolist())) == sorted(expected)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(maps=grids(), threshold=st.sampled_from([0.0, 0.4, 0.5]), full_extent=st.booleans())
def test_component_boxes_definition(maps, threshold, full_extent):
    boxes = ops.component_boxes(maps[0], threshold, full_extent)
    expected = [
        (owner, *box)
        for owner, values in enumerate(maps[0])
        for box in reference_boxes(values, threshold, full_extent)
    ]
    assert sorted(map(tuple, boxes.tolist())) == sorted(expected)
    assert boxes[:, 0].tolist() == sorted(boxes[:, 0].tolist())
    # The boxes of holes lie in those of their components: both functions cover the same pixels.
    cover = torch.zeros_like(maps)
    for owner, x0, y0, x1, y1 in boxes.tolist():
        cover[0, owner, y0:y1, x0:x1] = 1
    assert torch.equal(cover, ops.box_mask(maps, threshold, full_extent))


def test_component_boxes_without_width_or_maps():
    assert ops.component_boxes(PATTERNS["last column"][None]).tolist() == [[0, 3, 0, 3, 2]]
    assert ops.component_boxes(PATTERNS["last row"][None]).tolist() == [[0, 0, 2, 3, 2]]
    assert ops.component_boxes(torch.zeros(2, 3, 3)).shape == (0, 5)
    assert ops.component_boxes(torch.zeros(0, 3, 3)).shape == (0, 5)
