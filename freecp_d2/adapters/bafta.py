"""BaFTA: class features as running means of the regions that look like them (arXiv 2406.11309)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from ..clip.text import TextEncoder
from .adapter import ADAPTERS


class BaFTA:
    """Clusters regions online around the classes, in the space that the classes differ in.

    U holds the left singular vectors of the texts but the first, P(x) = norm(U U^T x). A class
    begins as P of its text, which counts as `prior` regions; each certain region is added to the
    class that it is most like. A text keeps what lies outside U, and its length inside.

    Attributes:
        state: `sum` (D,) and `count` () of all regions so far, `prototypes` (Q, D) of unit length,
            and `counts` (Q,), the prior among them.

    Args:
        prior: how many regions a text counts as.
        least: regions whose weight is not above this are left out.
        centre: subtract the running mean of all regions before P. Without it classes that were
            seen win from others.
    """

    def __init__(self, prior: float = 50.0, least: float = 0.0, centre: bool = True):
        self.prior = prior
        self.least = least
        self.centre = centre
        self._basis: Tensor | None = None
        self.state: dict[str, Tensor] = {}

    def adapt(self, text: Tensor, regions: Tensor, weights: Tensor) -> Tensor:
        """See :class:`.Adapter`."""
        if self._basis is None:
            singular = torch.linalg.svd(text.double().T, full_matrices=False)
            self._basis = singular.U[:, 1:].to(text)
        basis = self._basis.to(text)
        of_text = text @ basis @ basis.T
        if not self.state:
            self.state = {
                "sum": torch.zeros_like(text[0]),
                "count": text.new_zeros(()),
                "prototypes": F.normalize(of_text, dim=-1),
                "counts": text.new_full((len(text),), self.prior),
            }
        state = {name: tensor.to(text) for name, tensor in self.state.items()}
        state["sum"] = state["sum"] + regions.sum(dim=0)
        state["count"] = state["count"] + len(regions)
        if self.centre:
            regions = regions - state["sum"] / state["count"]
        projected = F.normalize(regions @ basis @ basis.T, dim=-1)
        prototypes, counts = state["prototypes"].clone(), state["counts"].clone()
        for region in projected[weights > self.least]:
            best = (prototypes @ region).argmax()
            prototypes[best] = F.normalize(counts[best] * prototypes[best] + region, dim=-1)
            counts[best] += 1
        self.state = state | {"prototypes": prototypes, "counts": counts}
        moved = text - of_text + of_text.norm(dim=-1, keepdim=True) * prototypes
        return torch.where((counts > self.prior)[:, None], F.normalize(moved, dim=-1), text)


@ADAPTERS.register()
def bafta(cfg: CfgNode, names: Sequence[str], text_encoder: TextEncoder) -> BaFTA:
    """Of MODEL.FREECP.BAFTA.

    Raises:
        ValueError: PRIOR is not above 0, or CERTAINTY none from 0 to 1.
    """
    options = cfg.MODEL.FREECP.BAFTA
    if not options.PRIOR > 0:
        raise ValueError(f"MODEL.FREECP.BAFTA.PRIOR is {options.PRIOR}; it must be above 0")
    if not 0 <= options.CERTAINTY <= 1:
        raise ValueError(
            f"MODEL.FREECP.BAFTA.CERTAINTY is {options.CERTAINTY}; it must be from 0 to 1"
        )
    return BaFTA(options.PRIOR, options.CERTAINTY)
