"""CLIP-OT: regions are shared out among classes by optimal transport (arXiv 2411.17002).

The paper steps LayerNorm by gradient towards the codes; here the encoder stays frozen, and the
codes move the class features themselves.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ..clip.text import TextEncoder
from ..data.vocabulary import in_words
from .adapter import ADAPTERS

TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a photo of {}.",
)
"""The paper's."""
TEMPERATURE = 0.01 * 0.7
ROUNDS = 3


def transport_codes(logits: Tensor, kappa: float, rounds: int = ROUNDS) -> Tensor:
    """Share samples out among classes by Sinkhorn's algorithm, in the log domain.

    Each round scales every class to its marginal, (1 - kappa) times its mean softmax + kappa / K,
    and every sample to 1 / B.

    Args:
        logits: (..., B, K) of B samples and K classes.
        kappa: in [0, 1]. 0: the codes are the softmax; 1: every class has as many samples.

    Returns:
        (..., B, K), which sum to 1 over the classes.
    """
    samples, classes = logits.shape[-2:]
    codes = logits.log_softmax(dim=-1)
    marginal = (1 - kappa) * codes.exp().mean(dim=-2, keepdim=True) + kappa / classes
    for _ in range(rounds):
        codes = codes - codes.logsumexp(dim=-2, keepdim=True) + marginal.log()
        codes = codes.log_softmax(dim=-1) - math.log(samples)
    return codes.log_softmax(dim=-1).exp()


class ClipOT:
    """Moves each class towards the regions that are transported to it.

    Regions are centred by their running mean over the stream, texts by the vocabulary's mean: the
    two kinds of features lie apart. What a class is moved by is a centred mean, so that classes
    which are never seen stay comparable.

    Attributes:
        state: `sum` (D,) and `count` () of all regions so far.

    Args:
        templates: (M, Q, D) unit-length text features of M templates.
        kappa: see :func:`transport_codes`.
        eta: how far a class is moved, of its unit length.
    """

    def __init__(self, templates: Tensor, kappa: float = 0.1, eta: float = 0.2):
        self.templates = templates
        self.kappa = kappa
        self.eta = eta
        self.state: dict[str, Tensor] = {}

    def adapt(self, text: Tensor, regions: Tensor, weights: Tensor) -> Tensor:
        """See :class:`.Adapter`. The weights do not matter here."""
        total, count = regions.sum(dim=0), regions.new_tensor(len(regions))
        if self.state:
            total = total + self.state["sum"].to(total)
            count = count + self.state["count"].to(count)
        self.state = {"sum": total, "count": count}
        centred = F.normalize(regions - total / count, dim=-1)
        templates = self.templates.to(text)
        templates = F.normalize(templates - templates.mean(dim=1, keepdim=True), dim=-1)
        logits = centred @ templates.transpose(1, 2) / TEMPERATURE
        codes = transport_codes(logits, self.kappa).mean(dim=0)
        step = self.eta * F.normalize(codes.T @ centred, dim=-1)
        enough = codes.sum(dim=0) >= 1
        return torch.where(enough[:, None], F.normalize(text + step, dim=-1), text)


@ADAPTERS.register()
def clip_ot(cfg: CfgNode, names: Sequence[str], text_encoder: TextEncoder) -> ClipOT:
    """Of MODEL.FREECP.CLIP_OT.

    Raises:
        ValueError: KAPPA is none from 0 to 1.
    """
    options = cfg.MODEL.FREECP.CLIP_OT
    if not 0 <= options.KAPPA <= 1:
        raise ValueError(f"MODEL.FREECP.CLIP_OT.KAPPA is {options.KAPPA}; it must be from 0 to 1")
    words = [in_words(name) for name in names]
    entries = [[template.format(word)] for template in TEMPLATES for word in words]
    templates = text_encoder.encode(entries).unflatten(0, (len(TEMPLATES), len(words)))
    return ClipOT(templates, options.KAPPA, options.ETA)
