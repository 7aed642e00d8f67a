"""An open_clip ViT block by block, its last one as each base method reads it (METHOD.md step 1).

``maskclip``, ``sclip``, ``clearclip``, ``naclip`` and ``vanilla`` take the queries, keys and values
(B, heads, 1+N, W/heads) of the tokens that enter the last block, the CLS token first, and return
what these tokens attend to, of the same shape. :func:`end_block` makes of it the tokens (B, 1+N, W)
before ``ln_post`` and the projection. Everything here is differentiable, except what
:func:`recorded_attention` records.
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

QKV: TypeAlias = tuple[Tensor, Tensor, Tensor]

ENDINGS: tuple[str, ...] = ("projection", "mlp", "residual")
"""How :func:`end_block` may end the last block."""

ENDING: dict[str, str] = {
    "maskclip": "mlp",
    "sclip": "mlp",
    "clearclip": "projection",
    "naclip": "projection",
    "vanilla": "mlp",
}
"""How each base method ends it (METHOD.md step 1). GEM goes a way of its own."""

WEIGHTS_AT_ONCE = (2**21, 2**26)
"""How many attention weights exist at once, on a CPU (about its cache) and on other devices."""


def embed(
    visual: VisionTransformer, images: Tensor, antialias: bool = False
) -> tuple[Tensor, tuple[int, int]]:
    """What enters the first block.

    Args:
        images: (B, 3, H, W) normalised, each side at least a patch.
        antialias: resample the positional embedding as GEM does.

    Returns:
        tokens (B, 1+N, W) with the CLS token first, and the grid (h, w).
    """
    patches = visual.conv1(images.to(visual.conv1.weight.dtype))
    grid = (patches.shape[-2], patches.shape[-1])
    cls = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
    tokens = torch.cat((cls, patches.flatten(2).transpose(1, 2)), dim=1)
    position = positional_embedding(visual, grid, antialias).to(tokens.dtype)
    return visual.ln_pre(tokens + position), grid


def positional_embedding(
    visual: VisionTransformer, grid: tuple[int, int], antialias: bool = False
) -> Tensor:
    """The positional embedding (1+N, W), resampled unless (h, w) is the trained grid."""
    position = visual.positional_embedding
    if grid == visual.grid_size:
        return position
    patches = position[1:].T.reshape(1, -1, *visual.grid_size).float()
    if antialias:
        patches = F.interpolate(patches, size=grid, mode="bicubic", antialias=True)
    else:
        scale = [
            (side + 0.1) / trained for side, trained in zip(grid, visual.grid_size, strict=True)
        ]
        patches = F.interpolate(
            patches, scale_factor=scale, mode="bicubic", recompute_scale_factor=False
        )
    return torch.cat((position[:1], patches.flatten(2)[0].T.to(position.dtype)))


def project_qkv(block: ResidualAttentionBlock, normed: Tensor) -> QKV:
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


def finish_block(block: ResidualAttentionBlock, tokens: Tensor, attended: Tensor) -> Tensor:
    """A block as trained after its attention.

    Args:
        tokens: (B, T, W) that entered the block.
        attended: (B, heads, T, W/heads).
    """
    return add_mlp(block, tokens + project_out(block, attended))


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of (..., T, d), as (..., T, T)."""
    return (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(dim=-1)


def recorded_attention(qkv: QKV, record: Tensor) -> Tensor:
    """Attention as trained, which adds the mean of its heads' weights to `record`.

    The weights of a few heads exist at a time, never all of them.

    Args:
        qkv: (B, heads, T, d) each.
        record: (B, T, T) float32.

    Returns:
        (B, heads, T, d).
    """
    query, key, value = qkv
    batch, heads, length, _ = query.shape
    at_once = max(1, WEIGHTS_AT_ONCE[query.device.type != "cpu"] // length**2)
    attended = torch.empty_like(value)
    for image in range(0, batch, max(1, at_once // heads)):
        images = slice(image, image + max(1, at_once // heads))
        for head in range(0, heads, at_once):
            chunk = images, slice(head, head + at_once)
            weights = attention_weights(query[chunk], key[chunk])
            record[images] += weights.sum(dim=1, dtype=torch.float32) / heads
            attended[chunk] = weights @ value[chunk]
    return attended


def cls_block(block: ResidualAttentionBlock, tokens: Tensor, qkv: QKV) -> Tensor:
    """The CLS token (B, W) after a block as trained, whose input is `tokens` (B, T, W)."""
    query, key, value = qkv
    attended = F.scaled_dot_product_attention(query[:, :, :1], key, value)
    return finish_block(block, tokens[:, :1], attended)[:, 0]


def end_block(
    block: ResidualAttentionBlock, tokens: Tensor, attended: Tensor, ending: str
) -> Tensor:
    """The last block after its attention, as a base method ends it.

    Args:
        tokens: (B, T, W) that entered the block.
        attended: (B, heads, T, W/heads).
        ending: one of :data:`ENDINGS`; see MODEL.CLIP.LAST_BLOCK.

    Returns:
        (B, T, W).
    """
    if ending == "residual":
        return finish_block(block, tokens, attended)
    projected = project_out(block, attended)
    return add_mlp(block, projected) if ending == "mlp" else projected


def maskclip(qkv: QKV) -> Tensor:
    """MaskCLIP (Zhou et al., ECCV 2022): every token takes its own value."""
    _, _, value = qkv
    return value


def sclip(qkv: QKV) -> Tensor:
    """SCLIP (Wang et al., ECCV 2024): query-query plus key-key attention."""
    query, key, value = qkv
    attended = F.scaled_dot_product_attention(query, query, value)
    return attended + F.scaled_dot_product_attention(key, key, value)


def clearclip(qkv: QKV) -> Tensor:
    """ClearCLIP (Lan et al., ECCV 2024): query-query attention."""
    query, _, value = qkv
    return F.scaled_dot_product_attention(query, query, value)


def naclip(qkv: QKV, neighbourhood: Tensor) -> Tensor:
    """NACLIP (Hajimiri et al., WACV 2025): key-key attention plus ``neighbourhood``.

    Args:
        neighbourhood: (1+N, 1+N) added to the attention logits; see :func:`gaussian_neighbourhood`.
    """
    _, key, value = qkv
    return F.scaled_dot_product_attention(key, key, value, attn_mask=neighbourhood)


def vanilla(qkv: QKV) -> Tensor:
    """The attention as trained."""
    return F.scaled_dot_product_attention(*qkv)


def gem_step(block: ResidualAttentionBlock, normed: Tensor, qkv: QKV, stream: Tensor) -> Tensor:
    """GEM (Bousselham et al., CVPR 2024): one block of the second stream.

    Args:
        normed: (B, 1+N, W) ``ln_1`` of the ordinary stream that enters the block.
        qkv: of `normed`.
        stream: (B, 1+N, W) the second stream.

    Returns:
        (B, 1+N, W) the second stream after the block.
    """
    query, key, value = qkv
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
