"""FreeCP as a Detectron2 meta-architecture: normalise, windows, encode, purify, merge, label."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from .clip import DenseCLIP, Tokenizer, check_normalisation, load_clip
from .data import Vocabulary, dataset_vocabulary, load_descriptions, load_vocabulary
from .data.benchmarks.protocols import SAME, BaseProtocol, base_protocol, with_protocol
from .encoding import (
    EncodedImages,
    EncodedWindows,
    at_least_a_patch,
    encode_base_windows,
    encode_windows,
    name_of,
)
from .purification import NonFiniteInput, PurificationHead
from .purification.stages import to_host
from .scores import (
    ambiguous_losses,
    base_labels,
    base_strips,
    best_of_class,
    merge_windows,
    purified_labels,
    purified_scores,
)
from .sliding_window import Window, WindowMean, upsample, window_batches
from .timing import StageTimer
from .words import Words, encode_words

OUTPUTS = ("sem_seg", "label_map")
log = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class FreeCP(nn.Module):
    """Open-vocabulary semantic segmentation by a frozen CLIP, with or without class purification.

    Nothing changes while it segments: threads may share it, each with words of its own.

    Attributes:
        words: what :meth:`forward` segments into; None: nothing yet.

    Args:
        encoder: the frozen CLIP with its base method.
        tokenizer: open_clip's tokenizer of that CLIP.
        vocabulary: the classes, in words; None: see :meth:`set_vocabulary`.
        descriptions: class name -> sentences about it.
        text_cache: folder that keeps text features, or None.
        head: the purification.
        enabled: False: :meth:`forward` runs the base method alone (METHOD.md step 8).
        output: "sem_seg", or "label_map" for labels without the cost of a score at every pixel.
        window, stride: in pixels. Either 0: the whole image at once.
        batch_size: how many windows go through CLIP at once.
        protocol: how the base method alone is run. Its short side, window, stride and words are not
            read here; see MODEL.FREECP.PROTOCOL.
        pixel_mean, pixel_std: of RGB, 0-255.
        input_format: channel order of the images, RGB or BGR.

    Raises:
        ValueError: input_format, output, window, stride or batch_size out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        encoder: DenseCLIP,
        tokenizer: Tokenizer,
        vocabulary: Vocabulary | None,
        descriptions: Mapping[str, Sequence[str]],
        text_cache: str | Path | None,
        head: PurificationHead,
        enabled: bool = True,
        output: str = "sem_seg",
        window: int,
        stride: int,
        batch_size: int,
        protocol: BaseProtocol = SAME,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
    ):
        super().__init__()
        _check_options(input_format, output, window, stride, batch_size)
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.text_cache = text_cache
        self.head = head
        self.enabled = enabled
        self.output = output
        self.window = window
        self.stride = stride
        self.batch_size = batch_size
        self.protocol = protocol
        self.input_format = input_format
        self.timer = StageTimer()
        device = encoder.model.logit_scale.device
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            buffer = torch.tensor(values, device=device).view(3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.words: Words | None = None
        if vocabulary is not None:
            self.set_vocabulary(vocabulary, descriptions)

    @classmethod
    def from_config(cls, cfg: CfgNode, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """The constructor's arguments from a config with :func:`add_freecp_config`'s keys.

        Args:
            vocabulary: in place of the config's.
        """
        cfg = with_protocol(cfg)
        vocabulary = vocabulary or configured_vocabulary(cfg)
        return {**cls.parts_from_config(cfg), "vocabulary": vocabulary}

    @classmethod
    def parts_from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The same without a vocabulary."""
        protocol, cfg = base_protocol(cfg), with_protocol(cfg)
        freecp = cfg.MODEL.FREECP
        if not freecp.ENABLED and protocol.authors != SAME.authors:
            log.info("MODEL.FREECP.PROTOCOL paper: %s", protocol)
        clip, model = cfg.MODEL.CLIP, cfg.MODEL
        check_normalisation(clip.NAME, clip.PRETRAINED, model.PIXEL_MEAN, model.PIXEL_STD)
        encoder, tokenizer = cls.build_encoder(cfg)
        return {
            "encoder": encoder,
            "tokenizer": tokenizer,
            "descriptions": load_descriptions(freecp.DESCRIPTIONS) if freecp.DESCRIPTIONS else {},
            "text_cache": cfg.MODEL.CLIP.TEXT_CACHE or None,
            "head": PurificationHead(
                freecp.REDUNDANCY_THRESHOLD,
                freecp.AMBIGUITY_THRESHOLD,
                redundancy=freecp.REDUNDANCY,
                ambiguity=freecp.AMBIGUITY,
                consistency=freecp.CONSISTENCY,
                box_full_extent=freecp.BOX_FULL_EXTENT,
                crop_batch_size=freecp.CROP_BATCH_SIZE,
            ),
            "enabled": freecp.ENABLED,
            "output": freecp.OUTPUT,
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
    def vocabulary(self) -> Vocabulary | None:
        """What :meth:`forward` segments into."""
        return None if self.words is None else self.words.vocabulary

    @property
    def device(self) -> torch.device:
        """Where the model lives; images and words are moved there."""
        return self.get_buffer("pixel_mean").device

    def encode_words(
        self, vocabulary: Vocabulary, descriptions: Mapping[str, Sequence[str]]
    ) -> Words:
        """The words of a vocabulary, for :meth:`segment` and :meth:`segment_base`.

        Args:
            descriptions: class name -> sentences about it; a class without any is described by
                its templates. A base method alone does not read them.

        Raises:
            ValueError: a name or a sentence that does not fit into CLIP's context.
        """
        sentences = descriptions if self.enabled else None
        words = encode_words(
            self.encoder.model, self.tokenizer, vocabulary, sentences, self.text_cache
        )
        return words.to(self.device)

    def set_vocabulary(
        self, vocabulary: Vocabulary, descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Segment these classes from now on. Arguments and errors: :meth:`encode_words`."""
        self.words = self.encode_words(vocabulary, descriptions or {})

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
            ValueError: NaN in an image or its features (it names the file), or no vocabulary.
        """
        if self.words is None:
            raise ValueError("the model has no vocabulary; call set_vocabulary first")
        encoded = self._encode_lazily(batched_inputs, base=not self.enabled)
        segment = self.segment if self.enabled else self.segment_base
        return segment(encoded, self.words)

    @torch.no_grad()
    def encode(self, batched_inputs: list[dict], base: bool = False) -> EncodedImages:
        """What :meth:`segment` needs, any number of times: for other words or thresholds.

        Args and errors are those of :meth:`forward`.

        Args:
            base: what :meth:`segment_base` needs.
        """
        encoded = self._encode_lazily(batched_inputs, base)
        return replace(encoded, batches=list(encoded.batches))

    @torch.no_grad()
    def segment(
        self,
        encoded: EncodedImages,
        words: Words,
        redundancy_threshold: float | None = None,
        ambiguity_threshold: float | None = None,
    ) -> list[dict]:
        """Purify and label (METHOD.md steps 2 to 7); :meth:`forward` without CLIP's view of it.

        Args:
            redundancy_threshold, ambiguity_threshold: in place of the head's.

        Returns:
            One dict an image with `sem_seg`, or `label_map` and `scores`, and, on the CPU, of the
            classes without the background: `kept_redundancy` and `kept`, (classes,) bool, whether
            any of a class's names stayed in any window after the first and after both stages;
            `consistency`, (classes,) float32, the largest of these; `ambiguous_losses`, sorted
            pairs (loser, winner) of contiguous ids of look-alikes.

        Raises:
            ValueError: NaN in the features of an image (it names the file), or an image that was
                encoded for a base method alone.
        """
        words = words.to(self.device)
        windows: list[Window] = []
        maps: list[Tensor] = []
        decisions: list[list[Tensor]] = []
        for batch in encoded.batches:
            if batch.features is None:
                raise ValueError("images that were encoded for a base method; encode them anew")
            with self.timer.stage("purify", self.device):
                try:
                    candidates = self.head.select(
                        batch.features,
                        words.text,
                        words.descriptions,
                        self.encoder.logit_scale,
                        words.num_background,
                        redundancy_threshold,
                    )
                except NonFiniteInput as error:
                    if error.window is None:
                        raise
                    name = encoded.names[batch.windows[error.window].image]
                    raise ValueError(f"{name}: {error}; or the image is broken") from None
            with self.timer.stage("ambiguity", self.device):
                purified = self.head.resolve(
                    batch.pixels,
                    candidates,
                    words.descriptions,
                    self.encoder,
                    words.num_background,
                    ambiguity_threshold,
                )
            windows += batch.windows
            maps += purified.maps
            decisions.append(
                [purified.kept, purified.kept_redundancy, purified.consistency, purified.beaten_by]
            )
        with self.timer.stage("merge", self.device):
            kept, kept_redundancy, consistency, beaten_by = to_host(
                [torch.cat(parts) for parts in zip(*decisions, strict=True)]
            )
            image_of = np.array([window.image for window in windows])
            results = []
            for index, image in enumerate(encoded.images):
                (rows,) = np.nonzero(image_of == index)
                merged, queries = merge_windows(
                    [windows[i] for i in rows],
                    [maps[i] for i in rows],
                    kept[rows] > 0,
                    (image.shape[1], image.shape[2]),
                )
                results.append(
                    {
                        **self._purified_output(
                            merged, queries, words, encoded.output_sizes[index]
                        ),
                        "kept": best_of_class(kept[rows], words) > 0,
                        "kept_redundancy": best_of_class(kept_redundancy[rows], words) > 0,
                        "consistency": best_of_class(consistency[rows], words),
                        "ambiguous_losses": ambiguous_losses(beaten_by[rows], words),
                    }
                )
        return results

    @torch.no_grad()
    def segment_base(self, encoded: EncodedImages, words: Words) -> list[dict]:
        """The base method alone (METHOD.md step 8) on images of :meth:`encode`.

        Returns:
            One dict an image with `sem_seg`, or `label_map` and `scores`.

        Raises:
            ValueError: NaN in the features of an image; it names the file.
        """
        words = words.to(self.device)
        merged: list[WindowMean | Tensor] = [
            image if self._once else WindowMean(len(words.text), image.shape[1:], image)
            for image in encoded.images
        ]
        everything = torch.arange(len(words.text), device=self.device)
        for batch in encoded.batches:
            finite = batch.patches.isfinite().flatten(1).all(dim=1).tolist()
            if not all(finite):
                name = encoded.names[batch.windows[finite.index(False)].image]
                raise ValueError(
                    f"{name}: NaN or infinity in its CLIP features; check the image, the weights "
                    "(MODEL.CLIP.PRETRAINED), or use MODEL.CLIP.PRECISION fp32"
                )
            with self.timer.stage("merge", self.device):
                with torch.autocast(self.device.type, enabled=False):
                    similarity = batch.patches @ words.text.T
                similarity = similarity.transpose(1, 2).unflatten(2, batch.grid)
                left, _, top, _ = batch.padding
                for window, maps in zip(batch.windows, similarity, strict=True):
                    total = merged[window.image]
                    if isinstance(total, WindowMean):
                        height, width = window.size
                        maps = upsample(maps, batch.pixels.shape[2:])
                        maps = maps[:, top : top + height, left : left + width]
                        total.add(window, maps, everything)
                    else:
                        merged[window.image] = maps
        results = []
        with self.timer.stage("merge", self.device):
            for total, image, size in zip(
                merged, encoded.images, encoded.output_sizes, strict=True
            ):
                similarity = total.mean() if isinstance(total, WindowMean) else total
                arguments = similarity, image, words, size, self.protocol
                if self.output == "label_map":
                    labels, scores = base_labels(*arguments)
                    results.append({"label_map": labels, "scores": scores})
                else:
                    strips = [scores for _, scores in base_strips(*arguments)]
                    results.append({"sem_seg": torch.cat(strips, dim=1)})
        return results

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent so far in the stages "encode", "purify", "ambiguity" and "merge"."""
        return self.timer.seconds()

    def reset_timings(self) -> None:
        """Count `timings` from zero."""
        self.timer = StageTimer()

    @property
    def _once(self) -> bool:
        """Whether a base method's maps of whole images are resampled once."""
        return not (self.window and self.stride) and self.protocol.whole_image_at_once

    def _purified_output(
        self, maps: Tensor, queries: np.ndarray, words: Words, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        if self.output == "sem_seg":
            return {"sem_seg": purified_scores(maps, queries, words, size)}
        labels, scores = purified_labels(maps, queries, words, size)
        return {"label_map": labels, "scores": scores}

    def _encode_lazily(self, batched_inputs: list[dict], base: bool) -> EncodedImages:
        images = [self._normalize(x) for x in batched_inputs]
        encode: Callable[[list[Window], Tensor], EncodedWindows] = partial(
            encode_windows, self.encoder
        )
        if base:
            pad = self.protocol.partial_patches == "pad" and not self._once
            encode = partial(encode_base_windows, self.encoder, pad)
        batches = window_batches(images, self.window, self.stride, self.batch_size)
        return EncodedImages(
            names=[name_of(x) for x in batched_inputs],
            images=images,
            output_sizes=[
                (x.get("height", x["image"].shape[1]), x.get("width", x["image"].shape[2]))
                for x in batched_inputs
            ],
            batches=(self._timed(encode, *batch) for batch in batches),
        )

    def _timed(
        self, encode: Callable[[list[Window], Tensor], EncodedWindows], *batch: Any
    ) -> EncodedWindows:
        with self.timer.stage("encode", self.device):
            return encode(*batch)

    def _normalize(self, x: dict) -> Tensor:
        image = x["image"].to(self.device, torch.float32)
        if image.ndim != 3 or len(image) != 3:
            raise ValueError(
                f"{name_of(x)}: an image has shape (3, H, W), not {tuple(image.shape)}"
            )
        image = image.flip(0) if self.input_format == "BGR" else image
        image = (image - self.pixel_mean) / self.pixel_std
        return at_least_a_patch(image, self.encoder.patch_size)


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


def _check_options(
    input_format: str, output: str, window: int, stride: int, batch_size: int
) -> None:
    if input_format not in ("RGB", "BGR"):
        raise ValueError(f"INPUT.FORMAT is {input_format!r}; choose RGB or BGR")
    if output not in OUTPUTS:
        raise ValueError(f"MODEL.FREECP.OUTPUT is {output!r}; choose one of {', '.join(OUTPUTS)}")
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
