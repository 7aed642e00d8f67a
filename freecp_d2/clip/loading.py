"""A CLIP by name or config file, with weights that are never unpickled beyond tensors."""

import difflib
import json
import logging
import pickle
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import open_clip
import torch
from huggingface_hub import hf_hub_url
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import local_path
from .hub import cached_file, why_unreachable
from .matmul import multiplies_in_bf16
from .torchscript import is_torchscript, read_state_dict

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""Name -> what the matrix weights are converted to."""
BF16_MATMUL = "bf16_matmul"
"""The precision of float32 weights whose products are in bfloat16, on a CPU."""
WEIGHT_SUFFIXES: tuple[str, ...] = (".safetensors", ".pt", ".pth", ".bin")
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Keys of OpenAI's state dicts and of no others; open_clip drops them, too."""
_FOREIGN_TOWERS = ("custom_text", "multimodal_cfg", "hf_model_name", "timm_model_name")
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "config.json")
log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """Any of open_clip's tokenizers."""

    def __call__(self, texts: list[str], context_length: int | None = None) -> Tensor:
        """Token ids (len(texts), context_length) int64, cut or padded to that length."""


def load_clip(
    name: str,
    pretrained: str,
    precision: str = "auto",
    device: str | torch.device = "cpu",
) -> tuple[open_clip.CLIP, Tokenizer]:
    """A frozen CLIP in eval mode and its tokenizer.

    Names whose image tower DenseCLIP cannot read are refused before anything is downloaded;
    docs/clip_models.md lists those that it reads.

    A tag that was trained with QuickGELU (openai, metaclip, dfn, ...) is run with it, whether or
    not the model's name says so, and so are OpenAI's weights in a file, which their keys give away,
    unless a config says `quick_gelu: false`. Other files say nothing about it: there the name
    (ViT-B-16-quickgelu) or the config's `quick_gelu` decides. Which activation a file runs with is
    logged: a warning where nobody chose it, or where OpenAI's weights run without QuickGELU.

    Args:
        name: an open_clip model name, or the path of an open_clip model config (.json).
        pretrained: an open_clip tag of that name, or the path of a state dict (.safetensors, .pt,
            .pth or .bin), bare or under the key `state_dict`, with or without `module.` in front
            of its keys, in any float type. Integers, as of quantised weights, are refused. A .pt
            may be a TorchScript archive, as OpenAI's are: its tensors are read, none of its code
            is run.
        precision: as :func:`precision_on` takes it. As open_clip means them: matrix weights are
            converted, LayerNorms and embeddings stay float32.
        device: where the model goes.

    Both paths may begin with :data:`freecp_d2.files.PACKAGED`.

    Raises:
        FileNotFoundError: a config, a tokenizer or weights that do not exist, or cannot be
            downloaded; without network it comes within :data:`freecp_d2.clip.hub.PATIENCE`.
        ValueError: an unknown name, tag or precision; a config that is no CLIP's, of other towers
            than CLIP's own, or of an image tower that is a ResNet or reads no CLS token; a
            tokenizer that needs a package which is not there; weights that are damaged, hold more
            than tensors, do not fit the model, or are NaN or infinite, also only in that precision.
    """
    device = torch.device(device)
    dtype = PRECISIONS.get(precision_on(precision, device), torch.float32)
    config = _config_of_file(local_path(name)) if name.endswith(".json") else _config_of_name(name)
    _require_clip_vit(name, config)
    tokenizer = _tokenizer(name, config["text_cfg"])
    path, tag = _weights(name, pretrained)
    state = _read_state_dict(path)
    openai = bool([state.pop(key) for key in _OPENAI_EXTRAS if key in state])
    if tag:
        config["quick_gelu"] = config.get("quick_gelu") or tag.get("quick_gelu", False)
    else:
        config["quick_gelu"] = _activation_of_file(name, path, config.get("quick_gelu"), openai)
    model = _build(name, config, dtype)
    _require_fit(name, path, model.state_dict(), state)
    model.load_state_dict(state)
    if dtype != torch.float32:
        open_clip.convert_weights_to_lp(model, dtype)
    _require_finite(path, dtype, model.state_dict())
    return model.to(device).eval().requires_grad_(False), tokenizer


def precision_on(precision: str, device: str | torch.device) -> str:
    """What MODEL.CLIP.PRECISION means on a device.

    Args:
        precision: fp32, fp16, bf16; bf16_matmul, float32 weights whose products are in bfloat16
            with float32 sums, on CPUs where oneDNN does that (those with AMX); or auto, which is
            fp16 on CUDA, bf16_matmul on such CPUs, and fp32 elsewhere.

    Returns:
        One of these but auto.

    Raises:
        ValueError: none of these, or bf16_matmul elsewhere.
    """
    device_type = torch.device(device).type
    rounds = device_type == "cpu" and multiplies_in_bf16()
    if precision == "auto":
        return "fp16" if device_type == "cuda" else BF16_MATMUL if rounds else "fp32"
    if precision not in (*PRECISIONS, BF16_MATMUL):
        known = ", ".join(("auto", *PRECISIONS, BF16_MATMUL))
        raise ValueError(f"MODEL.CLIP.PRECISION is {precision!r}; choose one of {known}")
    if precision == BF16_MATMUL and not rounds:
        lacks = "multiplies float32 as it is (that takes AMX)"
        where = lacks if device_type == "cpu" else f"is {device_type}"
        raise ValueError(
            f"MODEL.CLIP.PRECISION is {BF16_MATMUL}, and the device {where}; choose fp32 or auto"
        )
    return precision


def _config_of_name(name: str) -> dict[str, Any]:
    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known) or ["ViT-B-16", "ViT-B-32", "ViT-L-14"]
        raise ValueError(
            f"MODEL.CLIP.NAME {name!r} is no open_clip model; did you mean {', '.join(close)}? "
            "Or give the path of a model config that ends in .json"
        )
    return open_clip.get_model_config(name)


def _config_of_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"MODEL.CLIP.NAME: there is no file {path}; check the path")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"MODEL.CLIP.NAME: {path} is not JSON ({error}); give an open_clip model config"
        ) from None
    if isinstance(config, dict):
        config = config.get("model_cfg", config)  # as in the open_clip_config.json of model hubs
    if not (
        isinstance(config, dict)
        and isinstance(config.get("embed_dim"), int)
        and isinstance(config.get("vision_cfg"), dict)
        and isinstance(config.get("text_cfg"), dict)
    ):
        raise ValueError(
            f"MODEL.CLIP.NAME: {path} is no open_clip model config; it must have embed_dim, "
            "vision_cfg and text_cfg"
        )
    return config


def check_normalisation(
    name: str, pretrained: str, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> None:
    """Images are normalised as those that an open_clip tag was trained on.

    A file of weights says nothing about it, and passes.

    Args:
        name, pretrained: as for :func:`load_clip`.
        pixel_mean, pixel_std: of RGB, 0-255.

    Raises:
        ValueError: they are not.
    """
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    for key, given in (("mean", pixel_mean), ("std", pixel_std)):
        trained = [round(255 * value, 3) for value in tag.get(key, ())]
        if trained and (
            len(given) != len(trained)
            or max(abs(a - b) for a, b in zip(trained, given, strict=True)) > 0.5
        ):
            raise ValueError(
                f"MODEL.PIXEL_{key.upper()} is {list(given)}, but {pretrained} of {name} was "
                f"trained with {trained}; set it to that"
            )


def _require_clip_vit(name: str, config: dict[str, Any]) -> None:
    vision, text = config["vision_cfg"], config["text_cfg"]
    by_attention = vision.get("attentional_pool") or vision.get("timm_pool") == "map"
    if by_attention or vision.get("pool_type", "tok") != "tok":
        how = "by attention" if by_attention else "by their mean"
        raise ValueError(
            f"MODEL.CLIP.NAME {name} pools its patches {how}, in place of the CLS token by which "
            "FreeCP tells look-alikes apart; choose a ViT with one, such as ViT-B-16"
        )
    foreign = [key for key in _FOREIGN_TOWERS if any(c.get(key) for c in (config, vision, text))]
    if foreign:
        raise ValueError(
            f"MODEL.CLIP.NAME {name} has towers that are not CLIP's own ({', '.join(foreign)}); "
            "choose a ViT such as ViT-B-16"
        )
    if isinstance(vision.get("layers"), list):
        raise ValueError(
            f"MODEL.CLIP.NAME {name} is a ResNet, which has no patches; choose a ViT such as "
            "ViT-B-16"
        )


def _weights(name: str, pretrained: str) -> tuple[Path, dict[str, Any]]:
    """The file of the weights, and what open_clip knows about their tag; nothing of a file."""
    if not pretrained:
        raise ValueError(
            "MODEL.CLIP.PRETRAINED is empty; give an open_clip tag or the path of a state dict"
        )
    path = local_path(pretrained)
    if path.suffix in WEIGHT_SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(
                f"MODEL.CLIP.PRETRAINED: there is no file {path}; check the path"
            )
        return path, {}
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED {pretrained!r} is no tag of {name} "
            f"(it has {', '.join(tags) or 'none'}); choose one, or give the path of a state dict "
            f"that ends in {', '.join(WEIGHT_SUFFIXES)}"
        )
    return _fetched(name, pretrained, tag), tag


def _fetched(name: str, pretrained: str, tag: dict[str, Any]) -> Path:
    """The weights of a tag on this machine, downloaded where they are not there yet."""
    repository = tag["hf_hub"].rstrip("/")
    path = cached_file(repository, (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))
    if path:
        return path
    url = hf_hub_url(repository, HF_SAFE_WEIGHTS_NAME)
    why = why_unreachable(url)
    if why is None:
        try:
            return Path(open_clip.download_pretrained(tag))
        except (OSError, RuntimeError) as error:
            why = _first_line(error)
    target = Path.cwd() / f"{name}-{pretrained}.safetensors"
    quick = name if name.endswith("-quickgelu") else f"{name}-quickgelu"
    options = [
        *("MODEL.CLIP.NAME", quick if tag.get("quick_gelu") else name),
        *("MODEL.CLIP.PRETRAINED", str(target)),
    ]
    raise FileNotFoundError(
        f"MODEL.CLIP.PRETRAINED: {pretrained} of {name} is not on this machine and cannot be "
        f"downloaded ({why}); go online once, set HF_ENDPOINT to a mirror, or fetch {url} "
        f"elsewhere, put it at {target}, and end the command with --opts {shlex.join(options)} "
        "(train_net.py and freecp evaluate: without --opts)"
    )


def _activation_of_file(name: str, path: Path, quick_gelu: bool | None, openai: bool) -> bool:
    """Whether a file of weights runs with QuickGELU; what the name or config says may be None."""
    file = f"MODEL.CLIP.PRETRAINED: {path}"
    if openai and quick_gelu is False:
        log.warning(
            "%s holds OpenAI's weights, which were trained with QuickGELU, but runs with GELU, as "
            "quick_gelu in MODEL.CLIP.NAME %s says; remove it there",
            file,
            name,
        )
    elif openai:
        log.info("%s holds OpenAI's weights: QuickGELU, as they were trained", file)
    elif quick_gelu is None:
        quick = f"{name}-quickgelu"
        log.warning(
            "%s does not say with which activation it was trained, nor does MODEL.CLIP.NAME %s: it "
            "runs with GELU; if it was QuickGELU, as for OpenAI, DFN and MetaCLIP, %s",
            file,
            name,
            f"give {quick}" if quick in open_clip.list_models() else "set quick_gelu there",
        )
    elif not name.endswith(".json"):
        log.info("%s runs with QuickGELU, as MODEL.CLIP.NAME %s says", file, name)
    return openai if quick_gelu is None else quick_gelu


def _build(name: str, config: dict[str, Any], dtype: torch.dtype) -> open_clip.CLIP:
    # Not by open_clip.create_model: that takes a config file only through the process-wide
    # registry of names, where a file may hide a model that is called the same.
    try:
        return open_clip.CLIP(**config, cast_dtype=dtype)
    except (TypeError, ValueError, ArithmeticError, AssertionError, RuntimeError) as error:
        raise ValueError(
            f"MODEL.CLIP.NAME: no CLIP can be built from {name}; correct it ({_first_line(error)})"
        ) from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by open_clip's keys."""
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: {path} is no state dict; save model.state_dict() of an "
            "open_clip CLIP"
        )
    return {str(key).removeprefix("module."): value for key, value in state.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: {path} is damaged; fetch it again ({_first_line(error)})"
        ) from error


def _read_torch(path: Path) -> Any:
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if is_torchscript(archive):
                    return read_state_dict(archive)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: {path} is damaged, or a pickle with more than tensors in it, "
            "which is never run; save its state dict as .safetensors"
        ) from error
    except Exception as error:  # damaged bytes make the readers fail in any way
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: {path} is damaged; fetch it again ({_first_line(error)})"
        ) from error


def _require_fit(
    name: str, path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    reshaped = [key for key in wanted if key in found and wanted[key].shape != found[key].shape]
    integral = [key for key in wanted if key in found and not found[key].is_floating_point()]
    faults = []
    if missing:
        faults.append(f"{len(missing)} missing (first {missing[0]})")
    if unexpected:
        faults.append(f"{len(unexpected)} unexpected (first {unexpected[0]})")
    if reshaped:
        key = reshaped[0]
        faults.append(
            f"{len(reshaped)} of another shape (first {key}: {tuple(found[key].shape)} in place of "
            f"{tuple(wanted[key].shape)})"
        )
    if integral:
        key = integral[0]
        faults.append(
            f"{len(integral)} of a type without fractions (first {key}: {found[key].dtype})"
        )
    if faults:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: {path} does not fit MODEL.CLIP.NAME {name}; of its keys "
            f"{', '.join(faults)}; give the weights of that model"
        )


def _require_finite(path: Path, dtype: torch.dtype, state: Mapping[str, Tensor]) -> None:
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"MODEL.CLIP.PRETRAINED: {path} has NaN or infinity as {dtype} in {len(broken)} "
            f"tensors (first {broken[0]}); fetch it again, or use MODEL.CLIP.PRECISION fp32"
        )


def _tokenizer(name: str, text: dict[str, Any]) -> Tokenizer:
    options = text.get("tokenizer_kwargs") or {}
    length = text.get("context_length", open_clip.CLIPTextCfg.context_length)
    source = text.get("hf_tokenizer_name")
    if not source:
        return SimpleTokenizer(context_length=length, **options)
    try:
        import transformers  # noqa: F401  # before the network is asked

        if not Path(source).exists() and not cached_file(source, _TOKENIZER_FILES):
            if why := why_unreachable(hf_hub_url(source, "config.json")):
                raise OSError(why)
        return HFTokenizer(
            source, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **options
        )
    except ImportError:
        raise ValueError(
            f"MODEL.CLIP.NAME {name} has a tokenizer of Hugging Face ({source}), which needs one "
            "more package: pip install 'freecp_d2[transformers]'"
        ) from None
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"MODEL.CLIP.NAME {name}: its tokenizer {source} cannot be downloaded; go online once "
            f"({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
