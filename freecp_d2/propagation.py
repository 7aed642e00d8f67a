"""Propagation of maps over an image along pixels of like brightness and like words: PEARL's TLP.

METHOD.md section 8, with its slips. All of it happens on a pooled grid, in float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .sliding_window import upsample_rows

STEPS = 25
"""Of conjugate gradients. They do not converge in these: the number is part of the result."""

POOLED_VALUES = 2**24
"""How many values exist at once at the size that is pooled."""


def propagate(maps: Tensor, image: Tensor, text: Tensor, size: Sequence[int], grid: int) -> Tensor:
    """Maps that change little between pixels that are alike.

    Args:
        maps: (Q, h, w) of any range, upsampled to `size` before they are pooled.
        image: (3, h', w') normalised RGB, likewise.
        text: (Q, D), the words of the maps.
        size: height H and width W that the grid is of.
        grid: cells of about H / grid by W / grid pixels are pooled; sides under 1.5 * grid are not.

    Returns:
        (Q, H // rows, W // columns) float32 for cells of rows x columns pixels. What is left over
        at the lower and right border has no part in it.
    """
    cell = max(1, round(size[0] / grid)), max(1, round(size[1] / grid))
    values, image = pool(maps.float(), size, cell), pool(image.float(), size, cell)
    probability, prior = values.softmax(dim=0), class_prior(text.float())
    alike = _agreement(probability, probability, prior)
    confidence = probability.amax(dim=0).clamp(min=0.05).square() * (1 + alike)
    weights = image.new_tensor([0.299, 0.587, 0.114])
    brightness = torch.tensordot(weights, image, dims=1)
    edges = [_edges(brightness, probability, prior, dim) for dim in (0, 1)]
    return _solve(confidence, edges, values)


def pool(maps: Tensor, size: Sequence[int], cell: tuple[int, int]) -> Tensor:
    """Maps (C, h, w), upsampled to `size`, and the means of cells, strip by strip.

    Returns:
        (C, H // cell height, W // cell width).
    """
    count = size[0] // cell[0]
    at_once = max(1, POOLED_VALUES // (len(maps) * cell[0] * size[1]))
    strips = []
    for start in range(0, count, at_once):
        rows = slice(start * cell[0], min(start + at_once, count) * cell[0])
        strips.append(F.avg_pool2d(upsample_rows(maps, size, rows), cell))
    return torch.cat(strips, dim=1)


def class_prior(text: Tensor) -> Tensor:
    """How much each query counts in an agreement: (Q,) for text features (Q, D).

    The diagonal of a similarity of classes; published so, so that classes never mix.
    """
    text = F.normalize(text, dim=1)
    shares = (text @ text.T / 0.5).softmax(dim=1)
    total = shares.sum(dim=1) + 10
    return (shares.diagonal() + 10) / (total + 1e-6)


def _agreement(first: Tensor, second: Tensor, prior: Tensor) -> Tensor:
    """In [0, 1], of probabilities (Q, h, w)."""
    return (first * second * prior[:, None, None]).sum(dim=0).clamp(0, 1)


def _edges(brightness: Tensor, probability: Tensor, prior: Tensor, dim: int) -> Tensor:
    """In [0, 1], between neighbours along rows or columns: one less than (h, w) in `dim`."""
    count = brightness.shape[dim] - 1
    difference = brightness.diff(dim=dim).abs()
    difference = difference / (difference.mean() + 1e-6)
    first = probability.narrow(dim + 1, 0, count)
    second = probability.narrow(dim + 1, 1, count)
    return ((-5 * difference).exp() * (1 + _agreement(first, second, prior))).clamp(0, 1)


def _solve(confidence: Tensor, edges: Sequence[Tensor], values: Tensor) -> Tensor:
    """(diag(confidence) + Laplacian of the edges) F = confidence * values, from F = values on.

    Conjugate gradients with one step length for all queries together.
    """

    def product(f: Tensor) -> Tensor:
        result = confidence * f
        for dim, edge in enumerate(edges, start=1):
            flow = edge * f.diff(dim=dim)
            count = flow.shape[dim]
            result.narrow(dim, 0, count).sub_(flow)
            result.narrow(dim, 1, count).add_(flow)
        return result

    solution = values.clone()
    residual = confidence * values - product(solution)
    direction, squared = residual.clone(), residual.square().sum()
    for _ in range(STEPS):
        image = product(direction)
        length = squared / ((direction * image).sum() + 1e-12)
        solution += length * direction
        residual -= length * image
        before, squared = squared, residual.square().sum()
        direction = residual + squared / (before + 1e-12) * direction
    return solution
