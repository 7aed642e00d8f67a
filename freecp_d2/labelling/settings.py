"""What labels depend on beside the image, so that two configurations are never mixed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from detectron2.config import CfgNode

from ..data import Vocabulary
from ..evaluation.facts import facts_of, hash_of_words
from ..meta_arch import FreeCP
from .core import Outputs
from .store import Store

SETTINGS = "settings.json"
"""In the output folder: what its labels were made with."""
_ELSEWHERE = {
    *("OUTPUT_DIR", "DATASETS", "DATALOADER", "MODEL.DEVICE", "MODEL.CLIP.PRETRAINED"),
    *("MODEL.CLIP.TEXT_CACHE", "MODEL.FREECP.OUTPUT", "MODEL.FREECP.VOCABULARY"),
    *("MODEL.FREECP.DESCRIPTIONS", "VERSION"),
}
"""Keys of the config that change no label, or only by words and weights, whose hashes are there."""


def settings_of(
    cfg: CfgNode, model: FreeCP, vocabulary: Vocabulary, outputs: Outputs
) -> dict[str, Any]:
    """What labels depend on, as JSON has it.

    Args:
        cfg: what `model` was built from.
        vocabulary: the classes that are labelled.
    """
    facts = facts_of(cfg, model)
    return {
        "classes": list(vocabulary.class_names),
        "words": hash_of_words(vocabulary),
        **{key: facts[key] for key in ("descriptions", "weights", "precision")},
        **asdict(outputs),
        **_relevant(facts["config"], ""),
    }


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
    changed = sorted(
        key for key in {*former, *settings} if former.get(key) != json_value(settings.get(key))
    )
    if changed:
        raise ValueError(
            f"{store.url} holds labels of another configuration ({', '.join(changed)}); choose "
            "another --output, or remove the folder"
        )


def json_value(value: Any) -> Any:
    """A value as it is read back from JSON."""
    return json.loads(json.dumps(value))


def _relevant(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The keys of a nested config that labels depend on, such as MODEL.CLIP.METHOD, flat."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name not in _ELSEWHERE:
            keys |= _relevant(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return keys
