"""Base methods: what each reads of the trunk, its own similarity, and methods of one's own."""

from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg

from freecp_d2 import add_freecp_config
from freecp_d2.cli.register import register_files
from freecp_d2.clip import BASE_METHODS, DenseCLIP, base_method_names, blocks
from freecp_d2.clip.build import build_clip
from freecp_d2.clip.methods import LastBlockMethod, Reads, base_method

ROOT = Path(__file__).parents[2]


def small_clip(layers: int = 5) -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": layers, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
    return open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text)


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 50, 84, generator=torch.Generator().manual_seed(7))


class Reader(LastBlockMethod):
    """Keeps what the trunk gives it."""

    def reads(self, num_blocks: int) -> Reads:
        return Reads(tokens=(0, 3), attention=(2,), head_attention=(1, 3), second_stream=(1, 2))

    def step(self, block, normed, qkv, stream):
        torch.testing.assert_close(
            normed.mean(-1), torch.zeros(normed.shape[:2]), atol=1e-5, rtol=0
        )
        return stream + block.attn.out_proj(
            blocks.project_qkv(block, normed)[2].mean(1).repeat(1, 1, 2)
        )

    def attend(self, trunk):
        self.trunk = trunk
        return trunk.qkv[2]

    def similarity(self, trunk):
        return torch.ones(len(trunk.tokens), 15, 15)


@pytest.mark.parametrize("affinity", ["attention", "method"])
def test_the_trunk_keeps_what_a_method_states(affinity):
    BASE_METHODS.register(Reader)
    model, x = small_clip(), images()
    clip = DenseCLIP(model, "reader", affinity=affinity)
    features = clip(x)
    trunk = clip.base_method.trunk
    with torch.no_grad():
        grid = blocks.grid_of(model.visual, x)
        tokens = blocks.embed(model.visual, x, blocks.positional_embedding(model.visual, grid))
        assert trunk.grid == grid == (3, 5)
        outputs, weights, stream = [], [], None
        for index, block in enumerate(model.visual.transformer.resblocks[:-1]):
            normed = block.ln_1(tokens)
            if index in (1, 2):
                stream = clip.base_method.step(
                    block, normed, None, tokens if stream is None else stream
                )
            weights.append(block.attn(normed, normed, normed, average_attn_weights=False)[1])
            tokens = block(tokens)
            outputs.append(tokens)
    close = {"atol": 1e-5, "rtol": 0}
    assert trunk.block_tokens.keys() == {0, 3} and trunk.attention.keys() == {2}
    for index, kept in trunk.block_tokens.items():
        torch.testing.assert_close(kept, outputs[index], **close)
    torch.testing.assert_close(trunk.attention[2], weights[2].mean(1), **close)
    torch.testing.assert_close(trunk.head_attention, (weights[1] + weights[3]) / 2, **close)
    torch.testing.assert_close(trunk.second_stream, stream, **close)
    torch.testing.assert_close(trunk.tokens, tokens, **close)
    expected = torch.stack([w.mean(1) for w in weights]).mean(0)[:, 1:, 1:]
    if affinity == "method":
        expected = torch.ones_like(expected)
    torch.testing.assert_close(features.attention, expected, **close)


def test_nothing_is_kept_that_no_method_reads():
    class Spy(base_method("clearclip")):
        def attend(self, trunk):
            self.trunk = trunk
            return super().attend(trunk)

    clip = DenseCLIP(small_clip())
    clip.base_method = Spy()
    clip(images())
    trunk = clip.base_method.trunk
    assert (trunk.block_tokens, trunk.attention) == ({}, {})
    assert trunk.head_attention is None and trunk.second_stream is None


def test_a_given_affinity_takes_the_place_of_the_attention():
    clip, x = DenseCLIP(small_clip()), images()
    given = torch.rand(2, 15, 15)
    features, usual = clip(x, affinity=given), clip(x)
    assert features.attention is given
    torch.testing.assert_close(features.patches, usual.patches, atol=1e-6, rtol=0)
    torch.testing.assert_close(features.cls, usual.cls, atol=1e-6, rtol=0)


def attention(query: torch.Tensor, key: torch.Tensor, bias: float | torch.Tensor = 0.0):
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias).softmax(-1)


@pytest.mark.parametrize(
    ("method", "options"),
    [(name, {}) for name in ("maskclip", "sclip", "clearclip", "vanilla", "gem", "naclip")]
    + [("naclip", {"attn_strategy": "kk"}), ("naclip", {"attn_strategy": "nonly"})],
)
def test_the_similarity_is_how_values_spread(method, options):
    """Of values that tell the tokens apart, what is attended to is the similarity itself."""
    clip = DenseCLIP(small_clip(), method, affinity="method", **options)
    x = images()
    trunk, _ = clip._run(x, record_attention=False)
    query, key, _ = trunk.qkv
    tokens = query.shape[2]
    value = torch.eye(tokens).expand(2, 2, -1, -1)
    vars(trunk)["qkv"] = (query, key, value)
    if method == "gem":
        temperature = trunk.normed.norm(dim=-1).mean(1)[:, None, None, None] / 4
        attended = torch.zeros_like(value)
        for source in clip._run(x, record_attention=False)[0].qkv:
            source = F.normalize(source, dim=-1)
            spread = (source @ source.mT * temperature).softmax(-1) @ source
            source = F.normalize(spread, dim=-1)
            attended = attended + (source @ source.mT * temperature).softmax(-1) / 3
    else:
        attended = clip.base_method.attend(trunk)
    expected = attended.mean(1)[:, 1:, 1:] / (2 if method == "sclip" else 1)
    torch.testing.assert_close(clip(x).attention, expected, atol=1e-6, rtol=0)


def test_only_the_neighbourhood_is_as_strong_in_each_window():
    clip = DenseCLIP(small_clip(), "naclip", attn_strategy="nonly")
    x = images() * torch.tensor([1.0, 9.0]).view(2, 1, 1, 1)
    together = clip(x).patches
    for i in range(2):
        torch.testing.assert_close(together[i], clip(x[i : i + 1]).patches[0], atol=1e-5, rtol=0)


def config(*opts: str):
    cfg = get_cfg()
    add_freecp_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize("name", base_method_names())
def test_every_option_is_a_key_with_its_default(name):
    method = base_method(name)
    expected = method.options()
    assert method.from_config(config()) == expected


def test_a_choice_that_a_method_has_not():
    with pytest.raises(ValueError, match="LAST_BLOCK is 'mlp'; gem has no such choice"):
        base_method("gem").from_config(config("MODEL.CLIP.LAST_BLOCK", "mlp"))
    with pytest.raises(ValueError, match="METHOD is 'maskclip.'; choose one of clearclip, gem"):
        base_method("maskclip+")


def test_a_method_of_ones_own():
    """The example of docs/own_base_method.md, by its name and options in a config."""
    example = ROOT / "projects/OwnBaseMethod/value_attention.py"
    assert len(example.read_text().splitlines()) < 60
    register_files([str(example)])
    opts = ["MODEL.CLIP.METHOD", "valueattention", "MODEL.CLIP.VALUEATTENTION.TEMPERATURE", "3.0"]
    cfg = config(*opts, "MODEL.DEVICE", "cpu")
    cfg.MODEL.CLIP.NAME = str(ROOT / "freecp_d2/data/scenes/scene_clip.json")
    cfg.MODEL.CLIP.PRETRAINED = str(ROOT / "freecp_d2/data/scenes/scene_clip.safetensors")
    cfg.MODEL.CLIP.TEXT_CACHE = ""
    clip, _ = build_clip(cfg)
    assert clip.base_method.temperature == 3.0
    x = images()
    trunk, _ = clip._run(x, record_attention=False)
    value = trunk.qkv[2]
    unit = F.normalize(value, dim=-1)
    weights = (3 * value.shape[-1] ** 0.5 * unit @ unit.mT).softmax(-1)
    dense = blocks.project_out(trunk.last, weights @ value)[:, 1:]
    torch.testing.assert_close(clip(x).patches, clip._project(dense), atol=1e-5, rtol=0)
    similarity = DenseCLIP(clip.model, "valueattention", affinity="method", temperature=3.0)(x)
    expected = weights.mean(1)[:, 1:, 1:]
    torch.testing.assert_close(similarity.attention, expected, atol=1e-6, rtol=0)
