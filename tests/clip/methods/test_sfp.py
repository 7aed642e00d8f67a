"""SFP, as released, against vectors recorded from its authors' code."""

from dataclasses import replace

import pytest
import torch

from freecp_d2.clip.methods import Trunk, base_method
from freecp_d2.clip.methods.calibration import (
    aggregate,
    calibrated_attention,
    calibrated_block,
    cosine_similarity,
    outlier_factors,
    repair,
    sum_of_blocks,
    thresholded,
)

FEATURES = ["features", "features_square", "features_native", "features_tall"]
FEATURES += ["features_l2", "features_lof"]


@pytest.fixture(scope="module")
def recorded(published):
    return published("sfp")


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
    outliers = clip.base_method.outliers(trunk)
    assert outliers[0].nonzero().flatten().equal(expected["outliers"].sort().values)
    close(repair(trunk.tokens[:, 1:], outliers, trunk.grid, "zero")[0], expected["repaired"], 1e-4)
    if "lof_scores" in expected:
        close(outlier_factors(trunk.tokens[:, 1:])[0], expected["lof_scores"])
    if "salient" in expected:
        ((block, attention),) = trunk.attention.items()
        itself = attention[0].diagonal()[1:]
        assert block == 10
        close(itself, expected["self_attention"])
        assert expected["salient"].equal(1.5 * attention[0, 0, 1:] > itself)


@torch.no_grad()
def test_every_step_is_the_published(recorded):
    expected = recorded.tensors("features")
    clip = recorded.clip()
    trunk, _ = clip._run(recorded.image("image"), record_attention=False)
    similarity = clip.base_method.similarity(trunk)
    close(similarity, expected["similarity"])
    patches = aggregate(similarity, expected["repaired"][None])
    close(patches, expected["aggregated"])
    attention = calibrated_attention(similarity)
    first = calibrated_block(trunk.last, patches, attention, ["key", "query"])
    close(first, expected["attended_first"], 5e-5)
    total = sum_of_blocks(trunk.block_tokens, 3, 10)
    second = calibrated_block(trunk.last, total[:, 1:], attention, [])
    close(second, expected["attended_second"], 5e-5)
    early = cosine_similarity(trunk.block_tokens[3][:, 1:])
    close(thresholded(early), expected["early_similarity"])


def test_the_repair_is_the_published(recorded):
    case, expected = recorded.cases["repair"], recorded.tensors("repair")
    outliers = torch.zeros(1, len(expected["tokens"]), dtype=torch.bool)
    outliers[0, expected["outliers"]] = True
    result = repair(expected["tokens"][None], outliers, tuple(case["grid"]), "zero")
    close(result[0], expected["repaired"], 1e-6)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "PRE_ADJUST_IDX is 8; with the 6 blocks of this image tower it must be from 0 to 4"),
        ({"pre_adjust_idx": 4, "post_adjust_idx": 5}, "POST_ADJUST_IDX is 5"),
        ({"pre_adjust_idx": 4, "cross_s": -1}, "CROSS_S is -1"),
        ({"pre_adjust_idx": 4, "cross_e": 6}, "CROSS_E is 6; .* from 4 to 5"),
        ({"pre_adjust_idx": 4, "cross_e": 3}, "CROSS_E is 3; .* from 4 to 5"),
    ],
)
def test_blocks_that_a_tower_has_not(options, key):
    with pytest.raises(ValueError, match=rf"MODEL\.CLIP\.SFP\.{key}"):
        base_method("sfp")(**options).reads(6)


def test_salient_patches_get_more_from_the_cls_token_than_from_themselves():
    """Twice as much as 0.4 * 5 times, and not as much; the ten strongest; in each window."""
    own = torch.full((2, 16), 0.5)
    own[0, 3:] = 3.0
    by_cls = torch.arange(1, 17).expand(2, 16) / 4
    attention = torch.zeros(2, 17, 17)
    attention[:, 0, 1:] = by_cls
    attention[:, range(1, 17), range(1, 17)] = own
    trunk = Trunk(None, torch.zeros(2, 17, 8), (4, 4), attention={4: attention})
    first, second = base_method("sfp")(res_cls=0.4).outliers(trunk)
    # 2 * 0.25 is no more than 0.5, nor 2 * 1.5 more than 3; twelve and fifteen others are.
    assert first.nonzero().flatten().tolist() == [*range(6, 16)]
    assert second.nonzero().flatten().tolist() == [*range(6, 16)]
    attention[0, 0, 1 + 9 :] = 0
    first = base_method("sfp")(res_cls=0.4).outliers(trunk)[0]
    assert first.nonzero().flatten().tolist() == [1, 2, 6, 7, 8]


def test_a_detector_that_is_none():
    with pytest.raises(ValueError, match=r"MODEL.CLIP.SFP.PM is 'som'; choose one of SOM, L2, LOF"):
        base_method("sfp")(pm="som")


def test_attention_is_kept_for_som_alone():
    fits = {"pre_adjust_idx": 4, "cross_e": 5}
    for options, blocks in (({}, (4,)), ({"pm": "L2"}, ()), ({"purify": False}, ())):
        reads = base_method("sfp")(**fits, **options).reads(6)
        assert reads.attention == blocks and set(reads.tokens) == {3, 4}


def test_the_first_block_may_be_read():
    fits = {"pre_adjust_idx": 0, "post_adjust_idx": 0, "cross_s": 0, "cross_e": 1}
    assert base_method("sfp")(**fits).reads(6).tokens == (0,)


def test_the_defaults_are_the_published():
    assert base_method("sfp").options() == {
        **{"pm": "SOM", "purify": True, "res_cls": 0.3},
        **{"pre_adjust_idx": 8, "post_adjust_idx": 3, "cross_s": 3, "cross_e": 10},
    }


@torch.no_grad()
def test_without_purification_no_patch_is_an_outlier(recorded):
    clip, images = recorded.clip(purify=False), recorded.image("image")
    trunk, _ = clip._run(images, record_attention=False)
    assert not clip.base_method.outliers(trunk).any()
    expected = thresholded(cosine_similarity(trunk.block_tokens[8][:, 1:]))
    close(clip.base_method.similarity(trunk), expected)


@torch.no_grad()
def test_an_outlier_among_outliers_leaves_everything_finite(recorded):
    """A corner whose neighbours are outliers becomes zero, which has no direction."""
    clip = recorded.clip(affinity="method")
    corner = torch.zeros(1, 8, 8, dtype=torch.bool)
    corner[:, :2, :2] = True
    clip.base_method.outliers = lambda trunk: corner.flatten(1)
    features = clip(recorded.image("image_square"))
    assert features.patches.isfinite().all()
    assert features.attention[0, 0].equal(torch.eye(64)[0])
    assert (features.attention.sum(-1) > 0).all()
    trunk, _ = clip._run(recorded.image("image_square"), record_attention=False)
    tokens = trunk.tokens.clone()
    tokens[:, 1] *= torch.arange(tokens.shape[2])  # nobody reads the corner
    other = clip.base_method.patches(replace(trunk, tokens=tokens))
    close(other, clip.base_method.patches(trunk))
