"""DenseCLIP: patch features, CLS embedding and attention of a frozen open_clip ViT."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from . import base_methods

METHODS: tuple[str, ...] = ("maskclip", "sclip", "clearclip", "naclip", "gem", "vanilla")


@dataclass(frozen=True)
class DenseFeatures:
    """What :class:`DenseCLIP` sees in a batch of images, all float32.

    Attributes:
        patches: (B, N, D) patch features of unit length, row by row.
        cls: (B, D) ordinary CLIP embedding, of unit length.
        attention: (B, N, N) attention from patch to patch, averaged over heads and over all
            blocks but the last; rows sum to at most 1, the rest being the CLS token's.
        grid: (h, w) with N = h * w.
    """

    patches: Tensor
    cls: Tensor
    attention: Tensor
    grid: tuple[int, int]


class DenseCLIP(nn.Module):
    """A frozen open_clip ViT read by a training-free base method (METHOD.md steps 1 and 3).

    Attributes:
        logit_scale: CLIP's temperature, already exponentiated.

    Args:
        model: an open_clip CLIP whose image tower is a plain ViT: learned positional embedding,
            CLS token, no attentional pooling. It is frozen and put into eval mode.
        method: maskclip, sclip, clearclip, naclip, gem or vanilla.
        gem_depth: GEM's second stream spans the blocks of index > L - gem_depth (from 0).
        gem_head_average: GEM's attention averages all heads instead of taking head 0 alone,
            which is what was published.
        gaussian_std: standard deviation of NACLIP's neighbourhood in patches.
        last_block: how the last block ends, "projection", "mlp" or "residual"; "": as METHOD.md
            section 1 says. See MODEL.CLIP.LAST_BLOCK.

    Raises:
        ValueError: unknown method, an option out of range, or an image tower of another kind.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        method: str = "clearclip",
        *,
        gem_depth: int = 7,
        gem_head_average: bool = False,
        gaussian_std: float = 5.0,
        last_block: str = "",
    ):
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"MODEL.CLIP.METHOD is {method!r}; choose one of {', '.join(METHODS)}")
        if gem_depth < 2:
            raise ValueError(f"MODEL.CLIP.GEM_DEPTH is {gem_depth}; it must be at least 2")
        if not 0 < gaussian_std < math.inf:
            raise ValueError(f"MODEL.CLIP.GAUSSIAN_STD is {gaussian_std}; it must be above 0")
        if last_block not in ("", *base_methods.ENDINGS):
            raise ValueError(
                f"MODEL.CLIP.LAST_BLOCK is {last_block!r}; choose one of "
                f"{', '.join(base_methods.ENDINGS)}, or leave it empty"
            )
        if last_block and method == "gem":
            raise ValueError(
                f"MODEL.CLIP.LAST_BLOCK is {last_block!r}; gem has no such choice, leave it empty"
            )
        _require_plain_vit(model.visual)
        self.model = model.eval().requires_grad_(False)
        self.method = method
        self.gem_depth = gem_depth
        self.gem_head_average = gem_head_average
        self.gaussian_std = gaussian_std
        self.last_block = last_block or base_methods.ENDING.get(method, "")
        self.logit_scale: float = model.logit_scale.float().exp().item()

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.model.visual.patch_size

    def train(self, mode: bool = True) -> "DenseCLIP":
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> DenseFeatures:
        """Encode normalised images (B, 3, H, W); H and W need not be multiples of the patch size.

        Raises:
            ValueError: images smaller than a patch.
        """
        tokens, grid = self._embed(images)
        batch, length, _ = tokens.shape
        record = tokens.new_zeros(batch, length, length, dtype=torch.float32)
        *blocks, last = self._blocks
        tokens, stream = self._run(blocks, tokens, record)
        normed = last.ln_1(tokens)
        qkv = base_methods.project_qkv(last, normed)
        return DenseFeatures(
            patches=self._read_last_block(last, tokens, normed, qkv, stream, grid),
            cls=self._project(base_methods.cls_block(last, tokens, qkv)),
            attention=record[:, 1:, 1:] / len(blocks),
            grid=grid,
        )

    @torch.no_grad()
    def encode_patches(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """`patches` and `grid` of :meth:`forward`, without the cost of the attention maps.

        Raises:
            ValueError: images smaller than a patch.
        """
        tokens, grid = self._embed(images)
        *blocks, last = self._blocks
        tokens, stream = self._run(blocks, tokens)
        normed = last.ln_1(tokens)
        qkv = base_methods.project_qkv(last, normed)
        return self._read_last_block(last, tokens, normed, qkv, stream, grid), grid

    @torch.no_grad()
    def encode_cls(self, images: Tensor) -> Tensor:
        """Ordinary CLIP embeddings (B, D), float32 of unit length, of normalised (B, 3, H, W).

        Raises:
            ValueError: images smaller than a patch.
        """
        tokens, _ = self._embed(images)
        *blocks, last = self._blocks
        for block in blocks:
            tokens = block(tokens)
        qkv = base_methods.project_qkv(last, last.ln_1(tokens))
        return self._project(base_methods.cls_block(last, tokens, qkv))

    @property
    def _blocks(self) -> list[ResidualAttentionBlock]:
        return list(self.model.visual.transformer.resblocks)

    def _run(
        self, blocks: Sequence[ResidualAttentionBlock], tokens: Tensor, record: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, 1+N, W) after all blocks but the last, and GEM's second stream.

        `record` (B, 1+N, 1+N) grows by every block's attention weights, if given.
        """
        gem_start = len(blocks) + 1 - self.gem_depth
        head_zero_alone = self.method == "gem" and not self.gem_head_average
        stream = tokens
        for index, block in enumerate(blocks):
            normed = block.ln_1(tokens)
            qkv = base_methods.project_qkv(block, normed)
            if self.method == "gem" and index > gem_start:
                stream = base_methods.gem_step(block, normed, qkv, stream)
            if record is not None and not head_zero_alone:
                attended = base_methods.recorded_attention(qkv, record)
            else:
                attended = F.scaled_dot_product_attention(*qkv)
            if record is not None and head_zero_alone:
                record += base_methods.attention_weights(qkv[0][:, 0], qkv[1][:, 0])
            tokens = base_methods.finish_block(block, tokens, attended)
            if index <= gem_start:
                stream = tokens
        return tokens, stream

    def _read_last_block(
        self,
        last: ResidualAttentionBlock,
        tokens: Tensor,
        normed: Tensor,
        qkv: base_methods.QKV,
        stream: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Patch features (B, N, D) by the base method."""
        if self.method == "gem":
            dense = base_methods.gem_step(last, normed, qkv, stream)
        else:
            if self.method == "naclip":
                neighbourhood = base_methods.gaussian_neighbourhood(grid, self.gaussian_std, normed)
                attended = base_methods.naclip(qkv, neighbourhood)
            else:
                attended = getattr(base_methods, self.method)(qkv)
            dense = base_methods.end_block(last, tokens, attended, self.last_block)
        return self._project(dense[:, 1:])

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, 1+N, W) that enter the first block, and the grid."""
        visual = self.model.visual
        height, width = images.shape[-2:]
        if height < self.patch_size[0] or width < self.patch_size[1]:
            raise ValueError(
                f"an image of {height}x{width} pixels is smaller than a patch of "
                f"{self.patch_size[0]}x{self.patch_size[1]}; enlarge it first"
            )
        return base_methods.embed(visual, images, antialias=self.method == "gem")

    def _project(self, tokens: Tensor) -> Tensor:
        visual = self.model.visual
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)


def _require_plain_vit(visual: nn.Module) -> None:
    if not isinstance(visual, VisionTransformer):
        raise ValueError(
            f"the image tower is a {type(visual).__name__}; MODEL.CLIP.NAME must be an open_clip "
            "ViT such as ViT-B-16"
        )
    blocks = visual.transformer.resblocks
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.final_ln_after_pool:
        raise ValueError("the image tower pools its tokens; use a ViT that reads its CLS token")
    if len(blocks) < 2:
        raise ValueError("the image tower has one block; at least 2 are needed for an affinity")
    if any(
        not isinstance(block, ResidualAttentionBlock)
        or not isinstance(block.attn, nn.MultiheadAttention)
        for block in blocks
    ):
        raise ValueError("the image tower's blocks are not CLIP's own; use a plain ViT")
