"""From cosine similarities to the labels of a base method alone (METHOD.md step 8).

K counts output channels: the classes, behind the background where it is scored.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .data.benchmarks.protocols import BaseProtocol
from .pamr import pamr
from .sliding_window import upsample_rows

STRIP_VALUES = 2**22
"""How many scores of an image exist at once."""


def class_scores(values: Tensor, channels: Tensor, num_channels: int) -> Tensor:
    """The best of each class's queries.

    Args:
        values: (Q, ...) of at least 0.
        channels: (Q,) int64, the output channel of each query.

    Returns:
        (num_channels, ...); zero where no query is.
    """
    index = channels.view(-1, *[1] * (values.ndim - 1)).expand_as(values)
    return values.new_zeros(num_channels, *values.shape[1:]).scatter_reduce_(
        0, index, values, "amax"
    )


def base_scores(
    similarity: Tensor,
    image: Tensor,
    channels: Tensor,
    num_channels: int,
    size: Sequence[int],
    protocol: BaseProtocol,
    background: bool,
) -> Iterator[tuple[slice, Tensor]]:
    """The scores of a base method's classes, a strip of rows after the other.

    The label map is their argmax. Memory does not grow with the size.

    Args:
        similarity: (Q, h, w) float32 cosine similarities of all queries.
        image: (3, H', W') normalised, the guide of pixel-adaptive refinement.
        channels: (Q,) int64, the output channel of each query.
        num_channels: K.
        size: height H and width W of the output.
        background: whether channel 0 is a background.

    Yields:
        rows and their (K, rows, W) float32 probabilities. They are zero of classes that the area
        threshold removes, and 1 of channel 0 where a pixel's best is below the threshold.
    """
    threshold = protocol.probability_threshold
    if not background and not protocol.threshold_without_background:
        threshold = 0.0
    removed = torch.zeros(num_channels, dtype=torch.bool, device=similarity.device)
    if protocol.area_threshold is not None:
        pixels = torch.zeros(num_channels, dtype=torch.int64, device=similarity.device)
        for _, scores in _probabilities(similarity, image, channels, num_channels, size, protocol):
            pixels += scores.argmax(dim=0).flatten().bincount(minlength=num_channels)
        areas = pixels[1:].double()
        removed[1:] = areas <= protocol.area_threshold * areas.sum()
    for rows, scores in _probabilities(similarity, image, channels, num_channels, size, protocol):
        scores.masked_fill_(removed[:, None, None], 0)
        if threshold > 0:
            scores[0].masked_fill_(scores.amax(dim=0) < threshold, 1.0)
        yield rows, scores


def _probabilities(
    similarity: Tensor,
    image: Tensor,
    channels: Tensor,
    num_channels: int,
    size: Sequence[int],
    protocol: BaseProtocol,
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and the (K, rows, W) probabilities of every class."""
    height, width = size
    step = max(1, STRIP_VALUES // (len(similarity) * width))
    guide = None
    if protocol.pamr_steps:
        guide = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=False)
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        if guide is None:
            strip = upsample_rows(similarity, size, rows)
        else:
            strip = _refined_rows(similarity, guide, rows, protocol)
        probabilities = (protocol.logit_scale * strip).softmax(dim=0)
        if num_channels == len(channels):  # every class has one name
            yield rows, probabilities
        else:
            yield rows, class_scores(probabilities, channels, num_channels)


def _refined_rows(similarity: Tensor, guide: Tensor, rows: slice, protocol: BaseProtocol) -> Tensor:
    """(Q, rows, W) of the similarities after pixel-adaptive refinement at the size of `guide`.

    What happens in a row depends on no row that is further away than the halo.
    """
    height, width = guide.shape[2:]
    halo = protocol.pamr_steps * max(protocol.pamr_dilations)
    near = slice(max(rows.start - halo, 0), min(rows.stop + halo, height))
    inner = slice(rows.start - near.start, rows.stop - near.start)
    at_once = max(1, STRIP_VALUES // ((near.stop - near.start) * width))
    return torch.cat(
        [
            pamr(
                guide[:, :, near],
                upsample_rows(part, (height, width), near)[None],
                protocol.pamr_steps,
                protocol.pamr_dilations,
            )[0, :, inner]
            for part in similarity.split(at_once)
        ]
    )
