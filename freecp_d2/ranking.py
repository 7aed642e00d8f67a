"""Which images to annotate first: those in which three readings of one CLIP disagree most.

After MCDAL (Maximum Classifier Discrepancy for Active Learning, arXiv 2107.11049), which trains two
auxiliary classifiers and asks where they and the first disagree. Nothing is trained here. The three
are the base method by one half of the templates, FreeCP on it, and the base method by the other
half. CLIP encodes the image once for all three.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .clip.matmul import bf16_matmul
from .clip.text import template_sentences
from .decorrelation import decorrelate_queries
from .encoding import EncodedImages
from .merging import WindowMean, upsampled, window_means
from .meta_arch import FreeCP
from .purification.stages import class_activation_maps
from .purify import purify_windows
from .scores import class_scores
from .timing import StageTimer
from .words import Words

MOST = 6.0
"""The disagreement of three probabilities of which no two share a class."""

LARGEST = 0.1
"""The share of an image's patches that its score "largest" is the mean of."""

SCORES = ("largest", "all", "classes", "entropy")
"""How an image's patches become one number; see :func:`image_scores`."""


@dataclass(frozen=True)
class Disagreement:
    """What the three say of an image.

    Attributes:
        scores: of :data:`SCORES`.
        pair: the two channels that most often are the first choice of one and of another of the
            three, the smaller first; None where all agree everywhere.
        channels: those that are FreeCP's first choice somewhere, sorted.
        map: (H, W) float32 in [0, MOST], of the image as it is encoded: the mean over windows.
    """

    scores: dict[str, float]
    pair: tuple[int, int] | None
    channels: list[int]
    map: Tensor


def template_halves(model: FreeCP, words: Words) -> tuple[Words, Words]:
    """The words by every second of the 80 templates, from the first on and from the second on."""
    entries = template_sentences(words.vocabulary.queries)
    classes = words.query_class, words.num_background, model.extensions.decorrelation

    def half(start: int) -> Words:
        text = model.text_encoder.encode([entry[start::2] for entry in entries]).to(words.text)
        return replace(words, text=decorrelate_queries(text, *classes))

    return half(0), half(1)


@torch.no_grad()
def disagreement(
    model: FreeCP, encoded: EncodedImages, halves: tuple[Words, Words]
) -> Disagreement:
    """Where the three disagree in one image.

    Args:
        encoded: of :meth:`FreeCP.encode`, for FreeCP.
        halves: of :func:`template_halves`.

    Raises:
        ValueError: NaN in the features of the image; it names the file.
    """
    (image,) = encoded.images
    first, second = halves
    mean = WindowMean(1, image.shape[1:], image)
    parts = []
    with bf16_matmul(False, model.device):
        purified = purify_windows(
            encoded, first, model.head, model.encoder, None, None, StageTimer()
        )
        kept = torch.from_numpy(purified.kept).split([len(maps) for maps in purified.maps])
        for batch, maps, stays in zip(encoded.batches, purified.maps, kept, strict=True):
            assert batch.features is not None
            three = [
                purified_probabilities(maps, stays.to(maps.device), first),
                *(
                    class_probabilities(
                        class_activation_maps(
                            batch.features.patches_for(words.text),
                            words.text,
                            model.encoder.logit_scale,
                            batch.grid,
                        )[0],
                        words,
                    )
                    for words in halves
                ),
            ]
            distances = discrepancy(*three)
            for window, large in upsampled(
                batch.windows, distances[:, None], batch.windows[0].size
            ):
                mean.add(window, large)
            parts.append([x.transpose(0, 1).flatten(1) for x in three])
    freecp, base, other = (torch.cat(x, dim=1).cpu() for x in zip(*parts, strict=True))
    (merged,) = window_means([mean])
    labels = freecp.argmax(dim=0)
    return Disagreement(
        image_scores(discrepancy(freecp[None], base[None], other[None])[0], labels, base),
        most_confused([x.argmax(dim=0) for x in (freecp, base, other)], len(base)),
        labels.unique().tolist(),
        merged[0].cpu(),
    )


def class_probabilities(probabilities: Tensor, words: Words) -> Tensor:
    """(B, K, h, w) of the output channels, each the sum of its queries', from (B, Q, h, w)."""
    size = probabilities.shape
    summed = probabilities.new_zeros(size[0], words.num_channels, *size[2:])
    return summed.index_add_(1, words.query_channel, probabilities)


def purified_probabilities(maps: Tensor, kept: Tensor, words: Words) -> Tensor:
    """FreeCP's scores (METHOD.md step 7) at the patches, divided by their sum.

    Args:
        maps: (B, C, h, w) refined maps in [0, 1].
        kept: (B, C) bool, which of them stay.

    Returns:
        (B, K, h, w). Equal for all channels where none has a score.
    """
    stayed = (maps * kept[:, :, None, None]).transpose(0, 1)
    scores = class_scores(stayed, words.first_class + words.query_class, words.num_channels)
    if words.num_background:
        scores[0] = 1 - stayed.amax(dim=0)
    total = scores.sum(dim=0)
    shares = (scores / total).where(total > 0, 1 / words.num_channels)
    return shares.transpose(0, 1)


def discrepancy(*probabilities: Tensor) -> Tensor:
    """(B, ...) sum over all pairs of their L1 distance, in [0, 6] for three.

    Args:
        probabilities: (B, K, ...) each.
    """
    pairs = zip(probabilities, (*probabilities[1:], probabilities[0]), strict=True)
    return torch.stack([(one - two).abs().sum(dim=1) for one, two in pairs]).sum(dim=0)


def image_scores(distances: Tensor, labels: Tensor, base: Tensor) -> dict[str, float]:
    """One number an image, by each of :data:`SCORES`; a higher one asks for annotation first.

    Args:
        distances: (N,) of its patches.
        labels: (N,) int64, FreeCP's first choices.
        base: (K, N) the base method's probabilities.

    Returns:
        `largest`: the mean of the largest tenth of the distances, of one at least; `all`: their
        mean; `classes`: the mean over labels of the mean of their patches, so that a small object
        counts as much as the sky; `entropy`: the mean entropy of `base` in nats, which is what most
        compare with.
    """
    count = math.ceil(LARGEST * len(distances))
    of_label = [distances[labels == label].mean() for label in labels.unique()]
    return {
        "largest": distances.topk(count).values.mean().item(),
        "all": distances.mean().item(),
        "classes": torch.stack(of_label).mean().item(),
        "entropy": torch.special.entr(base).sum(dim=0).mean().item(),
    }


def most_confused(labels: Sequence[Tensor], num_channels: int) -> tuple[int, int] | None:
    """The two labels that most often stand at one patch in two of the label lists (N,)."""
    counts = torch.zeros(num_channels**2, dtype=torch.int64)
    for place, one in enumerate(labels):
        for two in labels[place + 1 :]:
            apart = one != two
            low, high = one.minimum(two)[apart], one.maximum(two)[apart]
            counts += (low * num_channels + high).bincount(minlength=num_channels**2)
    if not counts.any():
        return None
    return divmod(int(counts.argmax()), num_channels)


def greedy_order(scores: Sequence[float], channels: Sequence[Sequence[int]]) -> list[int]:
    """Positions of the images, each chosen for its score and for channels that are still rare.

    The next one has the largest score times sum of 1 / (1 + n) over its channels, where n of the
    images before it have the channel. Of equal ones the first is taken.

    Args:
        scores: of at least 0.
        channels: of each image, those seen in it.
    """
    seen = np.zeros((len(scores), max((max(c, default=0) for c in channels), default=0) + 1))
    for row, present in zip(seen, channels, strict=True):
        row[list(present)] = 1
    gains = seen * np.asarray(scores, dtype=float).reshape(-1, 1)
    left, times = np.ones(len(scores), dtype=bool), np.zeros(seen.shape[1])
    order: list[int] = []
    for _ in scores:
        value = np.where(left, gains @ (1 / (1 + times)), -np.inf)
        order.append(int(value.argmax()))
        left[order[-1]] = False
        times += seen[order[-1]]
    return order
