"""GEM (Bousselham et al., CVPR 2024)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from ..blocks import QKV, mean_attention, project_out
from .base import BASE_METHODS, BaseMethod, Reads, Trunk


@BASE_METHODS.register()
class GEM(BaseMethod):
    """A second stream of self-self attention beside the last blocks.

    Args:
        gem_depth: the stream spans the blocks of index > L - gem_depth (from 0), at least 2.
        gem_head_average: FreeCP's affinity averages all heads instead of taking head 0 alone,
            which is what was published.

    Raises:
        ValueError: gem_depth below 2.
    """

    antialias = True

    def __init__(self, *, gem_depth: int = 7, gem_head_average: bool = False):
        if gem_depth < 2:
            raise ValueError(f"MODEL.CLIP.GEM.DEPTH is {gem_depth}; it must be at least 2")
        self.gem_depth = gem_depth
        self.first_head_alone = not gem_head_average

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The options of a config."""
        return {f"gem_{key}": value for key, value in super().from_config(cfg).items()}

    def reads(self, num_blocks: int) -> Reads:
        """The second stream's blocks but the last."""
        first = max(0, num_blocks - self.gem_depth + 1)
        return Reads(second_stream=tuple(range(first, num_blocks - 1)))

    def step(
        self, block: ResidualAttentionBlock, normed: Tensor, qkv: QKV, stream: Tensor
    ) -> Tensor:
        """The second stream (B, T, W) after a block."""
        *_, value = qkv
        attended = torch.zeros_like(value)
        for source, scaled in _self_attended(block, normed, qkv):
            attended = attended + F.scaled_dot_product_attention(scaled, source, value, scale=1.0)
        return stream + project_out(block, attended / 3)

    def patches(self, trunk: Trunk) -> Tensor:
        """(B, N, W)."""
        stream = trunk.tokens if trunk.second_stream is None else trunk.second_stream
        return self.step(trunk.last, trunk.normed, trunk.qkv, stream)[:, 1:]

    def similarity(self, trunk: Trunk) -> Tensor:
        """The mean of the last block's three attentions and of their heads, (B, N, N)."""
        root = trunk.last.attn.head_dim**0.5
        attentions = [
            mean_attention(scaled * root, source)
            for source, scaled in _self_attended(trunk.last, trunk.normed, trunk.qkv)
        ]
        return sum(attentions[1:], attentions[0])[:, 1:, 1:] / 3


def _self_attended(
    block: ResidualAttentionBlock, normed: Tensor, qkv: QKV
) -> Iterator[tuple[Tensor, Tensor]]:
    """Values, keys and queries after attention to themselves, and these times the temperature."""
    query, key, value = qkv
    temperature = normed.norm(dim=-1).mean(dim=1) * block.attn.head_dim**-0.5
    temperature = temperature[:, None, None, None]
    for source in (value, key, query):
        source = F.normalize(source, dim=-1)
        source = F.scaled_dot_product_attention(source * temperature, source, source, scale=1.0)
        source = F.normalize(source, dim=-1)
        yield source, source * temperature
