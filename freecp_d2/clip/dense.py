"""DenseCLIP: patch features, CLS embedding and attention of a frozen open_clip ViT."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeAlias, TypeVar

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ..cuda_graphs import Graphed
from . import blocks, matmul
from .compilation import compiled
from .digests import state_of
from .methods import BASE_METHODS, Reads, Trunk, base_method

MAX_GRIDS = 16
"""So many grids of patches keep their positional embedding."""
AFFINITIES = ("attention", "method")
"""What FreeCP's affinity is made of (MODEL.FREECP.AFFINITY)."""

Reread: TypeAlias = Callable[[Tensor], Tensor]
"""Patch features (B, N, D) for unit-length text features (Q, D) of all queries."""


@dataclass(frozen=True)
class DenseFeatures:
    """What :class:`DenseCLIP` sees in a batch of images, all float32.

    Attributes:
        patches: (B, N, D) patch features of unit length, row by row.
        cls: (B, D) ordinary CLIP embedding, of unit length.
        attention: (B, N, N) of at least 0, what FreeCP's affinity is made of: the attention from
            patch to patch, averaged over heads and over all blocks but the last, whose rows sum to
            at most 1, the rest being the CLS token's; or what took its place.
        grid: (h, w) with N = h * w.
        reread: gives the patches for the words, by a base method that reads them; None: `patches`
            hold for any words.
    """

    patches: Tensor
    cls: Tensor
    attention: Tensor
    grid: tuple[int, int]
    reread: Reread | None = None

    def patches_for(self, text: Tensor) -> Tensor:
        """Patch features (B, N, D) to be compared with the text features (Q, D) of all queries."""
        return self.patches if self.reread is None else self.reread(text)


class _Passed(NamedTuple):
    """What :class:`Trunk` takes of the blocks but the last, and the affinity that they recorded."""

    tokens: Tensor
    total: Tensor | None
    block_tokens: dict[int, Tensor]
    attention: dict[int, Tensor]
    head_attention: Tensor | None
    second_stream: Tensor | None


P = ParamSpec("P")
R = TypeVar("R")


def _at_its_precision(
    method: Callable[Concatenate["DenseCLIP", P], R],
) -> Callable[Concatenate["DenseCLIP", P], R]:
    """A method whose products have the precision of the encoder."""

    @wraps(method)
    def rounded(self: "DenseCLIP", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with matmul.bf16_matmul(self.bf16_matmul, self.model.visual.proj.device):
            return method(self, *args, **kwargs)

    return rounded


class DenseCLIP(nn.Module):
    """A frozen open_clip ViT read by a training-free base method (METHOD.md steps 1 and 3).

    Attributes:
        logit_scale: CLIP's temperature, already exponentiated.
        method: the base method's name.
        base_method: the base method itself.

    Args:
        model: an open_clip CLIP whose image tower is a plain ViT: learned positional embedding,
            CLS token, no attentional pooling. It is frozen and put into eval mode.
        method: one of :func:`freecp_d2.clip.base_method_names`.
        affinity: what FreeCP's affinity is made of, the trunk's "attention" or the "method"'s own
            similarity; see MODEL.FREECP.AFFINITY.
        bf16_matmul: multiply float32 in bfloat16 on CPUs; see MODEL.CLIP.PRECISION.
        compile: the blocks but the last; see MODEL.CLIP.COMPILE.
        cuda_graphs: run them on windows as CUDA graphs; see MODEL.FREECP.COMPILE.
        method_options: of the base method; see `freecp_d2.clip.methods`. Those of other methods may
            be among them and are not read, so that one set serves a comparison.

    Raises:
        ValueError: unknown method, affinity or option, an option out of range, a tower with too few
            blocks for the method, or one of another kind.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        method: str = "clearclip",
        *,
        affinity: str = "attention",
        bf16_matmul: bool = False,
        compile: bool = False,
        cuda_graphs: bool = False,
        **method_options: Any,
    ):
        super().__init__()
        if affinity not in AFFINITIES:
            raise ValueError(
                f"MODEL.FREECP.AFFINITY is {affinity!r}; choose one of {', '.join(AFFINITIES)}"
            )
        chosen = base_method(method)
        options = {k: v for k, v in method_options.items() if k in chosen.options()}
        if unknown := sorted(method_options.keys() - options.keys() - _options_of_any_method()):
            raise ValueError(
                f"{method} has no option {unknown[0]}; it has "
                f"{', '.join(chosen.options()) or 'none'}"
            )
        _require_plain_vit(model.visual)
        self.model = model.eval().requires_grad_(False)
        self.method = method
        self.base_method = chosen(**options)
        self.affinity = affinity
        self.bf16_matmul = bf16_matmul
        self.logit_scale: float = model.logit_scale.float().exp().item()
        self._reads = self.base_method.reads(len(self._blocks))
        self._positions: dict[tuple, Tensor] = {}
        self._run_blocks = compiled(self._pass_blocks) if compile else self._pass_blocks
        self._run_window = Graphed(self._run_blocks) if cuda_graphs else self._run_blocks

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.model.visual.patch_size

    def train(self, mode: bool = True) -> "DenseCLIP":
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    @_at_its_precision
    @torch.no_grad()
    def forward(self, images: Tensor, affinity: Tensor | None = None) -> DenseFeatures:
        """Encode normalised images (B, 3, H, W); H and W need not be multiples of the patch size.

        Args:
            affinity: (B, N, N) of at least 0, to stand in place of :attr:`DenseFeatures.attention`.

        Raises:
            ValueError: images smaller than a patch.
        """
        record = affinity is None and self.affinity == "attention"
        trunk, attention = self._run(images, record)
        if affinity is None:
            affinity = self.base_method.similarity(trunk) if attention is None else attention
        patches = self._project(self.base_method.patches(trunk))
        return DenseFeatures(
            patches=patches,
            cls=self._project(blocks.cls_block(trunk.last, trunk.tokens, trunk.qkv)),
            attention=affinity,
            grid=trunk.grid,
            reread=self._rereading(trunk, images, patches),
        )

    @_at_its_precision
    @torch.no_grad()
    def encode_dense(self, images: Tensor) -> tuple[Tensor, tuple[int, int], Reread | None]:
        """`patches`, `grid` and `reread` of :meth:`forward`, without the cost of the attention.

        Raises:
            ValueError: images smaller than a patch.
        """
        trunk, _ = self._run(images, record_attention=False)
        patches = self._project(self.base_method.patches(trunk))
        return patches, trunk.grid, self._rereading(trunk, images, patches)

    def encode_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """`patches` and `grid` of :meth:`encode_dense`."""
        patches, grid, _ = self.encode_dense(images)
        return patches, grid

    @_at_its_precision
    @torch.no_grad()
    def encode_cls(self, images: Tensor) -> Tensor:
        """Ordinary CLIP embeddings (B, D), float32 of unit length, of normalised (B, 3, H, W).

        Raises:
            ValueError: images smaller than a patch.
        """
        tokens, _ = self._embed(images)
        tokens = self._run_blocks(tokens, Reads(), False).tokens
        last = self._blocks[-1]
        qkv = blocks.project_qkv(last, last.ln_1(tokens))
        return self._project(blocks.cls_block(last, tokens, qkv))

    @property
    def _blocks(self) -> list[ResidualAttentionBlock]:
        return list(self.model.visual.transformer.resblocks)

    def _run(self, images: Tensor, record_attention: bool) -> tuple[Trunk, Tensor | None]:
        """The trunk, with what the base method reads of it.

        Returns:
            and :attr:`DenseFeatures.attention` of the trunk, if `record_attention`.
        """
        tokens, grid = self._embed(images)
        passed = self._run_window(tokens, self._reads, record_attention)
        trunk = Trunk(
            last=self._blocks[-1],
            tokens=passed.tokens,
            grid=grid,
            block_tokens=passed.block_tokens,
            attention=passed.attention,
            head_attention=passed.head_attention,
            second_stream=passed.second_stream,
        )
        return trunk, passed.total

    def _pass_blocks(self, tokens: Tensor, reads: Reads, record_attention: bool) -> _Passed:
        """All blocks but the last; also what :attr:`run_blocks` compiles."""
        *trunk, last = self._blocks
        method = self.base_method
        batch, length, _ = tokens.shape
        heads = last.attn.num_heads
        total = head_attention = stream = None
        if record_attention:
            total = tokens.new_zeros(batch, length, length, dtype=torch.float32)
        if reads.head_attention:
            head_attention = tokens.new_zeros(batch, heads, length, length)
        block_tokens: dict[int, Tensor] = {}
        attention: dict[int, Tensor] = {}
        for index, block in enumerate(trunk):
            normed = block.ln_1(tokens)
            qkv = blocks.project_qkv(block, normed)
            if index in reads.second_stream:
                stream = method.step(block, normed, qkv, tokens if stream is None else stream)
            records = []
            if total is not None and not method.first_head_alone:
                records.append(total)
            if index in reads.attention:
                attention[index] = tokens.new_zeros(batch, length, length, dtype=torch.float32)
                records.append(attention[index])
            of_heads = head_attention if index in reads.head_attention else None
            if records or of_heads is not None:
                share = 1 / max(1, len(reads.head_attention))
                attended = blocks.recorded_attention(
                    qkv, *records, head_record=of_heads, share=share
                )
            else:
                attended = F.scaled_dot_product_attention(*qkv)
            if total is not None and method.first_head_alone:
                total += blocks.attention_weights(qkv[0][:, 0], qkv[1][:, 0])
            tokens = blocks.finish_block(block, tokens, attended)
            if index in reads.tokens:
                block_tokens[index] = tokens
        if total is not None:
            total = total[:, 1:, 1:] / len(trunk)
        return _Passed(tokens, total, block_tokens, attention, head_attention, stream)

    def _rereading(self, trunk: Trunk, images: Tensor, patches: Tensor) -> Reread | None:
        kept = self.base_method.keep(trunk)
        return None if kept is None else partial(self._reread, kept, images, patches, trunk.grid)

    @_at_its_precision
    @torch.no_grad()
    def _reread(
        self, kept: Any, images: Tensor, patches: Tensor, grid: tuple[int, int], text: Tensor
    ) -> Tensor:
        with torch.autocast(patches.device.type, enabled=False):
            similarities = (patches @ text.T).transpose(1, 2).unflatten(2, grid)
        return self._project(self.base_method.reread(kept, similarities, images, self.patch_size))

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, 1+N, W) that enter the first block, and the grid."""
        visual = self.model.visual
        height, width = images.shape[-2:]
        if height < self.patch_size[0] or width < self.patch_size[1]:
            raise ValueError(
                f"an image of {height}x{width} pixels is smaller than a patch of "
                f"{self.patch_size[0]}x{self.patch_size[1]}; enlarge it first"
            )
        grid = blocks.grid_of(visual, images)
        return blocks.embed(visual, images, self._position(grid)), grid

    def _position(self, grid: tuple[int, int]) -> Tensor:
        """The positional embedding of a grid, resampled once while the weights stay."""
        visual = self.model.visual
        weight = visual.positional_embedding
        if grid == visual.grid_size:
            return weight
        key = (grid, weight.device, weight.dtype, *state_of(weight))
        position = self._positions.get(key)
        if position is None:
            antialias = self.base_method.antialias
            position = blocks.positional_embedding(visual, grid, antialias)
            self._positions = {
                **dict(list(self._positions.items())[-MAX_GRIDS + 1 :]),
                key: position,
            }
        return position

    def _project(self, tokens: Tensor) -> Tensor:
        visual = self.model.visual
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)


def _options_of_any_method() -> set[str]:
    """But for the choice how the last block ends, which not every method has."""
    return {option for _, cls in BASE_METHODS for option in cls.options()} - {"last_block"}


def _require_plain_vit(visual: nn.Module) -> None:
    if not isinstance(visual, VisionTransformer):
        raise ValueError(
            f"the image tower is a {type(visual).__name__}; MODEL.CLIP.NAME must be an open_clip "
            "ViT such as ViT-B-16"
        )
    resblocks = visual.transformer.resblocks
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        raise ValueError("the image tower pools its tokens; use a ViT that reads its CLS token")
    if len(resblocks) < 2:
        raise ValueError("the image tower has one block; at least 2 are needed for an affinity")
    if any(
        not isinstance(block, ResidualAttentionBlock)
        or not isinstance(block.attn, nn.MultiheadAttention)
        for block in resblocks
    ):
        raise ValueError("the image tower's blocks are not CLIP's own; use a plain ViT")
