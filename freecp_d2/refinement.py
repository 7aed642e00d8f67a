"""Maps at the size of the output, refined by the image, a strip of rows after the other."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import transfers
from .data.benchmarks.protocols import Refinement
from .ops import pamr
from .propagation import propagate
from .sliding_window import upsample_rows

STRIP_VALUES = 2**22
"""How many values of unrefined maps exist at once on a CPU, whose caches count."""

STRIP_VALUES_OF_GPU = 2**25
"""The same on a GPU, where every strip is a dozen launches: 128 MB."""

REFINED_VALUES = 2**26
"""How many values of maps, and how many weights of neighbours, PAMR has at once."""


def refined_strips(
    maps: Tensor, image: Tensor, text: Tensor, size: Sequence[int], refinement: Refinement
) -> Iterator[tuple[slice, Tensor]]:
    """Maps, upsampled to `size` and refined, in strips of rows.

    Memory does not grow with the height.

    Args:
        maps: (Q, h, w) of any range.
        image: (3, h', w') normalised.
        text: (Q, D), the words of the maps; read by text-aware propagation alone.
        size: height H and width W.

    Yields:
        rows and (Q, rows, W).
    """
    if refinement.tlp_grid:
        maps = propagate(maps, image, text, size, refinement.tlp_grid)
    height, width = size
    values = STRIP_VALUES_OF_GPU if transfers.is_accelerator(maps.device) else STRIP_VALUES
    step = max(1, values // (len(maps) * width))
    if refinement.pamr_steps:
        # At least as many rows as the halo on either side of them.
        neighbours = 8 * len(refinement.pamr_dilations)
        step = max(REFINED_VALUES // ((len(maps) + neighbours) * width), _halo(refinement))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        if refinement.pamr_steps:
            yield rows, _pamr_rows(maps, image, size, rows, refinement)
        else:
            yield rows, upsample_rows(maps, size, rows)


def _halo(refinement: Refinement) -> int:
    """How many rows away something can have a part in a row."""
    return refinement.pamr_steps * max(refinement.pamr_dilations)


def _pamr_rows(
    maps: Tensor, image: Tensor, size: Sequence[int], rows: slice, refinement: Refinement
) -> Tensor:
    """(Q, rows, W) after pixel-adaptive refinement, from the rows and a halo."""
    halo = _halo(refinement)
    near = slice(max(rows.start - halo, 0), min(rows.stop + halo, size[0]))
    inner = slice(rows.start - near.start, rows.stop - near.start)
    guide = upsample_rows(image, size, near)[None]
    at_once = max(1, REFINED_VALUES // ((near.stop - near.start) * size[1]))
    steps, dilations = refinement.pamr_steps, refinement.pamr_dilations
    refined = [
        pamr(guide, upsample_rows(chunk, size, near)[None], steps, dilations)[0, :, inner]
        for chunk in maps.split(at_once)
    ]
    return refined[0] if len(refined) == 1 else torch.cat(refined)
