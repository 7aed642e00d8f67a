"""What gives an affinity, and which of them a config names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import Tensor

from ..sliding_window import Window

AFFINITY_PROVIDERS: Registry = Registry("AFFINITY_PROVIDERS")
"""What MODEL.FREECP.AFFINITY_PROVIDER may name: each is called with the config alone."""


class AffinityFault(ValueError):
    """What a provider needs of one image is missing or broken; others may be segmented."""


@dataclass(frozen=True)
class SourceImage:
    """An image whose windows are going to be encoded.

    Attributes:
        file_name: of its file; "the image" where it has none.
        original_size: its height and width on disk, after it was turned upright.
        size: its height and width as CLIP sees it, resized.
        windows: of it, in pixels of `size`, all of one size.
    """

    file_name: str
    original_size: tuple[int, int]
    size: tuple[int, int]
    windows: Sequence[Window]


WindowAffinity: TypeAlias = Callable[[Sequence[Window], Tensor], Tensor]
"""B windows of one size and their pixels (B, 3, H, W), normalised for CLIP -> (B, N, N) float32 of
at least 0: how much a patch has to do with another, row by row, where N counts the whole patches of
CLIP from the upper left. No row or column is zero."""


class AffinityProvider(Protocol):
    """Gives FreeCP an affinity of patches. One that is a module moves with the model."""

    def of_images(
        self, images: Sequence[SourceImage], patch_size: tuple[int, int]
    ) -> WindowAffinity:
        """What gives the affinity of the windows of a batch of images.

        Args:
            images: those that :attr:`Window.image` counts.
            patch_size: height and width of CLIP's patches in pixels.

        Raises:
            AffinityFault: something is wrong with an image; it names the file.
        """


def build_affinity(cfg: CfgNode) -> AffinityProvider | None:
    """The provider of MODEL.FREECP.AFFINITY_PROVIDER; None where it is empty.

    Raises:
        ValueError: there is no such provider, or MODEL.FREECP.AFFINITY is "method". Others are
            those of the provider.
    """
    name = cfg.MODEL.FREECP.AFFINITY_PROVIDER
    if not name:
        return None
    if name not in AFFINITY_PROVIDERS:
        known = ", ".join(sorted(known for known, _ in AFFINITY_PROVIDERS))
        raise ValueError(
            f"MODEL.FREECP.AFFINITY_PROVIDER is {name!r}; choose one of {known}, or leave it empty"
        )
    if cfg.MODEL.FREECP.AFFINITY != "attention":
        raise ValueError(
            f"MODEL.FREECP.AFFINITY is {cfg.MODEL.FREECP.AFFINITY!r} and AFFINITY_PROVIDER {name}; "
            "set one of them"
        )
    return AFFINITY_PROVIDERS.get(name)(cfg)
