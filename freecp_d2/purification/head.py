"""PurificationHead: from dense CLIP features to the maps of the classes that are in the image."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from numbers import Real
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from .. import transfers
from ..clip import DenseFeatures
from ..cuda_graphs import Graphed
from ..synonyms import check_synonym_threshold
from . import stages
from .stages import Selected

CONSISTENCIES = ("code", "paper")
TEXT = ("text features", "description features")
ZERO_ATTENTION = "affinity, of whose attention a whole row or column is zero"

log = logging.getLogger(__name__)


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
        refined: (B, C, h, w) in [0, 1].
        consistency: (B, C) of probabilities and refined maps.
        kept: (B, C) bool, the classes that stay.
        sums: what they were made from -> (B,) float32, its sum in a window, in which NaN and
            infinity show.
    """

    refined: Tensor
    consistency: Tensor
    kept: Tensor
    sums: Mapping[str, Tensor]


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
        window: the first window that has it; None: it is in the text features.
    """

    def __init__(self, where: str, window: int | None):
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
        cuda_graphs: run steps 2 to 5 as CUDA graphs; see MODEL.FREECP.COMPILE.
        synonym_threshold: see MODEL.FREECP.SYNONYM_THRESHOLD.

    Raises:
        ValueError: `consistency` is neither, a threshold is none from 0 to 1, or `crop_batch_size`
            is below 1.
    """

    @configurable
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
        cuda_graphs: bool = False,
        synonym_threshold: float = 0.0,
    ):
        super().__init__()
        if consistency not in CONSISTENCIES:
            raise ValueError(
                f"MODEL.FREECP.CONSISTENCY is {consistency!r}; choose one of "
                f"{', '.join(CONSISTENCIES)}"
            )
        if crop_batch_size < 1:
            raise ValueError(
                f"MODEL.FREECP.CROP_BATCH_SIZE is {crop_batch_size}; it must be at least 1"
            )
        self.redundancy_threshold = check_threshold("REDUNDANCY", redundancy_threshold)
        self.ambiguity_threshold = check_threshold("AMBIGUITY", ambiguity_threshold)
        self.num_background = num_background
        self.redundancy = redundancy
        self.ambiguity = ambiguity
        self.true_iou = consistency == "paper"
        self.box_full_extent = box_full_extent
        self.crop_batch_size = crop_batch_size
        self.synonym_threshold = check_synonym_threshold(synonym_threshold)
        candidates = stages.select_candidates
        self._select_candidates = Graphed(candidates) if cuda_graphs else candidates

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments, but for `num_background`, from MODEL.FREECP."""
        freecp = cfg.MODEL.FREECP
        return {
            "redundancy_threshold": freecp.REDUNDANCY_THRESHOLD,
            "ambiguity_threshold": freecp.AMBIGUITY_THRESHOLD,
            "redundancy": freecp.REDUNDANCY,
            "ambiguity": freecp.AMBIGUITY,
            "consistency": freecp.CONSISTENCY,
            "box_full_extent": freecp.BOX_FULL_EXTENT,
            "crop_batch_size": freecp.CROP_BATCH_SIZE,
            "cuda_graphs": freecp.COMPILE,
            "synonym_threshold": freecp.SYNONYM_THRESHOLD,
        }

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        features: DenseFeatures,
        text: Tensor,
        descriptions: Tensor,
        encoder: Encoder,
    ) -> PurifiedMaps:
        """Purify the classes of a batch of windows: :meth:`select`, then :meth:`compete`.

        The device is waited for once, after step 5: see :meth:`fetch`.

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
        candidates, probabilities = self.select(features, text, descriptions, encoder.logit_scale)
        (selected,) = self.fetch([candidates])
        kept, beaten_by = self.compete(images, selected, descriptions, encoder)
        return PurifiedMaps(
            maps=candidates.refined * kept[:, :, None, None],
            kept=kept,
            kept_redundancy=candidates.kept,
            refined=candidates.refined,
            consistency=candidates.consistency,
            probabilities=probabilities,
            beaten_by=beaten_by,
        )

    @torch.no_grad()
    def select(
        self,
        features: DenseFeatures,
        text: Tensor,
        descriptions: Tensor,
        logit_scale: float,
        num_background: int | None = None,
        threshold: float | None = None,
    ) -> tuple[Candidates, Tensor]:
        """Redundancy purification. It does not wait for the device: see :meth:`fetch`.

        Args:
            num_background, threshold: in place of the head's own and of its redundancy threshold.
                The others are those of :meth:`forward`.

        Returns:
            The classes, and the probabilities (B, Q, h, w) of all queries, the background's first.

        Raises:
            ValueError: no class among the queries, or a threshold that is none from 0 to 1.
        """
        if num_background is None:
            num_background = self.num_background
        _require_class(len(text), num_background)
        patches = features.patches_for(text)
        probabilities, refined, consistency, kept = self._select_candidates(
            patches,
            features.attention,
            text,
            logit_scale,
            features.grid,
            num_background,
            self.redundancy_threshold
            if threshold is None
            else check_threshold("REDUNDANCY", threshold),
            self.box_full_extent,
            self.true_iou,
        )
        sums = {
            "text features": _sum(text[None]).expand(len(kept)),
            "description features": _sum(descriptions[None]).expand(len(kept)),
            "patch features": _sum(patches),
            "attention": _sum(features.attention),
            ZERO_ATTENTION: _sum(consistency),
        }
        return Candidates(refined, consistency, self._stays(kept), sums), probabilities

    @torch.no_grad()
    def select_maps(self, probabilities: Tensor, attention: Tensor) -> Candidates:
        """Redundancy purification of any model's maps; as :meth:`select`.

        Args:
            probabilities: (B, Q, h, w) float32 in [0, 1] of every class, the background's first.
            attention: (B, N, N) float32 of at least 0, N = h * w: the affinity of cells to cells,
                by attention or by likeness of features. No row or column is zero.

        Raises:
            ValueError: no class.
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
        sums = {
            "probabilities": _sum(probabilities),
            "attention": _sum(attention),
            ZERO_ATTENTION: _sum(consistency),
        }
        return Candidates(refined, consistency, self._stays(kept), sums)

    def _stays(self, kept: Tensor) -> Tensor:
        return kept if self.redundancy else torch.ones_like(kept)

    @torch.no_grad()
    def fetch(self, batches: Sequence[Candidates]) -> list[Selected]:
        """What the host must know of batches of windows: the device is waited for once.

        On a GPU the first :data:`stages.COMPARED` classes of a window that stay are compared before
        their number is known. Where more stay, it is waited for once more, which the log says once.

        Raises:
            ValueError: NaN or infinity in what they were made from (:class:`NonFiniteInput`, whose
                window counts through all batches). Sums beyond float32 count as infinite.
        """
        rows = _rows_on_host(
            [
                torch.stack(list(candidates.sums.values())),
                candidates.kept,
                candidates.consistency,
                *stages.compared(
                    candidates.refined, candidates.kept, self._compared_at_once(candidates.kept)
                ),
            ]
            for candidates in batches
        )
        sums = np.concatenate([row[0] for row in rows], axis=1)
        for source, of_windows in zip(batches[0].sums, sums, strict=True):
            finite = np.isfinite(of_windows)
            if not finite.all():
                raise NonFiniteInput(source, None if source in TEXT else int(finite.argmin()))
        fetched = [Selected(kept > 0, *others) for _, kept, *others in rows]
        return self._with_all_compared(batches, fetched) if self.ambiguity else fetched

    def _compared_at_once(self, kept: Tensor) -> int:
        """How many classes of every window are compared before the host knows who stays."""
        if not self.ambiguity:
            return 0
        if transfers.is_accelerator(kept.device):
            return stages.COMPARED
        most = int(kept.sum(dim=1).max())
        return most if most > 1 else 0

    def _with_all_compared(
        self, batches: Sequence[Candidates], fetched: list[Selected]
    ) -> list[Selected]:
        """The same where all classes of a window were compared that stay."""
        most = [int(selected.kept.sum(axis=1).max()) for selected in fetched]
        short = [i for i, count in enumerate(most) if count > max(1, fetched[i].maps.shape[1])]
        if not short:
            return fetched
        _say_that_more_stay()
        rows = _rows_on_host(
            stages.compared(batches[i].refined, batches[i].kept, most[i]) for i in short
        )
        completed = list(fetched)
        for i, (maps, soft_iou) in zip(short, rows, strict=True):
            completed[i] = replace(fetched[i], maps=maps, soft_iou=soft_iou)
        return completed

    @torch.no_grad()
    def compete(
        self,
        images: Tensor | Sequence[Tensor],
        selected: Selected,
        descriptions: Tensor,
        encoder: Encoder,
        num_background: int | None = None,
        threshold: float | None = None,
        related: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ambiguity purification. It does not wait for the device.

        Args:
            images: B normalised windows (3, H, W).
            selected: of :meth:`fetch`.
            num_background, threshold: in place of the head's own and of its ambiguity threshold.
                The others are those of :meth:`forward`.
            related: (C, C) bool, the classes that never compete; None: any may.

        Returns:
            `kept` and `beaten_by` of :class:`PurifiedMaps`.

        Raises:
            ValueError: a threshold that is none from 0 to 1.
        """
        if not self.ambiguity:
            (kept,) = transfers.to_device([selected.kept], images[0].device)
            return kept, torch.full(kept.shape, -1, device=kept.device)
        if num_background is None:
            num_background = self.num_background
        return stages.resolve_ambiguity(
            images,
            selected,
            descriptions[num_background:],
            lambda crops: torch.cat(
                [encoder.encode_cls(chunk) for chunk in crops.split(self.crop_batch_size)]
            ),
            encoder.patch_size,
            self.ambiguity_threshold
            if threshold is None
            else check_threshold("AMBIGUITY", threshold),
            self.box_full_extent,
            related,
        )


@cache
def _say_that_more_stay() -> None:
    log.warning(
        "more than %d classes of a window stay after redundancy purification: such images wait for "
        "the GPU once more; a higher MODEL.FREECP.REDUNDANCY_THRESHOLD avoids it",
        stages.COMPARED,
    )


def check_threshold(stage: str, value: float) -> float:
    """`value`, a threshold of the stage "REDUNDANCY" or "AMBIGUITY".

    Raises:
        ValueError: it is no number from 0 to 1.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # NaN is neither
        raise ValueError(f"MODEL.FREECP.{stage}_THRESHOLD is {value}; give a number from 0 to 1")
    return value


def _rows_on_host(rows: Iterable[Sequence[Tensor]]) -> list[list[np.ndarray]]:
    """The same rows of tensors as float32 arrays, by one transfer."""
    tensors = list(rows)
    arrays = iter(transfers.to_host([tensor for row in tensors for tensor in row]))
    return [[next(arrays) for _ in row] for row in tensors]


def _sum(values: Tensor) -> Tensor:
    """(B,) float32 of (B, ...)."""
    return values.flatten(1).sum(dim=1, dtype=torch.float32)


def _require_class(queries: int, num_background: int) -> None:
    if queries <= num_background:
        raise ValueError(f"{queries} queries, {num_background} of them background: name a class")
