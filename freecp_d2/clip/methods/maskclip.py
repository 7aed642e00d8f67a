"""MaskCLIP (Zhou et al., ECCV 2022)."""

import torch
from torch import Tensor

from .base import BASE_METHODS, LastBlockMethod, Trunk


@BASE_METHODS.register()
class MaskCLIP(LastBlockMethod):
    """Every token takes its own value. Its similarity is the identity: nothing spreads."""

    ending = "mlp"

    def attend(self, trunk: Trunk) -> Tensor:
        """(B, heads, T, d)."""
        _, _, value = trunk.qkv
        return value

    def similarity(self, trunk: Trunk) -> Tensor:
        """(B, N, N)."""
        batch, length, _ = trunk.tokens.shape
        identity = torch.eye(length - 1, device=trunk.tokens.device)
        return identity.expand(batch, -1, -1)
