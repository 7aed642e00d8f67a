"""METHOD.md steps 2 to 6 on the windows of images: which classes stay, and their maps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from . import transfers
from .adapters import certainty, region_features
from .clip import DenseCLIP
from .encoding import EncodedImages
from .merging import merge_windows
from .purification import Candidates, NonFiniteInput, PurificationHead
from .sliding_window import Window
from .synonyms import fitting_names
from .timing import StageTimer
from .words import Words


@dataclass(frozen=True)
class PurifiedWindows:
    """What purification leaves of W windows of a batch of images. C counts queries of classes.

    Attributes:
        windows: which they are.
        maps: (B, C, h, w) in [0, 1], refined, of B windows after the other.
        kept: (W, C) bool, which of the maps stay.
        kept_redundancy: (W, C) bool, which stayed after redundancy purification.
        consistency: (W, C) float32.
        beaten_by: (W, C) int64, the query of a class that lost to a look-alike; -1 elsewhere.
        weights: (B, h, w) of at least 0, how much a window's maps count in their mean; None: all
            the same.
    """

    windows: list[Window]
    maps: list[Tensor]
    kept: np.ndarray
    kept_redundancy: np.ndarray
    consistency: np.ndarray
    beaten_by: np.ndarray
    weights: list[Tensor] | None = None

    def of_image(self, index: int) -> "PurifiedWindows":
        """Those of one image of the batch, whose windows follow each other."""
        rows = [i for i, window in enumerate(self.windows) if window.image == index]
        mine = slice(rows[0], rows[-1] + 1)
        starts = np.cumsum([0] + [len(maps) for maps in self.maps]).tolist()

        def of_mine(batches: list[Tensor]) -> list[Tensor]:
            cut = [
                batch[max(mine.start - start, 0) : max(mine.stop - start, 0)]
                for start, batch in zip(starts, batches, strict=False)
            ]
            return [batch for batch in cut if len(batch)]

        return PurifiedWindows(
            self.windows[mine],
            of_mine(self.maps),
            self.kept[mine],
            self.kept_redundancy[mine],
            self.consistency[mine],
            self.beaten_by[mine],
            None if self.weights is None else of_mine(self.weights),
        )

    def merged(self, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """:func:`.merge_windows` of them, the windows of one image of this size."""
        return merge_windows(self.windows, self.maps, self.kept, size, self.weights)


def purify_windows(
    encoded: EncodedImages,
    words: Words,
    head: PurificationHead,
    encoder: DenseCLIP,
    redundancy_threshold: float | None,
    ambiguity_threshold: float | None,
    timer: StageTimer,
) -> PurifiedWindows:
    """Purify the classes of all windows of a batch of images.

    The host waits twice: for what it must know after step 5, and for the result. With
    :attr:`Words.text_views` each of them makes a window, weighted by :func:`.certainty`.

    Args:
        redundancy_threshold, ambiguity_threshold: None: the head's.

    Raises:
        ValueError: NaN in the features of an image (it names the file), or an image that was
            encoded for a base method alone.
    """
    device = words.text.device
    windows: list[Window] = []
    pixels: list[list[Tensor]] = []
    candidates: list[Candidates] = []
    patches: list[Tensor] = []
    weights: list[Tensor] | None = None if words.text_views is None else []
    for batch, text in ((batch, text) for batch in encoded.batches for text in words.texts):
        if batch.features is None:
            raise ValueError("images that were encoded for a base method; encode them anew")
        with timer.stage("purify", device):
            selected, probabilities = head.select(
                batch.features,
                text,
                words.descriptions,
                encoder.logit_scale,
                words.num_background,
                redundancy_threshold,
            )
        windows += batch.windows
        if batch.windows[0].size == batch.pixels.shape[2:]:
            views = [encoded.images[w.image][:, w.rows, w.columns] for w in batch.windows]
        else:
            views = list(batch.pixels)  # at another scale
        pixels.append(views)
        if weights is not None:
            weights.append(certainty(probabilities, dim=1))
        candidates.append(selected)
        if head.synonym_threshold:
            patches.append(batch.features.patches_for(words.text))
    with timer.stage("purify", device):
        try:
            fetched = head.fetch(candidates)
        except NonFiniteInput as error:
            if error.window is None:
                raise
            name = encoded.names[windows[error.window].image]
            raise ValueError(f"{name}: {error}; or the image is broken") from None
    with timer.stage("ambiguity", device):
        outcomes = [
            head.compete(
                views,
                selected,
                words.descriptions,
                encoder,
                words.num_background,
                ambiguity_threshold,
                words.related,
            )
            for views, selected in zip(pixels, fetched, strict=True)
        ]
        on_host = transfers.to_host([tensor for outcome in outcomes for tensor in outcome])
        kept, beaten_by = np.concatenate(on_host[::2]), np.concatenate(on_host[1::2])
    purified = PurifiedWindows(
        windows=windows,
        maps=[batch.refined for batch in candidates],
        kept=kept > 0,
        kept_redundancy=np.concatenate([selected.kept for selected in fetched]),
        consistency=np.concatenate([selected.consistency for selected in fetched]),
        beaten_by=beaten_by.astype(np.int64),
        weights=weights,
    )
    if not head.synonym_threshold:
        return purified
    with timer.stage("purify", device):
        kept = without_odd_names(
            purified, patches, words, encoder.logit_scale, head.synonym_threshold
        )
    return replace(purified, kept=kept)


def without_odd_names(
    purified: PurifiedWindows,
    patches: Sequence[Tensor],
    words: Words,
    logit_scale: float,
    threshold: float,
) -> np.ndarray:
    """`kept` of the windows without names that do not fit (:mod:`freecp_d2.synonyms`).

    The host waits once for every class of an image of which several names stay.

    Args:
        patches: (B, N, D) of the same batches as `purified.maps`.
    """
    windows = np.array([window.image for window in purified.windows])
    starts = np.cumsum([0] + [len(maps) for maps in purified.maps]).tolist()
    kept = purified.kept.copy()
    for image in np.unique(windows):
        rows = (windows == image).nonzero()[0]
        first, last = int(rows[0]), int(rows[-1]) + 1
        of_image = [slice(max(first - s, 0), max(last - s, 0)) for s in starts[:-1]]
        kept[rows] &= fitting_names(
            [maps[part] for maps, part in zip(purified.maps, of_image, strict=True)],
            [features[part] for features, part in zip(patches, of_image, strict=True)],
            kept[rows],
            words.text[words.num_background :],
            words.vocabulary.query_class,
            logit_scale,
            threshold,
        )
    return kept


def adapted(
    encoded: EncodedImages,
    words: Words,
    head: PurificationHead,
    logit_scale: float,
    redundancy_threshold: float | None,
) -> Words:
    """The words as their adapter has them in one image, by what stays after METHOD.md step 5.

    Args:
        encoded: the image, with its windows in memory.
        redundancy_threshold: None: the head's.
    """
    assert words.adapter is not None
    regions = []
    for batch in encoded.batches:
        if batch.features is None:
            raise ValueError("images that were encoded for a base method; encode them anew")
        candidates, _ = head.select(
            batch.features,
            words.text,
            words.descriptions,
            logit_scale,
            words.num_background,
            redundancy_threshold,
        )
        patches = batch.features.patches_for(words.text)
        regions.append(region_features(patches, candidates.refined, candidates.kept))
    seen = torch.cat(regions)
    # What is not finite is no image's to learn from: purification says whose it is.
    if not len(seen) or not seen.isfinite().all():
        return words
    weights = certainty((logit_scale * seen @ words.text.T).softmax(dim=1), dim=1)
    return replace(words, text=words.adapter.adapt(words.text, seen, weights))


def class_maps(
    encoded: EncodedImages,
    words: Words,
    classes: Sequence[str],
    head: PurificationHead,
    encoder: DenseCLIP,
) -> tuple[Tensor, Tensor]:
    """Class activation maps of one image before and after refinement (METHOD.md steps 2 and 4).

    Args:
        classes: first names of K classes of `words`.

    Returns:
        Two (K, H, W) float32 in [0, 1], H and W of the image as it is encoded: means over the
        windows, and over their views, weighted by :func:`.certainty`.

    Raises:
        ValueError: no class or one that is not there, or NaN in the features.
    """
    if not classes:
        raise ValueError("no class is asked for; name one of the vocabulary")
    names = [names[0] for names in words.vocabulary.classes]
    for name in classes:
        if name not in names:
            raise ValueError(f"{name!r} is no class of the vocabulary; ask for one of it")
    query_names = [names[index] for index in words.vocabulary.query_class]
    queries = [[i for i, other in enumerate(query_names) if other == name] for name in classes]
    (image,) = encoded.images
    windows: list[Window] = []
    weights: list[Tensor] | None = None if words.text_views is None else []
    maps: tuple[list[Tensor], list[Tensor]] = [], []
    for batch, text in ((batch, text) for batch in encoded.batches for text in words.texts):
        assert batch.features is not None
        candidates, probabilities = head.select(
            batch.features, text, words.descriptions, encoder.logit_scale, words.num_background
        )
        head.fetch([candidates])  # sees NaN
        windows += batch.windows
        if weights is not None:
            weights.append(certainty(probabilities, dim=1))
        activation = probabilities[:, words.num_background :]
        for of_kind, values in zip(maps, (activation, candidates.refined), strict=True):
            of_kind.append(torch.stack([values[:, rows].amax(dim=1) for rows in queries], dim=1))
    stays = np.ones((len(windows), len(classes)), dtype=bool)
    size = image.shape[1], image.shape[2]
    before, after = (merge_windows(windows, kind, stays, size, weights)[0] for kind in maps)
    return before, after
