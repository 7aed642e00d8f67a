"""Text features of names and descriptions (METHOD.md step 0), kept on disk between starts."""

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..data.vocabulary import describe, in_words
from ..files import sweep, write_whole
from ..progress import progress
from .digests import digest_of, hash_of_tensors, state_of
from .loading import Tokenizer

KEPT_ENTRIES = 4096
"""How many entries' features a :class:`TextEncoder` keeps in memory: 12 MiB with D = 768."""
_TENSOR = "text_feature"
_CHECKSUM = "sha256"
_PROBE = "It's a RED_brick caf\u00e9, no. 2 (&amp;co)"  # tokenizers clean texts in different ways
logger = logging.getLogger(__name__)


def template_sentences(names: Sequence[str]) -> list[list[str]]:
    """The 80 OpenAI ImageNet templates filled with each name: one list of sentences a name.

    Underscores in a name are spaces (:func:`freecp_d2.data.vocabulary.in_words`).
    """
    words = [in_words(name) for name in names]
    return [[fill(name) for fill in open_clip.OPENAI_IMAGENET_TEMPLATES] for name in words]


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
    _require_sentences(sentences)
    if not sentences:
        return torch.zeros(0, model.visual.output_dim)
    tokens = _tokenize(tokenizer, chain.from_iterable(sentences), model.context_length)
    return _encode(model, sentences, tokens, batch_size, shown=True)


class TextEncoder:
    """A CLIP's text tower with a cache by entry, in memory and in a folder.

    An entry is the sentences that make one feature. Each goes through the tower by itself, so that
    its bits do not depend on what else was asked for or was kept. Any number of threads may use one
    encoder, and of processes one folder; what is encoded by two at once is encoded twice.

    Memory keeps the last :data:`KEPT_ENTRIES` entries, by a hash of their texts. The folder keeps
    all of them, `cache_dir`/<tower>/<entry>.safetensors: <tower> is a hash of the text tower's
    weights and make and of the tokenizer's, <entry> of the sentences in their order and the tokens
    of the first. Each file appears whole and has a checksum; what is not a finite feature of this
    tower with its checksum is replaced, with a warning. Where the folder cannot be read or written,
    nothing is kept there, and one warning says so.

    The weights may change: those that torch counts as changed are seen (not what is written
    through `Tensor.data`), and memory and folder are then those of the new weights. They are hashed
    only then, and only for a folder. A copy or a pickle of an encoder begins with an empty memory.

    Args:
        model: as for :func:`encode_sentences`. One that is no `torch.nn.Module` is taken not to
            change, and cannot have a folder.
        tokenizer: its.
        cache_dir: None: no folder.
    """

    def __init__(
        self, model: open_clip.CLIP, tokenizer: Tokenizer, cache_dir: str | Path | None = None
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self._versions: list[tuple[str, int, int]] | None = None
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._folder: Path | None = None
        self._warned = False
        self._lock = threading.Lock()  # of the tokenizer, too: forget() changes it

    def __reduce__(self) -> tuple[Any, ...]:
        return TextEncoder, (self.model, self.tokenizer, self.cache_dir)

    def encode(self, entries: Sequence[Sequence[str]]) -> Tensor:
        """One feature an entry, as :func:`encode_sentences` gives it for that entry alone.

        Returns:
            (Q, D) float32 of unit length, on the CPU.

        Raises:
            ValueError: as :func:`encode_sentences`.
        """
        _require_sentences(entries)
        if not entries:
            return torch.zeros(0, self.model.visual.output_dim)
        with self._lock:
            kept, folder = self._caches()
            keys = self._keys(entries)
            features = {key: kept[key] for key in keys if key in kept}
        missing = {k: entry for k, entry in zip(keys, entries, strict=True) if k not in features}
        if folder is not None:
            stored = {key: self._read(folder / f"{key}.safetensors") for key in missing}
            features |= {key: feature for key, feature in stored.items() if feature is not None}
            missing = {key: entry for key, entry in missing.items() if key not in features}
        if missing:
            with self._lock:
                sentences = chain.from_iterable(missing.values())
                tokens = _tokenize(self.tokenizer, sentences, self.model.context_length)
            for key, entry in progress(
                missing.items(), total=len(missing), desc="encoding text", unit="entry"
            ):
                features[key] = _encode(self.model, [entry], tokens)[0]
                if folder is not None:
                    self._write(folder / f"{key}.safetensors", features[key])
        with self._lock:
            for key in keys:
                kept[key] = features[key]
                kept.move_to_end(key)
            while len(kept) > KEPT_ENTRIES:
                kept.popitem(last=False)
        return torch.stack([features[key] for key in keys])

    def forget(self, but: Sequence[Sequence[str]] = ()) -> None:
        """Drop what memory holds of texts; the folder stays.

        That is the features, and the words whose pieces open_clip's SimpleTokenizer keeps.

        Args:
            but: entries whose features stay.
        """
        with self._lock:
            known = {key: self._kept[key] for key in self._keys(but) if key in self._kept}
            self._kept.clear()
            self._kept.update(known)
            if isinstance(self.tokenizer, SimpleTokenizer):
                decoder, special = self.tokenizer.decoder, self.tokenizer.all_special_ids
                self.tokenizer.cache = {decoder[token]: decoder[token] for token in special}

    def _caches(self) -> tuple[OrderedDict[str, Tensor], Path | None]:
        """Memory and folder of the weights as they are now."""
        versions = _weight_versions(self.model)
        if versions != self._versions:
            if self.cache_dir is not None:
                self._folder = self.cache_dir / _tower_key(self.model, self.tokenizer)
                sweep(self._folder)
            # Another dict: a thread that still encodes with the weights before fills its own.
            self._versions, self._kept = versions, OrderedDict()
        return self._kept, self._folder

    def _keys(self, entries: Sequence[Sequence[str]]) -> list[str]:
        """SHA-256 of each entry's sentences, and of the tokens of its first."""
        tokens = self.tokenizer([entry[0] for entry in entries], self.model.context_length)
        return [
            hashlib.sha256(row.tobytes() + json.dumps(list(entry)).encode()).hexdigest()
            for row, entry in zip(tokens.numpy(), entries, strict=True)
        ]

    def _read(self, path: Path) -> Tensor | None:
        """The feature (D,) in a file of the folder, None where there is none that is whole."""
        try:
            with safe_open(path, framework="pt") as file:
                feature = file.get_tensor(_TENSOR)
                checksum = (file.metadata() or {}).get(_CHECKSUM)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            return None
        except SafetensorError as error:
            damage = str(error)
        else:
            size = self.model.visual.output_dim
            if checksum != digest_of(feature).hex():
                damage = "its checksum is wrong or missing"
            elif feature.dtype != torch.float32 or feature.shape != (size,):
                damage = f"{feature.dtype} {tuple(feature.shape)} in place of float32 ({size},)"
            elif not feature.isfinite().all():
                damage = "NaN or infinity"
            else:
                return feature
        logger.warning("%s is damaged and will be replaced (%s)", path, damage)
        return None

    def _write(self, path: Path, feature: Tensor) -> None:
        """Put a feature into the folder, whole; not synced, as damage is seen and mended."""
        content = save({_TENSOR: feature}, {_CHECKSUM: digest_of(feature).hex()})
        try:
            write_whole(path, content, synced=False)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            logger.warning(
                "the text cache %s cannot be used (%s): text features are encoded anew at every "
                "start; set MODEL.CLIP.TEXT_CACHE to a folder that can be written, or to ''",
                self.cache_dir,
                error.strerror or error,
            )
        self._warned = True


def description_features(
    text_encoder: TextEncoder,
    names: Sequence[str],
    descriptions: Mapping[str, Sequence[str]],
    template_features: Tensor,
    num_background: int = 0,
) -> Tensor:
    """Features of what the queries look like, for the ambiguity stage (METHOD.md step 6).

    Args:
        names: Q queries.
        descriptions: name -> sentences about it, looked up by
            :func:`freecp_d2.data.vocabulary.describe`. Names that are no query do not matter.
        template_features: (Q, D), taken for queries without sentences; a warning names those.
        num_background: how many of the first queries are background. Step 6 does not look at
            them: they take their template features, and nothing is said.

    Returns:
        (Q, D) of template_features' dtype and device, of unit length.

    Raises:
        ValueError: as :meth:`TextEncoder.encode`.
    """
    entries = {
        index: describe(descriptions, name)
        for index, name in enumerate(names)
        if index >= num_background
    }
    described = {index: sentences for index, sentences in entries.items() if sentences}
    undescribed = [names[index] for index in entries if index not in described]
    if undescribed:
        logger.warning(
            "no descriptions of %s: the ambiguity stage takes their template features",
            ", ".join(undescribed),
        )
    features = template_features.clone()
    if described:
        encoded = text_encoder.encode(list(described.values()))
        features[list(described)] = encoded.to(features)
    return features


def _require_sentences(entries: Sequence[Sequence[str]]) -> None:
    for number, entry in enumerate(entries, start=1):
        if not entry:
            raise ValueError(f"entry {number} of the texts has no sentence; give it at least one")


@torch.no_grad()
def _encode(
    model: open_clip.CLIP,
    entries: Sequence[Sequence[str]],
    tokens: Mapping[str, Tensor],
    batch_size: int = 256,
    shown: bool = False,
) -> Tensor:
    """:func:`encode_sentences` of at least one entry, by the tokens of each sentence."""
    unique = list(dict.fromkeys(chain.from_iterable(entries)))
    starts = range(0, len(unique), batch_size)
    embeddings = []
    for start in progress(
        starts, total=len(starts), desc="encoding text", unit="batch", disable=not shown
    ):
        batch = torch.stack([tokens[sentence] for sentence in unique[start : start + batch_size]])
        embedded = model.encode_text(batch.to(model.logit_scale.device))
        embeddings.append(F.normalize(embedded.float(), dim=-1).cpu())
    features = torch.cat(embeddings)
    broken = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"NaN or infinity in the text feature of {unique[broken[0]]!r}; check the weights "
            "(MODEL.CLIP.PRETRAINED), or use MODEL.CLIP.PRECISION fp32"
        )
    position = {sentence: index for index, sentence in enumerate(unique)}
    means = [features[[position[sentence] for sentence in entry]].mean(0) for entry in entries]
    return F.normalize(torch.stack(means), dim=-1)


def _tokenize(
    tokenizer: Tokenizer, sentences: Iterable[str], context_length: int
) -> dict[str, Tensor]:
    """Token ids (context_length,) of each sentence; all of them fit."""
    # open_clip cuts long sentences silently. With one position to spare, those that fit, and no
    # others, leave padding there.
    unique = list(dict.fromkeys(sentences))
    tokens = tokenizer(["", *unique], context_length=context_length + 1)
    padding, *last = tokens[:, -1].tolist()
    for sentence, token in zip(unique, last, strict=True):
        if token != padding:
            raise ValueError(
                f"{sentence!r} has {_count_tokens(tokenizer, sentence)} tokens and CLIP's context "
                f"holds {context_length}; shorten the class name or the description"
            )
    return dict(zip(unique, tokens[1:, :-1], strict=True))


def _count_tokens(tokenizer: Tokenizer, sentence: str) -> int:
    ample = 8 + 4 * len(sentence.encode())
    tokens = tokenizer([sentence], context_length=ample)[0]
    return int((tokens != tokens[-1]).nonzero().max()) + 1


def _text_weights(model: open_clip.CLIP) -> list[tuple[str, Tensor]]:
    """Parameters and buffers that :meth:`open_clip.CLIP.encode_text` may read."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return [(name, one) for name, one in tensors if not name.startswith(("visual.", "logit_"))]


def _weight_versions(model: open_clip.CLIP) -> list[tuple[str, int, int]]:
    """Where the weights lie and how often torch saw each change: equal while they are the same."""
    if not isinstance(model, torch.nn.Module):
        return []
    return [(name, *state_of(one)) for name, one in _text_weights(model)]


def _tower_key(model: open_clip.CLIP, tokenizer: Tokenizer) -> str:
    """SHA-256 of all that an entry's feature depends on besides its sentences."""
    digest = hash_of_tensors(_text_weights(model))
    # What the weights do not show: activations, heads, pooling, and the tokenizer by its output.
    modules = list(model.transformer.modules())
    make = [
        repr(model.transformer),
        repr(model.ln_final),
        [module.num_heads for module in modules if hasattr(module, "num_heads")],
        [model.text_pool_type, model.text_eos_id],
        type(tokenizer).__name__,
        tokenizer([_PROBE], model.context_length).tolist(),
    ]
    digest.update(json.dumps(make).encode())
    return digest.hexdigest()
