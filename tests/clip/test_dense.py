"""DenseCLIP against the published vectors, torch's own attention and open_clip's own encoder."""

from concurrent.futures import ThreadPoolExecutor

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from freecp_d2.clip import DenseCLIP, base_method_names, blocks
from freecp_d2.clip.methods import base_method

METHODS = base_method_names()
IN_FOUR_BLOCKS: dict[str, dict] = {
    "gem": {"gem_depth": 3},
    "scclip": {
        "pre_adjust_idx": 2,
        "post_adjust_idx": 0,
        "multi_start_idx": 0,
        "multi_end_idx": 3,
    },
    "sfp": {"pre_adjust_idx": 2, "post_adjust_idx": 0, "cross_s": 0, "cross_e": 3},
    "resclip": {"rcs_blocks": (1, 2)},
}
"""Options that suit a tower of four blocks."""
WHOLE = ("maskclip", "sclip", "clearclip", "gem", "clearclip_background")


def small_clip(
    patch: int = 16, quick_gelu: bool = False, cast_dtype: torch.dtype | None = None, **vision
) -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(
        embed_dim=24,
        vision_cfg={
            "image_size": 6 * patch,
            "layers": 3,
            "width": 32,
            "head_width": 16,
            "patch_size": patch,
            **vision,
        },
        text_cfg={"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=quick_gelu,
        cast_dtype=cast_dtype,
    )


def images(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("case", WHOLE)
def test_logits_and_attention_are_the_published(case, encoder, inputs, vectors):
    clip, expected = encoder(case), vectors(case)
    features = clip(inputs["image"])
    logits = clip.logit_scale * features.patches @ inputs["text"].T
    torch.testing.assert_close(logits, expected["dense_logits"], atol=1e-4, rtol=0)
    cls_logits = clip.logit_scale * features.cls @ inputs["text"].T
    torch.testing.assert_close(cls_logits, expected["cls_logits"][0], atol=1e-4, rtol=0)
    attention = expected["attention"][:-1, 1:, 1:].mean(0, keepdim=True)
    torch.testing.assert_close(features.attention, attention, atol=1e-6, rtol=0)
    assert features.grid == (8, 10)


def test_naclip_features_are_the_published(encoder, inputs, vectors):
    features = encoder("naclip_features")(inputs["image"])
    expected = vectors("naclip_features")["patch_features"]
    torch.testing.assert_close(features.patches, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("patch", [14, 32])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_cls_is_open_clips_own(patch, quick_gelu):
    model = small_clip(patch, quick_gelu=quick_gelu).eval()
    x = images(6 * patch, 6 * patch, 2)
    clip = DenseCLIP(model)
    expected = model.encode_image(x, normalize=True)
    torch.testing.assert_close(clip(x).cls, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.encode_cls(x), expected, atol=1e-5, rtol=0)


def test_attention_and_vanilla_are_torchs_own():
    model = small_clip(layers=4).eval()
    x = images(96, 96, 2)
    visual = model.visual
    with torch.no_grad():
        tokens = visual._embeds(x)
        recorded = []
        for block in visual.transformer.resblocks[:-1]:
            normed = block.ln_1(tokens)
            recorded.append(block.attn(normed, normed, normed, need_weights=True)[1][:, 1:, 1:])
            tokens = block(tokens)
        block = visual.transformer.resblocks[-1]
        normed = block.ln_1(tokens)
        z = block.attn(normed, normed, normed, need_weights=False)[0]
        z = z + block.mlp(block.ln_2(z))
        patches = F.normalize(visual.ln_post(z)[:, 1:] @ visual.proj, dim=-1)
    for method in ("vanilla", "clearclip"):
        features = DenseCLIP(model, method)(x)
        attention = torch.stack(recorded).mean(0)
        torch.testing.assert_close(features.attention, attention, atol=1e-6, rtol=0)
    torch.testing.assert_close(DenseCLIP(model, "vanilla")(x).patches, patches, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "batch"), [(448, 2), (336, 1), (224, 5)])
def test_twelve_heads_of_many_tokens(side, batch):
    """As a ViT-B/16 has them."""
    model = small_clip(image_size=224, width=48, head_width=4).eval()
    x = images(side, side, batch)
    features = DenseCLIP(model)(x)
    with torch.no_grad():
        grid = blocks.grid_of(model.visual, x)
        tokens = blocks.embed(model.visual, x, blocks.positional_embedding(model.visual, grid))
        recorded = []
        for block in model.visual.transformer.resblocks[:-1]:
            normed = block.ln_1(tokens)
            assert block.attn.num_heads == 12
            recorded.append(block.attn(normed, normed, normed, need_weights=True)[1][:, 1:, 1:])
            tokens = block(tokens)
    assert features.grid == grid
    attention = torch.stack(recorded).mean(0)
    torch.testing.assert_close(features.attention, attention, atol=1e-6, rtol=0)
    last = model.visual.transformer.resblocks[-1](tokens)[:, 0]
    cls = F.normalize(model.visual.ln_post(last) @ model.visual.proj, dim=-1)
    torch.testing.assert_close(features.cls, cls, atol=1e-5, rtol=0)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest result has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_weights_of_one_head_exist_at_once():
    qkv = tuple(torch.zeros(1, 6, 300, 2) for _ in range(3))
    record = torch.zeros(1, 300, 300)
    with Largest() as largest, torch.no_grad():
        blocks._attention_by_head._init_fn(*qkv, [record], None, 1.0)
    assert largest.numel == record.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recorded_attention_is_what_its_batched_formula_says(dtype, monkeypatch):
    """The path of exported programs, and of devices that are neither CPU nor CUDA."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 40, 3, 4, 8, generator=generator).to(dtype).permute(2, 0, 3, 1, 4)
    runs = []
    for exporting in (False, True):
        monkeypatch.setattr(torch.compiler, "is_exporting", lambda value=exporting: value)
        records = [
            torch.ones(2, 40, 40),
            torch.zeros(2, 40, 40),
            torch.ones(2, 4, 40, 40).to(dtype),
        ]
        attended = blocks.recorded_attention(
            tuple(qkv), *records[:2], head_record=records[2], share=0.25
        )
        runs.append([attended.float(), *(record.float() for record in records)])
    rounding = 1e-6 if dtype == torch.float32 else 2e-2
    for by_head, batched in zip(*runs, strict=True):
        torch.testing.assert_close(by_head, batched, atol=rounding, rtol=0)
    expected = blocks.attention_weights(qkv[0].float(), qkv[1].float())
    torch.testing.assert_close(runs[0][2], expected.mean(1), atol=rounding, rtol=0)
    torch.testing.assert_close(runs[0][0], expected @ qkv[2].float(), atol=rounding, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_everything_is_made_on_the_encoders_device(method):
    """On "meta", whose tensors meet none of another device; a CUDA device is like it."""
    clip = DenseCLIP(small_clip(layers=4), method, **IN_FOUR_BLOCKS.get(method, {})).to("meta")
    x = images(64, 80, 2).to("meta")
    features = clip(x)
    patches, grid = clip.encode_patches(x)
    assert grid == features.grid == (4, 5)
    for tensor, shape in (
        *((features.patches, (2, 20, 24)), (patches, (2, 20, 24))),
        *((features.cls, (2, 24)), (clip.encode_cls(x), (2, 24))),
        (features.attention, (2, 20, 20)),
    ):
        assert tensor.is_meta and tensor.shape == shape


def test_defaults_are_the_published():
    clip = DenseCLIP(small_clip())
    assert (clip.method, clip.affinity) == ("clearclip", "attention")
    assert base_method("gem").options() == {"gem_depth": 7, "gem_head_average": False}
    assert DenseCLIP(small_clip(), "gem", gem_depth=2).base_method.gem_depth == 2
    visual, x = small_clip().visual, images(48, 64)
    grid = blocks.grid_of(visual, x)
    usual = blocks.positional_embedding(visual, grid)
    assert usual.equal(blocks.positional_embedding(visual, grid, antialias=False))
    assert not usual.equal(blocks.positional_embedding(visual, grid, antialias=True))


def test_gem_attention_may_average_the_heads():
    model, x = small_clip(layers=4), images(64, 80)
    published = DenseCLIP(model, "gem", gem_depth=3)(x)
    averaged = DenseCLIP(model, "gem", gem_depth=3, gem_head_average=True)(x)
    torch.testing.assert_close(averaged.patches, published.patches)
    assert (averaged.attention - published.attention).abs().max() > 1e-4
    gem_positions_on_the_trained_grid = DenseCLIP(model, "vanilla")(images(96, 96)).attention
    torch.testing.assert_close(
        DenseCLIP(model, "gem", gem_depth=3, gem_head_average=True)(images(96, 96)).attention,
        gem_positions_on_the_trained_grid,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_images(method):
    clip = DenseCLIP(small_clip(layers=4), method, **IN_FOUR_BLOCKS.get(method, {}))
    x = images(70, 50, 3)
    together = clip(x)
    for i in range(3):
        alone = clip(x[i : i + 1])
        for name in ("patches", "cls", "attention"):
            torch.testing.assert_close(
                getattr(together, name)[i], getattr(alone, name)[0], atol=1e-5, rtol=0
            )


@settings(max_examples=15, deadline=None)
@given(height=st.integers(16, 130), width=st.integers(16, 130), method=st.sampled_from(METHODS))
def test_any_size(height, width, method):
    options = IN_FOUR_BLOCKS.get(method, {})
    features = DenseCLIP(small_clip(layers=4), method, **options)(images(height, width))
    count = (height // 16) * (width // 16)
    assert features.grid == (height // 16, width // 16)
    assert features.patches.shape == (1, count, 24)
    assert features.attention.shape == (1, count, count)
    torch.testing.assert_close(features.patches.norm(dim=-1), torch.ones(1, count))
    assert features.attention.sum(-1).max() <= 1 + 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_close(dtype, method):
    x, options = images(64, 80, 2), IN_FOUR_BLOCKS.get(method, {})
    exact = DenseCLIP(small_clip(layers=4), method, **options)(x)
    model = small_clip(layers=4, cast_dtype=dtype)
    model.load_state_dict(small_clip(layers=4).state_dict())
    open_clip.convert_weights_to_lp(model, dtype=dtype)
    half = DenseCLIP(model, method, **options)(x)
    for name in ("patches", "cls", "attention"):
        value = getattr(half, name)
        assert value.dtype == torch.float32
        tolerance = 10 * torch.finfo(dtype).eps
        torch.testing.assert_close(value, getattr(exact, name), atol=tolerance, rtol=0)


def test_it_stays_frozen():
    clip = DenseCLIP(small_clip().train()).train()
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "maskclip+"}, "MODEL.CLIP.METHOD"),
        ({"method": "gem", "gem_depth": 1}, "MODEL.CLIP.GEM.DEPTH"),
        ({"method": "gem", "last_block": "mlp"}, "gem has no option last_block; it has gem_depth"),
        ({"std": 5.0}, "clearclip has no option std; it has last_block"),
        ({"last_block": "head"}, "MODEL.CLIP.LAST_BLOCK is 'head'; choose one of projection"),
        ({"affinity": "dino"}, "MODEL.FREECP.AFFINITY is 'dino'; choose one of attention, method"),
        ({"method": "naclip", "gaussian_std": 0.0}, "MODEL.CLIP.NACLIP.GAUSSIAN_STD"),
        ({"method": "naclip", "attn_strategy": "csa"}, "MODEL.CLIP.NACLIP.ATTN_STRATEGY"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        DenseCLIP(small_clip(), **options)


@pytest.mark.parametrize(
    "vision",
    [
        {"layers": 1},
        {"pool_type": "avg"},
        {"attentional_pool": True},
        {"qk_norm": True, "block_type": "custom"},
        {"layers": (1, 1, 1, 1), "width": 16, "patch_size": None},
    ],
)
def test_other_image_towers_are_refused(vision):
    with pytest.raises(ValueError, match="image tower"):
        DenseCLIP(small_clip(**vision))


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="smaller than a patch"):
        DenseCLIP(small_clip())(images(15, 40))


@pytest.mark.parametrize("method", ["clearclip", "gem"])
def test_positional_embeddings_are_kept_while_the_weights_stay(method, monkeypatch):
    resampled = []
    original = blocks.positional_embedding
    monkeypatch.setattr(
        blocks,
        "positional_embedding",
        lambda visual, grid, *a: resampled.append(grid) or original(visual, grid, *a),
    )
    model = small_clip(layers=4)
    clip = DenseCLIP(model, method, **IN_FOUR_BLOCKS.get(method, {}))
    sizes = [(48, 64), (64, 48), (48, 64), (50, 70), (16, 16), (64, 48)]
    first = [clip(images(*size)).patches for size in sizes]
    assert resampled == [(3, 4), (4, 3), (1, 1)]
    assert all(clip(images(*s)).patches.equal(f) for s, f in zip(sizes, first, strict=True))
    with torch.no_grad():
        model.visual.positional_embedding.mul_(2)
    changed = clip(images(48, 64)).patches
    assert not changed.equal(first[0]) and resampled[3:] == [(3, 4)]
    fresh = DenseCLIP(model, method, **IN_FOUR_BLOCKS.get(method, {}))
    assert fresh(images(48, 64)).patches.equal(changed)
    for side in range(1, 20):
        clip.encode_cls(images(16 * side, 16))
    assert len(clip._positions) == 16


def test_threads_find_each_their_grid():
    clip = DenseCLIP(small_clip(layers=2))
    sizes = [(16 * (1 + i % 5), 16 * (1 + i % 7)) for i in range(70)]
    expected = {size: DenseCLIP(small_clip(layers=2)).encode_cls(images(*size)) for size in sizes}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda size: clip.encode_cls(images(*size)), sizes))
    for one, size in zip(found, sizes, strict=True):
        torch.testing.assert_close(one, expected[size], atol=1e-6, rtol=0)
