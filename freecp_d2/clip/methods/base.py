"""What a base method is: what it reads of the trunk, and what it makes of it."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from ..blocks import ENDINGS, QKV, end_block, project_qkv

BASE_METHODS = Registry("BASE_METHODS")
"""Subclasses of :class:`BaseMethod`; MODEL.CLIP.METHOD is the name of one in lower case."""


@dataclass(frozen=True)
class Reads:
    """What the trunk keeps for a method, of its blocks from 0 to L-2.

    Attributes:
        tokens: blocks whose output is kept.
        attention: blocks whose attention is kept, averaged over heads.
        head_attention: blocks whose attention is averaged, each head by itself.
        second_stream: blocks beside which :meth:`BaseMethod.step` runs.
    """

    tokens: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    head_attention: tuple[int, ...] = ()
    second_stream: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trunk:
    """B windows after all blocks but the last; T = 1+N tokens, the CLS token first.

    Attributes:
        last: the last block.
        tokens: (B, T, W) that enter it.
        grid: (h, w) with N = h * w.
        block_tokens: block -> (B, T, W), its output as trained; of :attr:`Reads.tokens`.
        attention: block -> (B, T, T) float32, softmax(q k^T / sqrt(d)), averaged over heads; of
            :attr:`Reads.attention`.
        head_attention: (B, heads, T, T), averaged over the blocks of
            :attr:`Reads.head_attention`, if there are any.
        second_stream: (B, T, W), if the method has one that has begun.
    """

    last: ResidualAttentionBlock
    tokens: Tensor
    grid: tuple[int, int]
    block_tokens: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    head_attention: Tensor | None = None
    second_stream: Tensor | None = None

    @cached_property
    def normed(self) -> Tensor:
        """(B, T, W) ``ln_1`` of the tokens."""
        return self.last.ln_1(self.tokens)

    @cached_property
    def qkv(self) -> QKV:
        """Queries, keys and values of the last block, (B, heads, T, d) each."""
        return project_qkv(self.last, self.normed)


class BaseMethod(ABC):
    """A training-free way to read patch features off a frozen ViT.

    A subclass has keyword options with defaults, which are the keys of ``MODEL.CLIP.<METHOD>`` in
    upper case, and adds itself by ``@BASE_METHODS.register()``. It sees batches of windows, each of
    which is to come out as if it were alone.
    """

    antialias: ClassVar[bool] = False
    """Whether the positional embedding is resampled with antialiasing."""

    first_head_alone: bool = False
    """Whether the attention that FreeCP's affinity is made of is the first head's alone."""

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The names of the options and their defaults."""
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The options of a config.

        Raises:
            ValueError: MODEL.CLIP.LAST_BLOCK is set, and the method has no such choice.
        """
        if cfg.MODEL.CLIP.LAST_BLOCK:
            raise ValueError(
                f"MODEL.CLIP.LAST_BLOCK is {cfg.MODEL.CLIP.LAST_BLOCK!r}; "
                f"{cls.__name__.lower()} has no such choice, leave it empty"
            )
        return cls.section_options(cfg)

    @classmethod
    def section_options(cls, cfg: CfgNode) -> dict[str, Any]:
        """The keys of MODEL.CLIP.<METHOD> in lower case, and their values."""
        section = cfg.MODEL.CLIP.get(cls.__name__.upper(), {})
        return {key.lower(): value for key, value in section.items()}

    def reads(self, num_blocks: int) -> Reads:
        """What the trunk of a tower of `num_blocks` blocks is to keep.

        Raises:
            ValueError: the tower has too few blocks; it names the option.
        """
        return Reads()

    def step(
        self, block: ResidualAttentionBlock, normed: Tensor, qkv: QKV, stream: Tensor
    ) -> Tensor:
        """The second stream (B, T, W) after a block of :attr:`Reads.second_stream`.

        Args:
            normed: (B, T, W) ``ln_1`` of the ordinary stream that enters the block.
            qkv: of `normed`.
            stream: (B, T, W) the second stream; at its first block, the tokens that enter it.
        """
        raise NotImplementedError

    @abstractmethod
    def patches(self, trunk: Trunk) -> Tensor:
        """Patch tokens (B, N, W) before ``ln_post`` and the projection."""

    @abstractmethod
    def similarity(self, trunk: Trunk) -> Tensor:
        """How much each patch takes of each, (B, N, N) float32 of at least 0.

        FreeCP's affinity is made of it where MODEL.FREECP.AFFINITY is "method".
        """

    def keep(self, trunk: Trunk) -> Any:
        """What :meth:`reread` needs of the trunk; None: the method does not read the words."""
        return None

    def reread(
        self, kept: Any, similarities: Tensor, pixels: Tensor, patch_size: tuple[int, int]
    ) -> Tensor:
        """Patch tokens (B, N, W) as :meth:`patches`, of a method that reads the words.

        Args:
            kept: what :meth:`keep` gave.
            similarities: (B, Q, h, w) float32, the cosines of the first patch features and all
                queries.
            pixels: (B, 3, H, W) normalised.
            patch_size: height and width in pixels.
        """
        raise NotImplementedError


class LastBlockMethod(BaseMethod):
    """A base method that attends anew in the last block, and changes nothing before.

    Args:
        last_block: how the last block ends, "projection", "mlp" or "residual"; "": as
            :attr:`ending` says. See MODEL.CLIP.LAST_BLOCK.

    Raises:
        ValueError: `last_block` is none of these.
    """

    ending: ClassVar[str] = "projection"

    def __init__(self, *, last_block: str = ""):
        if last_block not in ("", *ENDINGS):
            raise ValueError(
                f"MODEL.CLIP.LAST_BLOCK is {last_block!r}; choose one of "
                f"{', '.join(ENDINGS)}, or leave it empty"
            )
        self.last_block = last_block or self.ending

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The options of a config."""
        return {**cls.section_options(cfg), "last_block": cfg.MODEL.CLIP.LAST_BLOCK}

    @abstractmethod
    def attend(self, trunk: Trunk) -> Tensor:
        """What the tokens attend to, (B, heads, T, d)."""

    def patches(self, trunk: Trunk) -> Tensor:
        """As :meth:`BaseMethod.patches`."""
        attended = self.attend(trunk)
        return end_block(trunk.last, trunk.tokens, attended, self.last_block)[:, 1:]


def base_method_names() -> tuple[str, ...]:
    """What MODEL.CLIP.METHOD may be."""
    return tuple(name.lower() for name, _ in BASE_METHODS)


def base_method(name: str) -> type[BaseMethod]:
    """The registered class of a name.

    Raises:
        ValueError: there is none.
    """
    classes = {known.lower(): cls for known, cls in BASE_METHODS}
    if name not in classes:
        raise ValueError(f"MODEL.CLIP.METHOD is {name!r}; choose one of {', '.join(classes)}")
    return classes[name]
