"""PEARL's alignment beside its published vectors (tests/test_base_protocols.py)."""

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from freecp_d2.clip import DenseCLIP
from freecp_d2.clip.methods.pearl import nearest_rotation, polar_factor


@pytest.fixture(scope="module")
def model(build_tiny_clip) -> open_clip.CLIP:
    return build_tiny_clip(3)


def windows(batch: int, height: int = 90, width: int = 135) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    scale = torch.arange(1.0, batch + 1).view(-1, 1, 1, 1)
    return scale * torch.randn(batch, 3, height, width, generator=generator)


@pytest.mark.parametrize(
    "options", [{}, {"use_kk": False}, {"align_solver": "svd"}, {"last_block": "residual"}]
)
@pytest.mark.parametrize("size", [(90, 135), (64, 64), (17, 95), (16, 16)])
def test_a_batch_is_its_windows_one_by_one(options, size, model):
    clip = DenseCLIP(model, "pearl", affinity="method", **options)
    x = windows(3, *size)
    together = clip(x)
    for window in range(3):
        alone = clip(x[window : window + 1])
        for name in ("patches", "attention"):
            mine = getattr(together, name)[window : window + 1]
            torch.testing.assert_close(mine, getattr(alone, name), atol=1e-5, rtol=0)


def attention_by_hand(query: Tensor, key: Tensor, alpha: float, solver: str) -> Tensor:
    """One head's weights (T, T), token by token, in double precision."""
    query, key = query.double(), key.double()
    tokens, width = query.shape
    lengths = [0.0] + [query[t].norm().item() for t in range(1, tokens)]
    share = [length / (sum(lengths) + 1e-6) for length in lengths]
    mean_query = sum(share[t] * query[t] for t in range(tokens))
    mean_key = sum(share[t] * key[t] for t in range(tokens))
    matrix = torch.zeros(width, width, dtype=torch.float64)
    for t in range(tokens):
        matrix += torch.outer(key[t] - mean_key, query[t] - mean_query)
    rotation = nearest_rotation(matrix) if solver == "svd" else polar_factor(matrix, 5)
    centred = key - mean_key
    logits = (query @ (key @ rotation).T + alpha * centred @ centred.T) / width**0.5
    return logits.softmax(dim=-1)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("solver", ["polar", "svd"])
def test_attention_is_the_formula_and_the_similarity_its_mean(alpha, solver, model):
    options = {"alpha_kk": alpha, "align_solver": solver}
    clip = DenseCLIP(model, "pearl", affinity="method", **options)
    x = windows(2)
    trunk, _ = clip._run(x, record_attention=False)
    query, key, value = trunk.qkv
    weights = torch.stack(
        [
            torch.stack(
                [attention_by_hand(q, k, alpha, solver) for q, k in zip(qs, ks, strict=True)]
            )
            for qs, ks in zip(query, key, strict=True)
        ]
    ).float()
    attended = clip.base_method.attend(trunk)
    torch.testing.assert_close(attended, weights @ value, atol=1e-5, rtol=0)
    similarity = clip(x).attention
    torch.testing.assert_close(similarity, weights.mean(1)[:, 1:, 1:], atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.integers(2, 12), scale=st.floats(1e-3, 1e3))
def test_the_polar_factor_nears_the_nearest_rotation(seed, width, scale):
    generator = torch.Generator().manual_seed(seed)
    matrix = scale * torch.randn(2, width, width, dtype=torch.float64, generator=generator)
    nearest = nearest_rotation(matrix)
    eye = torch.eye(width, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(nearest @ nearest.mT, eye)
    product = nearest.mT @ matrix  # symmetric, positive semidefinite: no rotation is nearer
    torch.testing.assert_close(product, product.mT, atol=1e-9 * scale, rtol=1e-9)
    distance = [(polar_factor(matrix, n) - nearest).norm().item() for n in (0, 5, 10)]
    assert distance[0] >= distance[1] >= distance[2]
    singular = torch.linalg.svdvals(polar_factor(matrix, 5))
    assert singular.max() < 1 + 1e-6


def test_the_first_step_is_taken_from_the_norm_of_the_gram_matrix():
    matrix = torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64))
    expected = matrix / (3.0**4 + 4.0**4) ** 0.25
    torch.testing.assert_close(polar_factor(matrix, 0), expected)
    small = polar_factor(torch.diag(torch.tensor([1.0, 1e-3], dtype=torch.float64)), 5)
    assert small[0, 0] > 0.99 and small[1, 1] < 0.05  # far from a rotation, as published


def test_no_correlation_gives_no_nan():
    assert polar_factor(torch.zeros(1, 4, 4), 5).isfinite().all()


def test_defaults_are_the_published(model):
    assert DenseCLIP(model, "pearl").base_method.options() == {
        **{"use_kk": True, "alpha_kk": 0.08, "align_solver": "polar", "polar_iters": 5},
        "last_block": "",
    }


def test_options_change_the_features(model):
    def patches(**options) -> Tensor:
        return DenseCLIP(model, "pearl", **options)(windows(1)).patches

    usual = patches()
    assert usual.equal(patches(last_block="projection", polar_iters=5, alpha_kk=0.08))
    assert patches(use_kk=False).equal(patches(alpha_kk=0.0))
    changed = [
        *({"use_kk": False}, {"alpha_kk": 0.3}, {"align_solver": "svd"}, {"polar_iters": 0}),
        *({"last_block": "mlp"}, {"last_block": "residual"}),
    ]
    for options in changed:
        assert (patches(**options) - usual).abs().max() > 1e-4, options


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_stays_near(dtype, model, build_tiny_clip):
    x = windows(2)
    reference = DenseCLIP(model, "pearl", affinity="method")(x)
    low = DenseCLIP(build_tiny_clip(3), "pearl", affinity="method")
    open_clip.convert_weights_to_lp(low.model, dtype)
    features = low(x)
    assert features.attention.dtype == features.patches.dtype == torch.float32
    assert ((features.patches * reference.patches).sum(-1) > 0.999).all()
    torch.testing.assert_close(features.attention, reference.attention, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha_kk": float("nan")}, "PEARL.ALPHA_KK is nan; give a finite number"),
        ({"align_solver": "qr"}, "PEARL.ALIGN_SOLVER is 'qr'; choose one of polar, svd"),
        ({"polar_iters": -1}, "PEARL.POLAR_ITERS is -1; it must be at least 0"),
    ],
)
def test_bad_options_are_refused(options, message, model):
    with pytest.raises(ValueError, match=message):
        DenseCLIP(model, "pearl", **options)
