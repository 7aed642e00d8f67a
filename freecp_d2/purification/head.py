"""PurificationHead: from dense CLIP features to the maps of the classes that are in the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..clip import DenseFeatures
from . import stages

CONSISTENCIES = ("code", "paper")


class Encoder(Protocol):
    """What the head needs of a CLIP; :class:`freecp_d2.clip.DenseCLIP` is one.

    Attributes:
        logit_scale: CLIP's temperature, already exponentiated.
        patch_size: height and width in pixels of a cell of the maps' grid.
    """

    logit_scale: float

    @property
    def patch_size(self) -> tuple[int, int]: ...

    def encode_cls(self, images: Tensor) -> Tensor:
        """Embeddings (B, D), float32 of unit length, of normalised images (B, 3, H, W)."""


@dataclass(frozen=True)
class Candidates:
    """The classes of B windows after redundancy purification (METHOD.md steps 2 to 5).

    Attributes:
        probabilities: (B, Q, h, w) of all queries, the background's first.
        refined: (B, C, h, w) in [0, 1].
        consistency: (B, C) of probabilities and refined maps.
        kept: (B, C) bool, the classes that stay.
        kept_on_host: the same in NumPy.
    """

    probabilities: Tensor
    refined: Tensor
    consistency: Tensor
    kept: Tensor
    kept_on_host: np.ndarray


@dataclass(frozen=True)
class PurifiedMaps:
    """What :class:`PurificationHead` finds in B windows.

    Attributes:
        maps: (B, C, h, w) in [0, 1], `refined` where a class stays and zero elsewhere.
        kept: (B, C) bool, the classes that stay.
        kept_redundancy: (B, C) bool, the classes that stayed after redundancy purification.
        refined: (B, C, h, w) in [0, 1], before purification.
        consistency: (B, C) of probabilities and refined maps.
        probabilities: (B, Q, h, w) of all queries, the background's first.
        beaten_by: (B, C) int64, for a class that ambiguity purification removed the look-alike that
            won; -1 for others.
    """

    maps: Tensor
    kept: Tensor
    kept_redundancy: Tensor
    refined: Tensor
    consistency: Tensor
    probabilities: Tensor
    beaten_by: Tensor


class NonFiniteInput(ValueError):
    """NaN or infinity in what the head was given.

    Attributes:
        window: the first window of the batch that has it; None: it is in the text features.
    """

    def __init__(self, where: str, window: int | None = None):
        super().__init__(
            f"NaN or infinity in the {where}: check the weights (MODEL.CLIP.PRETRAINED), or use "
            "MODEL.CLIP.PRECISION fp32"
        )
        self.window = window


class PurificationHead(nn.Module):
    """Redundancy and ambiguity purification (METHOD.md steps 2 to 6). It has no parameters.

    Args:
        redundancy_threshold: classes stay whose consistency is above this.
        ambiguity_threshold: classes compete whose soft IoU is at least this.
        num_background: how many of the first queries are background.
        redundancy: False: every class stays.
        ambiguity: False: no class competes.
        consistency: "code" or "paper"; see MODEL.FREECP.CONSISTENCY.
        box_full_extent: True: boxes reach the last row and column, which the published ones miss.
        crop_batch_size: how many crops go through CLIP at once.

    Raises:
        ValueError: `consistency` is neither.
    """

    def __init__(
        self,
        redundancy_threshold: float,
        ambiguity_threshold: float,
        num_background: int = 0,
        *,
        redundancy: bool = True,
        ambiguity: bool = True,
        consistency: str = "code",
        box_full_extent: bool = False,
        crop_batch_size: int = 64,
    ):
        super().__init__()
        if consistency not in CONSISTENCIES:
            raise ValueError(
                f"MODEL.FREECP.CONSISTENCY is {consistency!r}; choose one of "
                f"{', '.join(CONSISTENCIES)}"
            )
        self.redundancy_threshold = redundancy_threshold
        self.ambiguity_threshold = ambiguity_threshold
        self.num_background = num_background
        self.redundancy = redundancy
        self.ambiguity = ambiguity
        self.true_iou = consistency == "paper"
        self.box_full_extent = box_full_extent
        self.crop_batch_size = crop_batch_size

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        features: DenseFeatures,
        text: Tensor,
        descriptions: Tensor,
        encoder: Encoder,
    ) -> PurifiedMaps:
        """Purify the classes of a batch of windows: :meth:`select`, then :meth:`resolve`.

        The device is waited for twice: once after step 5 and once in step 6.

        Args:
            images: (B, 3, H, W) the normalised windows that `features` were computed from.
            features: of `images`.
            text: (Q, D) unit-length template features, background queries first.
            descriptions: (Q, D) unit-length description features of the same queries.
            encoder: encodes the crops.

        Raises:
            ValueError: NaN or infinity in the features or the text (:class:`NonFiniteInput`), or
                no class among the queries.
        """
        candidates = self.select(features, text, descriptions, encoder.logit_scale)
        return self.resolve(images, candidates, descriptions, encoder)

    @torch.no_grad()
    def select(
        self,
        features: DenseFeatures,
        text: Tensor,
        descriptions: Tensor,
        logit_scale: float,
        num_background: int | None = None,
        threshold: float | None = None,
    ) -> Candidates:
        """Redundancy purification. Arguments and errors are those of :meth:`forward`.

        Args:
            num_background, threshold: in place of the head's own and of its redundancy threshold.
        """
        if num_background is None:
            num_background = self.num_background
        _require_class(len(text), num_background)
        probabilities, refined, consistency, kept = stages.select_candidates(
            features.patches,
            features.attention,
            text,
            logit_scale,
            features.grid,
            num_background,
            self.redundancy_threshold if threshold is None else threshold,
            self.box_full_extent,
            self.true_iou,
        )
        kept, kept_on_host, finite = self._stays(kept, consistency, descriptions)
        if not finite:
            sources = (("patch features", features.patches), ("attention", features.attention))
            raise _non_finite(sources, (("text", text), ("description", descriptions)))
        return Candidates(probabilities, refined, consistency, kept, kept_on_host)

    @torch.no_grad()
    def select_maps(self, probabilities: Tensor, attention: Tensor) -> Candidates:
        """Redundancy purification of any model's maps.

        Args:
            probabilities: (B, Q, h, w) float32 in [0, 1] of every class, the background's first.
            attention: (B, N, N) float32 of at least 0, N = h * w: the affinity of cells to cells,
                by attention or by likeness of features. No row or column is zero.

        Raises:
            ValueError: NaN or infinity in either, or a zero row or column
                (:class:`NonFiniteInput`), or no class.
        """
        _require_class(probabilities.shape[1], self.num_background)
        refined, consistency, kept = stages.purify_maps(
            probabilities,
            stages.normalize(probabilities),
            attention,
            self.num_background,
            self.redundancy_threshold,
            self.box_full_extent,
            self.true_iou,
        )
        kept, kept_on_host, finite = self._stays(kept, consistency, probabilities)
        if not finite:
            raise _non_finite((("probabilities", probabilities), ("attention", attention)))
        return Candidates(probabilities, refined, consistency, kept, kept_on_host)

    def _stays(
        self, kept: Tensor, consistency: Tensor, source: Tensor
    ) -> tuple[Tensor, np.ndarray, bool]:
        """Which classes stay, the same on the host, and whether everything is finite."""
        if not self.redundancy:
            kept = torch.ones_like(kept)
        windows_finite = consistency.isfinite().all(dim=1)
        finite = torch.stack([source.isfinite().all(), windows_finite.all()])
        kept_on_host, finite_on_host = stages.to_host([kept, finite])
        return kept, kept_on_host > 0, bool(finite_on_host.all())

    @torch.no_grad()
    def resolve(
        self,
        images: Tensor,
        candidates: Candidates,
        descriptions: Tensor,
        encoder: Encoder,
        num_background: int | None = None,
        threshold: float | None = None,
    ) -> PurifiedMaps:
        """Ambiguity purification. Arguments are those of :meth:`forward`.

        Args:
            num_background, threshold: in place of the head's own and of its ambiguity threshold.
        """
        if num_background is None:
            num_background = self.num_background
        refined, kept = candidates.refined, candidates.kept
        beaten_by = torch.full(kept.shape, -1, device=kept.device)
        if self.ambiguity:
            kept, beaten_by = stages.resolve_ambiguity(
                images,
                refined,
                candidates.kept_on_host,
                descriptions[num_background:],
                lambda crops: torch.cat(
                    [encoder.encode_cls(part) for part in crops.split(self.crop_batch_size)]
                ),
                encoder.patch_size,
                self.ambiguity_threshold if threshold is None else threshold,
                self.box_full_extent,
            )
        return PurifiedMaps(
            maps=refined * kept[:, :, None, None],
            kept=kept,
            kept_redundancy=candidates.kept,
            refined=refined,
            consistency=candidates.consistency,
            probabilities=candidates.probabilities,
            beaten_by=beaten_by,
        )


def _require_class(queries: int, num_background: int) -> None:
    if queries <= num_background:
        raise ValueError(f"{queries} queries, {num_background} of them background: name a class")


def _non_finite(
    sources: Sequence[tuple[str, Tensor]], text: Sequence[tuple[str, Tensor]] = ()
) -> NonFiniteInput:
    """The error that says where NaN or infinity is: in `text`, or in a window of `sources`."""
    for name, values in text:
        if not values.isfinite().all():
            return NonFiniteInput(f"{name} features")
    for where, values in sources:
        finite = values.isfinite().flatten(1).all(dim=1).tolist()
        if not all(finite):
            return NonFiniteInput(where, finite.index(False))
    return NonFiniteInput("affinity, of whose attention a whole row or column is zero")
