"""Every open_clip name: those that docs/clip_models.md lists are read, all others refused.

The quick tests shrink a tower in depth and width, which leaves its kind. Full towers are slow:
`python -m pytest -m slow tests/clip/test_towers.py` builds each with random weights.
"""

import json
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from freecp_d2 import FreeCP, load_config
from freecp_d2.clip import DenseCLIP, check_normalisation, load_clip, loading
from freecp_d2.clip.text import encode_sentences

ROOT = Path(__file__).parents[2]
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
CLIP_MEAN, CLIP_STD = [122.771, 116.746, 104.094], [68.501, 66.632, 70.323]


def documented() -> dict[str, list[str]]:
    """Name -> patterns of tags, of the table in docs/clip_models.md."""
    rows = re.findall(
        r"^\| `(\S+)` \|.*\| (.*) \|$", (ROOT / "docs/clip_models.md").read_text(), re.M
    )
    return {name: re.findall(r"`(\S+)`", tags) for name, tags in rows}


METHODS: dict[str, dict] = {
    **{name: {} for name in ("clearclip", "maskclip", "naclip", "sclip", "vanilla")},
    "gem": {"gem_depth": 2},
}
"""Those that read no block of a fixed number."""
NAMES = sorted(documented())
TAGGED = [(name, tag) for name in NAMES for tag in open_clip.list_pretrained_tags_by_model(name)]
OTHERS = sorted(set(open_clip.list_models()) - set(NAMES))


def shrunk(name: str) -> dict:
    """The config of a name with three blocks of two heads, 4 x 4 patches and a tiny text tower."""
    config = open_clip.get_model_config(name)
    vision = config["vision_cfg"]
    side = 4 * vision["patch_size"]
    vision |= {"layers": 3, "width": 2 * vision.get("head_width", 64), "image_size": side}
    config["text_cfg"] |= TEXT
    return config | {"embed_dim": 24}


def image(config: dict) -> torch.Tensor:
    side = config["vision_cfg"]["image_size"]
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(loading, "_fetched", None)


@pytest.fixture
def word_tokenizer(tmp_path) -> str:
    """A folder with a Hugging Face tokenizer of a few words, as MetaCLIP 2's: padding 1, eos 2."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "photo", "of", "dog", "river"]
    model = tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(words)}, unk_token="<unk>"
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.save_pretrained(tmp_path / "words")
    return str(tmp_path / "words")


def write(config: dict, folder: Path) -> tuple[str, str]:
    """Files of a config and of random weights for it."""
    torch.manual_seed(0)
    name, weights = folder / "clip.json", folder / "clip.safetensors"
    name.write_text(json.dumps(config))
    save_file(open_clip.CLIP(**config).state_dict(), weights)
    return str(name), str(weights)


def refusal(name: str, pretrained: str) -> str:
    with pytest.raises(ValueError) as caught:
        load_clip(name, pretrained)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_listed_tower_is_read_as_open_clip_reads_it(name):
    torch.manual_seed(0)
    config = shrunk(name)
    model = open_clip.CLIP(**config).eval()
    x = image(config)
    with torch.no_grad():
        expected = model.encode_image(x, normalize=True)
    for method, options in METHODS.items():
        features = DenseCLIP(model, method, **options)(x)
        assert features.grid == (4, 4)
        assert features.patches.shape == (1, 16, 24) and features.attention.shape == (1, 16, 16)
        assert features.patches.isfinite().all() and features.attention.isfinite().all()
        torch.testing.assert_close(features.cls, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_tower_of_random_weights(name):
    """The image tower in full, in bfloat16: the largest has 4 billion parameters."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    config["text_cfg"] |= TEXT
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = open_clip.CLIP(**config)
    finally:
        torch.set_default_dtype(torch.float32)
    features = DenseCLIP(model)(image(config))
    side = config["vision_cfg"]["image_size"] // config["vision_cfg"]["patch_size"]
    assert features.grid == (side, side)
    assert features.patches.shape == (1, side**2, config["embed_dim"])
    assert features.patches.isfinite().all() and features.attention.isfinite().all()
    with torch.no_grad():
        expected = model.encode_image(image(config).bfloat16(), normalize=True).float()
    assert (features.cls * expected).sum() > 0.99


def test_the_table_lists_every_tag():
    for name, patterns in documented().items():
        tags = open_clip.list_pretrained_tags_by_model(name)
        matched = [any(fnmatch(tag, pattern) for pattern in patterns) for tag in tags]
        assert all(matched), f"{name}: {[t for t, m in zip(tags, matched, strict=True) if not m]}"
        idle = [p for p in patterns if not any(fnmatch(tag, p) for tag in tags)]
        assert not idle, f"{name}: open_clip has no tags {idle}"


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_are_refused_before_any_download(name, no_download):
    line = refusal(name, "openai")
    assert line.startswith(f"MODEL.CLIP.NAME {name} ")
    reasons = ("pools its patches", "towers that are not CLIP's own", "is a ResNet")
    assert sum(reason in line for reason in reasons) == 1 and "ViT-B-16" in line


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ViT-B-16-SigLIP", "pools its patches by attention"),
        ("ViT-SO400M-14-SigLIP2", "pools its patches by attention"),
        ("PE-Core-B-16", "pools its patches by attention"),
        ("coca_ViT-B-32", "pools its patches by attention"),
        ("ViT-H-14-CLIPA", "pools its patches by their mean"),
        ("EVA02-B-16", "not CLIP's own (custom_text, timm_model_name)"),
        ("xlm-roberta-base-ViT-B-32", "not CLIP's own (hf_model_name)"),
        ("RN50", "is a ResNet"),
    ],
)
def test_the_reason_is_named(name, reason, no_download):
    assert name in OTHERS and reason in refusal(name, "openai")


@pytest.mark.parametrize(("name", "tag"), TAGGED)
def test_a_tag_runs_with_the_activation_it_was_trained_with(name, tag, tmp_path, monkeypatch):
    _, weights = write(shrunk(name), tmp_path)
    config = shrunk(name)
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: config)
    monkeypatch.setattr(loading, "_fetched", lambda *_: Path(weights))
    monkeypatch.setattr(loading, "_tokenizer", lambda *_: None)
    model, _ = load_clip(name, tag)
    quick = open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    activations = {type(m) for m in model.modules() if isinstance(m, QuickGELU | nn.GELU)}
    assert activations == {QuickGELU if quick else nn.GELU}


@pytest.mark.parametrize(("name", "tag"), TAGGED)
def test_the_normalisation_is_that_of_the_tag(name, tag):
    if (name, tag) != ("ViT-L-14", "laion2b_s32b_b82k"):
        check_normalisation(name, tag, CLIP_MEAN, CLIP_STD)
        with pytest.raises(ValueError, match="MODEL.PIXEL_STD is"):
            check_normalisation(name, tag, CLIP_MEAN, [127.5] * 3)


def test_another_normalisation_is_named_before_any_download(no_download):
    name, tag = "ViT-L-14", "laion2b_s32b_b82k"
    cfg = load_config(
        str(ROOT / "configs/scenes/clearclip.yaml"),
        ["MODEL.CLIP.NAME", name, "MODEL.CLIP.PRETRAINED", tag],
    )
    with pytest.raises(ValueError) as caught:
        FreeCP(cfg)
    assert str(caught.value) == (
        "MODEL.PIXEL_MEAN is [122.771, 116.746, 104.094], but laion2b_s32b_b82k of ViT-L-14 was "
        "trained with [127.5, 127.5, 127.5]; set it to that"
    )
    check_normalisation(name, tag, [127.5] * 3, [127.5] * 3)
    with pytest.raises(ValueError, match=r"MODEL.PIXEL_STD is \[127.5\], but .* set it to that"):
        check_normalisation(name, tag, [127.5] * 3, [127.5])
    check_normalisation(name, "/of/my/own.safetensors", [0, 0, 0], [1, 1, 1])


def test_words_by_a_tokenizer_of_hugging_face(tmp_path, word_tokenizer):
    """MetaCLIP 2's: the feature is read at the end of a sentence; a long one is refused."""
    config = shrunk("ViT-H-14-worldwide")
    config["text_cfg"]["hf_tokenizer_name"] = word_tokenizer
    model, tokenizer = load_clip(*write(config, tmp_path))
    sentences = ["a photo of a dog", "river"]
    features = encode_sentences(model, tokenizer, [[sentence] for sentence in sentences])
    ids = torch.tensor([[0, 4, 5, 6, 4, 7, 2, 1], [0, 8, 2, 1, 1, 1, 1, 1]])
    assert tokenizer(sentences).equal(ids)
    torch.testing.assert_close(features, model.encode_text(ids, normalize=True), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="has 9 tokens and CLIP's context holds 8"):
        encode_sentences(model, tokenizer, [["a photo of a dog a dog"]])


def test_a_tokenizer_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    config = shrunk("ViT-H-14-worldwide")
    config["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "nowhere")
    files = write(config, tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        load_clip(*files)
    assert f"tokenizer {tmp_path / 'nowhere'} cannot be downloaded" in str(caught.value)
    assert "\n" not in str(caught.value)
    config["text_cfg"]["hf_tokenizer_name"] = "facebook/nowhere"
    monkeypatch.setattr(loading, "why_unreachable", lambda url: f"nothing at {url}")
    with pytest.raises(FileNotFoundError) as caught:
        load_clip(*write(config, tmp_path))
    assert "tokenizer facebook/nowhere cannot be downloaded" in str(caught.value)
    url = "https://huggingface.co/facebook/nowhere/resolve/main/config.json"
    assert f"(nothing at {url})" in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'freecp_d2[transformers]'" in refusal(*files)
