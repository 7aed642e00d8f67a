"""SCLIP (Wang et al., ECCV 2024)."""

import torch.nn.functional as F
from torch import Tensor

from ..blocks import mean_attention
from .base import BASE_METHODS, LastBlockMethod, Trunk


@BASE_METHODS.register()
class SCLIP(LastBlockMethod):
    """Query-query plus key-key attention.

    FreeCP's variant ends in the MLP without the residual; SCLIP's own is `last_block` "residual".
    """

    ending = "mlp"

    def attend(self, trunk: Trunk) -> Tensor:
        """(B, heads, T, d)."""
        query, key, value = trunk.qkv
        attended = F.scaled_dot_product_attention(query, query, value)
        return attended + F.scaled_dot_product_attention(key, key, value)

    def similarity(self, trunk: Trunk) -> Tensor:
        """The mean of both attentions and of all heads, (B, N, N)."""
        query, key, _ = trunk.qkv
        total = mean_attention(query, query) + mean_attention(key, key)
        return total[:, 1:, 1:] / 2
