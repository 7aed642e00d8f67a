"""CLIP's own attention."""

import torch.nn.functional as F
from torch import Tensor

from ..blocks import mean_attention
from .base import BASE_METHODS, LastBlockMethod, Trunk


@BASE_METHODS.register()
class Vanilla(LastBlockMethod):
    """The attention as trained."""

    ending = "mlp"

    def attend(self, trunk: Trunk) -> Tensor:
        """(B, heads, T, d)."""
        return F.scaled_dot_product_attention(*trunk.qkv)

    def similarity(self, trunk: Trunk) -> Tensor:
        """The mean of its heads, (B, N, N)."""
        query, key, _ = trunk.qkv
        return mean_attention(query, key)[:, 1:, 1:]
