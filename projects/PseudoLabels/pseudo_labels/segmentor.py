"""Detectron2's SemanticSegmentor with losses for pseudo-labels."""

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor
from detectron2.structures import ImageList
from torch import Tensor

from .losses import region_means, relation_loss, weighted_cross_entropy
from .teacher import text_features


@META_ARCH_REGISTRY.register()
class PseudoLabelSegmentor(SemanticSegmentor):
    """SemanticSegmentor, whose training losses may be weighted by confidence or have a relation.

    Without either it is SemanticSegmentor, whose checkpoints have the same keys. The head is any
    whose last layer is `predictor`, as SemSegFPNHead and DeepLabV3PlusHead.

    Args:
        confidence_weighted: the cross entropy of a pixel counts by `scores` of the batch; it takes
            the place of the head's own `loss_sem_seg`.
        relation_weight: of :func:`relation_loss` between what `predictor` takes and `text`.
        text: (K, E) float, a feature a class; None where the weight is 0.
        options: of SemanticSegmentor.
    """

    @configurable
    def __init__(
        self,
        *,
        confidence_weighted: bool,
        relation_weight: float,
        text: Tensor | None,
        **options: Any,
    ):
        super().__init__(**options)
        self.confidence_weighted = confidence_weighted
        self.relation_weight = relation_weight
        self.register_buffer("text", text, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments from a config with `add_pseudo_labels_config`'s keys."""
        pseudo = cfg.PSEUDO_LABELS
        return {
            **super().from_config(cfg),
            "confidence_weighted": pseudo.CONFIDENCE_WEIGHTED,
            "relation_weight": pseudo.RELATION_WEIGHT,
            "text": text_features(cfg) if pseudo.RELATION_WEIGHT else None,
        }

    def forward(self, batched_inputs: list[dict]) -> Any:
        """As SemanticSegmentor's.

        Args:
            batched_inputs: in training with `sem_seg`, and with `scores` where the loss wants them.

        Returns:
            In training `loss_sem_seg`, and `loss_relation` where it has a weight; otherwise a dict
            an image with `sem_seg`, (K, H, W) logits.
        """
        if not self.training or not (self.confidence_weighted or self.relation_weight):
            return super().forward(batched_inputs)
        seen: list[Tensor] = []
        hook = self.sem_seg_head.predictor.register_forward_hook(
            lambda _, inputs, output: seen.extend((*inputs, output))
        )
        try:
            losses = super().forward(batched_inputs)
        finally:
            hook.remove()
        features, logits = (x.float() for x in seen)
        head = self.sem_seg_head
        labels = self._batch(batched_inputs, "sem_seg", head.ignore_value)
        if self.confidence_weighted:
            logits = F.interpolate(
                logits, scale_factor=head.common_stride, mode="bilinear", align_corners=False
            )
            scores = self._batch(batched_inputs, "scores", 0)
            loss = weighted_cross_entropy(logits, labels, scores, head.ignore_value)
            losses["loss_sem_seg"] = loss * head.loss_weight
        if self.relation_weight:
            # One pixel a cell, nearly its middle: means of thousands of them do not depend on it.
            middle = head.common_stride // 2
            cells = labels[:, middle :: head.common_stride, middle :: head.common_stride]
            regions, classes = region_means(features, cells, head.ignore_value)
            losses["loss_relation"] = self.relation_weight * relation_loss(
                regions, self.text[classes]
            )
        return losses

    def _batch(self, batched_inputs: list[dict], key: str, padding: float) -> Tensor:
        """(B, H, W) of what the images have, padded as the images are."""
        return ImageList.from_tensors(
            [x[key].to(self.device) for x in batched_inputs],
            self.backbone.size_divisibility,
            padding,
            self.backbone.padding_constraints,
        ).tensor
