"""Made-up regions of a CLIP whose images and texts lie apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES, DIM = 6, 32


class Gap:
    """Classes as directions beside one that all images share, and another that all texts share.

    Args:
        shift: how far each class's images lie from where its text says.
    """

    def __init__(self, shift: float = 0.0, seed: int = 0):
        self.random = torch.Generator().manual_seed(seed)
        directions = torch.linalg.qr(self.normal(DIM, CLASSES + 2)).Q.T
        self.classes, image, text = directions[:CLASSES], directions[-2], directions[-1]
        elsewhere = F.normalize(self.normal(CLASSES, DIM), dim=-1)
        self.text = F.normalize(text + 0.6 * self.classes, dim=-1)
        self.centres = image + 0.4 * (self.classes + shift * elsewhere)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.random)

    def regions(self, classes: list[int], noise: float = 0.05) -> Tensor:
        """A region of each of these classes."""
        centres = self.centres[classes]
        return F.normalize(centres + noise * self.normal(len(classes), DIM), dim=-1)

    def image(self, among: list[int]) -> Tensor:
        """Regions of an image of some of these classes, drawn at random, three times each."""
        chosen = torch.randperm(len(among), generator=self.random)[:3]
        return self.regions([among[i] for i in chosen for _ in range(3)])

    def accuracy(self, text: Tensor, classes: list[int], noise: float = 0.05) -> float:
        """The share of patches of these classes that are labelled as such."""
        truth = torch.tensor(classes * 50)
        patches = self.regions(truth.tolist(), noise)
        return ((patches @ text.T).argmax(dim=1) == truth).double().mean().item()


def follow(adapter, gap: Gap, among: list[int], images: int) -> Tensor:
    """The text features after a stream of images of these classes."""
    text = gap.text
    for _ in range(images):
        regions = gap.image(among)
        text = adapter.adapt(gap.text, regions, torch.ones(len(regions)))
    return text
