"""What labels depend on beside the image, so that two configurations are never mixed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from detectron2.config import CfgNode

from ..data import Vocabulary
from ..evaluation.facts import differing_keys, facts_of, hash_of_words, label_settings
from ..meta_arch import FreeCP
from .core import Outputs
from .store import Store

SETTINGS = "settings.json"
"""In the output folder: what its labels were made with."""


def settings_of(
    cfg: CfgNode, model: FreeCP, vocabulary: Vocabulary, outputs: Outputs
) -> dict[str, Any]:
    """What labels depend on, as JSON has it.

    Args:
        cfg: what `model` was built from.
        vocabulary: the classes that are labelled.

    Raises:
        ValueError: an adapter changes with each image, so that labels depend on their order.
    """
    if model.extensions.adapter is not None:
        raise ValueError(
            f"MODEL.FREECP.ADAPTER is {cfg.MODEL.FREECP.ADAPTER!r}: labels would depend on which "
            "images a worker has seen before; leave it empty"
        )
    facts = facts_of(cfg, model) | {"words": hash_of_words(vocabulary)}
    names = list(vocabulary.class_names)
    return {"classes": names, **asdict(outputs), **label_settings(facts)}


def hash_of_settings(settings: Mapping[str, Any]) -> str:
    """The first 16 digits of the SHA-256 of all of them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def require_same_settings(store: Store, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new folder, and see that one with labels has the same.

    Raises:
        ValueError: it holds labels of other settings.
    """
    try:
        former = json.loads(store.read(SETTINGS))
    except FileNotFoundError:
        store.write(SETTINGS, json.dumps(settings, indent=1).encode())
        return
    except (ValueError, RecursionError):
        former = None
    if not isinstance(former, dict):
        raise ValueError(
            f"{store.url}: its {SETTINGS} is damaged; choose another --output, or remove that file "
            "if the labels are of this configuration"
        )
    changed = differing_keys(former, settings)
    if changed:
        raise ValueError(
            f"{store.url} holds labels of another configuration ({', '.join(changed)}); choose "
            "another --output, or remove the folder"
        )
