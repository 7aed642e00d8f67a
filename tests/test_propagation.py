"""PEARL's text-aware propagation against vectors of its code, and against dense matrices."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from freecp_d2 import propagation
from freecp_d2.propagation import class_prior, pool, propagate
from freecp_d2.sliding_window import upsample_rows

FOLDER = Path(__file__).parent / "data" / "base_methods"
CASES = json.loads((FOLDER / "pearl" / "cases.json").read_text())
VECTORS = [
    name
    for name, case in CASES.items()
    if case["kind"] == "tlp" and (FOLDER / "pearl" / f"{name}.safetensors").exists()
]


@pytest.mark.parametrize("pooled_values", [2**24, 1])
@pytest.mark.parametrize("name", VECTORS)
def test_published_vectors(name, pooled_values, monkeypatch):
    monkeypatch.setattr(propagation, "POOLED_VALUES", pooled_values)
    case, tensors = CASES[name], load_file(FOLDER / "pearl" / f"{name}.safetensors")
    text = load_file(FOLDER / "inputs.safetensors")["text"].float()[: case["num_queries"]]
    torch.testing.assert_close(
        class_prior(text), tensors["class_prior"].diagonal(), atol=1e-6, rtol=0
    )
    size = tuple(tensors["image"].shape[2:])
    found = propagate(tensors["logits"][0], tensors["image"][0], text, size, case["grid"])
    torch.testing.assert_close(found, tensors["solution"][0], atol=1e-5, rtol=0)
    full = upsample_rows(found, size, slice(0, size[0]))
    torch.testing.assert_close(full, tensors["propagated"][0], atol=1e-5, rtol=0)


def arguments(seed: int, queries: int, *size: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.rand(queries, *size, generator=generator),
        torch.randn(3, *size, generator=generator),
        torch.randn(queries, 4, generator=generator),
    )


def reference(maps: np.ndarray, image: np.ndarray, text: np.ndarray, grid: int) -> np.ndarray:
    """METHOD.md section 8 with a dense matrix, in float64."""
    height, width = maps.shape[1:]
    a, b = (max(1, round(side / grid)) for side in (height, width))
    h, w = height // a, width // b

    def means(x: np.ndarray) -> np.ndarray:
        return x[:, : h * a, : w * b].reshape(len(x), h, a, w, b).mean((2, 4))

    z, rgb = means(maps), means(image)
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    s = np.exp(unit @ unit.T / 0.5)
    s = s / s.sum(1, keepdims=True) + 10 * np.eye(len(s))
    s = np.diag(s / (s.sum(1, keepdims=True) + 1e-6))
    p = np.exp(z) / np.exp(z).sum(0)

    def agree(first: tuple, second: tuple) -> float:
        return min(max(sum(p[c][first] * s[c] * p[c][second] for c in range(len(p))), 0), 1)

    y = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
    cells = list(np.ndindex(h, w))
    position = {cell: i for i, cell in enumerate(cells)}
    rho = np.array(
        [max(p[:, i, j].max(), 0.05) ** 2 * (1 + agree((i, j), (i, j))) for i, j in cells]
    )
    matrix = np.diag(rho)
    for dy, dx in ((0, 1), (1, 0)):
        pairs = [((i, j), (i + dy, j + dx)) for i, j in cells if (i + dy, j + dx) in position]
        differences = [abs(y[u] - y[v]) for u, v in pairs]
        for (u, v), d in zip(pairs, differences, strict=True):
            e = np.exp(-5 * d / (np.mean(differences) + 1e-6)) * (1 + agree(u, v))
            e, m, n = min(max(e, 0), 1), position[u], position[v]
            matrix[[m, n], [m, n]] += e
            matrix[[m, n], [n, m]] -= e
    z = z.reshape(len(z), -1)
    f = z.copy()
    r = rho * z - f @ matrix
    d = r.copy()
    for _ in range(25):
        image_of_d = d @ matrix
        before = (r * r).sum()
        step = before / ((d * image_of_d).sum() + 1e-12)
        f, r = f + step * d, r - step * image_of_d
        d = r + (r * r).sum() / (before + 1e-12) * d
    return f.reshape(-1, h, w)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    queries=st.integers(1, 4),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    grid=st.integers(1, 12),
    pooled_values=st.sampled_from([1, 60, 2**24]),
)
def test_any_arguments_by_brute_force(seed, queries, height, width, grid, pooled_values):
    maps, image, text = arguments(seed, queries, height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propagation, "POOLED_VALUES", pooled_values)
        found = propagate(maps, image, text, (height, width), grid)
    expected = reference(maps.double().numpy(), image.double().numpy(), text.numpy(), grid)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(60, 41), (7, 90)])
def test_maps_are_upsampled_and_pooled_in_strips(size, monkeypatch):
    maps = arguments(0, 3, 8, 9)[0]
    larger = torch.nn.functional.interpolate(maps[None], size, mode="bilinear")
    expected = torch.nn.functional.avg_pool2d(larger, (3, 4))[0]
    for values in (2**24, 2000, 1):
        monkeypatch.setattr(propagation, "POOLED_VALUES", values)
        torch.testing.assert_close(pool(maps, size, (3, 4)), expected, atol=1e-6, rtol=0)


def test_constant_maps_stay():
    maps, image, text = arguments(0, 3, 30, 40)
    constant = maps[:, :1, :1].expand(3, 30, 40)
    found = propagate(constant, image, text, (30, 40), 10)
    torch.testing.assert_close(found, constant[:, :10, :10], atol=1e-5, rtol=0)


def test_maps_change_little_between_pixels_that_are_alike():
    """Noise on either side of an edge goes, and the edge stays."""
    noise, _, text = arguments(0, 20, 40, 40)
    image = torch.zeros(3, 40, 40)
    image[:, :, 20:] = 1
    edge = image[:1].expand(20, 40, 40)
    found = propagate(edge + 0.2 * noise, image, text, (40, 40), 40)
    assert (found - edge - 0.1).abs().mean() < 0.4 * (0.2 * noise - 0.1).abs().mean()
