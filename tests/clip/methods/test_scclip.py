"""SC-CLIP against vectors recorded from its authors' code."""

import pytest
import torch

from freecp_d2.clip.methods import base_method
from freecp_d2.clip.methods.calibration import (
    aggregate,
    calibrated_attention,
    calibrated_block,
    cosine_similarity,
    local_outliers,
    outlier_factors,
    repair,
    sum_of_blocks,
    thresholded,
)

FEATURES = ["features", "features_square", "features_native", "features_tall"]
FEATURES += ["features_other_indices"]


@pytest.fixture(scope="module")
def recorded(published):
    return published("scclip")


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", FEATURES)
def test_features_are_the_published(name, recorded):
    case, expected = recorded.cases[name], recorded.tensors(name)
    clip, images = recorded.clip(**case["options"]), recorded.image(case["image"])
    features = clip(images)
    assert list(features.grid) == case["grid"]
    close(features.patches, expected["patch_features"], 2e-6)
    trunk, _ = clip._run(images, record_attention=False)
    close(clip.base_method.patches(trunk), expected["tokens"], 1e-4)
    patches = trunk.tokens[:, 1:]
    close(outlier_factors(patches)[0], expected["lof_scores"])
    outliers = local_outliers(patches)
    assert outliers[0].nonzero().flatten().equal(expected["outliers"])
    close(repair(patches, outliers, trunk.grid, "kept")[0], expected["repaired"], 1e-4)


@torch.no_grad()
def test_every_step_is_the_published(recorded):
    expected = recorded.tensors("features")
    clip = recorded.clip()
    trunk, _ = clip._run(recorded.image("image"), record_attention=False)
    outliers = local_outliers(trunk.tokens[:, 1:])
    middle = repair(trunk.block_tokens[8][:, 1:], outliers, trunk.grid, "kept")
    similarity = cosine_similarity(middle)
    close(similarity, expected["similarity"])
    assert clip.base_method.similarity(trunk).equal(thresholded(similarity))
    patches = aggregate(thresholded(similarity), expected["repaired"][None])
    close(patches, expected["aggregated"])
    attention = calibrated_attention(similarity)
    first = calibrated_block(trunk.last, patches, attention, ["key"])
    close(first, expected["attended_first"], 5e-5)
    total = sum_of_blocks(trunk.block_tokens, 3, 10)
    second = calibrated_block(trunk.last, total[:, 1:], attention, ["key"])
    close(second, expected["attended_second"], 5e-5)
    early = cosine_similarity(trunk.block_tokens[3][:, 1:])
    close(thresholded(early), expected["early_similarity"])


def test_the_repair_is_the_published(recorded):
    case, expected = recorded.cases["repair"], recorded.tensors("repair")
    outliers = torch.zeros(1, len(expected["tokens"]), dtype=torch.bool)
    outliers[0, expected["outliers"]] = True
    result = repair(expected["tokens"][None], outliers, tuple(case["grid"]), "kept")
    close(result[0], expected["repaired"], 1e-6)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "PRE_ADJUST_IDX is 8; with the 6 blocks of this image tower it must be from 0 to 4"),
        ({"pre_adjust_idx": 4, "post_adjust_idx": -1}, "POST_ADJUST_IDX is -1"),
        ({"pre_adjust_idx": 4, "multi_start_idx": 5}, "MULTI_START_IDX is 5"),
        ({"pre_adjust_idx": 4, "multi_end_idx": 6}, "MULTI_END_IDX is 6; .* from 4 to 5"),
        ({"pre_adjust_idx": 4, "multi_end_idx": 3}, "MULTI_END_IDX is 3; .* from 4 to 5"),
    ],
)
def test_blocks_that_a_tower_has_not(options, key):
    with pytest.raises(ValueError, match=rf"MODEL\.CLIP\.SCCLIP\.{key}"):
        base_method("scclip")(**options).reads(6)


@pytest.mark.parametrize("block", [0, 4])
def test_the_first_block_and_the_last_but_one_may_be_read(block):
    options = {"pre_adjust_idx": block, "post_adjust_idx": block, "multi_start_idx": block}
    assert base_method("scclip")(**options, multi_end_idx=block + 1).reads(6).tokens == (block,)


def test_the_defaults_are_the_published(recorded):
    assert base_method("scclip").options() == recorded.cases["features"]["options"]
