"""What SC-CLIP and SFP share, against loops that follow its definition."""

import logging
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transformer import ResidualAttentionBlock

from freecp_d2.clip.methods import calibration
from freecp_d2.clip.methods.calibration import (
    aggregate,
    calibrated_attention,
    calibrated_block,
    check_blocks,
    cosine_similarity,
    local_outliers,
    outlier_factors,
    repair,
    strongest,
    sum_of_blocks,
    thresholded,
)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def repaired_by_loops(tokens: np.ndarray, outliers: set, grid: tuple, lonely: str) -> np.ndarray:
    height, width = grid
    result = tokens.copy()
    for row, column in outliers:
        sound = [
            tokens[r * width + c]
            for r, c in product(range(row - 1, row + 2), range(column - 1, column + 2))
            if 0 <= r < height and 0 <= c < width and (r, c) not in outliers
        ]
        if sound:
            result[row * width + column] = np.mean(sound, axis=0)
        elif lonely == "zero":
            result[row * width + column] = 0
    return result


@st.composite
def outliers_in_grids(draw):
    height, width = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    places = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1))
    two = draw(st.lists(st.sets(places), min_size=2, max_size=2))
    return (height, width), two


@given(case=outliers_in_grids(), lonely=st.sampled_from(["kept", "zero"]))
def test_repair_is_the_mean_of_sound_neighbours(case, lonely):
    (height, width), sets = case
    tokens = numbers(0, 2, height * width, 3) + 5
    mask = torch.zeros(2, height, width, dtype=torch.bool)
    for image, outliers in enumerate(sets):
        for place in outliers:
            mask[(image, *place)] = True
    result = repair(tokens, mask.flatten(1), (height, width), lonely)
    for image, outliers in enumerate(sets):
        expected = repaired_by_loops(tokens[image].numpy(), outliers, (height, width), lonely)
        np.testing.assert_allclose(result[image].numpy(), expected, atol=1e-5)
        sound = ~mask[image].flatten()
        assert result[image, sound].equal(tokens[image, sound])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_repair_keeps_the_dtype(dtype):
    tokens = numbers(1, 1, 12, 4).to(dtype)
    mask = torch.zeros(1, 12, dtype=torch.bool)
    mask[0, 5] = True
    result = repair(tokens, mask, (3, 4), "kept")
    neighbours = tokens[0, [0, 1, 2, 4, 6, 8, 9, 10]].float().mean(0)
    assert result.dtype == dtype
    torch.testing.assert_close(result[0, 5], neighbours.to(dtype))


def factors_by_loops(tokens: np.ndarray) -> np.ndarray:
    distance = ((tokens[:, None] - tokens[None]) ** 2).sum(-1)
    order = distance.argsort(axis=1)[:, 1:31]
    radius = np.array([distance[i, order[i, -1]] for i in range(len(tokens))])
    return np.array([radius[i] * np.mean(1 / radius[order[i]]) for i in range(len(tokens))])


@pytest.mark.parametrize("count", [31, 32, 41, 80])
def test_outliers_are_above_the_quantile_of_the_factors(count):
    """Each image by itself, also where the tokens lie far from the origin."""
    tokens = numbers(2, 3, count, 5) * torch.tensor([1.0, 0.1, 30.0]).view(3, 1, 1) + 20
    tokens[1, 7] += 3
    factors, outliers = outlier_factors(tokens), local_outliers(tokens)
    for image in range(3):
        expected = factors_by_loops(tokens[image].double().numpy())
        np.testing.assert_allclose(factors[image].numpy(), expected, rtol=1e-3)
        above = expected > np.quantile(expected, 0.95)
        assert outliers[image].numpy().tolist() == above.tolist()
    assert outliers[1, 7] and (count < 80 or outliers.sum(1).tolist() == [4, 4, 4])


def test_thirty_patches_have_no_outliers_and_the_log_says_so_once(caplog):
    calibration._say_that_there_are_too_few.cache_clear()
    with caplog.at_level(logging.WARNING):
        for count in (30, 1, 30):
            outliers = local_outliers(numbers(3, 2, count, 4))
            assert outliers.equal(torch.zeros(2, count, dtype=torch.bool))
            (record,) = caplog.records
    assert "30 patches or fewer" in record.getMessage()
    assert local_outliers(numbers(3, 2, 31, 4)).any()


def test_equal_tokens_have_no_outliers():
    tokens = torch.ones(2, 40, 4)
    tokens[1] = numbers(4, 40, 4)
    assert local_outliers(tokens).any(dim=1).tolist() == [False, True]


@given(seed=st.integers(0, 99), size=st.integers(1, 15), count=st.integers(1, 12))
def test_the_strongest(seed, size, count):
    scores = numbers(seed, 3, size)
    scores[scores < -0.5] = -torch.inf
    for row, mask in zip(scores.tolist(), strongest(scores, count).tolist(), strict=True):
        best = sorted((i for i, s in enumerate(row) if s > -np.inf), key=lambda i: -row[i])
        assert [i for i, chosen in enumerate(mask) if chosen] == sorted(best[:count])


def test_cosines_of_each_image():
    tokens = numbers(5, 2, 9, 4)
    tokens[0, 3] = 0
    similarity = cosine_similarity(tokens.half())
    assert similarity.dtype == torch.float32
    expected = torch.cosine_similarity(tokens[:, :, None], tokens[:, None], dim=-1)
    expected[0, 3, 3] = 1
    torch.testing.assert_close(similarity, expected, atol=2e-3, rtol=0)
    kept = thresholded(similarity)
    assert kept.equal(torch.where(similarity < 0.4, 0.0, similarity))
    assert thresholded(torch.tensor([0.4, 0.39999])).tolist() == [pytest.approx(0.4), 0]


def test_aggregation_is_a_weighted_mean():
    weights, tokens = numbers(6, 2, 5, 5).abs() * 1e-3, numbers(7, 2, 5, 3)
    weights[1, 2] = 0
    expected = np.zeros((2, 5, 3))
    for image, i in product(range(2), range(5)):
        total = weights[image, i].double().sum().item() + 1e-6
        for j in range(5):
            expected[image, i] += weights[image, i, j].item() / total * tokens[image, j].numpy()
    result = aggregate(weights, tokens)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-6)
    assert aggregate(weights, tokens.half()).dtype == torch.float16


def test_attention_to_what_is_above_the_mean():
    similarity = numbers(8, 2, 6, 6) * torch.tensor([1.0, 0.2]).view(2, 1, 1)
    similarity[0, 4] = -9  # a row below the mean
    attention = calibrated_attention(similarity)
    for image in range(2):
        mean = similarity[image].double().mean()
        for i in range(6):
            logits = 3 * (similarity[image, i].double() - mean)
            weights = torch.where((logits >= 0) | (torch.arange(6) == i), logits.exp(), 0)
            expected = (weights / weights.sum()).float()
            torch.testing.assert_close(attention[image, i], expected, atol=1e-6, rtol=0)
    assert attention[0, 4].tolist() == [0, 0, 0, 0, 1, 0]
    assert calibrated_attention(torch.ones(1, 2, 2)).tolist() == [[[0.5, 0.5], [0.5, 0.5]]]
    assert calibrated_attention(torch.ones(1, 2, 2, device="meta")).is_meta


@pytest.mark.parametrize("selves", [[], ["key"], ["key", "query"], ["query"]])
def test_the_calibrated_block_head_by_head(selves):
    torch.manual_seed(0)
    block = ResidualAttentionBlock(12, 3)
    torch.nn.init.normal_(block.attn.in_proj_bias)
    torch.nn.init.normal_(block.attn.out_proj.bias)
    patches, shared = numbers(9, 2, 7, 12), numbers(10, 2, 7, 7).softmax(-1)
    with torch.no_grad():
        packed = block.ln_1(patches) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        query, key, value = packed.chunk(3, dim=-1)
        attended = torch.zeros(2, 7, 12)
        for head in range(3):
            channels = slice(4 * head, 4 * head + 4)
            weights = shared
            for name in selves:
                x = {"key": key, "query": query}[name][..., channels]
                weights = weights + (x @ x.transpose(1, 2) / 2).softmax(-1)
            attended[..., channels] = weights @ value[..., channels] / (1 + len(selves))
        expected = block.attn.out_proj(attended)
        result = calibrated_block(block, patches, shared, selves)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_the_sum_of_blocks_has_no_end():
    tokens = {block: torch.full((1, 2, 3), 10.0**block) for block in range(5)}
    assert sum_of_blocks(tokens, 1, 4).equal(torch.full((1, 2, 3), 1110.0))
    # One by one, ones would be lost beside 2048.
    half = {block: torch.full((1, 1, 1), float(n)).half() for block, n in enumerate([2048, 1, 1])}
    assert (
        sum_of_blocks(half, 0, 3).item() == 2050 and sum_of_blocks(half, 0, 3).dtype == torch.half
    )


@pytest.mark.parametrize("value", [-1, 5])
def test_a_block_that_a_tower_has_not(value):
    check_blocks("SFP", 6, {"CROSS_S": (4, 0, 4), "PRE_ADJUST_IDX": (0, 0, 4)})
    message = f"MODEL.CLIP.SFP.CROSS_S is {value}; with the 6 blocks of this image tower it must"
    with pytest.raises(ValueError, match=message):
        check_blocks("SFP", 6, {"CROSS_S": (value, 0, 4)})


@pytest.mark.parametrize(
    ("method", "options"),
    [("scclip", {}), *(("sfp", {"pm": pm}) for pm in ("SOM", "L2", "LOF"))],
)
def test_windows_of_a_batch_are_as_if_alone(method, options, published):
    recorded = published(method)
    clip, x = recorded.clip(**options, affinity="method"), recorded.windows()
    together = clip(x)
    assert not together.patches[0].allclose(together.patches[1], atol=0.1)
    for i in range(3):
        alone = clip(x[i : i + 1])
        for name in ("patches", "attention"):
            found, expected = getattr(together, name)[i], getattr(alone, name)[0]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["scclip", "sfp"])
def test_half_precision_is_near(method, dtype, published):
    """Entries near a threshold may cross it, which moves a few patches."""
    recorded = published(method)
    x = recorded.windows()
    exact, half = recorded.clip()(x), recorded.clip(dtype)(x)
    assert half.patches.dtype == torch.float32
    cosines = (exact.patches * half.patches).sum(-1)
    assert cosines.median() > 0.999 and cosines.min() > 0.99
