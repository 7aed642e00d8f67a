"""FreeCP as a Detectron2 meta-architecture: windows, merging, Detectron2's input and output."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from .clip import DenseCLIP, DenseFeatures, Tokenizer, load_clip
from .clip.text import cached_text_features, description_features, template_sentences
from .data import Vocabulary, dataset_vocabulary, load_descriptions, load_vocabulary
from .purification import PurificationHead

BASE_TEMPERATURE = 50.0
"""What a base method alone multiplies cosine similarities by (METHOD.md step 8)."""


@dataclass(frozen=True)
class Window:
    """One window: which image of the batch, and where in it."""

    image: int
    rows: slice
    columns: slice

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


@META_ARCH_REGISTRY.register()
class FreeCP(nn.Module):
    """Open-vocabulary semantic segmentation by a frozen CLIP, with or without class purification.

    Args:
        encoder: the frozen CLIP with its base method.
        tokenizer: open_clip's tokenizer of that CLIP.
        vocabulary: the classes, in words. See also :meth:`set_vocabulary`.
        descriptions: class name -> sentences about it.
        text_cache: folder that keeps text features, or None.
        head: the purification; None: the base method alone (METHOD.md step 8).
        window, stride: in pixels. Either 0: the whole image at once.
        batch_size: how many windows go through CLIP at once.
        background_threshold: see MODEL.FREECP.BACKGROUND_THRESHOLD.
        pixel_mean, pixel_std: of RGB, 0-255.
        input_format: channel order of the images, RGB or BGR.

    Raises:
        ValueError: input_format, window, stride or batch_size out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        encoder: DenseCLIP,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        descriptions: Mapping[str, Sequence[str]],
        text_cache: str | Path | None,
        head: PurificationHead | None,
        window: int,
        stride: int,
        batch_size: int,
        background_threshold: float,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
    ):
        super().__init__()
        if input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {input_format!r}; choose RGB or BGR")
        for key, value, least in (
            ("WINDOW", window, 0),
            ("STRIDE", stride, 0),
            ("BATCH_SIZE", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"MODEL.FREECP.{key} is {value}; it must be at least {least}")
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.text_cache = text_cache
        self.head = head
        self.window = window
        self.stride = stride
        self.batch_size = batch_size
        self.background_threshold = background_threshold
        self.input_format = input_format
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        for name in ("text", "descriptions", "query_class"):
            self.register_buffer(name, None, persistent=False)
        self.set_vocabulary(vocabulary, descriptions)

    @classmethod
    def from_config(cls, cfg: CfgNode, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """The constructor's arguments from a config with :func:`add_freecp_config`'s keys.

        Args:
            vocabulary: in place of the config's.
        """
        clip, freecp = cfg.MODEL.CLIP, cfg.MODEL.FREECP
        vocabulary = vocabulary or _configured_vocabulary(cfg)
        descriptions = load_descriptions(freecp.DESCRIPTIONS) if freecp.DESCRIPTIONS else {}
        model, tokenizer = load_clip(clip.NAME, clip.PRETRAINED, clip.PRECISION, cfg.MODEL.DEVICE)
        encoder = DenseCLIP(
            model,
            clip.METHOD,
            gem_depth=clip.GEM_DEPTH,
            gem_head_average=clip.GEM_HEAD_AVERAGE,
            gaussian_std=clip.GAUSSIAN_STD,
        )
        head = None
        window, stride = freecp.WINDOW, freecp.STRIDE
        if freecp.ENABLED:
            head = PurificationHead(
                freecp.REDUNDANCY_THRESHOLD,
                freecp.AMBIGUITY_THRESHOLD,
                redundancy=freecp.REDUNDANCY,
                ambiguity=freecp.AMBIGUITY,
                box_full_extent=freecp.BOX_FULL_EXTENT,
                crop_batch_size=4 * freecp.BATCH_SIZE,
            )
        else:
            window = window if freecp.BASE_WINDOW < 0 else freecp.BASE_WINDOW
            stride = stride if freecp.BASE_STRIDE < 0 else freecp.BASE_STRIDE
        return {
            "encoder": encoder,
            "tokenizer": tokenizer,
            "vocabulary": vocabulary,
            "descriptions": descriptions,
            "text_cache": clip.TEXT_CACHE or None,
            "head": head,
            "window": window,
            "stride": stride,
            "batch_size": freecp.BATCH_SIZE,
            "background_threshold": freecp.BACKGROUND_THRESHOLD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives; images are moved there."""
        return self.get_buffer("pixel_mean").device

    def set_vocabulary(
        self, vocabulary: Vocabulary, descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Segment these classes from now on.

        Args:
            descriptions: class name -> sentences about it; a class without any is described by
                its templates.

        Raises:
            ValueError: a name or a sentence that does not fit into CLIP's context.
        """
        names = vocabulary.queries
        clip = self.encoder.model
        text = cached_text_features(
            clip, self.tokenizer, template_sentences(names), self.text_cache
        )
        if self.head is not None:
            self.head.num_background = vocabulary.num_background
            self.descriptions = description_features(
                clip, self.tokenizer, names, descriptions or {}, text, self.text_cache
            ).to(self.device)
        self.text = text.to(self.device)
        self.query_class = torch.tensor(vocabulary.query_class, device=self.device)
        self.vocabulary = vocabulary

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment a batch of images of any sizes.

        Args:
            batched_inputs: dicts with `image`, (3, H, W) uint8 or float, 0-255, in the order of
                INPUT.FORMAT, and optionally `height` and `width`, the size of the output (the
                image's own by default).

        Returns:
            One dict an image with `sem_seg`, (K, height, width) float32: a score for every class,
            preceded by the background's where the vocabulary has one. The label map is its argmax.

        Raises:
            ValueError: NaN in an image or its features; it names the file.
        """
        images = [self._normalize(x) for x in batched_inputs]
        sizes = [
            (x.get("height", x["image"].shape[1]), x.get("width", x["image"].shape[2]))
            for x in batched_inputs
        ]
        segment = self._base_method if self.head is None else self._purified
        return [{"sem_seg": sem_seg} for sem_seg in segment(images, sizes, batched_inputs)]

    def _normalize(self, x: dict) -> Tensor:
        """(3, H, W) float32 RGB as CLIP wants it, at least a patch in height and width."""
        image = x["image"].to(self.device, torch.float32)
        if image.ndim != 3 or len(image) != 3:
            raise ValueError(f"{_name(x)}: an image has shape (3, H, W), not {tuple(image.shape)}")
        if self.input_format == "BGR":
            image = image.flip(0)
        image = (image - self.pixel_mean) / self.pixel_std
        size = [max(n, p) for n, p in zip(image.shape[1:], self.encoder.patch_size, strict=True)]
        if list(image.shape[1:]) != size:
            image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        return image

    def _encode(
        self, images: list[Tensor], inputs: list[dict], pad: bool
    ) -> Iterator[tuple[list[Window], Tensor, DenseFeatures]]:
        """Windows of equal size in batches, their pixels (B, 3, H, W) and features.

        `pad`: the pixels are zero-padded on both sides to whole patches.
        """
        by_size = defaultdict(list)
        for index, image in enumerate(images):
            for window in windows_of(index, image.shape[1:], self.window, self.stride):
                by_size[window.size].append(window)
        for size, windows in by_size.items():
            for start in range(0, len(windows), self.batch_size):
                batch = windows[start : start + self.batch_size]
                pixels = torch.stack([images[w.image][:, w.rows, w.columns] for w in batch])
                if pad:
                    pixels = F.pad(pixels, patch_padding(size, self.encoder.patch_size))
                features = self.encoder(pixels)
                finite = features.patches.isfinite().flatten(1).all(dim=1).tolist()
                if not all(finite):
                    broken = inputs[batch[finite.index(False)].image]
                    raise ValueError(
                        f"{_name(broken)}: NaN or infinity in its CLIP features; check the image, "
                        "the weights (MODEL.CLIP.PRETRAINED), or use MODEL.CLIP.PRECISION fp32"
                    )
                yield batch, pixels, features

    def _purified(
        self, images: list[Tensor], sizes: list[tuple[int, int]], inputs: list[dict]
    ) -> Iterator[Tensor]:
        """METHOD.md step 7."""
        assert self.head is not None
        found: list[list[tuple[Window, Tensor, Tensor]]] = [[] for _ in images]
        for windows, pixels, features in self._encode(images, inputs, pad=False):
            purified = self.head(pixels, features, self.text, self.descriptions, self.encoder)
            for window, maps, kept in zip(windows, purified.maps, purified.kept, strict=True):
                found[window.image].append((window, kept, maps[kept]))
        for image, size, parts in zip(images, sizes, found, strict=True):
            kept = torch.stack([kept for _, kept, _ in parts]).any(dim=0)
            position = kept.cumsum(0) - 1
            merged = WindowMean(int(kept.sum()), image)
            for window, own, maps in parts:
                merged.add(window, upsample(maps, window.size), position[own])
            maps = upsample(merged.mean(), size)
            sem_seg = self._by_class(maps, self.query_class[kept])
            if self.vocabulary.num_background:
                sem_seg[0] = 1 - maps.amax(dim=0) if len(maps) else 1.0
            yield sem_seg

    def _by_class(self, maps: Tensor, classes: Tensor) -> Tensor:
        """(K, H, W) maxima of maps (S, H, W) of at least 0, whose classes (S,) are given.

        Channels without a map are zero, and so is the background's, where there is one.
        """
        background = int(self.vocabulary.num_background > 0)
        count = background + len(self.vocabulary.classes)
        channels = (background + classes)[:, None, None].expand_as(maps)
        return maps.new_zeros(count, *maps.shape[1:]).scatter_reduce_(0, channels, maps, "amax")

    def _base_method(
        self, images: list[Tensor], sizes: list[tuple[int, int]], inputs: list[dict]
    ) -> Iterator[Tensor]:
        """METHOD.md step 8."""
        merged = [WindowMean(len(self.text), image) for image in images]
        everything = torch.arange(len(self.text), device=self.device)
        for windows, pixels, features in self._encode(images, inputs, pad=True):
            similarity = (
                (features.patches @ self.text.T).transpose(1, 2).unflatten(2, features.grid)
            )
            similarity = upsample(similarity, pixels.shape[2:])
            left, _, top, _ = patch_padding(windows[0].size, self.encoder.patch_size)
            height, width = windows[0].size
            similarity = similarity[:, :, top : top + height, left : left + width]
            for window, maps in zip(windows, similarity, strict=True):
                merged[window.image].add(window, maps, everything)
        for total, size in zip(merged, sizes, strict=True):
            yield self._base_scores(upsample(total.mean(), size))

    def _base_scores(self, similarity: Tensor) -> Tensor:
        """(K, H, W) scores from cosine similarities (Q, H, W)."""
        probabilities = (BASE_TEMPERATURE * similarity).softmax(dim=0)
        num_background = self.vocabulary.num_background
        sem_seg = self._by_class(probabilities[num_background:], self.query_class)
        if num_background:
            sem_seg[0] = probabilities[:num_background].amax(dim=0)
            sem_seg[0].masked_fill_(sem_seg.amax(dim=0) < self.background_threshold, 1.0)
        return sem_seg


class WindowMean:
    """The mean over windows of maps that cover parts of an image.

    Args:
        channels: how many maps.
        image: (..., H, W) of the image's size, on the maps' device.
    """

    def __init__(self, channels: int, image: Tensor):
        self.total = image.new_zeros(channels, *image.shape[-2:])
        self.count = image.new_zeros(image.shape[-2:])

    def add(self, window: Window, maps: Tensor, channels: Tensor) -> None:
        """Add a window's maps (S, *window.size), which belong to `channels` (S,)."""
        self.total[:, window.rows, window.columns].index_add_(0, channels, maps)
        self.count[window.rows, window.columns] += 1

    def mean(self) -> Tensor:
        """(channels, H, W)."""
        return self.total / self.count


def windows_of(image: int, size: Sequence[int], window: int, stride: int) -> list[Window]:
    """Sliding windows of an image of `size` (height, width), row by row (METHOD.md step 7).

    The last ones are shifted back inside. A window larger than the image is cut to the image, and
    a window or stride of 0 means the whole image.
    """
    spans = []
    for side in size:
        extent = min(window, side) if window and stride else side
        count = max(side - extent + stride - 1, 0) // stride + 1 if stride else 1
        starts = [min(i * stride, side - extent) for i in range(count)]
        spans.append([slice(start, start + extent) for start in starts])
    return [Window(image, rows, columns) for rows in spans[0] for columns in spans[1]]


def patch_padding(size: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) pixels that make `size` (height, width) whole patches."""
    (height, width), (p_height, p_width) = size, patch
    vertical, horizontal = -height % p_height, -width % p_width
    left, top = horizontal // 2, vertical // 2
    return left, horizontal - left, top, vertical - top


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps ([B,] C, h, w) resampled bilinearly to `size`."""
    if not len(maps):
        return maps.new_zeros(*maps.shape[:-2], *size)
    batched = maps if maps.ndim == 4 else maps[None]
    batched = F.interpolate(batched, tuple(size), mode="bilinear", align_corners=False)
    return batched if maps.ndim == 4 else batched[0]


def _configured_vocabulary(cfg: CfgNode) -> Vocabulary:
    if cfg.MODEL.FREECP.VOCABULARY:
        return load_vocabulary(cfg.MODEL.FREECP.VOCABULARY)
    if not cfg.DATASETS.TEST:
        raise ValueError("no classes: set MODEL.FREECP.VOCABULARY to a file, or DATASETS.TEST")
    vocabularies = [dataset_vocabulary(MetadataCatalog.get(name)) for name in cfg.DATASETS.TEST]
    if any(vocabulary != vocabularies[0] for vocabulary in vocabularies):
        raise ValueError(
            f"DATASETS.TEST {tuple(cfg.DATASETS.TEST)} differ in their classes; evaluate them one "
            "by one"
        )
    return vocabularies[0]


def _name(x: dict) -> str:
    return str(x.get("file_name", "an image of the batch"))
