"""ResCLIP (Yang et al., CVPR 2025): residual cross-correlation attention, semantic feedback."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import QKV, end_block, mean_attention
from .base import BASE_METHODS, LastBlockMethod, Reads, Trunk
from .naclip import gaussian_neighbourhood
from .semantic_feedback import attention_bonus, label_bonus, patch_labels

STRATEGIES = ("resclip", "clearclip", "sclip", "vanilla")


@dataclass(frozen=True)
class Kept:
    """What a second reading needs of the first.

    Attributes:
        trunk: without its `head_attention`.
        residual: (B, heads, T, d), the values that the blocks before attend to.
    """

    trunk: Trunk
    residual: Tensor


@BASE_METHODS.register()
class ResCLIP(LastBlockMethod):
    """A base's attention, mixed with the query-key attention of blocks before, head by head (RCS).

    With `use_sfr` it reads the words, too (SFR): a window is segmented by all queries, and read a
    second time with patches of one label drawn together. That needs the tokens that enter the last
    block and the residual to be kept, 2 * (1+N) * W numbers a window.

    Args:
        attn_strategy: the base: "resclip" is NACLIP's attention, "sclip" ends the block with the
            residual and the MLP.
        gaussian_std: standard deviation in patches, above 0, of the neighbourhood of "resclip", and
            of SFR's smoothing.
        rcs_blocks: whose attention is mixed in, counted from 0.
        attn_rcs_weights: what the mixture is multiplied by, and the share of the blocks before.
        use_sfr: False: RCS alone.
        attn_sfr_weights: what the logits are multiplied by in the second reading, and the share of
            the labels in them.
        temp_thd: a pixel of the first segmentation whose best query has less than this probability
            counts as the first query's.
        delete_same_entity: patches of one label count less where the way between them leaves it.
        logit_scale: what cosine similarities are multiplied by for the first segmentation.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        attn_strategy: str = "resclip",
        gaussian_std: float = 5.0,
        rcs_blocks: Sequence[int] = (5, 6, 7, 8),
        attn_rcs_weights: Sequence[float] = (2.0, 0.3),
        use_sfr: bool = False,
        attn_sfr_weights: Sequence[float] = (2.1, 0.7),
        temp_thd: float = 0.25,
        delete_same_entity: bool = True,
        logit_scale: float = 40.0,
        last_block: str = "",
    ):
        if attn_strategy not in STRATEGIES:
            raise ValueError(
                f"MODEL.CLIP.RESCLIP.ATTN_STRATEGY is {attn_strategy!r}; choose one of "
                f"{', '.join(STRATEGIES)}"
            )
        if not 0 < gaussian_std < math.inf:
            raise ValueError(
                f"MODEL.CLIP.RESCLIP.GAUSSIAN_STD is {gaussian_std}; it must be above 0"
            )
        if not rcs_blocks or min(rcs_blocks) < 0 or len(set(rcs_blocks)) < len(rcs_blocks):
            raise ValueError(
                f"MODEL.CLIP.RESCLIP.RCS_BLOCKS is {list(rcs_blocks)}; name at least one block, "
                "each once, counted from 0"
            )
        _check_weights("ATTN_RCS_WEIGHTS", attn_rcs_weights)
        _check_weights("ATTN_SFR_WEIGHTS", attn_sfr_weights)
        if not 0 <= temp_thd <= 1:
            raise ValueError(
                f"MODEL.CLIP.RESCLIP.TEMP_THD is {temp_thd}; give a number from 0 to 1"
            )
        if not 0 < logit_scale < math.inf:
            raise ValueError(f"MODEL.CLIP.RESCLIP.LOGIT_SCALE is {logit_scale}; it must be above 0")
        super().__init__(last_block=last_block or ("residual" if attn_strategy == "sclip" else ""))
        self.attn_strategy = attn_strategy
        self.gaussian_std = gaussian_std
        self.rcs_blocks = tuple(rcs_blocks)
        self.rcs_scale, self.rcs_share = attn_rcs_weights
        self.use_sfr = use_sfr
        self.sfr_scale, self.sfr_share = attn_sfr_weights
        self.temp_thd = temp_thd
        self.delete_same_entity = delete_same_entity
        self.logit_scale = logit_scale

    def reads(self, num_blocks: int) -> Reads:
        """The attention of the blocks that are mixed in."""
        if max(self.rcs_blocks) > num_blocks - 2:
            raise ValueError(
                f"MODEL.CLIP.RESCLIP.RCS_BLOCKS is {list(self.rcs_blocks)}, and of the tower's "
                f"{num_blocks} blocks 0 to {num_blocks - 2} can be mixed into the last; name such"
            )
        return Reads(head_attention=self.rcs_blocks)

    def attend(self, trunk: Trunk) -> Tensor:
        """(B, heads, T, d)."""
        return self._mix(trunk, self._residual(trunk))

    def similarity(self, trunk: Trunk) -> Tensor:
        """The mean of the heads of the mixture, without what the words change, (B, N, N)."""
        assert trunk.head_attention is not None
        before = trunk.head_attention.mean(dim=1, dtype=torch.float32)
        bias = self._bias(trunk)
        anew = sum(mean_attention(query, key, bias) for query, key in self._pairs(trunk.qkv))
        mixture = (1 - self.rcs_share) * anew + self.rcs_share * before
        return mixture[:, 1:, 1:]

    def keep(self, trunk: Trunk) -> Kept | None:
        """What :meth:`reread` needs, if it is to read the words."""
        if not self.use_sfr:
            return None
        return Kept(replace(trunk, head_attention=None), self._residual(trunk))

    def reread(
        self, kept: Kept, similarities: Tensor, pixels: Tensor, patch_size: tuple[int, int]
    ) -> Tensor:
        """Patch tokens (B, N, W), read with what the first segmentation says (SFR)."""
        labels = patch_labels(similarities, pixels, patch_size, self.logit_scale, self.temp_thd)
        bonus = label_bonus(labels, self.delete_same_entity, self.gaussian_std)
        bonus = attention_bonus(bonus, self.sfr_scale, self.sfr_share)
        trunk = kept.trunk
        attended = self._mix(trunk, kept.residual, bonus, self.sfr_scale * (1 - self.sfr_share))
        return end_block(trunk.last, trunk.tokens, attended, self.last_block)[:, 1:]

    def _residual(self, trunk: Trunk) -> Tensor:
        assert trunk.head_attention is not None
        return trunk.head_attention @ trunk.qkv[2]

    def _mix(
        self, trunk: Trunk, residual: Tensor, bonus: Tensor | None = None, share: float = 1.0
    ) -> Tensor:
        """The base's attention to the values, with logits times `share` plus `bonus`, and RCS."""
        value = trunk.qkv[2]
        bias = self._bias(trunk)
        if bonus is not None:
            bias = bonus.to(value.dtype) if bias is None else bias + bonus.to(value.dtype)
        scale = share * trunk.last.attn.head_dim**-0.5
        anew = sum(
            F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
            for query, key in self._pairs(trunk.qkv)
        )
        return self.rcs_scale * ((1 - self.rcs_share) * anew + self.rcs_share * residual)

    def _pairs(self, qkv: QKV) -> list[tuple[Tensor, Tensor]]:
        """Of the products whose softmax the base adds up."""
        query, key, _ = qkv
        return {
            "resclip": [(key, key)],
            "clearclip": [(query, query)],
            "sclip": [(query, query), (key, key)],
            "vanilla": [(query, key)],
        }[self.attn_strategy]

    def _bias(self, trunk: Trunk) -> Tensor | None:
        """(T, T) of the logits, if the base has one."""
        if self.attn_strategy != "resclip":
            return None
        return gaussian_neighbourhood(trunk.grid, self.gaussian_std, trunk.tokens)


def _check_weights(key: str, weights: Sequence[float]) -> None:
    if len(weights) != 2 or not 0 < weights[0] < math.inf or not 0 <= weights[1] <= 1:
        raise ValueError(
            f"MODEL.CLIP.RESCLIP.{key} is {list(weights)}; give two numbers, a factor above 0 and "
            "a share from 0 to 1"
        )
