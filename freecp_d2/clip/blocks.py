"""The blocks of an open_clip ViT, taken apart (METHOD.md step 1).

Everything here is differentiable but :func:`recorded_attention`: calling backward through it raises
on a CPU.
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from .. import ops
from .matmul import linear

QKV: TypeAlias = tuple[Tensor, Tensor, Tensor]

ENDINGS: tuple[str, ...] = ("projection", "mlp", "residual")
"""How :func:`end_block` may end the last block."""


def grid_of(visual: VisionTransformer, images: Tensor) -> tuple[int, int]:
    """Rows and columns of whole patches in images (B, 3, H, W)."""
    height, width = visual.patch_size
    return images.shape[2] // height, images.shape[3] // width


def embed(visual: VisionTransformer, images: Tensor, position: Tensor) -> Tensor:
    """What enters the first block.

    Args:
        images: (B, 3, H, W) normalised, each side at least a patch.
        position: (1+N, W) of :func:`positional_embedding`.

    Returns:
        Tokens (B, 1+N, W), the CLS token first.
    """
    patches = visual.conv1(images.to(visual.conv1.weight.dtype))
    cls = visual.class_embedding.to(patches.dtype).expand(images.shape[0], 1, -1)
    tokens = torch.cat((cls, patches.flatten(2).transpose(1, 2)), dim=1)
    return visual.ln_pre(tokens + position.to(tokens.dtype))


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
    qkv = linear(normed, attention.in_proj_weight, attention.in_proj_bias)
    batch, tokens, _ = normed.shape
    qkv = qkv.view(batch, tokens, 3, attention.num_heads, attention.head_dim)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    return query, key, value


def project_out(block: ResidualAttentionBlock, heads: Tensor) -> Tensor:
    """The output projection of per-head values (B, heads, T, W/heads), as (B, T, W)."""
    out = block.attn.out_proj
    return block.ls_1(linear(heads.transpose(1, 2).flatten(2), out.weight, out.bias))


def add_mlp(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """``tokens + mlp(ln_2(tokens))``, for tokens of any leading shape."""
    widen, activation, narrow = block.mlp
    hidden = activation(linear(block.ln_2(tokens), widen.weight, widen.bias))
    return tokens + block.ls_2(linear(hidden, narrow.weight, narrow.bias))


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


def recorded_attention(
    qkv: QKV, *records: Tensor, head_record: Tensor | None = None, share: float = 1.0
) -> Tensor:
    """Attention as trained, which adds the mean of its heads' weights to each of `records`.

    On a CPU the weights of one head exist at a time. On CUDA none do, unless there is a
    `head_record`: see :func:`freecp_d2.ops.mean_attention`.

    Args:
        qkv: (B, heads, T, d) each.
        records: (B, T, T) float32.
        head_record: (B, heads, T, T), to which `share` times every head's weights are added.

    Returns:
        (B, heads, T, d).
    """
    query, key, value = qkv
    if query.is_cuda and head_record is None:
        for record in records:
            ops.mean_attention(query, key, record)
        return F.scaled_dot_product_attention(query, key, value)
    if query.device.type != "cpu" or torch.compiler.is_exporting():
        weights = attention_weights(query, key)
        for record in records:
            record += weights.mean(dim=1, dtype=torch.float32)
        if head_record is not None:
            head_record += share * weights
        return weights @ value
    return _attention_by_head(query, key, value, list(records), head_record, share).transpose(1, 2)


@torch.library.custom_op("freecp::attention_by_head", mutates_args=("records", "head_record"))
def _attention_by_head(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    records: list[Tensor],
    head_record: Tensor | None,
    share: float,
) -> Tensor:
    """One operator, so that compiling does not unroll it; (B, T, heads, d)."""
    batch, heads, length, width = query.shape
    attended = query.new_empty(batch, length, heads, width)
    query = (query * width**-0.5).contiguous()
    key, value_t = key.contiguous(), value.transpose(2, 3).contiguous()
    for image in range(batch):
        for head in range(heads):
            at = image, head
            weights = linear(query[at], key[at]).softmax(dim=-1)
            for record in records:
                record[image].add_(weights, alpha=1 / heads)
            if head_record is not None:
                head_record[at].add_(weights, alpha=share)
            attended[image, :, head] = linear(weights, value_t[at])
    return attended


@_attention_by_head.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    records: list[Tensor],
    head_record: Tensor | None,
    share: float,
) -> Tensor:
    batch, heads, length, width = query.shape
    return query.new_empty(batch, length, heads, width)


def mean_attention(query: Tensor, key: Tensor, bias: Tensor | None = None) -> Tensor:
    """The mean over heads of softmax(q k^T / sqrt(d) + bias), one head at a time.

    Args:
        query, key: (B, heads, T, d).
        bias: (T, T), or None.

    Returns:
        (B, T, T) float32.
    """
    batch, heads, length, _ = query.shape
    total = query.new_zeros(batch, length, length, dtype=torch.float32)
    for head in range(heads):
        logits = query[:, head] * query.shape[-1] ** -0.5 @ key[:, head].transpose(-1, -2)
        total += (logits if bias is None else logits + bias).softmax(dim=-1)
    return total / heads


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
