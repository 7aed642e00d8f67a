"""PurificationHead: from dense CLIP features to the maps of the classes that are in the image."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import ops
from ..clip import DenseCLIP, DenseFeatures
from . import stages


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
    """

    maps: Tensor
    kept: Tensor
    kept_redundancy: Tensor
    refined: Tensor
    consistency: Tensor
    probabilities: Tensor


class PurificationHead(nn.Module):
    """Redundancy and ambiguity purification (METHOD.md steps 2 to 6). It has no parameters.

    Args:
        redundancy_threshold: classes stay whose consistency is above this.
        ambiguity_threshold: classes compete whose soft IoU is at least this.
        num_background: how many of the first queries are background.
        redundancy: False: every class stays.
        ambiguity: False: no class competes.
        box_full_extent: True: boxes reach the last row and column, which the published ones miss.
        crop_batch_size: how many crops go through CLIP at once.
    """

    def __init__(
        self,
        redundancy_threshold: float,
        ambiguity_threshold: float,
        num_background: int = 0,
        *,
        redundancy: bool = True,
        ambiguity: bool = True,
        box_full_extent: bool = False,
        crop_batch_size: int = 64,
    ):
        super().__init__()
        self.redundancy_threshold = redundancy_threshold
        self.ambiguity_threshold = ambiguity_threshold
        self.num_background = num_background
        self.redundancy = redundancy
        self.ambiguity = ambiguity
        self.box_full_extent = box_full_extent
        self.crop_batch_size = crop_batch_size

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        features: DenseFeatures,
        text: Tensor,
        descriptions: Tensor,
        encoder: DenseCLIP,
    ) -> PurifiedMaps:
        """Purify the classes of a batch of windows.

        Args:
            images: (B, 3, H, W) the normalised windows that `features` were computed from.
            features: of `images`.
            text: (Q, D) unit-length template features, background queries first.
            descriptions: (Q, D) unit-length description features of the same queries.
            encoder: encodes the crops.

        Raises:
            ValueError: NaN or infinity in the features or the text, or no class among the queries.
        """
        _require_finite("patch features", features.patches)
        _require_finite("attention", features.attention)
        _require_finite("text features", text)
        _require_finite("description features", descriptions)
        if len(text) <= self.num_background:
            raise ValueError(
                f"{len(text)} queries, {self.num_background} of them background: name a class"
            )
        probabilities, normalized = stages.class_activation_maps(
            features.patches, text, encoder.logit_scale, features.grid
        )
        normalized = normalized[:, self.num_background :]
        mask = ops.box_mask(normalized, full_extent=self.box_full_extent)
        refined = ops.refine(ops.sinkhorn_affinity(features.attention), normalized, mask)
        consistency = stages.consistency(probabilities[:, self.num_background :], refined)

        kept_redundancy = torch.ones_like(consistency, dtype=torch.bool)
        if self.redundancy:
            kept_redundancy = consistency > self.redundancy_threshold
        kept = kept_redundancy
        if self.ambiguity:
            kept = stages.resolve_ambiguity(
                images,
                refined,
                kept_redundancy,
                descriptions[self.num_background :],
                lambda crops: torch.cat(
                    [encoder.encode_cls(part) for part in crops.split(self.crop_batch_size)]
                ),
                encoder.patch_size,
                self.ambiguity_threshold,
                self.box_full_extent,
            )
        return PurifiedMaps(
            maps=refined * kept[:, :, None, None],
            kept=kept,
            kept_redundancy=kept_redundancy,
            refined=refined,
            consistency=consistency,
            probabilities=probabilities,
        )


def _require_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(
            f"NaN or infinity in the {name}: check the weights (MODEL.CLIP.PRETRAINED), or use "
            "MODEL.CLIP.PRECISION fp32"
        )
