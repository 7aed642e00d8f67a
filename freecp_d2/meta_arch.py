"""FreeCP as a Detectron2 meta-architecture: windows, merging, Detectron2's input and output."""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from .clip import DenseCLIP, DenseFeatures, Tokenizer, check_normalisation, load_clip
from .clip.text import cached_text_features, description_features, template_sentences
from .data import Vocabulary, dataset_vocabulary, load_descriptions, load_vocabulary
from .data.benchmarks.protocols import SAME, BaseProtocol, base_protocol, with_protocol
from .purification import NonFiniteInput, PurificationHead
from .purification.stages import to_device, to_host
from .scores import base_scores, class_scores
from .sliding_window import Window, WindowMean, patch_padding, upsample, windows_of
from .timing import StageTimer

T = TypeVar("T")

MAP_VALUES = 2**25
"""How many values of upsampled maps exist at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedWindows:
    """Windows of equal size of a batch of images.

    Attributes:
        windows: B of them.
        pixels: (B, 3, H, W) normalised.
        features: of `pixels`.
    """

    windows: list[Window]
    pixels: Tensor
    features: DenseFeatures


@dataclass(frozen=True)
class EncodedImages:
    """What CLIP sees in a batch of images.

    Attributes:
        names: of their files, for messages.
        sizes: height and width of every image.
        output_sizes: height and width that its segmentation is to have.
        batches: their windows.
    """

    names: list[str]
    sizes: list[tuple[int, int]]
    output_sizes: list[tuple[int, int]]
    batches: Iterable[EncodedWindows]


@META_ARCH_REGISTRY.register()
class FreeCP(nn.Module):
    """Open-vocabulary semantic segmentation by a frozen CLIP, with or without class purification.

    Attributes:
        output: "sem_seg", or "label_map" for labels without the cost of a score at every pixel.

    Args:
        encoder: the frozen CLIP with its base method.
        tokenizer: open_clip's tokenizer of that CLIP.
        vocabulary: the classes, in words. See also :meth:`set_vocabulary`.
        descriptions: class name -> sentences about it.
        text_cache: folder that keeps text features, or None.
        head: the purification; None: the base method alone (METHOD.md step 8).
        window, stride: in pixels. Either 0: the whole image at once.
        batch_size: how many windows go through CLIP at once.
        protocol: how the base method alone is run. Its short side, window, stride and words are not
            read here; see MODEL.FREECP.PROTOCOL.
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
        protocol: BaseProtocol = SAME,
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
        if window and stride > window:
            raise ValueError(
                f"MODEL.FREECP.STRIDE is {stride} and WINDOW {window}: pixels between the windows "
                "would never be seen; choose a stride of at most the window"
            )
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.text_cache = text_cache
        self.head = head
        self.window = window
        self.stride = stride
        self.batch_size = batch_size
        self.protocol = protocol
        self.input_format = input_format
        self.output: Literal["sem_seg", "label_map"] = "sem_seg"
        self.timer = StageTimer()
        device = encoder.model.logit_scale.device
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            buffer = torch.tensor(values, device=device).view(3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        for name in ("text", "descriptions", "query_class"):
            self.register_buffer(name, None, persistent=False)
        self.set_vocabulary(vocabulary, descriptions)

    @classmethod
    def from_config(cls, cfg: CfgNode, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """The constructor's arguments from a config with :func:`add_freecp_config`'s keys.

        Args:
            vocabulary: in place of the config's.
        """
        protocol, cfg = base_protocol(cfg), with_protocol(cfg)
        freecp = cfg.MODEL.FREECP
        vocabulary = vocabulary or configured_vocabulary(cfg)
        descriptions = load_descriptions(freecp.DESCRIPTIONS) if freecp.DESCRIPTIONS else {}
        clip, model = cfg.MODEL.CLIP, cfg.MODEL
        check_normalisation(clip.NAME, clip.PRETRAINED, model.PIXEL_MEAN, model.PIXEL_STD)
        encoder, tokenizer = cls.build_encoder(cfg)
        head = None
        if freecp.ENABLED:
            head = PurificationHead(
                freecp.REDUNDANCY_THRESHOLD,
                freecp.AMBIGUITY_THRESHOLD,
                redundancy=freecp.REDUNDANCY,
                ambiguity=freecp.AMBIGUITY,
                consistency=freecp.CONSISTENCY,
                box_full_extent=freecp.BOX_FULL_EXTENT,
                crop_batch_size=freecp.CROP_BATCH_SIZE,
            )
        elif protocol.authors != SAME.authors:
            log.info("MODEL.FREECP.PROTOCOL paper: %s", protocol)
        return {
            "encoder": encoder,
            "tokenizer": tokenizer,
            "vocabulary": vocabulary,
            "descriptions": descriptions,
            "text_cache": cfg.MODEL.CLIP.TEXT_CACHE or None,
            "head": head,
            "window": freecp.WINDOW,
            "stride": freecp.STRIDE,
            "batch_size": freecp.BATCH_SIZE,
            "protocol": protocol,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @classmethod
    def build_encoder(cls, cfg: CfgNode) -> tuple[DenseCLIP, Tokenizer]:
        """The encoder of MODEL.CLIP, and its tokenizer."""
        clip = cfg.MODEL.CLIP
        model, tokenizer = load_clip(clip.NAME, clip.PRETRAINED, clip.PRECISION, cfg.MODEL.DEVICE)
        encoder = DenseCLIP(
            model,
            clip.METHOD,
            gem_depth=clip.GEM_DEPTH,
            gem_head_average=clip.GEM_HEAD_AVERAGE,
            gaussian_std=clip.GAUSSIAN_STD,
            last_block=clip.LAST_BLOCK,
        )
        return encoder, tokenizer

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
                clip,
                self.tokenizer,
                names,
                descriptions or {},
                text,
                self.text_cache,
                vocabulary.num_background,
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
            preceded by the background's where the vocabulary has one. The label map is its argmax;
            with `output` "label_map" it is given instead, as `label_map`, (height, width) int64,
            beside `scores`, (K,) float32, the highest score of each.
            With purification also what :meth:`segment` says.

        Raises:
            ValueError: NaN in an image or its features; it names the file.
        """
        if self.head is None:
            return self._base_method(batched_inputs)
        return self.segment(self._encode_lazily(batched_inputs))

    @torch.no_grad()
    def encode(self, batched_inputs: list[dict]) -> EncodedImages:
        """What :meth:`segment` needs, any number of times: for other words or thresholds.

        Args and errors are those of :meth:`forward`.
        """
        encoded = self._encode_lazily(batched_inputs)
        return replace(encoded, batches=list(encoded.batches))

    @torch.no_grad()
    def segment(self, encoded: EncodedImages) -> list[dict]:
        """Purify and label (METHOD.md steps 2 to 7); :meth:`forward` without CLIP's view of it.

        Returns:
            One dict an image with `sem_seg`, or `label_map` and `scores`, and, on the CPU, of the
            classes without the background: `kept_redundancy` and `kept`, (classes,) bool, whether
            any of a class's names stayed in any window after the first and after both stages;
            `consistency`, (classes,) float32, the largest of these; `ambiguous_losses`, sorted
            pairs (loser, winner) of contiguous ids of look-alikes.

        Raises:
            ValueError: NaN in the features of an image; it names the file.
        """
        assert self.head is not None
        windows: list[Window] = []
        maps: list[Tensor] = []
        decisions: list[list[Tensor]] = []
        for batch in encoded.batches:
            with self.timer.stage("purify", self.device):
                try:
                    candidates = self.head.select(
                        batch.features, self.text, self.descriptions, self.encoder.logit_scale
                    )
                except NonFiniteInput as error:
                    if error.window is None:
                        raise
                    name = encoded.names[batch.windows[error.window].image]
                    raise ValueError(f"{name}: {error}; or the image is broken") from None
            with self.timer.stage("ambiguity", self.device):
                purified = self.head.resolve(
                    batch.pixels, candidates, self.descriptions, self.encoder
                )
            windows += batch.windows
            maps += purified.maps
            decisions.append(
                [
                    purified.kept,
                    purified.kept_redundancy,
                    purified.consistency,
                    purified.beaten_by,
                ]
            )
        with self.timer.stage("merge", self.device):
            kept, kept_redundancy, consistency, beaten_by = to_host(
                [torch.cat(parts) for parts in zip(*decisions, strict=True)]
            )
            image_of = np.array([window.image for window in windows])
            results = []
            for image, size in enumerate(encoded.sizes):
                (own,) = np.nonzero(image_of == image)
                merged, queries = self._merge(
                    [windows[i] for i in own], [maps[i] for i in own], kept[own] > 0, size
                )
                size = encoded.output_sizes[image]
                if self.output == "label_map":
                    found = self._label_map(merged, queries, size)
                else:
                    found = {"sem_seg": self._sem_seg(upsample(merged, size), queries)}
                results.append(
                    {
                        **found,
                        "kept": self._any_query(kept[own]) > 0,
                        "kept_redundancy": self._any_query(kept_redundancy[own]) > 0,
                        "consistency": self._any_query(consistency[own]),
                        "ambiguous_losses": self._losses(beaten_by[own]),
                    }
                )
        return results

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent so far in the stages "encode", "purify", "ambiguity" and "merge"."""
        return self.timer.seconds()

    def reset_timings(self) -> None:
        """Count `timings` from zero."""
        self.timer = StageTimer()

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

    def _encode_lazily(self, batched_inputs: list[dict]) -> EncodedImages:
        images = [self._normalize(x) for x in batched_inputs]
        return EncodedImages(
            names=[_name(x) for x in batched_inputs],
            sizes=[(image.shape[1], image.shape[2]) for image in images],
            output_sizes=[_output_size(x) for x in batched_inputs],
            batches=(
                EncodedWindows(windows, pixels, self._timed_encoder(self.encoder, pixels))
                for windows, pixels in self._windows(images)
            ),
        )

    def _windows(self, images: list[Tensor]) -> Iterator[tuple[list[Window], Tensor]]:
        """Windows of equal size in batches, and their pixels (B, 3, H, W)."""
        by_size = defaultdict(list)
        for index, image in enumerate(images):
            for window in windows_of(index, image.shape[1:], self.window, self.stride):
                by_size[window.size].append(window)
        for windows in by_size.values():
            for start in range(0, len(windows), self.batch_size):
                batch = windows[start : start + self.batch_size]
                yield batch, torch.stack([images[w.image][:, w.rows, w.columns] for w in batch])

    def _timed_encoder(self, encode: Callable[[Tensor], T], pixels: Tensor) -> T:
        with self.timer.stage("encode", self.device):
            return encode(pixels)

    def _merge(
        self, windows: list[Window], maps: list[Tensor], kept: np.ndarray, size: tuple[int, int]
    ) -> tuple[Tensor, np.ndarray]:
        """The mean over an image's windows of the queries that stay in any of them.

        Args:
            maps: (C, h, w) of every window.
            kept: (windows, C) bool.

        Returns:
            (S, H, W) and the positions (S,) of these queries among those that are not background.
        """
        (queries,) = np.nonzero(kept.any(axis=0))
        position = np.zeros(kept.shape[1], dtype=np.int64)
        position[queries] = np.arange(len(queries))
        merged = WindowMean(len(queries), size, maps[0])
        for window, own, query_maps in zip(windows, kept, maps, strict=True):
            (survivors,) = np.nonzero(own)
            survivor_maps = query_maps[to_device(survivors, self.device)]
            channels = to_device(position[survivors], self.device)
            merged.add(window, upsample(survivor_maps, window.size), channels)
        return merged.mean(), queries

    def _sem_seg(self, maps: Tensor, queries: np.ndarray) -> Tensor:
        """(K, H, W) scores from the maps (S, H, W) of the queries (S,) that stay."""
        sem_seg = self._by_class(maps, self.query_class[to_device(queries, self.device)])
        if self.vocabulary.num_background:
            sem_seg[0] = 1 - maps.amax(dim=0) if len(maps) else 1.0
        return sem_seg

    def _label_map(
        self, maps: Tensor, queries: np.ndarray, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """The argmax of :meth:`_sem_seg` at `size` and the maximum of its channels.

        Its (K, H, W) never exist: the maps (S, h, w) are upsampled a few at a time.
        """
        score, position = maps.new_zeros(size), torch.zeros(size, dtype=torch.int64).to(maps.device)
        best = maps.new_zeros(len(maps))
        at_once = max(1, MAP_VALUES // score.numel())
        for start in range(0, len(maps), at_once):
            part = upsample(maps[start : start + at_once], size)
            best[start : start + at_once] = part.flatten(1).amax(dim=1)
            part_score, part_position = part.max(dim=0)
            better = part_score > score
            score = score.where(~better, part_score)
            position = position.where(~better, part_position + start)
        classes = self.query_class[to_device(queries, self.device)]
        scores = self._by_class(best[:, None, None], classes)[:, 0, 0]
        labels = classes[position] if len(maps) else position
        if self.vocabulary.num_background:
            scores[0] = 1 - score.amin()
            labels = (labels + 1).masked_fill(1 - score >= score, 0)
        else:
            labels = labels.masked_fill(score == 0, 0)
        return {"label_map": labels, "scores": scores}

    def _any_query(self, values: np.ndarray) -> Tensor:
        """(classes,) float32 maxima, from at least 0, of (windows, C) over windows and names."""
        best = np.zeros(len(self.vocabulary.classes), dtype=np.float32)
        np.maximum.at(best, list(self.vocabulary.query_class), values.max(axis=0))
        return torch.from_numpy(best)

    def _losses(self, beaten_by: np.ndarray) -> list[tuple[int, int]]:
        """Pairs of classes from (windows, C) positions of queries, -1 where none."""
        window, loser = np.nonzero(beaten_by >= 0)
        classes = np.array(self.vocabulary.query_class)
        losers, winners = classes[loser], classes[beaten_by[window, loser].astype(int)]
        pairs = zip(losers.tolist(), winners.tolist(), strict=True)
        return sorted({(loser, winner) for loser, winner in pairs if loser != winner})

    def _by_class(self, maps: Tensor, classes: Tensor) -> Tensor:
        """(K, H, W) maxima of maps (S, H, W) of at least 0, whose classes (S,) are given.

        Channels without a map are zero, and so is the background's, where there is one.
        """
        background = int(self.vocabulary.num_background > 0)
        return class_scores(maps, background + classes, background + len(self.vocabulary.classes))

    def _base_method(self, inputs: list[dict]) -> list[dict]:
        """METHOD.md step 8."""
        images = [self._normalize(x) for x in inputs]
        whole = not (self.window and self.stride)
        at_once = whole and self.protocol.whole_image_at_once
        pad = self.protocol.partial_patches == "pad" and not at_once
        merged: list[WindowMean | Tensor] = [
            image if at_once else WindowMean(len(self.text), image.shape[1:], image)
            for image in images
        ]
        everything = torch.arange(len(self.text), device=self.device)
        for windows, pixels in self._windows(images):
            height, width = windows[0].size
            padding = (0, 0, 0, 0)
            if pad:
                padding = patch_padding((height, width), self.encoder.patch_size)
                pixels = F.pad(pixels, padding)
            patches, grid = self._timed_encoder(self.encoder.encode_patches, pixels)
            finite = patches.isfinite().flatten(1).all(dim=1).tolist()
            if not all(finite):
                broken = inputs[windows[finite.index(False)].image]
                raise ValueError(
                    f"{_name(broken)}: NaN or infinity in its CLIP features; check the image, "
                    "the weights (MODEL.CLIP.PRETRAINED), or use MODEL.CLIP.PRECISION fp32"
                )
            with self.timer.stage("merge", self.device):
                with torch.autocast(self.device.type, enabled=False):
                    similarity = (patches @ self.text.T).transpose(1, 2).unflatten(2, grid)
                left, _, top, _ = padding
                for window, maps in zip(windows, similarity, strict=True):
                    total = merged[window.image]
                    if isinstance(total, WindowMean):
                        maps = upsample(maps, pixels.shape[2:])
                        maps = maps[:, top : top + height, left : left + width]
                        total.add(window, maps, everything)
                    else:
                        merged[window.image] = maps
        with self.timer.stage("merge", self.device):
            return [
                self._base_result(
                    total.mean() if isinstance(total, WindowMean) else total, image, _output_size(x)
                )
                for total, image, x in zip(merged, images, inputs, strict=True)
            ]

    def _base_result(
        self, similarity: Tensor, image: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """An image's result from the cosine similarities (Q, h, w) of all queries."""
        background = self.vocabulary.num_background
        channels, count = self.query_class, len(self.vocabulary.classes)
        if background:
            channels = torch.cat([channels.new_zeros(background), channels + 1])
            count += 1
        sem_seg = None
        if self.output == "sem_seg":
            sem_seg = similarity.new_empty(count, *size)
        labels = channels.new_empty(size)
        best = similarity.new_zeros(count)
        for rows, scores in base_scores(
            similarity, image, channels, count, size, self.protocol, background > 0
        ):
            if sem_seg is not None:
                sem_seg[:, rows] = scores
            else:
                labels[rows] = scores.argmax(dim=0)
                best = best.maximum(scores.amax(dim=(1, 2)))
        return {"label_map": labels, "scores": best} if sem_seg is None else {"sem_seg": sem_seg}


def configured_vocabulary(cfg: CfgNode) -> Vocabulary:
    """The classes of a config: of MODEL.FREECP.VOCABULARY, or else of DATASETS.TEST.

    Raises:
        ValueError: neither is set, or the data sets differ in their classes.
    """
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


def _output_size(x: dict) -> tuple[int, int]:
    return x.get("height", x["image"].shape[1]), x.get("width", x["image"].shape[2])


def _name(x: dict) -> str:
    return str(x.get("file_name", "an image of the batch"))
