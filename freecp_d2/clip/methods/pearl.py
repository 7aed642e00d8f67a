"""PEARL's Procrustes alignment (Pei et al., 2026, arXiv 2603.21528)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..blocks import QKV, mean_attention
from .base import BASE_METHODS, LastBlockMethod, Trunk

SOLVERS = ("polar", "svd")


@BASE_METHODS.register()
class PEARL(LastBlockMethod):
    """Attention of queries to keys that are turned towards them, a rotation per head and window.

    A part of key-key attention is added to the logits. PEARL's text-aware propagation, which
    follows in its own protocol, is MODEL.FREECP.REFINE's "tlp".

    Args:
        use_kk: add the key-key part.
        alpha_kk: its weight.
        align_solver: "polar", as published: a few Newton-Schulz steps from the correlation of keys
            and queries, which leave its small singular values small; "svd": the nearest rotation.
        polar_iters: how many steps, at least 0.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        use_kk: bool = True,
        alpha_kk: float = 0.08,
        align_solver: str = "polar",
        polar_iters: int = 5,
        last_block: str = "",
    ):
        super().__init__(last_block=last_block)
        if not math.isfinite(alpha_kk):
            raise ValueError(f"MODEL.CLIP.PEARL.ALPHA_KK is {alpha_kk}; give a finite number")
        if align_solver not in SOLVERS:
            raise ValueError(
                f"MODEL.CLIP.PEARL.ALIGN_SOLVER is {align_solver!r}; choose one of "
                f"{', '.join(SOLVERS)}"
            )
        if polar_iters < 0:
            raise ValueError(
                f"MODEL.CLIP.PEARL.POLAR_ITERS is {polar_iters}; it must be at least 0"
            )
        self.alpha_kk = alpha_kk if use_kk else 0.0
        self.align_solver = align_solver
        self.polar_iters = polar_iters

    def attend(self, trunk: Trunk) -> Tensor:
        """(B, heads, T, d)."""
        query, key = self._aligned(trunk.qkv)
        value, scale = trunk.qkv[2], trunk.last.attn.head_dim**-0.5
        attended = F.scaled_dot_product_attention(query, key, value.float(), scale=scale)
        return attended.to(value.dtype)

    def similarity(self, trunk: Trunk) -> Tensor:
        """The mean of its heads, (B, N, N)."""
        query, key = self._aligned(trunk.qkv)
        wider = query.shape[-1] / trunk.last.attn.head_dim
        return mean_attention(query * wider**0.5, key)[:, 1:, 1:]

    def _aligned(self, qkv: QKV) -> tuple[Tensor, Tensor]:
        """Queries and keys whose products are the logits times sqrt(d), in float32.

        Where the key-key part is added they are twice as wide: it is a part of their product.
        """
        query, key = qkv[0].float(), qkv[1].float()
        weight = query.norm(dim=-1, keepdim=True)
        weight[:, :, 0] = 0  # the CLS token
        weight = weight / (weight.sum(dim=2, keepdim=True) + 1e-6)
        centred_query = query - (weight * query).sum(dim=2, keepdim=True)
        centred_key = key - (weight * key).sum(dim=2, keepdim=True)
        correlation = centred_key.mT @ centred_query
        if self.align_solver == "polar":
            rotation = polar_factor(correlation, self.polar_iters)
        else:
            rotation = nearest_rotation(correlation)
        turned = key @ rotation
        if not self.alpha_kk:
            return query, turned
        query = torch.cat((query, self.alpha_kk * centred_key), dim=-1)
        return query, torch.cat((turned, centred_key), dim=-1)


def polar_factor(matrix: Tensor, iterations: int) -> Tensor:
    """The orthogonal factor of matrices (..., d, d), approached by Newton-Schulz.

    It starts from M / sqrt(|M^T M|), Frobenius' norm. Few iterations leave singular values that are
    much smaller than the largest below 1.
    """
    gram = matrix.mT @ matrix
    norm = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=1e-6)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    root, inverse_root = gram / norm + 1e-6 * identity, identity
    for _ in range(iterations):
        correction = (3 * identity - inverse_root @ root) / 2
        root, inverse_root = root @ correction, correction @ inverse_root
    return matrix @ inverse_root / norm.sqrt()


def nearest_rotation(matrix: Tensor) -> Tensor:
    """U V^T of M = U S V^T, for matrices (..., d, d): orthogonal, perhaps a reflection."""
    left, _, right = torch.linalg.svd(matrix)
    return left @ right
