"""ResCLIP beside its published vectors (tests/test_base_protocols.py)."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from freecp_d2.clip import DenseCLIP
from freecp_d2.clip.methods import Reads, semantic_feedback

BLOCKS = {"rcs_blocks": (1, 2)}
SFR = {**BLOCKS, "use_sfr": True, "temp_thd": 0.0}


@pytest.fixture(scope="module")
def model(build_tiny_clip) -> open_clip.CLIP:
    return build_tiny_clip(4)


def windows(batch: int, height: int = 90, width: int = 135) -> Tensor:
    """Smooth ones, so that patches of a window have a few labels."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.randn(batch, 3, 3, 4, generator=generator)
    return 2 * F.interpolate(coarse, (height, width), mode="bicubic")


def text(queries: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return F.normalize(torch.randn(queries, 24, generator=generator), dim=-1)


STRATEGIES = ("resclip", "clearclip", "sclip", "vanilla")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", [(90, 135), (64, 64), (17, 95), (16, 16)])
def test_a_batch_is_its_windows_one_by_one(strategy, size, model):
    clip = DenseCLIP(model, "resclip", attn_strategy=strategy, affinity="method", **SFR)
    x, words = windows(3, *size), text()
    together = clip(x)
    reread = together.patches_for(words)
    for window in range(3):
        alone = clip(x[window : window + 1])
        for name in ("patches", "attention"):
            mine = getattr(together, name)[window : window + 1]
            torch.testing.assert_close(mine, getattr(alone, name), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            reread[window : window + 1], alone.patches_for(words), atol=1e-5, rtol=0
        )


def test_only_semantic_feedback_reads_the_words(model):
    x, words = windows(2), text()
    features = DenseCLIP(model, "resclip", **BLOCKS)(x)
    assert features.reread is None and features.patches_for(words) is features.patches
    second = DenseCLIP(model, "resclip", **SFR)
    assert second(x).patches.equal(features.patches)
    first, other = second(x).patches_for(words), second(x).patches_for(words.flip(0)[:3])
    torch.testing.assert_close(first.norm(dim=-1), torch.ones(first.shape[:2]))
    assert (first - features.patches).abs().max() > 1e-3 and (first - other).abs().max() > 1e-3
    patches, grid, reread = second.encode_dense(x)
    assert grid == features.grid and second.encode_patches(x)[0].equal(patches)
    torch.testing.assert_close(patches, features.patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(reread(words), first, atol=1e-5, rtol=0)
    kept, *_ = reread.args
    assert kept.trunk.head_attention is None  # of all that is kept it would be the largest
    assert kept.residual.numel() == kept.trunk.tokens.numel()


def test_the_second_reading_is_made_on_the_encoders_device(build_tiny_clip):
    clip = DenseCLIP(build_tiny_clip(4), "resclip", **SFR).to("meta")
    x = windows(2).to("meta")
    kept, *_ = clip.encode_dense(x)[2].args
    similarities = torch.empty(2, 6, 5, 8, device="meta")
    tokens = clip.base_method.reread(kept, similarities, x, (16, 16))
    assert tokens.device.type == "meta" and tokens.shape == (2, 40, 64)


def test_without_a_share_of_blocks_before_it_is_naclip(model):
    x = windows(2)
    patches = DenseCLIP(model, "resclip", attn_rcs_weights=(1.0, 0.0), **BLOCKS)(x).patches
    torch.testing.assert_close(patches, DenseCLIP(model, "naclip")(x).patches, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="ATTN_RCS_WEIGHTS is"):
        DenseCLIP(model, "resclip", attn_rcs_weights=(float("inf"), 0.0), **BLOCKS)


def test_the_second_reading_is_the_formula(model):
    """Step 8: one set of logits of all heads, written out; the residual is the first reading's."""
    clip = DenseCLIP(model, "resclip", **SFR, attn_rcs_weights=(1.5, 0.4))
    x, words = windows(1), text()
    trunk, _ = clip._run(x, record_attention=False)
    assert clip.base_method.reads(4) == Reads(head_attention=(1, 2))
    _, key, value = trunk.qkv
    patches = clip(x).patches
    similarity = (patches @ words.T).mT.unflatten(2, trunk.grid)
    labels = semantic_feedback.patch_labels(similarity, x, (16, 16), 40.0, 0.0)
    assert labels.unique().numel() > 1
    same = F.pad(semantic_feedback.label_bonus(labels, True, 5.0), (1, 0, 1, 0)).half()
    logits = 2.1 * (0.3 * key @ key.mT / 4 + (same * 0.7).float()[:, None])
    rows, columns = torch.meshgrid(*map(torch.arange, trunk.grid), indexing="ij")
    places = torch.stack((rows.flatten(), columns.flatten()), dim=1).float()
    near = torch.exp(-(torch.cdist(places, places) ** 2) / 50)
    attention = (logits + F.pad(near, (1, 0, 1, 0))).softmax(dim=-1)
    mixed = 1.5 * (0.6 * attention + 0.4 * trunk.head_attention) @ value
    tokens = trunk.last.attn.out_proj(mixed.transpose(1, 2).flatten(2))
    expected = model.visual.ln_post(tokens[:, 1:]) @ model.visual.proj
    torch.testing.assert_close(
        clip(x).patches_for(words), F.normalize(expected, dim=-1), atol=1e-5, rtol=0
    )


def test_the_first_block_can_be_mixed_in(model):
    first = DenseCLIP(model, "resclip", rcs_blocks=(0,))
    trunk, _ = first._run(windows(1), record_attention=False)
    weights = torch.ones(1, 4, 41) - trunk.head_attention.sum(dim=-1)
    torch.testing.assert_close(weights, torch.zeros(1, 4, 41), atol=1e-5, rtol=0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_similarity_is_how_values_spread(strategy, model):
    clip = DenseCLIP(model, "resclip", attn_strategy=strategy, affinity="method", **BLOCKS)
    x = windows(2)
    trunk, _ = clip._run(x, record_attention=False)
    query, key, _ = trunk.qkv
    vars(trunk)["qkv"] = query, key, torch.eye(query.shape[2]).expand(2, 4, -1, -1)
    spread = clip.base_method.attend(trunk).mean(dim=1)[:, 1:, 1:] / 2  # the factor of RCS
    similarity = clip(x).attention
    assert similarity.dtype == torch.float32 and (similarity >= 0).all()
    torch.testing.assert_close(similarity, spread, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_stays_near(dtype, model, build_tiny_clip):
    x, words = windows(2), text()
    exact = DenseCLIP(model, "resclip", affinity="method", **SFR)
    reference = exact(x)
    first, second = reference.patches, reference.patches_for(words)
    low = DenseCLIP(build_tiny_clip(4), "resclip", affinity="method", **SFR)
    open_clip.convert_weights_to_lp(low.model, dtype)
    features = low(x)
    assert features.attention.dtype == features.patches.dtype == torch.float32
    assert ((features.patches * first).sum(-1) > 0.999).all()
    reread = features.patches_for(words)
    assert reread.dtype == torch.float32
    # A patch between two labels may take the other.
    assert (reread * second).sum(-1).quantile(0.1) > 0.98
    torch.testing.assert_close(features.attention, reference.attention, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_strategy": "kk"}, "RESCLIP.ATTN_STRATEGY is 'kk'; choose one of resclip, "),
        ({"gaussian_std": 0.0}, "RESCLIP.GAUSSIAN_STD is 0.0; it must be above 0"),
        ({"gaussian_std": float("inf")}, "RESCLIP.GAUSSIAN_STD is inf; it must be above 0"),
        ({"rcs_blocks": ()}, r"RESCLIP.RCS_BLOCKS is \[\]; name at least one block"),
        ({"rcs_blocks": (-1, 2)}, r"RCS_BLOCKS is \[-1, 2\]; name at least one block"),
        ({"rcs_blocks": (1, 1)}, r"RCS_BLOCKS is \[1, 1\]; name at least one block, each once"),
        ({"attn_rcs_weights": (2.0,)}, r"ATTN_RCS_WEIGHTS is \[2.0\]; give two numbers"),
        ({"attn_rcs_weights": (0.0, 0.5)}, "ATTN_RCS_WEIGHTS is .*a factor above 0"),
        ({"attn_sfr_weights": (2.0, 1.5)}, "ATTN_SFR_WEIGHTS is .*a share from 0 to 1"),
        ({"temp_thd": 1.1}, "RESCLIP.TEMP_THD is 1.1; give a number from 0 to 1"),
        ({"logit_scale": 0.0}, "RESCLIP.LOGIT_SCALE is 0.0; it must be above 0"),
        ({"last_block": "none"}, "LAST_BLOCK is 'none'; choose one of "),
        ({}, r"RCS_BLOCKS is \[5, 6, 7, 8\], and of the tower's 4 blocks 0 to 2 can be mixed"),
        ({"rcs_blocks": (3,)}, r"RCS_BLOCKS is \[3\], and of the tower's 4 blocks 0 to 2 can"),
    ],
)
def test_bad_options_are_refused(options, message, model):
    with pytest.raises(ValueError, match=message):
        DenseCLIP(model, "resclip", **{**(BLOCKS if options else {}), **options})


def test_the_last_block_may_end_otherwise(model):
    x = windows(1)
    endings = {
        name: DenseCLIP(model, "resclip", last_block=name, **BLOCKS)(x).patches
        for name in ("", "projection", "mlp", "residual")
    }
    assert endings[""].equal(endings["projection"])
    assert not endings["mlp"].equal(endings[""]) and not endings["residual"].equal(endings["mlp"])
    sclip = DenseCLIP(model, "resclip", attn_strategy="sclip", **BLOCKS)
    assert sclip.base_method.last_block == "residual"
