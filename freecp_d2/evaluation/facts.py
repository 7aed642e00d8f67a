"""What a figure was made with, so that it can be compared: config, words, weights, versions."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import detectron2
import open_clip
import torch
from detectron2.config import CfgNode
from torch import nn

from .. import __version__
from ..clip.digests import hash_of_tensors
from ..clip.engine import EngineCLIP
from ..clip.loading import BF16_MATMUL, PRECISIONS
from ..data import Vocabulary, load_descriptions
from ..meta_arch import FreeCP


def facts_of(cfg: CfgNode, model: FreeCP) -> dict[str, Any]:
    """What results.json says beside the figures.

    Args:
        cfg: what `model` was built from.

    Returns:
        `method`, `enabled`, `redundancy`, `ambiguity`, `protocol`, `refine`, `clip`,
        `pretrained` and `vocabulary` as in the config, `device`, `precision` as it ran ("fp16",
        never "auto"), `words`, `descriptions`, `relations`, `weights` and
        `affinity_weights` (all SHA-256; None where there are none), `versions`, and `config`, all
        of it as nested objects.
    """
    clip, freecp = cfg.MODEL.CLIP, cfg.MODEL.FREECP
    relations = model.extensions.relations
    return {
        "method": clip.METHOD,
        "enabled": freecp.ENABLED,
        "redundancy": freecp.REDUNDANCY,
        "ambiguity": freecp.AMBIGUITY,
        "protocol": freecp.PROTOCOL,
        "refine": freecp.REFINE,
        "clip": clip.NAME,
        "pretrained": clip.PRETRAINED,
        "vocabulary": freecp.VOCABULARY,
        "device": str(model.device),
        "precision": precision_of(model.encoder),
        "words": model.vocabulary and hash_of_words(model.vocabulary),
        "descriptions": hash_of_descriptions(freecp.DESCRIPTIONS),
        "relations": _sha256(sorted(relations)) if relations else None,
        "weights": hash_of_weights(model.encoder),
        "affinity_weights": (
            hash_of_weights(model.affinity) if isinstance(model.affinity, nn.Module) else None
        ),
        "versions": {
            "freecp_d2": __version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
        },
        "config": _plain(cfg),
    }


ELSEWHERE = {
    *("OUTPUT_DIR", "DATASETS", "DATALOADER", "MODEL.DEVICE", "MODEL.CLIP.PRETRAINED"),
    *("MODEL.CLIP.TEXT_CACHE", "MODEL.FREECP.OUTPUT", "MODEL.FREECP.VOCABULARY"),
    *(
        "MODEL.FREECP.DESCRIPTIONS",
        "MODEL.FREECP.RELATIONS",
        "MODEL.FREECP.AFFINITY_VIT_WEIGHTS",
        "VERSION",
    ),
    *("TEST.PRESENCE", "TEST.SEPARABILITY"),
}
"""Keys of the config that change no label, or only by words and weights, whose hashes are facts."""


def label_settings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a label map depends on beside the image.

    Args:
        facts: of :func:`facts_of`, or none of them.

    Returns:
        Hashes and precision, and the keys of the config, such as MODEL.CLIP.METHOD, flat.
    """
    keys = ("words", "descriptions", "relations", "weights", "affinity_weights", "precision")
    settings = {key: facts[key] for key in keys if key in facts}
    return settings | _relevant(facts.get("config", {}), "")


def evaluation_settings(
    dataset_name: str, ignore_label: int | None, coco_predictions: bool, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What the records of an evaluation depend on, flat.

    Args:
        ignore_label: of the data set's metadata.
        facts: of :func:`facts_of`, or none of them.
    """
    test = facts.get("config", {}).get("TEST", {})
    details = {f"TEST.{key}": test.get(key) for key in ("PRESENCE", "SEPARABILITY")}
    return {
        "data set": dataset_name,
        "ignore_label": ignore_label,
        "--coco-predictions": coco_predictions,
        **{key: asked for key, asked in details.items() if asked},
        **label_settings(facts),
    }


def differing_keys(former: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """The sorted keys whose values differ, where `former` was read from JSON."""
    settings = json.loads(json.dumps(settings))
    return sorted(k for k in {*former, *settings} if former.get(k) != settings.get(k))


def precision_of(module: nn.Module) -> str:
    """The lowest of its parameters: fp32, fp16 or bf16. LayerNorms stay fp32 in every CLIP.

    It is "bf16_matmul" where the module says so of itself, as DenseCLIP does, and what EngineCLIP
    says of itself.
    """
    if isinstance(module, EngineCLIP):
        return module.precision
    if getattr(module, BF16_MATMUL, False):
        return BF16_MATMUL
    lowest = min(
        (p.dtype for p in module.parameters() if p.is_floating_point()), key=lambda d: d.itemsize
    )
    names = {dtype: name for name, dtype in PRECISIONS.items()}
    return names.get(lowest, str(lowest).removeprefix("torch."))


def hash_of_words(vocabulary: Vocabulary) -> str:
    """SHA-256 of the background's names and of all names of all classes, in their order."""
    return _sha256([list(vocabulary.background), [list(names) for names in vocabulary.classes]])


def hash_of_descriptions(path: str) -> str | None:
    """SHA-256 of the sentences of MODEL.FREECP.DESCRIPTIONS by class; None where it is empty."""
    if not path:
        return None
    descriptions = load_descriptions(path)
    return _sha256({name: list(descriptions[name]) for name in sorted(descriptions)})


def hash_of_weights(module: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and bytes of all its tensors, as they run."""
    return hash_of_tensors(sorted(module.state_dict(keep_vars=True).items())).hexdigest()


def _relevant(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The keys of a nested config that are not :data:`ELSEWHERE`, flat."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name not in ELSEWHERE:
            keys |= _relevant(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return keys


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A config as JSON has it; an infinite or undefined number as its name."""
    if isinstance(value, CfgNode):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
