"""ClearCLIP (Lan et al., ECCV 2024)."""

import torch.nn.functional as F
from torch import Tensor

from ..blocks import mean_attention
from .base import BASE_METHODS, LastBlockMethod, Trunk


@BASE_METHODS.register()
class ClearCLIP(LastBlockMethod):
    """Query-query attention, neither residual nor MLP."""

    def attend(self, trunk: Trunk) -> Tensor:
        """(B, heads, T, d)."""
        query, _, value = trunk.qkv
        return F.scaled_dot_product_attention(query, query, value)

    def similarity(self, trunk: Trunk) -> Tensor:
        """The mean of its heads, (B, N, N)."""
        query, _, _ = trunk.qkv
        return mean_attention(query, query)[:, 1:, 1:]
