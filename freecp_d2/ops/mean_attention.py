"""The attention weights of a block, averaged over its heads.

No (B, heads, T, T) is ever written: every program holds the logits of one tile of one head.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._checks import require_shape


@triton.jit
def _add_product(
    logits,
    query,
    key,
    rows,
    columns,
    start,
    length,
    query_row,
    query_dim,
    key_row,
    key_dim,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """logits_ij + q_i . k_j over BLOCK_DIM of the dimensions."""
    dims = start + tl.arange(0, BLOCK_DIM)
    inside = (rows[:, None] < length) & (dims[None, :] < HEAD_DIM)
    q = tl.load(query + rows[:, None] * query_row + dims[None, :] * query_dim, inside, 0)
    inside = (columns[None, :] < length) & (dims[:, None] < HEAD_DIM)
    k = tl.load(key + columns[None, :] * key_row + dims[:, None] * key_dim, inside, 0)
    return tl.dot(q, k, logits, input_precision="tf32x3")


@triton.jit
def _tile_logits(
    query,
    key,
    rows,
    columns,
    length,
    query_row,
    query_dim,
    key_row,
    key_dim,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    """SCALE * q_i . k_j of rows i and columns j of one head, in float32."""
    logits = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    if HEAD_DIM <= BLOCK_DIM:  # no inner loop, so that the compiler loads the next tile ahead
        logits = _add_product(
            *(logits, query, key, rows, columns, 0, length),
            *(query_row, query_dim, key_row, key_dim, HEAD_DIM, BLOCK_DIM),
        )
    else:
        for start in range(0, HEAD_DIM, BLOCK_DIM):
            logits = _add_product(
                *(logits, query, key, rows, columns, start, length),
                *(query_row, query_dim, key_row, key_dim, HEAD_DIM, BLOCK_DIM),
            )
    return logits * SCALE


@triton.jit
def _normaliser_kernel(
    query,
    key,
    highest,
    share,
    heads,
    length,
    query_batch,
    query_head,
    query_row,
    query_dim,
    key_batch,
    key_head,
    key_row,
    key_dim,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What makes logits x_ij of a head its part of the mean, share_i * 2^(x_ij - highest_i).

    highest_i = max over j of x_ij, share_i = 1 / (heads * sum over j of 2^(x_ij - highest_i)).
    """
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = batch * heads + head
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    rows = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, length, BLOCK):
        columns = start + tl.arange(0, BLOCK).to(tl.int64)
        logits = _tile_logits(
            *(query, key, rows, columns, length, query_row, query_dim, key_row, key_dim),
            *(SCALE, HEAD_DIM, BLOCK_DIM),
        )
        logits = tl.where(columns[None, :] < length, logits, float("-inf"))
        higher = tl.maximum(top, tl.max(logits, 1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(logits - higher[:, None]), 1)
        top = higher
    tl.store(highest + index * length + rows, top, rows < length)
    tl.store(share + index * length + rows, tl.div_rn(1.0, heads * total), rows < length)


@triton.jit
def _mean_attention_kernel(
    query,
    key,
    highest,
    share,
    record,
    heads,
    length,
    query_batch,
    query_head,
    query_row,
    query_dim,
    key_batch,
    key_head,
    key_row,
    key_dim,
    record_batch,
    record_row,
    record_column,
    SCALE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """record[b, i, j] += sum over heads of share_i * 2^(x_ij - highest_i)."""
    batch = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK).to(tl.int64)
    query += batch * query_batch
    key += batch * key_batch
    highest += batch * heads * length + rows
    share += batch * heads * length + rows
    mean = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(heads):
        logits = _tile_logits(
            *(query, key, rows, columns, length, query_row, query_dim, key_row, key_dim),
            *(SCALE, HEAD_DIM, BLOCK_DIM),
        )
        top = tl.load(highest, rows < length, 0)
        mean += tl.exp2(logits - top[:, None]) * tl.load(share, rows < length, 0)[:, None]
        query += query_head
        key += key_head
        highest += length
        share += length
    record += batch * record_batch + rows[:, None] * record_row + columns[None, :] * record_column
    inside = (rows[:, None] < length) & (columns[None, :] < length)
    tl.store(record, tl.load(record, inside, 0) + mean, inside)


def mean_attention_triton(query: Tensor, key: Tensor, record: Tensor) -> None:
    if query.dtype == torch.float64:
        mean_attention_composite(query, key, record)
        return
    batch, heads, length, dim = query.shape
    if batch * heads == 0:
        return
    highest = torch.empty(batch, heads, length, dtype=torch.float32, device=query.device)
    share = torch.empty_like(highest)
    # As much as registers hold, by what ptxas says of sm_80.
    block, most_dims = (32, 64) if query.dtype == torch.float32 else (64, 128)
    block_dim = min(max(triton.next_power_of_2(dim), 16), most_dims)
    blocks = triton.cdiv(length, block)
    strides = *query.stride(), *key.stride()
    # 2^x is what a GPU has; log2(e) goes into the scale.
    constants = dim**-0.5 * math.log2(math.e), dim, block_dim, block
    with torch.cuda.device_of(query):
        _normaliser_kernel[batch, heads, blocks](
            query, key, highest, share, heads, length, *strides, *constants
        )
        _mean_attention_kernel[batch, blocks, blocks](
            *(query, key, highest, share, record, heads, length),
            *(*strides, *record.stride(), *constants),
        )


def mean_attention_composite(query: Tensor, key: Tensor, record: Tensor) -> None:
    dtype = torch.promote_types(query.dtype, torch.float32)
    heads, scale = query.shape[1], query.shape[-1] ** -0.5
    with torch.autocast(query.device.type, enabled=False):
        for head in range(heads):
            q, k = query[:, head].to(dtype), key[:, head].to(dtype)
            record += (q * scale @ k.mT).softmax(dim=-1) / heads


_op = torch.library.custom_op(
    "freecp::mean_attention", mean_attention_composite, mutates_args=("record",)
)


_op.register_kernel("cuda")(mean_attention_triton)


@_op.register_fake
def _fake(query: Tensor, key: Tensor, record: Tensor) -> None:
    pass


def mean_attention(query: Tensor, key: Tensor, record: Tensor) -> None:
    """Add the mean over heads of softmax(q k^T / sqrt(d)) to `record` (METHOD.md step 3).

    On CUDA two launches that the host does not wait for: one for every row's normaliser, one that
    sums over heads and writes the record, once. Queries and keys are read where they lie, whatever
    their strides. Not differentiable: what was added has no gradient.

    Args:
        query, key: (B, heads, T, d) floating, of one dtype.
        record: (B, T, T) float32, which is changed.

    Raises:
        ValueError: a shape or dtype is none of these, or they do not fit together.
    """
    require_shape("mean_attention", "query", query, "B", "heads", "T", "d")
    require_shape("mean_attention", "record", record, "B", "T", "T")
    if key.shape != query.shape or key.dtype != query.dtype:
        raise ValueError(
            f"mean_attention: query {query.dtype} {tuple(query.shape)} and key {key.dtype} "
            f"{tuple(key.shape)} differ"
        )
    batch, _, length, _ = query.shape
    if record.shape != (batch, length, length) or record.dtype != torch.float32:
        raise ValueError(
            f"mean_attention: queries {tuple(query.shape)} need a record "
            f"{(batch, length, length)} of float32, got {record.dtype} {tuple(record.shape)}"
        )
    torch.ops.freecp.mean_attention(query, key, record)
