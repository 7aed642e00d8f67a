"""What an adapter is, where it stands in FreeCP, and its state on disk."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..clip.text import TextEncoder
from ..files import write_whole
from .entropy_weights import NAME as ENTROPY_WEIGHTS

ADAPTERS: Registry = Registry("ADAPTERS")
"""What MODEL.FREECP.ADAPTER may name, beside entropy_weights: each is called with the config, the
queries' names and the text encoder, and gives an :class:`Adapter` of these queries."""


class Adapter(Protocol):
    """Changes the text features of one vocabulary by what was seen in the images before.

    Attributes:
        state: what it has learnt, a few small tensors; empty at first. It may be replaced.
    """

    state: dict[str, Tensor]

    def adapt(self, text: Tensor, regions: Tensor, weights: Tensor) -> Tensor:
        """Look at one image.

        Args:
            text: (Q, D) of unit length, always the same.
            regions: (R, D) of unit length, see :func:`region_features`; R is at least 1.
            weights: (R,) in [0, 1], how certain CLIP is of each region's class.

        Returns:
            (Q, D) of unit length, in place of `text` in this image.
        """


AdapterBuilder: TypeAlias = Callable[[Sequence[str], TextEncoder], Adapter]
"""Names of the queries and the text encoder -> their adapter, with an empty state."""


def build_adapter(cfg: CfgNode) -> AdapterBuilder | None:
    """What builds the adapter of MODEL.FREECP.ADAPTER; None where it is empty or entropy_weights.

    Raises:
        ValueError: there is no such adapter, or the base method alone is run.
    """
    freecp = cfg.MODEL.FREECP
    if not freecp.ADAPTER:
        return None
    if not freecp.ENABLED:
        raise ValueError(
            f"MODEL.FREECP.ADAPTER is {freecp.ADAPTER!r}, which reads the maps of classes that "
            "stay, and ENABLED is False: a base method alone has none; leave ADAPTER empty"
        )
    if freecp.ADAPTER == ENTROPY_WEIGHTS:
        return None
    if freecp.ADAPTER not in ADAPTERS:
        known = ", ".join(sorted([ENTROPY_WEIGHTS, *(name for name, _ in ADAPTERS)]))
        raise ValueError(
            f"MODEL.FREECP.ADAPTER is {freecp.ADAPTER!r}; choose one of {known}, or leave it empty"
        )
    return partial(ADAPTERS.get(freecp.ADAPTER), cfg)


def region_features(patches: Tensor, refined: Tensor, kept: Tensor) -> Tensor:
    """The mean patch of every class that stays in a window, weighted by its refined map.

    Args:
        patches: (B, N, D) of unit length.
        refined: (B, C, h, w) in [0, 1], N = h * w.
        kept: (B, C) bool, with R entries that are true.

    Returns:
        (R, D) of unit length, window by window, in the order of the classes.
    """
    return F.normalize((refined.flatten(2) @ patches)[kept], dim=-1)


def save_state(adapter: Adapter, path: Path, images: Sequence[str]) -> None:
    """Write an adapter's state as safetensors, all or nothing.

    Args:
        images: the files that it has seen, in their order.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {name: tensor.contiguous().cpu() for name, tensor in adapter.state.items()}
    write_whole(path, save(tensors, {"images": json.dumps(list(images))}))


def load_state(adapter: Adapter, path: Path) -> list[str]:
    """Give an adapter the state of :func:`save_state`.

    Returns:
        The files of the images that it has seen, in their order.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            images = json.loads((file.metadata() or {})["images"])
            adapter.state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError, ValueError):
        raise ValueError(
            f"{path}: no state of an adapter; leave out --resume to begin anew"
        ) from None
    return images
