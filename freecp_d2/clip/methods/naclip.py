"""NACLIP (Hajimiri et al., WACV 2025)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import mean_attention
from .base import BASE_METHODS, LastBlockMethod, Trunk

STRATEGIES = ("naclip", "nonly", "kk")


@BASE_METHODS.register()
class NACLIP(LastBlockMethod):
    """Key-key attention that favours the neighbours of a patch.

    Args:
        gaussian_std: standard deviation of the neighbourhood in patches, above 0.
        attn_strategy: "naclip"; "nonly", the neighbourhood alone, as strong as the products of
            queries and keys are on average; "kk", the keys alone.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, *, gaussian_std: float = 5.0, attn_strategy: str = "naclip", last_block: str = ""
    ):
        super().__init__(last_block=last_block)
        if not 0 < gaussian_std < math.inf:
            raise ValueError(
                f"MODEL.CLIP.NACLIP.GAUSSIAN_STD is {gaussian_std}; it must be above 0"
            )
        if attn_strategy not in STRATEGIES:
            raise ValueError(
                f"MODEL.CLIP.NACLIP.ATTN_STRATEGY is {attn_strategy!r}; choose one of "
                f"{', '.join(STRATEGIES)}"
            )
        self.gaussian_std = gaussian_std
        self.attn_strategy = attn_strategy

    def attend(self, trunk: Trunk) -> Tensor:
        """(B, heads, T, d)."""
        query, key, value = trunk.qkv
        if self.attn_strategy == "kk":
            return F.scaled_dot_product_attention(key, key, value)
        neighbourhood = gaussian_neighbourhood(trunk.grid, self.gaussian_std, key)
        if self.attn_strategy == "nonly":
            strength = mean_product(query, key)[:, None, None, None]
            return (neighbourhood * strength).softmax(dim=-1) @ value
        return F.scaled_dot_product_attention(key, key, value, attn_mask=neighbourhood)

    def similarity(self, trunk: Trunk) -> Tensor:
        """The mean of its heads, (B, N, N)."""
        query, key, _ = trunk.qkv
        if self.attn_strategy == "kk":
            return mean_attention(key, key)[:, 1:, 1:]
        neighbourhood = gaussian_neighbourhood(trunk.grid, self.gaussian_std, key)
        if self.attn_strategy == "nonly":
            strength = mean_product(query, key)[:, None, None]
            return (neighbourhood * strength).softmax(dim=-1).float()[:, 1:, 1:]
        return mean_attention(key, key, neighbourhood)[:, 1:, 1:]


def mean_product(query: Tensor, key: Tensor) -> Tensor:
    """(B,) means over heads and pairs of tokens of |q| |k| / sqrt(d); of (B, heads, T, d)."""
    of_head = query.norm(dim=-1).mean(dim=-1) * key.norm(dim=-1).mean(dim=-1)
    return of_head.mean(dim=-1) * query.shape[-1] ** -0.5


def gaussian_neighbourhood(grid: tuple[int, int], std: float, like: Tensor) -> Tensor:
    """The attention bias exp(-distance^2 / (2 std^2)) between grid positions.

    Args:
        grid: (h, w) in patches.
        std: standard deviation in patches, above 0.
        like: its dtype and device are those of the result.

    Returns:
        (1+h*w, 1+h*w) in [0, 1]; zero in the row and column of the CLS token.
    """
    rows = torch.arange(grid[0], device=like.device, dtype=torch.float32)
    columns = torch.arange(grid[1], device=like.device, dtype=torch.float32)
    positions = torch.cartesian_prod(rows, columns).view(-1, 2)
    squared_distance = (positions[:, None] - positions[None]).square().sum(-1)
    return F.pad(torch.exp(-squared_distance / (2 * std**2)), (1, 0, 1, 0)).to(like.dtype)
