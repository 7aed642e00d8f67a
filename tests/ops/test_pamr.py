import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from freecp_d2 import ops

module = import_module("freecp_d2.ops.pamr")
VECTORS = Path(__file__).parents[1] / "data" / "base_methods" / "pamr"
CASES = json.loads((VECTORS / "cases.json").read_text())
FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# batch, maps, height, width; on both sides of FEW_MAPS, MAPS_AT_ONCE and a strip of rows
SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (1, 6, 9, 1), (2, 7, 1, 8), (1, 33, 6, 5)]


def arguments(batch: int, maps: int, height: int, width: int, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(batch, 3, height, width, generator=generator)
    return image, torch.randn(batch, maps, height, width, generator=generator)


def reference(image: np.ndarray, maps: np.ndarray, steps: int, dilations) -> np.ndarray:
    """METHOD.md section 8, a pixel after the other."""
    image, maps = image.astype(np.float64), maps.astype(np.float64)
    batch, channels, height, width = image.shape

    def at(y: int, x: int) -> tuple[int, int]:
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    ways = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for b in range(batch):
        weights = {}
        for y, x in np.ndindex(height, width):
            stencils = [at(y + dy * s, x + dx * s) for s in dilations for dy, dx in ways]
            around = [at(y + dy * s, x + dx * s) for s in dilations for dy, dx in ways if dy or dx]
            likeness = np.zeros(len(around))
            for k in range(channels):
                deviation = np.std([image[b, k][p] for p in stencils], ddof=1)
                for j, p in enumerate(around):
                    difference = abs(image[b, k, y, x] - image[b, k][p])
                    likeness[j] -= difference / (1e-8 + 0.1 * deviation) / channels
            shares = np.exp(likeness - likeness.max())
            weights[y, x] = list(zip(around, shares / shares.sum(), strict=True))
        for _ in range(steps):
            before = maps[b].copy()
            for (y, x), pairs in weights.items():
                maps[b, :, y, x] = sum(w * before[:, p[0], p[1]] for p, w in pairs)
    return maps


@pytest.fixture(params=[2**14, 10], ids=["strip", "strips"])
def strips(request, monkeypatch) -> None:
    """As many pixels at once as there are, and a few."""
    monkeypatch.setattr(module, "STRIP_PIXELS", request.param)


@pytest.mark.parametrize("shape", [(0, 2, 3, 3), (1, 0, 3, 3), *SHAPES])
def test_opcheck(device, shape):
    image, maps = (x.to(device) for x in arguments(*shape))
    torch.library.opcheck(torch.ops.freecp.pamr.default, (image, maps, 2, [1, 3]))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_opcheck_dtypes_and_strides(device, dtype, steps):
    image, maps = (x.to(device, dtype) for x in arguments(1, 6, 5, 5))
    for args in ((image, maps), (image.mT, maps.mT), (image[..., 1:], maps[..., :4])):
        torch.library.opcheck(torch.ops.freecp.pamr.default, (*args, steps, [1, 2]))


@pytest.mark.parametrize("name", CASES)
def test_published_vectors(run, name):
    case, vectors = CASES[name], load_file(VECTORS / f"{name}.safetensors")
    if run.interpreted and vectors["image"].numel() * case["steps"] > 60_000:  # takes seconds
        case = {**case, "steps": 2}
        expected = ops.pamr(vectors["image"], vectors["masks"], *case.values())
    else:
        expected = vectors["refined"]
    masks = vectors["masks"]
    if masks.shape != expected.shape:
        size = expected.shape[2:]
        masks = torch.nn.functional.interpolate(masks, size, mode="bilinear", align_corners=True)
        public = ops.pamr(vectors["image"], vectors["masks"], *case.values())
        torch.testing.assert_close(public, expected, atol=5e-6, rtol=0)
    refined = run(ops.pamr, vectors["image"], masks, case["steps"], case["dilations"])
    torch.testing.assert_close(refined, expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("steps", "dilations"), [(1, (1,)), (3, (2, 1)), (2, (1, 2, 30))])
def test_definition(run, strips, shape, steps, dilations):
    image, maps = arguments(*shape)
    expected = reference(image.numpy(), maps.numpy(), steps, dilations)
    doubles = run(ops.pamr, image.double(), maps.double(), steps, dilations)
    np.testing.assert_allclose(doubles, expected, rtol=0, atol=1e-12)
    found = run(ops.pamr, image, maps, steps, dilations)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.tuples(*[st.integers(1, 2)], *[st.integers(1, 7)] * 3),
    steps=st.integers(0, 3),
    dilations=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    seed=st.integers(0, 999),
    strip=st.sampled_from([1, 9, 2**14]),
)
def test_any_arguments_by_brute_force(shape, steps, dilations, seed, strip):
    image, maps = arguments(*shape, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP_PIXELS", strip)
        found = ops.pamr(image, maps, steps, dilations)
    expected = reference(image.numpy(), maps.numpy(), steps, dilations)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # A convex mean: a map stays within its range, and a constant one as it is.
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()
    constant = ops.pamr(image, low.expand_as(maps), steps, dilations)
    torch.testing.assert_close(constant, low.expand_as(maps), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 9])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("image_dtype", FLOATS)
def test_accumulates_in_float32(run, classes, dtype, image_dtype):
    """The result is that of the rounded inputs, rounded once."""
    image, maps = arguments(2, classes, 6, 5)
    image, maps = image.to(image_dtype), maps.to(dtype)
    found = run(ops.pamr, image, maps, 4, (1, 2))
    assert found.dtype == dtype
    expected = reference(*(x.double().numpy() for x in (image, maps)), 4, (1, 2))
    atol = 1e-5 + 2 * torch.finfo(dtype).eps
    np.testing.assert_allclose(found.double(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("classes", [2, 9])
def test_strides_and_autocast_do_not_matter(run, classes):
    image, maps = arguments(2, classes, 6, 6)
    expected = run(ops.pamr, image, maps, 3, (1, 2))
    strided = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in (image, maps))
    assert torch.equal(run(ops.pamr, *strided, 3, (1, 2)), expected)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(run(ops.pamr, image, maps, 3, (1, 2)), expected)
    views = image[:, :, 1:, ::2], maps[:, 1:, :5, 3:]
    parts = run(ops.pamr, *views, 3, (1, 2))
    assert torch.equal(parts, run(ops.pamr, *(x.contiguous() for x in views), 3, (1, 2)))


@pytest.mark.parametrize("classes", [2, 9])
def test_same_bits_again_and_the_arguments_stay(run, classes):
    image, maps = arguments(2, classes, 9, 8)
    before = image.clone(), maps.clone()
    for steps in (0, 1, 2):
        found = run(ops.pamr, image, maps, steps, (1, 16))
        assert torch.equal(found, run(ops.pamr, image, maps, steps, (1, 16)))
        found += 1
        assert torch.equal(image, before[0]) and torch.equal(maps, before[1])


def test_images_and_maps_do_not_mix(run):
    image, maps = arguments(3, 6, 7, 5)
    together = run(ops.pamr, image, maps, 2, (2,))
    for b in range(3):
        alone = run(ops.pamr, image[b : b + 1], maps[b : b + 1, 2:], 2, (2,))
        torch.testing.assert_close(together[b, 2:], alone[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("classes", [2, 9])
def test_nan_goes_through(run, classes):
    image, maps = arguments(1, classes, 1, 12)
    good = run(ops.pamr, image, maps, 2, (1,))
    reached = torch.arange(12).sub(5).abs() <= 2
    bad = maps.clone()
    bad[0, 1, 0, 5] = torch.nan
    found = run(ops.pamr, image, bad, 2, (1,))
    assert found[0, 1, 0].isnan().equal(reached)
    assert torch.equal(found[0, 0], good[0, 0])
    colours = image.clone()
    colours[0, 2, 0, 5] = torch.nan
    found = run(ops.pamr, colours, maps, 1, (1,))
    assert found[0, :, 0].isnan().equal((torch.arange(12).sub(5).abs() <= 1).expand(classes, 12))


def test_a_flat_surrounding_has_equal_weights(run):
    _, maps = arguments(1, 6, 5, 5)
    found = run(ops.pamr, torch.full((1, 3, 5, 5), 0.3), maps, 1, (1,))
    centre = maps[0, :, 1:4, 1:4]
    expected = (centre.sum((1, 2)) - centre[:, 1, 1]) / 8
    torch.testing.assert_close(found[0, :, 2, 2], expected, atol=1e-6, rtol=0)


def test_maps_follow_the_edges_of_the_image(run):
    """Noise on either side of an edge goes, and the edge stays."""
    image = torch.zeros(1, 3, 12, 12)
    image[..., 6:] = 1
    noise = torch.rand(1, 6, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.5
    found = run(ops.pamr, image, image[:, :1] + noise, 20, (1, 2))
    assert (found - image[:, :1]).abs().max() < 0.3 < noise.abs().max()


def test_gradient_is_refused_in_words(device):
    image, maps = (x.to(device).requires_grad_() for x in arguments(1, 2, 2, 2))
    with pytest.raises(RuntimeError, match=r"freecp.pamr"):
        ops.pamr(image, maps, 1, (1,)).sum().backward()


@pytest.mark.parametrize("classes", [2, 40])
@pytest.mark.parametrize("implementation", ["composite", "cpu"])
def test_memory(largest_tensor, implementation, classes):
    """No more at once than the weights, or the maps with their border."""
    image, maps = arguments(1, classes, 40, 30)
    op = module.pamr_composite if implementation == "composite" else module._cpu
    limit = max(16 * 40 * 30, classes * 44 * 34)
    assert largest_tensor(op, image, maps, 3, (1, 2)) <= limit


@pytest.mark.parametrize("size", [(5, 6), (6, 5), (4, 4), (5, 5), (1, 1)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_maps_are_resampled_to_the_image_first(size, dtype):
    image, maps = arguments(1, 2, 5, 5)[0], arguments(1, 2, *size, seed=1)[1].to(dtype)
    larger = torch.nn.functional.interpolate(
        maps.to(torch.promote_types(dtype, torch.float32)),
        (5, 5),
        mode="bilinear",
        align_corners=True,
    )
    found = ops.pamr(image, maps, 2, (1, 2))
    assert found.dtype == dtype and found.shape == (1, 2, 5, 5)
    assert torch.equal(found, ops.pamr(image, larger, 2, (1, 2)).to(dtype))


def test_bad_arguments():
    image, maps = arguments(2, 3, 4, 5)
    for args, message in (
        ((image[0], maps, 1, (1,)), r"image must be .*\(B, K, H, W\)"),
        ((image.int(), maps, 1, (1,)), r"image must be .*torch.int32"),
        ((image, maps[0], 1, (1,)), r"maps must be .*\(B, C, h, w\)"),
        ((image[:1], maps, 1, (1,)), r"\(1, 3, 4, 5\) and maps \(2, 3, 4, 5\) differ in their"),
        ((image[:, :0], maps, 1, (1,)), "no channel"),
        ((image, maps, -1, (1,)), "steps must be at least 0, got -1"),
        ((image, maps, 1, ()), r"dilations must be at least 1, got \(\)"),
        ((image, maps, 1, [2, 0]), r"dilations must be at least 1, got \(2, 0\)"),
    ):
        with pytest.raises(ValueError, match="^pamr: .*" + message):
            ops.pamr(*args)
    assert ops.pamr(image, maps[:, :0, :2], 1, (1,)).shape == (2, 0, 4, 5)
