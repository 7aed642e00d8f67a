"""SC-CLIP (Bai et al., arXiv 2411.15869): self-calibration by outliers and by middle blocks."""

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
    sum_of_blocks,
    thresholded,
)


@BASE_METHODS.register()
class SCCLIP(BaseMethod):
    """SC-CLIP as its authors' code computes it (SuleBai/SC-CLIP, commit 0417ba92).

    Patches whose features lie apart are replaced by the mean of their neighbours in the grid, then
    every patch by a mean of those similar to it in a middle block. The last block attends by that
    similarity and by its keys, to these patches and to the sum of several blocks' outputs.

    The code takes the row and column of a patch by the number of rows, which is right in square
    windows only; here it is right in all. It fails on 30 patches or fewer; here they are not
    repaired, and the log says so once.

    Args:
        pre_adjust_idx: block, counted from 0, whose patches say which are similar; for the means
            and for the attention.
        post_adjust_idx: block whose patches say over which the output is averaged at last.
        multi_start_idx, multi_end_idx: the first block of the sum, and the one after its last.
        res_cls: share of the CLS token that is added to every patch.
    """

    def __init__(
        self,
        *,
        pre_adjust_idx: int = 8,
        post_adjust_idx: int = 3,
        multi_start_idx: int = 3,
        multi_end_idx: int = 10,
        res_cls: float = 0.3,
    ):
        self.pre_adjust_idx = pre_adjust_idx
        self.post_adjust_idx = post_adjust_idx
        self.multi_start_idx = multi_start_idx
        self.multi_end_idx = multi_end_idx
        self.res_cls = res_cls

    def reads(self, num_blocks: int) -> Reads:
        start, end = self.multi_start_idx, self.multi_end_idx
        last = num_blocks - 2
        check_blocks(
            "SCCLIP",
            num_blocks,
            {
                "PRE_ADJUST_IDX": (self.pre_adjust_idx, 0, last),
                "POST_ADJUST_IDX": (self.post_adjust_idx, 0, last),
                "MULTI_START_IDX": (start, 0, last),
                "MULTI_END_IDX": (end, start + 1, last + 1),
            },
        )
        blocks = {self.pre_adjust_idx, self.post_adjust_idx, *range(start, end)}
        return Reads(tokens=tuple(blocks))

    def similarity(self, trunk: Trunk) -> Tensor:
        """The weights of the first means: cosines of at least 0.4 in block `pre_adjust_idx`."""
        return thresholded(self._cosines(trunk, local_outliers(trunk.tokens[:, 1:])))

    def patches(self, trunk: Trunk) -> Tensor:
        patches = trunk.tokens[:, 1:]
        outliers = local_outliers(patches)
        cosines = self._cosines(trunk, outliers)
        patches = repair(patches, outliers, trunk.grid, lonely="kept")
        patches = aggregate(thresholded(cosines), patches)
        attention = calibrated_attention(cosines)  # of all of them, not of those above 0.4
        total = sum_of_blocks(trunk.block_tokens, self.multi_start_idx, self.multi_end_idx)
        return read_calibrated(
            trunk,
            patches,
            total,
            attention,
            first=["key"],
            second=["key"],
            early=self.post_adjust_idx,
            cls_share=self.res_cls,
        )

    def _cosines(self, trunk: Trunk, outliers: Tensor) -> Tensor:
        patches = trunk.block_tokens[self.pre_adjust_idx][:, 1:]
        return cosine_similarity(repair(patches, outliers, trunk.grid, lonely="kept"))
