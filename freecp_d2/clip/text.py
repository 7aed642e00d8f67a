"""Text features of names and descriptions (METHOD.md step 0), kept on disk between starts."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import trange

from ..data.vocabulary import describe, in_words
from ..files import write_whole
from .loading import Tokenizer

_TENSOR = "text_features"
_CHECKSUM = "sha256"
logger = logging.getLogger(__name__)


def template_sentences(names: Sequence[str]) -> list[list[str]]:
    """The 80 OpenAI ImageNet templates filled with each name: one list of sentences a name.

    Underscores in a name are spaces (:func:`freecp_d2.data.vocabulary.in_words`).
    """
    words = [in_words(name) for name in names]
    return [[fill(name) for fill in open_clip.OPENAI_IMAGENET_TEMPLATES] for name in words]


@torch.no_grad()
def encode_sentences(
    model: open_clip.CLIP,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    batch_size: int = 256,
) -> Tensor:
    """One feature an entry: the normalised mean of its sentences' normalised embeddings.

    A sentence that occurs several times is encoded once.

    Args:
        model: encodes on its own device and in its own precision; the rest is float32.
        sentences: Q entries of at least one sentence each.
        batch_size: how many sentences go through the text tower at once.

    Returns:
        (Q, D) float32 of unit length, on the CPU.

    Raises:
        ValueError: an entry without sentences, a sentence that does not fit into the model's
            context (nothing is encoded then), or one whose embedding is not finite.
    """
    for number, entry in enumerate(sentences, start=1):
        if not entry:
            raise ValueError(f"entry {number} of the texts has no sentence; give it at least one")
    unique = list(dict.fromkeys(chain.from_iterable(sentences)))
    if not unique:
        return torch.zeros(0, model.visual.output_dim)
    tokens = _tokenize(tokenizer, unique, model.context_length)
    batches = []
    for start in trange(0, len(unique), batch_size, desc="encoding text", unit="batch"):
        batch = tokens[start : start + batch_size].to(model.logit_scale.device)
        batches.append(F.normalize(model.encode_text(batch).float(), dim=-1).cpu())
    features = torch.cat(batches)
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"NaN or infinity in the text feature of {unique[broken[0]]!r}; check the weights "
            "(MODEL.CLIP.PRETRAINED), or use MODEL.CLIP.PRECISION fp32"
        )
    position = {sentence: index for index, sentence in enumerate(unique)}
    means = [features[[position[sentence] for sentence in entry]].mean(0) for entry in sentences]
    return F.normalize(torch.stack(means), dim=-1)


def cached_text_features(
    model: open_clip.CLIP,
    tokenizer: Tokenizer,
    sentences: Sequence[Sequence[str]],
    cache_dir: str | Path | None,
) -> Tensor:
    """:func:`encode_sentences`, or what it gave for the same text tower and texts before.

    Features lie in `cache_dir`/<key>.safetensors. The key is a hash of whatever they depend on:
    the text tower's weights and make, the tokens and the texts in their order. Several processes
    may write at once: each file appears whole. A file has a checksum of its features; one that is
    damaged or has none is replaced, with a warning. Where `cache_dir` cannot be read or written,
    nothing is kept, and one warning says so.

    Args:
        cache_dir: None: nothing is kept.

    Returns:
        (Q, D) float32 of unit length, on the CPU.

    Raises:
        ValueError: as :func:`encode_sentences`.
    """
    if cache_dir is None:
        return encode_sentences(model, tokenizer, sentences)
    path = Path(cache_dir) / f"{_cache_key(model, tokenizer, sentences)}.safetensors"
    try:
        features = _read(path)
    except OSError as error:
        _warn_once(str(cache_dir), _reason(error))
        return encode_sentences(model, tokenizer, sentences)
    if features is None:
        features = encode_sentences(model, tokenizer, sentences).contiguous()
        try:
            write_whole(path, save({_TENSOR: features}, {_CHECKSUM: _checksum(features)}))
        except OSError as error:
            _warn_once(str(cache_dir), _reason(error))
    return features


def description_features(
    model: open_clip.CLIP,
    tokenizer: Tokenizer,
    names: Sequence[str],
    descriptions: Mapping[str, Sequence[str]],
    template_features: Tensor,
    cache_dir: str | Path | None,
    num_background: int = 0,
) -> Tensor:
    """Features of what the queries look like, for the ambiguity stage (METHOD.md step 6).

    Args:
        names: Q queries.
        descriptions: name -> sentences about it, looked up by
            :func:`freecp_d2.data.vocabulary.describe`. Names that are no query do not matter.
        template_features: (Q, D), taken for queries without sentences; a warning names those.
        cache_dir: see :func:`cached_text_features`.
        num_background: how many of the first queries are background. Step 6 does not look at
            them: they take their template features, and nothing is said.

    Returns:
        (Q, D) of template_features' dtype and device, of unit length.

    Raises:
        ValueError: as :func:`cached_text_features`.
    """
    found = [describe(descriptions, name) for name in names[num_background:]]
    without = [name for name, own in zip(names[num_background:], found, strict=True) if not own]
    if without:
        logger.warning(
            "no descriptions of %s: the ambiguity stage takes their template features",
            ", ".join(without),
        )
    features = template_features.clone()
    described = {index: own for index, own in enumerate(found, start=num_background) if own}
    if described:
        own = cached_text_features(model, tokenizer, list(described.values()), cache_dir)
        features[list(described)] = own.to(features)
    return features


def _tokenize(tokenizer: Tokenizer, sentences: list[str], context_length: int) -> Tensor:
    """Token ids (S, context_length) of sentences that all fit."""
    # open_clip cuts long sentences silently. With one position to spare, those that fit, and no
    # others, leave padding there.
    tokens = tokenizer(["", *sentences], context_length=context_length + 1)
    padding, *last = tokens[:, -1].tolist()
    for sentence, token in zip(sentences, last, strict=True):
        if token != padding:
            raise ValueError(
                f"{sentence!r} has {_count_tokens(tokenizer, sentence)} tokens and CLIP's context "
                f"holds {context_length}; shorten the class name or the description"
            )
    return tokens[1:, :-1].contiguous()


def _count_tokens(tokenizer: Tokenizer, sentence: str) -> int:
    ample = 8 + 4 * len(sentence.encode())
    tokens = tokenizer([sentence], context_length=ample)[0]
    return int((tokens != tokens[-1]).nonzero().max()) + 1


def _cache_key(
    model: open_clip.CLIP, tokenizer: Tokenizer, sentences: Sequence[Sequence[str]]
) -> str:
    """SHA-256 of all that :func:`encode_sentences` reads."""
    digest = hashlib.sha256()
    tower = chain(model.named_parameters(), model.named_buffers())
    for name, tensor in tower:
        if not name.startswith(("visual.", "logit_")):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            flat = tensor.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy())
    # What the weights do not show: activations, heads, pooling, and the tokenizer by its output.
    modules = list(model.transformer.modules())
    make = [
        repr(model.transformer),
        repr(model.ln_final),
        [module.num_heads for module in modules if hasattr(module, "num_heads")],
        [model.text_pool_type, model.text_eos_id],
        type(tokenizer).__name__,
        tokenizer([entry[0] for entry in sentences], model.context_length).tolist(),
        [list(entry) for entry in sentences],
    ]
    digest.update(json.dumps(make).encode())
    return digest.hexdigest()


def _read(path: Path) -> Tensor | None:
    """The features in a file of the cache, None where there is none that is whole."""
    try:
        with safe_open(path, framework="pt") as file:
            features = file.get_tensor(_TENSOR)
            if (file.metadata() or {}).get(_CHECKSUM) == _checksum(features):
                return features
        damage = "its checksum is wrong or missing"
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        damage = str(error)
    logger.warning("%s is damaged and will be replaced (%s)", path, damage)
    return None


def _checksum(features: Tensor) -> str:
    """SHA-256 of a tensor's kind, shape and bytes."""
    digest = hashlib.sha256(f"{features.dtype} {tuple(features.shape)}\n".encode())
    digest.update(features.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@cache
def _warn_once(folder: str, reason: str) -> None:
    logger.warning(
        "the text cache %s cannot be used (%s): text features are encoded anew at every start; set "
        "MODEL.CLIP.TEXT_CACHE to a folder that can be written, or to ''",
        folder,
        reason,
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
