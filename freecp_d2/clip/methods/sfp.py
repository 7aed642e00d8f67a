"""SFP (ICCV 2025) as released: SC-CLIP with other outliers and other attention."""

import torch
from torch import Tensor

from .base import BASE_METHODS, BaseMethod, Reads, Trunk
from .calibration import (
    aggregate,
    calibrated_attention,
    check_blocks,
    cosine_similarity,
    local_outliers,
    read_calibrated,
    repair,
    strongest,
    sum_of_blocks,
    thresholded,
)

DETECTORS: tuple[str, ...] = ("SOM", "L2", "LOF")
MAX_OUTLIERS = 10
CLS_SCALE = 5.0
"""How much, times `res_cls`, the CLS token's attention to a patch counts where SOM compares it."""


@BASE_METHODS.register()
class SFP(BaseMethod):
    """SFP as its authors' code computes it (Kimsure/SFP, folder SFP_ICCV, commit 2804f5b7).

    **As released, which is less than the paper**: outliers are looked for once, after the last
    block but one, and not mitigated at each layer; the paper's attention enhancer and its
    integration of the attention maps of all layers reach no feature in that code, and are not here.

    It is :class:`~freecp_d2.clip.methods.scclip.SCCLIP` but for these. Outliers are found in
    another way. The similarity is thresholded before it is compared with its mean. The last block
    attends to the repaired patches by queries, too, and to the sum of blocks by the similarity
    alone.

    The code takes the row and column of a patch by the number of rows, which is right in square
    windows only; here it is right in all. An outlier whose neighbours are all outliers becomes
    zero; in the code the whole window is NaN then, here that patch is similar to itself alone.

    Args:
        pm: how outliers are found. "SOM": patches that the CLS token attends to more, 5 * `res_cls`
            times, than they do to themselves, in the last block but one; at most the 10 it attends
            to most. "L2": the 10 of the largest norm. "LOF": SC-CLIP's.
        purify: False: no patch is an outlier.
        pre_adjust_idx, post_adjust_idx, res_cls: as SC-CLIP's.
        cross_s, cross_e: the first block of the sum, and the one after its last.

    Raises:
        ValueError: there is no such `pm`.
    """

    def __init__(
        self,
        *,
        pm: str = "SOM",
        purify: bool = True,
        pre_adjust_idx: int = 8,
        post_adjust_idx: int = 3,
        cross_s: int = 3,
        cross_e: int = 10,
        res_cls: float = 0.3,
    ):
        if pm not in DETECTORS:
            raise ValueError(f"MODEL.CLIP.SFP.PM is {pm!r}; choose one of {', '.join(DETECTORS)}")
        self.pm = pm
        self.purify = purify
        self.pre_adjust_idx = pre_adjust_idx
        self.post_adjust_idx = post_adjust_idx
        self.cross_s = cross_s
        self.cross_e = cross_e
        self.res_cls = res_cls

    def reads(self, num_blocks: int) -> Reads:
        last = num_blocks - 2
        check_blocks(
            "SFP",
            num_blocks,
            {
                "PRE_ADJUST_IDX": (self.pre_adjust_idx, 0, last),
                "POST_ADJUST_IDX": (self.post_adjust_idx, 0, last),
                "CROSS_S": (self.cross_s, 0, last),
                "CROSS_E": (self.cross_e, self.cross_s + 1, last + 1),
            },
        )
        blocks = {self.pre_adjust_idx, self.post_adjust_idx, *range(self.cross_s, self.cross_e)}
        by_attention = self.purify and self.pm == "SOM"
        return Reads(tokens=tuple(blocks), attention=(last,) * by_attention)

    def similarity(self, trunk: Trunk) -> Tensor:
        """The weights of the first means: cosines of at least 0.4 in block `pre_adjust_idx`."""
        return self._cosines(trunk, self.outliers(trunk))

    def patches(self, trunk: Trunk) -> Tensor:
        patches = trunk.tokens[:, 1:]
        outliers = self.outliers(trunk)
        cosines = self._cosines(trunk, outliers)
        patches = aggregate(cosines, repair(patches, outliers, trunk.grid, lonely="zero"))
        attention = calibrated_attention(cosines)
        total = sum_of_blocks(trunk.block_tokens, self.cross_s, self.cross_e)
        return read_calibrated(
            trunk,
            patches,
            total,
            attention,
            first=["key", "query"],
            second=[],
            early=self.post_adjust_idx,
            cls_share=self.res_cls,
        )

    def _cosines(self, trunk: Trunk, outliers: Tensor) -> Tensor:
        patches = trunk.block_tokens[self.pre_adjust_idx][:, 1:]
        cosines = cosine_similarity(repair(patches, outliers, trunk.grid, lonely="zero"))
        return thresholded(cosines)

    def outliers(self, trunk: Trunk) -> Tensor:
        """Which patches are outliers, (B, N) bool."""
        patches = trunk.tokens[:, 1:]
        if not self.purify:
            return patches.new_zeros(patches.shape[:2], dtype=torch.bool)
        if self.pm == "LOF":
            return local_outliers(patches)
        if self.pm == "L2":
            return strongest(patches.float().norm(dim=-1), MAX_OUTLIERS)
        (attention,) = trunk.attention.values()
        by_cls = CLS_SCALE * self.res_cls * attention[:, 0, 1:]
        by_itself = attention.flatten(1)[:, :: attention.shape[2] + 1][:, 1:]
        return strongest(by_cls.where(by_cls > by_itself, -torch.inf), MAX_OUTLIERS)
