"""Class features that are less alike each other.

After "Unsupervised Domain Adaptation in Semantic Segmentation via Orthogonal and Clustered
Embeddings" (WACV 2021): there a loss makes features of classes orthogonal; here the text features
are whitened in part, without training.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EIGENVALUE_FLOOR = 1e-4


def check_decorrelation(gamma: float) -> float:
    """`gamma`, MODEL.FREECP.DECORRELATION.

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"MODEL.FREECP.DECORRELATION is {gamma}; give a number from 0 to 1")
    return gamma


def decorrelate(features: Tensor, gamma: float) -> Tensor:
    """Rows of G^(-1/2) T of unit length, G = (1 - gamma) I + gamma T T^T.

    Args:
        features: T, (K, D) of unit length.
        gamma: from 0, nothing changes, to 1, the rows become orthogonal where they are independent.

    Raises:
        ValueError: K is more than D, and `gamma` is not 0.
    """
    if gamma == 0:
        return features
    count, size = features.shape
    if count > size:
        raise ValueError(
            f"MODEL.FREECP.DECORRELATION is {gamma}, and {count} classes are more than the {size} "
            "dimensions of CLIP's features; set it to 0"
        )
    rows = features.double()
    gram = (1 - gamma) * torch.eye(count, dtype=rows.dtype, device=rows.device)
    values, vectors = torch.linalg.eigh(gram + gamma * rows @ rows.T)
    scales = values.clamp(min=EIGENVALUE_FLOOR).rsqrt()
    return F.normalize(vectors * scales @ vectors.T @ rows, dim=1).to(features.dtype)


def decorrelate_queries(
    text: Tensor, query_class: Tensor, num_background: int, gamma: float
) -> Tensor:
    """The features of all queries, those of different classes less alike.

    The names of a class go along with the mean of their features; the background's stay.

    Args:
        text: (Q, D) of unit length, the background's first.
        query_class: (Q - num_background,) int64.

    Returns:
        (Q, D) of unit length; `text` itself where `gamma` is 0. Errors are those of
        :func:`decorrelate`.
    """
    if gamma == 0:
        return text
    names = text[num_background:]
    sums = names.new_zeros(int(query_class.max()) + 1, text.shape[1])
    means = F.normalize(sums.index_add_(0, query_class, names), dim=1)
    moved = names + (decorrelate(means, gamma) - means)[query_class]
    return torch.cat([text[:num_background], F.normalize(moved, dim=1)])
