"""The last transformer block as each training-free base method computes it (METHOD.md step 1).

Every function takes the last ``ResidualAttentionBlock`` of an open_clip ViT and the tokens that
enter it, (B, 1+N, W) with the CLS token first, and returns tokens of the same shape and dtype,
before ``ln_post`` and the projection. None of them adds the residual, and all are differentiable.
"""

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor


def project_qkv(block: ResidualAttentionBlock, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of ``ln_1``'s output (B, T, W), each (B, heads, T, W/heads)."""
    attention = block.attn
    qkv = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    batch, tokens, _ = normed.shape
    qkv = qkv.view(batch, tokens, 3, attention.num_heads, attention.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return query, key, value


def project_out(block: ResidualAttentionBlock, heads: Tensor) -> Tensor:
    """The output projection of per-head values (B, heads, T, W/heads), as (B, T, W)."""
    return block.ls_1(block.attn.out_proj(heads.transpose(1, 2).flatten(2)))


def add_mlp(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """``tokens + mlp(ln_2(tokens))``, for tokens of any leading shape."""
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def maskclip(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """MaskCLIP (Zhou et al., ECCV 2022): every token takes its own value; then the MLP."""
    _, _, value = project_qkv(block, block.ln_1(tokens))
    return add_mlp(block, project_out(block, value))


def sclip(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """SCLIP (Wang et al., ECCV 2024): query-query plus key-key attention; then the MLP."""
    query, key, value = project_qkv(block, block.ln_1(tokens))
    attended = F.scaled_dot_product_attention(query, query, value)
    attended = attended + F.scaled_dot_product_attention(key, key, value)
    return add_mlp(block, project_out(block, attended))


def clearclip(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """ClearCLIP (Lan et al., ECCV 2024): query-query attention, no MLP."""
    query, _, value = project_qkv(block, block.ln_1(tokens))
    return project_out(block, F.scaled_dot_product_attention(query, query, value))


def naclip(block: ResidualAttentionBlock, tokens: Tensor, neighbourhood: Tensor) -> Tensor:
    """NACLIP (Hajimiri et al., WACV 2025): key-key attention plus ``neighbourhood``, no MLP.

    Args:
        neighbourhood: (1+N, 1+N) added to the attention logits; see :func:`gaussian_neighbourhood`.
    """
    _, key, value = project_qkv(block, block.ln_1(tokens))
    attended = F.scaled_dot_product_attention(key, key, value, attn_mask=neighbourhood)
    return project_out(block, attended)


def vanilla(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """The attention as trained, but without the residual; then the MLP."""
    query, key, value = project_qkv(block, block.ln_1(tokens))
    return add_mlp(block, project_out(block, F.scaled_dot_product_attention(query, key, value)))


def gem_step(block: ResidualAttentionBlock, tokens: Tensor, stream: Tensor) -> Tensor:
    """GEM (Bousselham et al., CVPR 2024): one block of the second stream.

    Args:
        tokens: (B, 1+N, W) the ordinary stream that enters the block.
        stream: (B, 1+N, W) the second stream.

    Returns:
        (B, 1+N, W) the second stream after the block.
    """
    normed = block.ln_1(tokens)
    query, key, value = project_qkv(block, normed)
    temperature = normed.norm(dim=-1).mean(dim=1) * block.attn.head_dim**-0.5
    temperature = temperature[:, None, None, None]
    attended = torch.zeros_like(value)
    for source in (value, key, query):
        source = F.normalize(source, dim=-1)
        source = F.scaled_dot_product_attention(source * temperature, source, source, scale=1.0)
        source = F.normalize(source, dim=-1)
        attended = attended + F.scaled_dot_product_attention(
            source * temperature, source, value, scale=1.0
        )
    return stream + project_out(block, attended / 3)


def gaussian_neighbourhood(grid: tuple[int, int], std: float, like: Tensor) -> Tensor:
    """NACLIP's attention bias exp(-distance^2 / (2 std^2)) between grid positions.

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
