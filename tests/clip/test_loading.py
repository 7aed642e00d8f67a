"""load_clip: names, config files, formats of weights, precisions, and what it refuses."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import LayerNormFp32, QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn

from freecp_d2.clip import loading
from freecp_d2.clip.loading import load_clip

CONFIG: dict = {
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": 32,
        "layers": 2,
        "width": 16,
        "head_width": 8,
        "patch_size": 16,
    },
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}

EXTRAS = {"input_resolution": 32, "context_length": 40, "vocab_size": 49408}
"""What OpenAI's state dicts have beside the weights."""
IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(40)[None]


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def seeded(**options) -> open_clip.CLIP:
    torch.manual_seed(0)
    return open_clip.CLIP(**CONFIG, **options)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {key: value.clone() for key, value in seeded().state_dict().items()}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    return str(path)


@pytest.fixture
def weights(tmp_path: Path, state: dict[str, Tensor]) -> str:
    path = tmp_path / "tiny.safetensors"
    save_file(state, path)
    return str(path)


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    """open_clip's names have the tiny config, and its tags the tiny weights."""
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: json.loads(json.dumps(CONFIG)))
    monkeypatch.setattr(loading, "_fetched", lambda *_: Path(weights))


def activations(model: nn.Module) -> set[type]:
    return {type(m) for m in model.modules() if isinstance(m, QuickGELU | nn.GELU)}


def refusal(kind: type[Exception], call: Callable[[], object]) -> str:
    """The line that `call` fails with."""
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def legacy(state: dict, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("file", "save"),
    [
        ("w.safetensors", save_file),
        ("w.pt", torch.save),
        ("w.pth", legacy),
        ("w.bin", lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path)),
        (
            "w.pt",
            lambda state, path: torch.save({f"module.{k}": v for k, v in state.items()}, path),
        ),
        (
            "w.safetensors",
            lambda state, path: save_file({**state, "context_length": torch.tensor(40)}, path),
        ),
    ],
    ids=["safetensors", "pt", "legacy", "wrapped", "module", "openai"],
)
def test_every_format_gives_the_weights(file, save, tmp_path, state, config):
    save(state, tmp_path / file)
    model, tokenizer = load_clip(config, str(tmp_path / file))
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert tokenizer(["a cat"]).shape == (1, 40)
    assert type(tokenizer) is SimpleTokenizer


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("auto", torch.float32),
        ("fp32", torch.float32),
        ("fp16", torch.float16),
        ("bf16", torch.bfloat16),
    ],
)
def test_precisions_are_those_of_open_clip(precision, dtype, stored, tmp_path, state, config):
    path = tmp_path / "w.safetensors"
    stored_state = {key: value.to(stored) for key, value in state.items()}
    save_file(stored_state, path)
    model, _ = load_clip(config, str(path), precision)
    expected = seeded(cast_dtype=dtype)
    expected.load_state_dict(stored_state)
    if dtype != torch.float32:
        open_clip.convert_weights_to_lp(expected, dtype)
    for key, value in expected.state_dict().items():
        assert model.state_dict()[key].dtype == value.dtype
        assert model.state_dict()[key].equal(value)
    assert model.visual.conv1.weight.dtype == model.text_projection.dtype == dtype
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert all(norm.weight.dtype == torch.float32 for norm in norms)
    if dtype != torch.float32:
        assert all(isinstance(norm, LayerNormFp32) for norm in norms)
    tokens = torch.ones(1, 40, dtype=torch.long)
    assert model.encode_text(tokens).dtype == dtype
    assert model.encode_image(torch.ones(1, 3, 32, 32, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize(
    ("name", "tag", "quick"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B-16", "openai", True),
        ("ViT-L-14", "OpenAI", True),
        ("ViT-B-16", "metaclip_400m", True),
        ("ViT-B-16", "dfn2b", True),
        ("ViT-B-16", "laion2b_s34b_b88k", False),
        ("ViT-B-16", "datacomp_xl_s13b_b90k", False),
        ("ViT-B-32", "laion400m_e32", True),
        ("ViT-L-14", "dfn2b_s39b", False),
        ("ViT-H-14", "dfn5b", True),
        ("ViT-H-14", "metaclip_altogether", False),
        ("ViT-H-14-worldwide", "metaclip2_worldwide", True),
    ],
)
def test_tags_run_with_the_activation_they_were_trained_with(tagged, name, tag, quick, state):
    model, _ = load_clip(name, tag)
    assert activations(model) == {QuickGELU if quick else nn.GELU}
    expected = seeded(quick_gelu=quick).eval().requires_grad_(False)
    expected.load_state_dict(state)
    image, tokens = torch.rand(1, 3, 32, 32), torch.arange(40)[None]
    assert model.encode_image(image).equal(expected.encode_image(image))
    assert model.encode_text(tokens).equal(expected.encode_text(tokens))


@pytest.fixture(scope="module")
def openai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TorchScript archive in the layout of OpenAI's: traced, its matrices in half precision."""
    clip = seeded(quick_gelu=True).eval()
    mask = clip.attn_mask
    del clip.attn_mask, clip.context_length, clip.vocab_size  # a plain attribute there
    clip.attn_mask = mask
    for key, value in EXTRAS.items():
        clip.register_buffer(key, torch.tensor(value))
    inputs = {"encode_image": IMAGE, "encode_text": TOKENS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace_module(clip, inputs, check_trace=False)
    for parameter in traced.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    path = tmp_path_factory.mktemp("openai") / "ViT-B-16.pt"
    traced.save(str(path))
    return path


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """What was logged of the activation."""
    return [(r.levelname, r.getMessage()) for r in caplog.records if "GELU" in r.getMessage()]


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-16-quickgelu"])
def test_openais_archive_runs_with_quick_gelu_which_is_said(
    name, tagged, openai, monkeypatch, caplog
):
    config = CONFIG | ({"quick_gelu": True} if name.endswith("quickgelu") else {})
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: dict(config))
    caplog.set_level("INFO")
    model, _ = load_clip(name, str(openai))
    assert activations(model) == {QuickGELU}
    expected = torch.jit.load(str(openai)).state_dict()
    assert set(expected) == {*model.state_dict(), *EXTRAS}
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32 and value.equal(expected[key].float())
    ((level, line),) = said(caplog)
    assert level == "INFO" and f"{openai} holds OpenAI's weights: QuickGELU" in line


def test_openais_archive_sees_what_torch_sees(tagged, openai):
    model, _ = load_clip("ViT-B-16", str(openai))
    traced = torch.jit.load(str(openai)).float()
    torch.testing.assert_close(model.encode_image(IMAGE), traced.encode_image(IMAGE))
    torch.testing.assert_close(model.encode_text(TOKENS), traced.encode_text(TOKENS))


@pytest.mark.parametrize("keys", [tuple(EXTRAS), *([key] for key in EXTRAS)])
@pytest.mark.parametrize(
    ("file", "save"),
    [
        ("w.safetensors", save_file),
        ("w.pt", torch.save),
        (
            "w.pth",
            lambda state, path: torch.save(
                {"state_dict": {f"module.{k}": v for k, v in state.items()}}, path
            ),
        ),
    ],
)
def test_openais_weights_are_known_by_their_keys_in_any_format(
    file, save, keys, tagged, tmp_path, state, caplog
):
    caplog.set_level("INFO")
    save({**state, **{key: torch.tensor(EXTRAS[key]) for key in keys}}, tmp_path / file)
    model, _ = load_clip("ViT-B-16", str(tmp_path / file))
    assert activations(model) == {QuickGELU}
    ((level, line),) = said(caplog)
    assert level == "INFO" and "holds OpenAI's weights" in line


@pytest.mark.parametrize("quick", [False, True])
def test_a_config_decides_over_openais_weights_which_is_said(quick, tmp_path, openai, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**CONFIG, "quick_gelu": quick}))
    model, _ = load_clip(str(path), str(openai))
    assert activations(model) == {QuickGELU if quick else nn.GELU}
    ((level, line),) = said(caplog)
    assert level == ("INFO" if quick else "WARNING")
    assert f"{openai} holds OpenAI's weights" in line
    assert quick or f"runs with GELU, as quick_gelu in MODEL.CLIP.NAME {path} says" in line


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ViT-B-16", "give ViT-B-16-quickgelu"),
        ("ViT-S-16", "set quick_gelu there"),
        ("{config}", "set quick_gelu there"),
    ],
)
def test_an_activation_that_nobody_chose_is_a_warning(
    name, advice, tagged, weights, config, caplog
):
    name = name.format(config=config)
    model, _ = load_clip(name, weights)
    assert activations(model) == {nn.GELU}
    ((level, line),) = said(caplog)
    assert level == "WARNING" and weights in line and f"MODEL.CLIP.NAME {name}:" in line
    assert line.endswith(advice)


def test_an_activation_by_name_is_said(tagged, weights, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: {**CONFIG, "quick_gelu": True})
    model, _ = load_clip("ViT-B-16-quickgelu", weights)
    assert activations(model) == {QuickGELU}
    line = f"{weights} runs with QuickGELU, as MODEL.CLIP.NAME ViT-B-16-quickgelu says"
    assert said(caplog) == [("INFO", f"MODEL.CLIP.PRETRAINED: {line}")]


@pytest.mark.parametrize("quick", [False, True])
def test_of_a_config_that_says_its_activation_nothing_is_said(quick, tmp_path, weights, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "own.json"
    path.write_text(json.dumps({**CONFIG, "quick_gelu": quick}))
    model, _ = load_clip(str(path), weights)
    assert activations(model) == {QuickGELU if quick else nn.GELU}
    assert said(caplog) == []


def test_of_a_tag_nothing_is_said(tagged, caplog):
    caplog.set_level("INFO")
    load_clip("ViT-B-16", "openai")
    assert said(caplog) == []


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_config_files_quick_gelu_counts(wrapped, tmp_path, weights):
    content = {**CONFIG, "quick_gelu": True}
    path = tmp_path / "quick.json"
    path.write_text(json.dumps({"model_cfg": content} if wrapped else content))
    registered = open_clip.list_models()
    model, _ = load_clip(str(path), weights)
    assert not any(isinstance(module, nn.GELU) for module in model.modules())
    assert open_clip.list_models() == registered


def test_an_unknown_name_is_answered_with_close_ones():
    line = refusal(ValueError, lambda: load_clip("ViT-B/16", "openai"))
    assert "MODEL.CLIP.NAME 'ViT-B/16'" in line and "ViT-B-16" in line


def test_an_unknown_tag_is_answered_with_the_tags(config):
    line = refusal(ValueError, lambda: load_clip("ViT-L-14-336", "laion"))
    assert "MODEL.CLIP.PRETRAINED 'laion'" in line and "(it has openai)" in line
    line = refusal(ValueError, lambda: load_clip(config, "openai"))
    assert "MODEL.CLIP.PRETRAINED 'openai'" in line and "it has none" in line


def test_no_weights_no_model(config, tmp_path, monkeypatch):
    assert "MODEL.CLIP.PRETRAINED is empty" in refusal(ValueError, lambda: load_clip(config, ""))
    missing = str(tmp_path / "missing.pt")
    assert missing in refusal(FileNotFoundError, lambda: load_clip(config, missing))


def test_without_network_one_sentence_has_all_that_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(open_clip, "download_pretrained", None)
    monkeypatch.setattr(loading, "why_unreachable", lambda url: f"nothing at {url}")
    url = "https://huggingface.co/{}/resolve/main/open_clip_model.safetensors"
    for name, tag, repository, option in (
        ("ViT-B-16", "openai", "timm/vit_base_patch16_clip_224.openai", "ViT-B-16-quickgelu"),
        ("ViT-L-14-quickgelu", "dfn2b", "apple/DFN2B-CLIP-ViT-L-14", "ViT-L-14-quickgelu"),
        ("ViT-B-16", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", "ViT-B-16"),
    ):
        line = refusal(FileNotFoundError, lambda name=name, tag=tag: load_clip(name, tag))
        target = tmp_path / f"{name}-{tag}.safetensors"
        assert f"{tag} of {name} is not on this machine" in line
        assert f"(nothing at {url.format(repository)})" in line and "HF_ENDPOINT" in line
        assert f"fetch {url.format(repository)} elsewhere, put it at {target}," in line
        assert f"--opts MODEL.CLIP.NAME {option} MODEL.CLIP.PRETRAINED {target} (" in line
        assert option in open_clip.list_models()


def test_a_download_that_breaks_off_is_said_too(monkeypatch):
    def broken(tag):
        raise FileNotFoundError("Failed to download.\nNo network.")

    monkeypatch.setattr(loading, "why_unreachable", lambda url: None)
    monkeypatch.setattr(open_clip, "download_pretrained", broken)
    line = refusal(FileNotFoundError, lambda: load_clip("ViT-B-16", "openai"))
    assert "cannot be downloaded (Failed to download.); go online once" in line


def test_weights_that_are_there_need_no_network(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: json.loads(json.dumps(CONFIG)))
    monkeypatch.setattr(open_clip, "download_pretrained", None)
    monkeypatch.setattr(loading, "why_unreachable", None)
    asked = []
    monkeypatch.setattr(loading, "cached_file", lambda *args: asked.append(args) or Path(weights))
    model, _ = load_clip("ViT-B-16", "openai")
    assert model.state_dict()["visual.proj"].equal(seeded().state_dict()["visual.proj"])
    files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    assert asked == [("timm/vit_base_patch16_clip_224.openai", files)]


def test_every_tag_of_a_model_that_is_read_is_a_repository_of_the_hub():
    """`_fetched` builds upon that; open_clip has other addresses for towers that are refused."""
    for name, tag in open_clip.list_pretrained():
        repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"]
        assert repository.endswith("/") or name.startswith("ViTamin"), (name, tag)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\xfd", "is not JSON"),
        (b"[1]", "embed_dim, vision_cfg and text_cfg"),
        (b'{"embed_dim": 8, "vision_cfg": {}}', "embed_dim, vision_cfg and text_cfg"),
        (json.dumps({**CONFIG, "depth": 3}).encode(), "depth"),
        (json.dumps({**CONFIG, "vision_cfg": {"breadth": 3}}).encode(), "breadth"),
        (json.dumps({**CONFIG, "vision_cfg": {"head_width": 0}}).encode(), "by zero"),
        (json.dumps({**CONFIG, "vision_cfg": {"layers": [1, 1, 1, 1]}}).encode(), "is a ResNet"),
        (json.dumps({**CONFIG, "vision_cfg": {"pool_type": "avg"}}).encode(), "by their mean"),
        (json.dumps({**CONFIG, "vision_cfg": {"attentional_pool": True}}).encode(), "by attention"),
        (json.dumps({**CONFIG, "custom_text": True}).encode(), "custom_text"),
        (
            json.dumps({**CONFIG, "vision_cfg": {"timm_model_name": "vit"}}).encode(),
            "timm_model_name",
        ),
    ],
)
def test_a_bad_config_file_is_named(content, said, tmp_path, weights):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    line = refusal(ValueError, lambda: load_clip(str(path), weights))
    assert "MODEL.CLIP.NAME" in line and str(path) in line and said in line


def test_a_missing_config_file_is_named(tmp_path, weights):
    path = str(tmp_path / "missing.json")
    line = refusal(FileNotFoundError, lambda: load_clip(path, weights))
    assert "MODEL.CLIP.NAME" in line and path in line


@pytest.mark.parametrize(
    "save",
    [
        lambda content, path: torch.save(content, path),
        legacy,
        lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2)),
    ],
    ids=["zip", "legacy", "pickle"],
)
def test_code_in_a_pickle_is_refused_and_not_run(save, tmp_path, state, config):
    path, touched = tmp_path / "code.pt", tmp_path / "touched"
    save({**state, "extra": Touch(touched)}, path)
    line = refusal(ValueError, lambda: load_clip(config, str(path)))
    assert not touched.exists()
    assert "MODEL.CLIP.PRETRAINED" in line and str(path) in line and ".safetensors" in line


@pytest.mark.parametrize("damage", ["cut pickle", "code", "flipped bit", "cut file"])
def test_damaged_torchscript_is_named_and_not_run(damage, tmp_path, openai, config):
    path, touched = tmp_path / "jit.pt", tmp_path / "touched"
    changes = {
        "cut pickle": lambda content: content[:-200],
        "code": lambda content: pickle.dumps(Touch(touched), protocol=2),
    }
    with zipfile.ZipFile(openai) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            change = changes.get(damage) if name.endswith("/data.pkl") else None
            content = source.read(name)
            target.writestr(name, change(content) if change else content)
    whole = bytearray(path.read_bytes())
    if damage == "flipped bit":
        whole[1000] ^= 1  # in the first tensor
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut file" else whole)
    line = refusal(ValueError, lambda: load_clip(config, str(path)))
    assert "MODEL.CLIP.PRETRAINED" in line and f"{path} is damaged" in line
    assert not touched.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "text"])
def test_damaged_weights_are_named(suffix, damage, tmp_path, state, config):
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    whole = path.read_bytes()
    noise = torch.randint(256, (5000,), generator=torch.manual_seed(1)).tolist()
    path.write_bytes(
        {"empty": b"", "noise": bytes(noise), "cut": whole[: len(whole) // 2], "text": b"<html>"}[
            damage
        ]
    )
    line = refusal(ValueError, lambda: load_clip(config, str(path)))
    assert "MODEL.CLIP.PRETRAINED" in line and str(path) in line and "damaged" in line


@pytest.mark.parametrize("content", [[1.0], {"model": {"a": torch.ones(1)}}, torch.ones(2)])
def test_a_file_of_something_else_is_no_state_dict(content, tmp_path, config):
    path = tmp_path / "w.pt"
    torch.save(content, path)
    line = refusal(ValueError, lambda: load_clip(config, str(path)))
    assert f"{path} is no state dict" in line


def test_weights_that_do_not_fit_are_counted(tmp_path, state, config):
    path = tmp_path / "w.safetensors"
    other = {key: value for key, value in state.items() if not key.startswith("visual.ln_post")}
    other["head.weight"] = torch.ones(1)
    other["visual.proj"] = torch.ones(3, 4)
    save_file(other, path)
    line = refusal(ValueError, lambda: load_clip(config, str(path)))
    assert str(path) in line and config in line
    assert "2 missing (first visual.ln_post.weight)" in line
    assert "1 unexpected (first head.weight)" in line
    assert "1 of another shape (first visual.proj: (3, 4) in place of (16, 8))" in line


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
@pytest.mark.parametrize("keys", [("visual.proj",), ("logit_scale", "positional_embedding"), None])
def test_weights_without_fractions_are_refused(keys, dtype, suffix, tmp_path, state, config):
    keys = keys or tuple(state)
    path = tmp_path / f"w{suffix}"
    other = {key: value.to(dtype) if key in keys else value for key, value in state.items()}
    (save_file if suffix == ".safetensors" else torch.save)(other, path)
    line = refusal(ValueError, lambda: load_clip(config, str(path)))
    first = next(key for key in seeded().state_dict() if key in keys)
    assert str(path) in line
    assert f"{len(keys)} of a type without fractions (first {first}: {dtype})" in line


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_type_gives_its_values(stored, tmp_path, state, config):
    path = tmp_path / "w.safetensors"
    stored_state = {key: value.to(stored) for key, value in state.items()}
    save_file(stored_state, path)
    model, _ = load_clip(config, str(path), "fp32")
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32 and value.equal(stored_state[key].float())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_in_weights_are_refused(value, tmp_path, state, config):
    path = tmp_path / "w.safetensors"
    broken = {key: weight.clone() for key, weight in state.items()}
    broken["visual.proj"][3, 4] = broken["visual.ln_post.bias"][0] = value
    save_file(broken, path)
    line = refusal(ValueError, lambda: load_clip(config, str(path)))
    assert f"{path} has NaN or infinity as torch.float32 in 2 tensors" in line
    assert "(first visual.proj)" in line


def test_weights_too_large_for_a_precision_are_refused(tmp_path, state, config):
    path = tmp_path / "w.safetensors"
    large = {key: weight.clone() for key, weight in state.items()}
    large["visual.proj"][3, 4] = 1e5
    save_file(large, path)
    for precision in ("fp32", "bf16"):
        load_clip(config, str(path), precision)
    line = refusal(ValueError, lambda: load_clip(config, str(path), "fp16"))
    assert f"{path} has NaN or infinity as torch.float16 in 1 tensors (first visual.proj)" in line


def test_auto_is_fp16_on_cuda_and_fp32_elsewhere(config, weights, monkeypatch):
    moved = []
    monkeypatch.setattr(nn.Module, "to", lambda self, device: moved.append(device) or self)
    for device, dtype in (
        *(("cuda", torch.float16), ("cuda:1", torch.float16)),
        *(("cpu", torch.float32), ("meta", torch.float32), ("xpu", torch.float32)),
    ):
        model, _ = load_clip(config, weights, "auto", device)
        assert model.visual.conv1.weight.dtype == dtype
        assert moved.pop() == torch.device(device) and not moved
