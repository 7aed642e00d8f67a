"""The mean over an image's windows of what is found in them (METHOD.md steps 7 and 8).

Windows overlap: atomic additions of all of them at once would sum in any order. So maps are
gathered and upsampled for many windows at once, and added window by window, in the windows' order,
a launch each: the same bits every time.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from . import transfers
from .adapters.entropy_weights import weighted_merge
from .encoding import EncodedImages
from .sliding_window import Window, upsample
from .timing import StageTimer
from .words import Words

UPSAMPLED_VALUES = 2**25
"""How many values of windows' upsampled maps exist at once on a GPU (128 MB), or one window's.

On a CPU, where a launch costs nothing and caches count, always one window's."""


class WindowMean:
    """The mean over all windows of an image of maps that cover parts of it.

    Args:
        channels: how many maps.
        size: height and width of the image.
        like: its dtype and device are those of the maps.
    """

    def __init__(self, channels: int, size: Sequence[int], like: Tensor):
        self.total = like.new_zeros(channels, *size)
        self.windows: list[Window] = []

    def add(self, window: Window, maps: Tensor, channels: Tensor | None = None) -> None:
        """Add a window's maps (S, *window.size), which belong to `channels` (S,); None: to all."""
        covered = self.total[:, window.rows, window.columns]
        if channels is None:
            covered.add_(maps)
        elif len(maps):
            covered.index_add_(0, channels, maps)
        self.windows.append(window)

    def mean(self, rows: Tensor, columns: Tensor) -> Tensor:
        """(channels, H, W), in place of the sum, from :func:`coverage` of all windows."""
        return self.total.div_(rows[:, None] * columns)


def coverage(windows: Sequence[Window], size: Sequence[int]) -> list[np.ndarray]:
    """How many spans of windows lie over each row (H,) and each column (W,), float32.

    Over a pixel lie as many windows as their product: every span of rows comes with every span of
    columns.
    """
    spans_of_sides = (
        {(w.rows.start, w.rows.stop) for w in windows},
        {(w.columns.start, w.columns.stop) for w in windows},
    )
    counts = [np.zeros(side, dtype=np.float32) for side in size]
    for count, spans in zip(counts, spans_of_sides, strict=True):
        for start, stop in spans:
            count[start:stop] += 1
    return counts


def window_means(means: Sequence[WindowMean]) -> list[Tensor]:
    """The mean of each, (channels, H, W), with one upload for all."""
    counts = [count for mean in means for count in coverage(mean.windows, mean.total.shape[1:])]
    on_device = transfers.to_device(counts, means[0].total.device)
    pairs = zip(on_device[::2], on_device[1::2], strict=True)
    return [mean.mean(*pair) for mean, pair in zip(means, pairs, strict=True)]


def upsampled(
    windows: Sequence[Window], maps: Tensor, size: Sequence[int]
) -> Iterator[tuple[Window, Tensor]]:
    """Each of the windows and its maps (Q, *size), of (B, Q, h, w)."""
    at_once = _windows_at_once(maps.shape[1], size, maps.device)
    for start in range(0, len(windows), at_once):
        part = slice(start, start + at_once)
        yield from zip(windows[part], upsample(maps[part], size), strict=True)


def _windows_at_once(maps: int, size: Sequence[int], device: torch.device) -> int:
    """How many windows of up to so many maps are upsampled together to `size`."""
    if not transfers.is_accelerator(device):
        return 1
    return max(1, UPSAMPLED_VALUES // (maps * size[0] * size[1]))


def merge_windows(
    windows: Sequence[Window],
    maps: Sequence[Tensor],
    kept: np.ndarray,
    size: tuple[int, int],
    weights: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The mean over an image's windows of the queries that stay in any of them.

    Args:
        maps: (B, C, h, w) of B windows after the other.
        kept: (windows, C) bool.
        size: height H and width W of the image.
        weights: of :func:`.weighted_merge`, which then takes the mean; None: all are the same.

    Returns:
        (S, H, W) and the positions (S,) int64 of these queries among the C, on the device of the
        maps.
    """
    if weights is not None:
        return weighted_merge(windows, maps, kept, weights, size)
    device = maps[0].device
    anywhere = kept.any(axis=0)
    counts = kept.sum(axis=1).tolist()
    channel_of_query = np.cumsum(anywhere) - 1
    ends = np.cumsum([len(batch) for batch in maps])
    survivors = [np.stack(np.nonzero(stays)) for stays in np.split(kept, ends[:-1])]
    channels_of_all = channel_of_query[np.nonzero(kept)[1]]
    rows, columns, queries, channels, *on_device = transfers.to_device(
        [*coverage(windows, size), *np.nonzero(anywhere), channels_of_all, *survivors], device
    )
    chosen = torch.cat([batch[tuple(i)] for batch, i in zip(maps, on_device, strict=True)])
    merged = WindowMean(len(queries), size, chosen)
    size_of_window = windows[0].size
    at_once = _windows_at_once(max(1, *counts), size_of_window, device)
    bounds = np.cumsum([0, *counts]).tolist()
    for start in range(0, len(windows), at_once):
        of_chunk = counts[start : start + at_once]
        first, last = bounds[start], bounds[start + len(of_chunk)]
        large = upsample(chosen[first:last], size_of_window).split(of_chunk)
        groups = channels[first:last].split(of_chunk)
        for window, *added in zip(windows[start : start + at_once], large, groups, strict=True):
            merged.add(window, *added)
    return merged.mean(rows, columns), queries


def base_similarities(
    encoded: EncodedImages, words: Words, resampled_once: bool, timer: StageTimer
) -> list[Tensor]:
    """Cosine similarities of all queries, merged over the windows of each image.

    The host waits once, for whether the features are finite.

    Args:
        encoded: for a base method.
        resampled_once: an image is one window, whose similarities keep the grid of its patches.
            Otherwise they are upsampled to the image.
        timer: of the stage "merge".

    Returns:
        (Q, h, w) float32 of each image.

    Raises:
        ValueError: NaN in the features of an image; it names the file.
    """
    device = words.text.device
    sums: list[Tensor] = []
    windows: list[Window] = []
    whole: dict[int, Tensor] = {}
    means = [
        WindowMean(0 if resampled_once else len(words.text), image.shape[1:], image)
        for image in encoded.images
    ]
    for batch in encoded.batches:
        with timer.stage("encode", device):
            patches = batch.patches_for(words.text)
        with timer.stage("merge", device):
            sums.append(patches.flatten(1).sum(dim=1, dtype=torch.float32))
            windows += batch.windows
            with torch.autocast(device.type, enabled=False):
                similarity = patches @ words.text.T
            similarity = similarity.transpose(1, 2).unflatten(2, batch.grid)
            if resampled_once:
                whole |= {w.image: maps for w, maps in zip(batch.windows, similarity, strict=True)}
                continue
            left, _, top, _ = batch.padding
            padded = batch.pixels.shape[2], batch.pixels.shape[3]
            for window, maps in upsampled(batch.windows, similarity, padded):
                height, width = window.size
                maps = maps[:, top : top + height, left : left + width]
                means[window.image].add(window, maps)
    with timer.stage("merge", device):
        (total,) = transfers.to_host([torch.cat(sums)])
        finite = np.isfinite(total)
        if not finite.all():
            name = encoded.names[windows[int(finite.argmin())].image]
            raise ValueError(
                f"{name}: NaN or infinity in its CLIP features; check the image, the weights "
                "(MODEL.CLIP.PRETRAINED), or use MODEL.CLIP.PRECISION fp32"
            )
        if resampled_once:
            return [whole[index] for index in range(len(encoded.images))]
        return window_means(means)
