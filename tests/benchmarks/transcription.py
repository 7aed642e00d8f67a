"""METHOD.md as it is written: the yardstick of bench.py.

One window at a time, one OpenCV call a class, a (C, N, N) tensor for the refinement, all channels
at full resolution. PyTorch does what it does well; nothing is slowed down. Only what the vectors
and the benchmark need: one name a class, and the base methods without parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from freecp_d2.clip import DenseCLIP, DenseFeatures

MEAN = (122.771, 116.746, 104.094)
STD = (68.501, 66.632, 70.323)


@dataclass(frozen=True)
class Purified:
    """One window: maps, refined (C, h, w); probabilities (Q, h, w); consistency, kept (C,)."""

    probabilities: Tensor
    refined: Tensor
    consistency: Tensor
    kept_redundancy: Tensor
    kept: Tensor
    maps: Tensor


def dense_features(model: open_clip.CLIP, method: str, images: Tensor) -> DenseFeatures:
    """Step 1 by maskclip, sclip or clearclip, with the attention of every block recorded."""
    visual = model.visual
    tokens = visual.conv1(images.to(visual.conv1.weight.dtype))
    grid = (tokens.shape[2], tokens.shape[3])
    tokens = tokens.flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(tokens.dtype).expand(len(images), 1, -1)
    tokens = torch.cat((cls, tokens), dim=1)
    position = visual.positional_embedding
    if grid != visual.grid_size:
        patches = position[1:].T.reshape(1, -1, *visual.grid_size).float()
        scale = [(side + 0.1) / own for side, own in zip(grid, visual.grid_size, strict=True)]
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
        position = torch.cat((position[:1], patches.flatten(2)[0].T))
    tokens = visual.ln_pre(tokens + position.to(tokens.dtype))
    recorded = []
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        normed = block.ln_1(tokens)
        attended, weights = block.attn(normed, normed, normed, need_weights=True)
        recorded.append(weights.float())
        tokens = tokens + attended
        tokens = tokens + block.mlp(block.ln_2(tokens))
    qkv = F.linear(last.ln_1(tokens), last.attn.in_proj_weight, last.attn.in_proj_bias)
    qkv = qkv.unflatten(2, (3, last.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    scale = query.shape[-1] ** -0.5
    if method == "maskclip":
        dense = value
    else:
        attention = (scale * query @ query.transpose(-1, -2)).softmax(dim=-1)
        if method == "sclip":
            attention = attention + (scale * key @ key.transpose(-1, -2)).softmax(dim=-1)
        dense = attention @ value
    dense = last.attn.out_proj(dense.transpose(1, 2).flatten(2))
    if method != "clearclip":
        dense = dense + last.mlp(last.ln_2(dense))

    def project(tokens: Tensor) -> Tensor:
        return F.normalize((visual.ln_post(tokens) @ visual.proj).float(), dim=-1)

    return DenseFeatures(
        patches=project(dense[:, 1:]),
        cls=project(last(tokens)[:, 0]),
        attention=torch.stack(recorded).mean(0)[:, 1:, 1:],
        grid=grid,
    )


def component_boxes(map_: Tensor) -> list[tuple[int, int, int, int]]:
    """(x0, y0, x1, y1) of every contour of a map (h, w) in [0, 1] (step 4)."""
    height, width = map_.shape
    image = (255 * map_).cpu().numpy().astype(np.uint8)
    _, binary = cv2.threshold(image, int(0.4 * image.max()), 255, cv2.THRESH_BINARY)
    contours, _ = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append((x, y, min(x + w, width - 1), min(y + h, height - 1)))
    return boxes


def transition(attention: Tensor) -> Tensor:
    """T (N, N) of the averaged attention (N, N) (step 3)."""
    affinity = attention
    for _ in range(3):
        affinity = affinity / affinity.sum(dim=0, keepdim=True)
        affinity = affinity / affinity.sum(dim=1, keepdim=True)
    affinity = (affinity + affinity.T) / 2
    return affinity @ affinity


def refine(transition: Tensor, normalized: Tensor) -> Tensor:
    """Step 4: (C, h, w) in [0, 1] of T (N, N) and the normalised maps (C, h, w)."""
    masks = np.zeros(normalized.shape, np.float32)
    for mask, map_ in zip(masks, normalized, strict=True):
        for x0, y0, x1, y1 in component_boxes(map_):
            mask[y0:y1, x0:x1] = 1
    masked = transition * torch.from_numpy(masks).to(normalized.device).flatten(1)[:, None]
    refined = (masked @ normalized.flatten(1)[:, :, None])[:, :, 0]
    low, high = refined.amin(1, keepdim=True), refined.amax(1, keepdim=True)
    return ((refined - low) / (high - low + 1e-8)).view(normalized.shape)


def resolve_ambiguity(
    pixels: Tensor,
    refined: Tensor,
    kept: Tensor,
    descriptions: Tensor,
    encoder: DenseCLIP,
    threshold: float,
) -> Tensor:
    """Step 6: (C,) bool of the window's pixels (3, H, W), one crop after the other."""
    classes = kept.nonzero()[:, 0]
    if len(classes) < 2:
        return kept
    maps = refined[classes]
    soft_iou = torch.stack(
        [torch.minimum(m, maps).sum((1, 2)) / torch.maximum(m, maps).sum((1, 2)) for m in maps]
    )
    count, component = connected_components((soft_iou >= threshold).cpu().numpy(), directed=False)
    winners = torch.zeros_like(kept)
    height, width = encoder.patch_size
    for index in range(count):
        members = classes[torch.from_numpy(component == index).to(classes.device)]
        if len(members) == 1:
            winners[members] = True
            continue
        for x0, y0, x1, y1 in component_boxes(refined[members].mean(0)):
            if x1 <= x0 or y1 <= y0:
                winners[members] = True
                continue
            crop = pixels[:, y0 * height : y1 * height, x0 * width : x1 * width]
            crop = F.interpolate(crop[None], (112, 112), mode="bilinear", align_corners=False)
            scores = descriptions[members] @ encoder.encode_cls(crop)[0]
            winners[members[scores.argmax()]] = True
    return winners


@torch.no_grad()
def purify(
    images: Tensor,
    features: DenseFeatures,
    text: Tensor,
    descriptions: Tensor,
    encoder: DenseCLIP,
    redundancy_threshold: float,
    ambiguity_threshold: float,
    num_background: int = 0,
    ambiguity: bool = True,
) -> Purified:
    """Steps 2 to 6 for one window (1, 3, H, W), with the arguments of PurificationHead."""
    logits = encoder.logit_scale * features.patches[0] @ text.T
    probabilities = logits.softmax(dim=1).T.reshape(-1, *features.grid)
    low, high = probabilities.min(), probabilities.max()
    normalized = ((probabilities - low) / (high - low))[num_background:]
    refined = refine(transition(features.attention[0]), normalized)
    own = probabilities[num_background:]
    overlap = (own * refined).sum((1, 2))
    consistency = overlap / (own.sum((1, 2)) + refined.sum((1, 2)) + 1e-8)
    kept = kept_redundancy = consistency > redundancy_threshold
    if ambiguity:
        kept = resolve_ambiguity(
            images[0], refined, kept, descriptions[num_background:], encoder, ambiguity_threshold
        )
    return Purified(
        probabilities=probabilities,
        refined=refined,
        consistency=consistency,
        kept_redundancy=kept_redundancy,
        kept=kept,
        maps=refined * kept[:, None, None],
    )


@torch.no_grad()
def segment(
    image: Tensor,
    text: Tensor,
    descriptions: Tensor,
    encoder: DenseCLIP,
    redundancy_threshold: float,
    ambiguity_threshold: float,
    num_background: int,
    window: int,
    stride: int,
    size: tuple[int, int],
    dense: Callable[[Tensor], DenseFeatures] | None = None,
) -> tuple[Tensor, Tensor]:
    """Step 7: scores (K, *size) and label map of an image (3, H, W), RGB, 0-255.

    Args:
        dense: gives a window's features; by default the encoder.
    """
    mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in (MEAN, STD))
    pixels = (image.float() - mean) / std
    height, width = pixels.shape[1:]
    total = pixels.new_zeros(len(text) - num_background, height, width)
    count = pixels.new_zeros(height, width)
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            x = pixels[None, :, top:bottom, left:right]
            features = (dense or encoder)(x)
            maps = purify(
                *(x, features, text, descriptions, encoder),
                *(redundancy_threshold, ambiguity_threshold, num_background),
            ).maps
            maps = F.interpolate(maps[None], x.shape[2:], mode="bilinear", align_corners=False)[0]
            total[:, top:bottom, left:right] += maps
            count[top:bottom, left:right] += 1
    scores = F.interpolate((total / count)[None], size, mode="bilinear", align_corners=False)[0]
    if num_background:
        scores = torch.cat((1 - scores.amax(0, keepdim=True), scores))
    return scores, scores.argmax(0)
