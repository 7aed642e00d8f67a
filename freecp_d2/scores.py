"""From maps of queries to the scores and labels of classes (METHOD.md steps 7 and 8).

K counts output channels: the classes, behind the background where it is scored. S counts the
queries that stay somewhere in an image, C all queries that are not background.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data.benchmarks.protocols import BaseProtocol, Refinement
from .encoding import EncodedImages
from .purify import PurifiedWindows
from .refinement import refined_strips
from .sliding_window import upsample
from .words import Words

OUTPUTS = ("sem_seg", "label_map")
"""What a model gives: a score for every class at every pixel, or labels alone."""

MAP_VALUES = 2**25
"""How many values of upsampled maps exist at once."""


def check_output(output: str) -> None:
    """MODEL.FREECP.OUTPUT.

    Raises:
        ValueError: it is none of OUTPUTS.
    """
    if output not in OUTPUTS:
        choice = ", ".join(OUTPUTS)
        raise ValueError(f"MODEL.FREECP.OUTPUT is {output!r}; choose one of {choice}")


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


def purified_scores(maps: Tensor, queries: Tensor, words: Words, size: tuple[int, int]) -> Tensor:
    """Scores (K, *size) from the maps (S, H, W) of the queries (S,) that stay."""
    maps = upsample(maps, size)
    channels = words.first_class + words.query_class[queries]
    scores = class_scores(maps, channels, words.num_channels)
    if words.num_background:
        scores[0] = 1 - maps.amax(dim=0) if len(maps) else 1.0
    return scores


def purified_labels(
    maps: Tensor, queries: Tensor, words: Words, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The argmax of :func:`purified_scores`, and its maxima of each channel and at each pixel.

    Its (K, *size) never exist: the maps are upsampled a few at a time.

    Returns:
        (*size) int64, (K,) float32 and (*size) float32.
    """
    score, position = maps.new_zeros(size), maps.new_zeros(size, dtype=torch.int64)
    best = maps.new_zeros(len(maps))
    at_once = max(1, MAP_VALUES // score.numel())
    for start in range(0, len(maps), at_once):
        chunk = upsample(maps[start : start + at_once], size)
        best[start : start + at_once] = chunk.flatten(1).amax(dim=1)
        chunk_score, chunk_position = chunk.max(dim=0)
        better = chunk_score > score
        score = score.where(~better, chunk_score)
        position = position.where(~better, chunk_position + start)
    classes = words.query_class[queries]
    scores = class_scores(best, words.first_class + classes, words.num_channels)
    labels = classes[position] if len(maps) else position
    if words.num_background:
        scores[0] = 1 - score.amin()
        labels = (labels + 1).masked_fill(1 - score >= score, 0)
        score = score.maximum(1 - score)
    else:
        labels = labels.masked_fill(score == 0, 0)
    return labels, scores, score


def best_of_class(values: np.ndarray, words: Words) -> Tensor:
    """(classes,) float32 maxima, from at least 0, of (windows, C) over windows and names."""
    best = np.zeros(len(words.vocabulary.classes), dtype=np.float32)
    np.maximum.at(best, list(words.vocabulary.query_class), values.max(axis=0))
    return torch.from_numpy(best)


def ambiguous_losses(beaten_by: np.ndarray, words: Words) -> list[tuple[int, int]]:
    """Sorted pairs of classes (loser, winner).

    Args:
        beaten_by: (windows, C) positions of the queries that won, -1 where none.
    """
    window, loser = np.nonzero(beaten_by >= 0)
    classes = np.array(words.vocabulary.query_class)
    losers, winners = classes[loser], classes[beaten_by[window, loser].astype(int)]
    pairs = zip(losers.tolist(), winners.tolist(), strict=True)
    return sorted({(loser, winner) for loser, winner in pairs if loser != winner})


def purified_results(
    encoded: EncodedImages,
    purified: PurifiedWindows,
    words: Words,
    output: str,
    refinement: Refinement,
) -> list[dict[str, Any]]:
    """What :meth:`freecp_d2.FreeCP.segment` gives, by `output`, one of OUTPUTS."""
    return [
        _purified_result(purified.of_image(i), words, image, size, output, refinement)
        for i, (image, size) in enumerate(zip(encoded.images, encoded.output_sizes, strict=True))
    ]


def _purified_result(
    purified: PurifiedWindows,
    words: Words,
    image: Tensor,
    size: tuple[int, int],
    output: str,
    refinement: Refinement,
) -> dict[str, Any]:
    merged, queries = purified.merged((image.shape[1], image.shape[2]))
    strips = _refined_maps(merged, queries, words, image, size, refinement)
    result: dict[str, Any]
    if output == "label_map":
        labels, scores, confidences = zip(
            *(purified_labels(maps, queries, words, of_size) for maps, of_size in strips),
            strict=True,
        )
        result = {
            "label_map": _joined(labels, 0),
            "scores": torch.stack(scores).amax(dim=0),
            "confidence": _joined(confidences, 0),
        }
    else:
        parts = [purified_scores(maps, queries, words, of_size) for maps, of_size in strips]
        result = {"sem_seg": _joined(parts, 1)}
    return result | {
        "kept": best_of_class(purified.kept, words) > 0,
        "kept_redundancy": best_of_class(purified.kept_redundancy, words) > 0,
        "consistency": best_of_class(purified.consistency, words),
        "ambiguous_losses": ambiguous_losses(purified.beaten_by, words),
    }


def _refined_maps(
    maps: Tensor,
    queries: Tensor,
    words: Words,
    image: Tensor,
    size: tuple[int, int],
    refinement: Refinement,
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Strips of rows of the queries that stay, in [0, 1], and the size that each is to have.

    Without a refinement the maps as they are, of which an image of `size` is made.
    """
    if not refinement.enabled or not len(queries):
        yield maps, size
        return
    text = words.text[queries + words.num_background]
    for _, strip in refined_strips(maps, image, text, size, refinement):
        yield strip.clamp_(0, 1), (strip.shape[1], strip.shape[2])


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


def base_results(
    encoded: EncodedImages,
    similarities: Sequence[Tensor],
    words: Words,
    protocol: BaseProtocol,
    output: str,
) -> list[dict[str, Tensor]]:
    """What :meth:`freecp_d2.FreeCP.segment_base` gives, by `output`, one of OUTPUTS."""
    return [
        _base_result(similarity, image, words, size, protocol, output)
        for similarity, image, size in zip(
            similarities, encoded.images, encoded.output_sizes, strict=True
        )
    ]


def _base_result(
    similarity: Tensor,
    image: Tensor,
    words: Words,
    size: tuple[int, int],
    protocol: BaseProtocol,
    output: str,
) -> dict[str, Tensor]:
    strips = base_scores(similarity, image, words, size, protocol)
    if output == "sem_seg":
        return {"sem_seg": torch.cat([scores for _, scores in strips], dim=1)}
    labels = torch.empty(size, dtype=torch.int64, device=similarity.device)
    best, confidence = similarity.new_zeros(words.num_channels), similarity.new_empty(size)
    for rows, scores in strips:
        labels[rows] = scores.argmax(dim=0)
        confidence[rows] = scores.amax(dim=0)
        best = best.maximum(scores.amax(dim=(1, 2)))
    return {"label_map": labels, "scores": best, "confidence": confidence}


def base_scores(
    similarity: Tensor, image: Tensor, words: Words, size: Sequence[int], protocol: BaseProtocol
) -> Iterator[tuple[slice, Tensor]]:
    """The scores of a base method's classes, a strip of rows after the other.

    The label map is their argmax. Memory does not grow with the size.

    Args:
        similarity: (Q, h, w) float32 cosine similarities of all queries.
        image: (3, H', W') normalised, the guide of pixel-adaptive refinement.
        size: height H and width W of the output.

    Yields:
        rows and their (K, rows, W) float32 probabilities. They are zero of classes that the area
        threshold removes, and 1 of channel 0 where a pixel's best is below the threshold.
    """
    threshold = protocol.probability_threshold
    if not words.num_background and not protocol.threshold_without_background:
        threshold = 0.0
    num_channels = words.num_channels
    removed = torch.zeros(num_channels, dtype=torch.bool, device=similarity.device)
    if protocol.area_threshold is not None:
        pixels = torch.zeros(num_channels, dtype=torch.int64, device=similarity.device)
        for _, scores in _probabilities(similarity, image, words, size, protocol):
            pixels += scores.argmax(dim=0).flatten().bincount(minlength=num_channels)
        areas = pixels[1:].double()
        removed[1:] = areas <= protocol.area_threshold * areas.sum()
    for rows, scores in _probabilities(similarity, image, words, size, protocol):
        scores.masked_fill_(removed[:, None, None], 0)
        if threshold > 0:
            scores[0].masked_fill_(scores.amax(dim=0) < threshold, 1.0)
        yield rows, scores


def _probabilities(
    similarity: Tensor, image: Tensor, words: Words, size: Sequence[int], protocol: BaseProtocol
) -> Iterator[tuple[slice, Tensor]]:
    """Rows and the (K, rows, W) probabilities of every class."""
    for rows, strip in refined_strips(similarity, image, words.text, size, protocol.refinement):
        probabilities = (protocol.logit_scale * strip).softmax(dim=0)
        if words.num_channels == len(words.text):  # every class has one name
            yield rows, probabilities
        else:
            yield rows, class_scores(probabilities, words.query_channel, words.num_channels)
