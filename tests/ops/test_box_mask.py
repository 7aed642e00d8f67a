from importlib import import_module
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import find_objects, label
from torch import Tensor
from torch._subclasses import FakeTensorMode
from triton.runtime.interpreter import InterpretedFunction

from freecp_d2 import ops

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EIGHT = np.ones((3, 3))
FOUR = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])


def regions(image: np.ndarray, neighbours: np.ndarray) -> list[tuple[int, ...]]:
    """(x0, y0, x1, y1), exclusive, of every connected region."""
    return [
        (columns.start, rows.start, columns.stop, rows.stop)
        for rows, columns in find_objects(label(image, neighbours)[0])
    ]


def foreground(values: Tensor, threshold: float) -> np.ndarray:
    quantised = [[int(np.float32(255) * v) for v in row] for row in values.float().numpy()]
    limit = int(threshold * max(map(max, quantised)))
    return np.array([[v > limit for v in row] for row in quantised])


def cut(box: tuple[int, ...], shape: tuple[int, ...], full_extent: bool) -> tuple[int, ...]:
    x0, y0, x1, y1 = box
    height, width = shape
    return box if full_extent else (x0, y0, min(x1, width - 1), min(y1, height - 1))


def reference_mask(maps: Tensor, threshold: float = 0.4, full_extent: bool = False) -> Tensor:
    result = torch.zeros(maps.shape, dtype=maps.dtype)
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


def spiral(size: int) -> Tensor:
    """One pixel wide, one apart, inwards."""
    image = torch.zeros(size, size)
    y, x, dy, dx, length = 0, 0, 0, 1, size - 1
    for turn in range(size):
        for _ in range(length):
            image[y, x] = 1
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
        if turn >= 2 and turn % 2 == 0:
            length = max(length - 2, 0)
    return image


def rings(size: int) -> Tensor:
    distance = torch.arange(size).sub(size // 2).abs()
    return torch.maximum(distance, distance[:, None]).remainder(2).float()


PATTERNS = {
    "zero": torch.zeros(6, 7),
    "full": torch.ones(6, 7),
    "constant": torch.full((5, 3), 0.25),
    "below the first step": torch.full((5, 3), 1 / 256),
    "spiral": spiral(17),
    "spiral of the background": 1 - spiral(17),
    "nested rings": rings(13),
    "holes": draw("#########", "#.##.##.#", "##..#####", "####.##.#", "#########", "........."),
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
    """(1, 2, h, w) of few distinct values, so that plateaus and ties are common."""
    height, width = draw_value(st.integers(1, 8)), draw_value(st.integers(1, 8))
    generator = torch.Generator().manual_seed(draw_value(st.integers(0, 9999)))
    levels = draw_value(st.integers(2, 6))
    maps = torch.randint(levels, (1, 2, height, width), generator=generator) / (levels - 1)
    return maps * draw_value(st.sampled_from([1.0, 0.6, 0.01]))


@pytest.mark.parametrize(
    "shape", [(0, 2, 3, 3), (1, 0, 3, 3), (1, 1, 1, 1), (2, 3, 5, 4), (1, 2, 1, 6), (1, 9, 14, 14)]
)
@EXTENT
def test_opcheck(random_maps, device, shape, full_extent):
    maps = (random_maps(*shape) if 0 not in shape else torch.rand(shape)).to(device)
    torch.library.opcheck(torch.ops.freecp.box_mask.default, (maps, 0.4, full_extent))


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_dtypes_and_strides(random_maps, device, dtype):
    maps = random_maps(2, 3, 6, 5, dtype=dtype).to(device)
    for view in (maps, maps.mT, maps.transpose(0, 1), maps[:, 1:, ::2]):
        torch.library.opcheck(torch.ops.freecp.box_mask.default, (view,))


def test_the_spiral_is_one_long_arm():
    image = PATTERNS["spiral"].numpy()
    assert label(image, FOUR)[1] == label(1 - image, FOUR)[1] == 1 and image.sum() > 17 * 17 / 2


@PATTERN
@EXTENT
def test_patterns(run, pattern, full_extent):
    maps = pattern[None, None]
    expected = reference_mask(maps, 0.4, full_extent)
    assert torch.equal(run(ops.box_mask, maps, 0.4, full_extent), expected)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(maps=grids(), threshold=st.sampled_from([0.0, 0.4, 0.5, 1.0]), full_extent=st.booleans())
def test_definition(run, maps, threshold, full_extent):
    mask = run(ops.box_mask, maps, threshold, full_extent)
    assert torch.equal(mask, reference_mask(maps, threshold, full_extent))


@pytest.mark.parametrize("dtype", FLOATS)
@EXTENT
def test_dtypes(run, random_maps, dtype, full_extent):
    maps = random_maps(2, 4, 14, 17, dtype=dtype)
    maps[1] = torch.rand(maps[1].shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = run(ops.box_mask, maps, 0.7, full_extent)
    assert mask.dtype == dtype and 0 < mask.mean() < 1
    assert torch.equal(mask, reference_mask(maps, 0.7, full_extent))


@pytest.mark.parametrize(
    "shape", [(1, 1, 64, 64), (1, 1, 1, 4096), (1, 1, 63, 33), (3, 1, 37, 2), (1, 1000, 1, 2)]
)
def test_sizes(run, shape):
    # A third is foreground: components of all sizes, winding and with holes, and background.
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    mask = run(ops.box_mask, maps, 0.68, True)
    assert torch.equal(mask, reference_mask(maps, 0.68, True)) and 0.1 < mask.mean() < 0.9


def test_same_bits_again(run, random_maps):
    maps = random_maps(1, 3, 31, 29)
    assert torch.equal(run(ops.box_mask, maps), run(ops.box_mask, maps))


def test_long_components(run):
    for pattern in (spiral(64), snake(64), rings(64)):
        mask = run(ops.box_mask, pattern[None, None])
        assert torch.equal(mask, reference_mask(pattern[None, None]))


def test_programs_do_not_meet(run, random_maps):
    """Many at once, each with components of its own, several times the same."""
    maps = random_maps(3, 16, 24, 24)
    expected = reference_mask(maps)
    for _ in range(1 if run.interpreted else 10):
        assert torch.equal(run(ops.box_mask, maps), expected)


def test_a_block_is_a_launch_and_more_a_loop(device_of_triton, monkeypatch):
    module, loops = import_module("freecp_d2.ops.box_mask"), []
    monkeypatch.setattr(module, "box_mask_composite", lambda maps, *_: loops.append(maps) or maps)
    for shape in ((128, 128), (65, 127), (1, 2**10)):
        module.box_mask_triton(torch.ones(1, 1, *shape, device=device_of_triton))
        assert not loops
    for shape in ((128, 129), (129, 65), (1, 2**10 + 1)):
        module.box_mask_triton(torch.ones(1, 1, *shape, device=device_of_triton))
        assert loops.pop().shape[2:] == shape


def test_larger_than_a_block(run):
    maps = torch.zeros(1, 1, 129, 65)
    maps[..., 3:120, 5] = maps[..., 119, 5:60] = 1
    assert torch.equal(run(ops.box_mask, maps), reference_mask(maps))


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 0, 3, 3)])
def test_no_maps(run, shape):
    assert run(ops.box_mask, torch.zeros(shape)).shape == shape


def test_strides(run, random_maps):
    maps = random_maps(2, 3, 8, 7)
    for view in (maps.mT, maps.transpose(0, 1), maps[:, 1:, ::2], maps[..., 1:]):
        assert torch.equal(run(ops.box_mask, view), reference_mask(view))


def test_neighbouring_maps_do_not_touch(run):
    """Maps are labelled together: what fills the rows where two meet must stay two components."""
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 0, 3, :2] = maps[0, 1, 0, 2:] = maps[0, 2, 0, 0] = 1
    assert torch.equal(run(ops.box_mask, maps, full_extent=True), maps)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(maps=grids(), order=st.permutations(range(2)))
def test_properties(maps, order):
    mask, full = ops.box_mask(maps), ops.box_mask(maps, full_extent=True)
    assert set(full.unique().tolist()) <= {0.0, 1.0} and (mask <= full).all()
    assert torch.equal(ops.box_mask(maps[:, order]), mask[:, order])
    assert torch.equal(ops.box_mask(maps.mT, full_extent=True), full.mT)
    assert torch.equal(ops.box_mask(maps.flip(-1), full_extent=True), full.flip(-1))
    # Boxing the boxes can only join and grow them.
    assert (ops.box_mask(full, full_extent=True) >= full).all()


def test_quantisation_is_float32_and_the_threshold_strict(run):
    # int(0.4 * 255) is 102: a value that quantises to it is out, one that quantises to 103 is in.
    steps = torch.tensor([255.0, 102.0, 102.999, 103.0]) / 255
    maps = torch.zeros(1, 4, 3, 3)
    maps[..., 0, 0] = 1
    maps[0, :, 2, 2] = steps
    mask = run(ops.box_mask, maps, full_extent=True)
    assert mask[0, :, 2, 2].tolist() == [1, 0, 0, 1]
    # Less than half a float32 step under 1.
    nearly = torch.full((1, 1, 2, 2), 1 - 1e-12, dtype=torch.float64)
    assert (run(ops.box_mask, nearly, 254 / 255, full_extent=True) == 1).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts in Triton's interpreter")
def test_few_kernels_are_compiled(monkeypatch):
    """One a block, whose sides are 16, 32, 64 or 128 for maps of up to 128x128."""
    module, blocks = import_module("freecp_d2.ops.box_mask"), set()

    def run(self, *args, **options):
        blocks.add((args[-2:], options["num_warps"]))

    monkeypatch.setattr(InterpretedFunction, "run", run)
    sides = {max(2**i + j, 1) for i in range(8) for j in (-1, 0, 1)} - {129}
    for height, width in product(sides, sides):
        module.box_mask_triton(torch.empty(1, 1, height, width, device="meta"))
    assert len(blocks) == 16


def test_large_maps_are_no_part_of_a_cuda_graph(monkeypatch):
    module = import_module("freecp_d2.ops.box_mask")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    said = "no part of a CUDA graph; set MODEL.FREECP.COMPILE"
    with FakeTensorMode(), pytest.raises(RuntimeError, match=said):
        module.box_mask_triton(torch.empty(1, 1, 128, 129, device="cuda"))


def test_the_log_says_once_that_the_host_waits(monkeypatch, caplog):
    module = import_module("freecp_d2.ops.box_mask")
    monkeypatch.setattr(module, "box_mask_composite", lambda *_: None)
    module._say_that_the_host_waits.cache_clear()
    module.box_mask_triton(torch.empty(1, 1, 128, 128, device="meta")[:, :0])
    assert not caplog.records
    for _ in range(2):
        module.box_mask_triton(torch.empty(1, 1, 128, 129, device="meta"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "MODEL.FREECP.WINDOW" in caplog.text


def test_defaults():
    maps = PATTERNS["overlapping boxes"][None, None]
    for mask in (ops.box_mask(maps), torch.ops.freecp.box_mask(maps)):
        assert torch.equal(mask, ops.box_mask(maps, threshold=0.4, full_extent=False))


def test_gradient_is_refused_in_words(device):
    maps = PATTERNS["ring"][None, None].to(device)
    mask = ops.box_mask(maps.clone().requires_grad_())
    assert torch.equal(mask, ops.box_mask(maps))
    with pytest.raises(RuntimeError, match="freecp.box_mask"):
        mask.sum().backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.1, 1.1, 1 + 1e-12])
def test_values_outside_of_the_range(run, random_maps, value):
    maps = random_maps(1, 3, 3, 3, dtype=torch.float64)
    good = run(ops.box_mask, maps)
    maps[0, 1, 2, 0] = value
    mask = run(ops.box_mask, maps)
    assert mask[0, 1].isnan().all() and torch.equal(mask[0, ::2], good[0, ::2])
    with pytest.raises(ValueError, match=r"^component_boxes: maps must be in \[0, 1\].*NaN"):
        ops.component_boxes(maps[0])


def test_bad_arguments(run, random_maps):
    for bad in (torch.rand(2, 3, 3), torch.rand(1, 1, 0, 3), torch.ones(1, 1, 2, 2).int()):
        with pytest.raises(ValueError, match=r"^box_mask: maps must be .*\(B, C, h, w\)"):
            ops.box_mask(bad)
    with pytest.raises(ValueError, match=r"^component_boxes: maps must be .*\(M, h, w\)"):
        ops.component_boxes(torch.rand(3, 3))
    for threshold in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="^box_mask: threshold"):
            run(ops.box_mask, random_maps(1, 1, 3, 3), threshold)
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
