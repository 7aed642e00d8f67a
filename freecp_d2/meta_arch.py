"""FreeCP as a Detectron2 meta-architecture: normalise, windows, encode, purify, merge, label."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from .affinity import AffinityProvider, build_affinity
from .background import choose_background
from .clip import DenseCLIP
from .clip.build import build_clip
from .clip.matmul import exact_products
from .clip.text import TextEncoder
from .config import configured_descriptions, configured_vocabulary
from .data import Vocabulary
from .data.benchmarks.protocols import (
    SAME,
    UNREFINED,
    BaseProtocol,
    Refinement,
    base_protocol,
    configured_refinement,
    with_protocol,
)
from .encoding import EncodedImages, Normalize, WindowsDone, at_least_a_patch, encode_images
from .extensions import NO_EXTENSIONS, Extensions, configured_extensions
from .merging import base_similarities
from .presence import add_presence, check_presence, presence_without_maps
from .purification import PurificationHead
from .purify import adapted, purify_windows
from .scores import base_results, check_output, purified_results
from .separability import add_patches
from .sliding_window import check_windows, window_batches
from .timing import StageTimer
from .words import Words, encode_words


@META_ARCH_REGISTRY.register()
class FreeCP(nn.Module):
    """Open-vocabulary semantic segmentation by a frozen CLIP, with or without class purification.

    Nothing changes while it segments: threads may share it, each with words of its own. With an
    adapter, what words have learnt changes; no two threads may use the same words then.

    Attributes:
        words: what :meth:`forward` segments into; None: nothing yet.

    Args:
        encoder: the frozen CLIP with its base method.
        text_encoder: of that CLIP.
        vocabulary: the classes, in words; None: see :meth:`set_vocabulary`.
        descriptions: class name -> sentences about it.
        head: the purification.
        affinity: gives the head its affinity; None: CLIP's attention does.
        enabled: False: :meth:`forward` runs the base method alone (METHOD.md step 8).
        output: "sem_seg", or "label_map" for labels without the cost of a score at every pixel.
        window, stride: in pixels. Either 0: the whole image at once.
        batch_size: how many windows go through CLIP at once.
        refinement: of the maps of the classes that stay, at the size of the output.
        extensions: of words and views; its background is what :meth:`set_vocabulary` adds.
        protocol: how the base method alone is run. Its short side, window, stride and words are not
            read here; see MODEL.FREECP.PROTOCOL.
        presence: what :meth:`forward` scores the presence of classes by, of
            :data:`freecp_d2.presence.PRESENCE_SCORES`.
        separability: whether :meth:`forward` gives patch features, too.
        pixel_mean, pixel_std: of RGB, 0-255.
        input_format: channel order of the images, RGB or BGR.

    Raises:
        ValueError: input_format, output, window, stride, batch_size or presence out of range.
    """

    build_clip = staticmethod(build_clip)

    @configurable
    def __init__(
        self,
        *,
        encoder: DenseCLIP,
        text_encoder: TextEncoder,
        vocabulary: Vocabulary | None,
        descriptions: Mapping[str, Sequence[str]],
        head: PurificationHead,
        affinity: AffinityProvider | None = None,
        enabled: bool = True,
        output: str = "sem_seg",
        window: int,
        stride: int,
        batch_size: int,
        refinement: Refinement = UNREFINED,
        extensions: Extensions = NO_EXTENSIONS,
        protocol: BaseProtocol = SAME,
        presence: Sequence[str] = (),
        separability: bool = False,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str,
    ):
        super().__init__()
        check_windows(window, stride, batch_size)
        check_output(output)
        check_presence(presence, enabled)
        self.encoder = encoder
        self.text_encoder = text_encoder
        self.head = head
        self.affinity = affinity
        self.enabled = enabled
        self.output = output
        self.window = window
        self.stride = stride
        self.batch_size = batch_size
        self.refinement = refinement
        self.extensions = extensions
        self.protocol = protocol
        self.presence = tuple(presence)
        self.separability = separability
        self.timer = StageTimer()
        device = next(encoder.parameters()).device
        self.normalize = Normalize(pixel_mean, pixel_std, input_format, device)
        self.words: Words | None = None
        if vocabulary is not None:
            self.set_vocabulary(vocabulary, descriptions)

    @classmethod
    def from_config(cls, cfg: CfgNode, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
        """The constructor's arguments from a config with :func:`add_freecp_config`'s keys.

        Args:
            vocabulary: in place of the config's.
        """
        vocabulary = vocabulary or configured_vocabulary(with_protocol(cfg))
        words = {"vocabulary": vocabulary, "descriptions": configured_descriptions(cfg)}
        return {**cls.parts_from_config(cfg), **words}

    @classmethod
    def parts_from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The same without vocabulary and descriptions."""
        protocol, cfg = base_protocol(cfg), with_protocol(cfg)
        freecp = cfg.MODEL.FREECP
        encoder, text_encoder = cls.build_clip(cfg)
        return {
            "encoder": encoder,
            "text_encoder": text_encoder,
            "head": PurificationHead(cfg),
            "affinity": build_affinity(cfg),
            "enabled": freecp.ENABLED,
            "output": freecp.OUTPUT,
            "window": freecp.WINDOW,
            "stride": freecp.STRIDE,
            "batch_size": freecp.BATCH_SIZE,
            "refinement": configured_refinement(cfg),
            "extensions": configured_extensions(cfg),
            "protocol": protocol,
            "presence": cfg.TEST.PRESENCE,
            "separability": cfg.TEST.SEPARABILITY,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What :meth:`forward` segments into."""
        return None if self.words is None else self.words.vocabulary

    @property
    def device(self) -> torch.device:
        """Where the model lives; images and words are moved there."""
        return self.normalize.device

    @exact_products
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
        words = encode_words(self.text_encoder, vocabulary, sentences, self.extensions)
        return words.to(self.device)

    @exact_products
    def with_background(self, vocabulary: Vocabulary, how: str | None = None) -> Vocabulary:
        """The vocabulary with the background that MODEL.FREECP.BACKGROUND asks for.

        Args:
            how: in place of that.

        Raises:
            ValueError: as :func:`freecp_d2.background.choose_background`.
        """
        choice = self.extensions.background
        if how is not None:
            choice = replace(choice, how=how)
        return choose_background(self.text_encoder, vocabulary, choice)

    def set_vocabulary(
        self, vocabulary: Vocabulary, descriptions: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """Segment these classes from now on. Arguments and errors: :meth:`encode_words`."""
        self.words = self.encode_words(self.with_background(vocabulary), descriptions or {})

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
            beside `scores`, (K,) float32, and `confidence`, (height, width) float32, the highest
            score of each class and at each pixel.
            With purification also what :meth:`segment` says.

        Raises:
            ValueError: NaN in an image or its features (it names the file), or no vocabulary.

        With an adapter or views, images are taken one by one, in their order.
        """
        if self.words is None:
            raise ValueError("the model has no vocabulary; call set_vocabulary first")
        if self.extensions.one_by_one and len(batched_inputs) > 1:
            return [self.forward([x])[0] for x in batched_inputs]
        encoded = self._encode_lazily(batched_inputs, not self.enabled)
        if not self.enabled:
            return self.segment_base(encoded, self.words)
        return self.segment(
            encoded, self.words, presence=self.presence, separability=self.separability
        )

    @torch.no_grad()
    def encode(
        self, batched_inputs: list[dict], base: bool = False, windows_done: WindowsDone = None
    ) -> EncodedImages:
        """What :meth:`segment` needs, any number of times: for other words or thresholds.

        Args:
            base: what :meth:`segment_base` needs.
            windows_done: told of the progress. The rest, and errors, are those of :meth:`forward`;
                with an adapter or views, several images are one, too.
        """
        return self._encode_lazily(batched_inputs, base).in_memory(windows_done)

    @exact_products
    @torch.no_grad()
    def segment(
        self,
        encoded: EncodedImages,
        words: Words,
        redundancy_threshold: float | None = None,
        ambiguity_threshold: float | None = None,
        output: str | None = None,
        presence: Sequence[str] = (),
        separability: bool = False,
    ) -> list[dict]:
        """Purify and label (METHOD.md steps 2 to 7); :meth:`forward` without CLIP's view of it.

        Args:
            redundancy_threshold, ambiguity_threshold: in place of the head's.
            output: in place of the model's.
            presence: adds what :func:`freecp_d2.presence.add_presence` says.
            separability: adds `patches`, :class:`freecp_d2.separability.Patches`.

        Returns:
            One dict an image with what :meth:`forward` says, and, on the CPU, of the
            classes without the background: `kept_redundancy` and `kept`, (classes,) bool, whether
            any of a class's names stayed in any window after the first and after both stages;
            `consistency`, (classes,) float32, the largest of these; `ambiguous_losses`, sorted
            pairs (loser, winner) of contiguous ids of look-alikes.

        Raises:
            ValueError: NaN in the features of an image (it names the file), or an image that was
                encoded for a base method alone.
        """
        words = words.to(self.device)
        if presence or separability:
            encoded = encoded.in_memory()  # its windows are read several times
        thresholds = redundancy_threshold, ambiguity_threshold
        encoded, words = self._adapted(encoded, words, redundancy_threshold)
        purified = purify_windows(encoded, words, self.head, self.encoder, *thresholds, self.timer)
        with self.timer.stage("merge", self.device):
            output = output or self.output
            results = purified_results(encoded, purified, words, output, self.refinement)
        if presence:
            with self.timer.stage("presence", self.device):
                add_presence(results, encoded, purified, words, self.encoder, presence)
        if separability:
            add_patches(results, encoded, words)
        return results

    @exact_products
    @torch.no_grad()
    def score_presence(self, encoded: EncodedImages, words: Words, score: str) -> list[Tensor]:
        """See :func:`freecp_d2.presence.presence_without_maps`; an adapter sees the image."""
        encoded, words = self._adapted(encoded, words.to(self.device))
        return presence_without_maps(encoded, words, self.head, self.encoder, score)

    @exact_products
    @torch.no_grad()
    def segment_base(
        self, encoded: EncodedImages, words: Words, output: str | None = None
    ) -> list[dict]:
        """The base method alone (METHOD.md step 8) on images of :meth:`encode`.

        Returns:
            One dict an image with what :meth:`forward` says.

        Raises:
            ValueError: NaN in the features of an image; it names the file.
        """
        words = words.to(self.device)
        once = self.protocol.resamples_once(self.window, self.stride)
        similarities = base_similarities(encoded, words, once, self.timer)
        with self.timer.stage("merge", self.device):
            protocol, output = self.protocol, output or self.output
            return base_results(encoded, similarities, words, protocol, output)

    def _adapted(
        self, encoded: EncodedImages, words: Words, redundancy_threshold: float | None = None
    ) -> tuple[EncodedImages, Words]:
        """With an adapter: the windows in memory, and the words as it has them in this image."""
        if words.adapter is None:
            return encoded, words
        encoded = encoded.in_memory()
        with self.timer.stage("adapt", self.device):
            parts = self.head, self.encoder.logit_scale, redundancy_threshold
            return encoded, adapted(encoded, words, *parts)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds spent so far in the stages "encode", "adapt", "purify", "ambiguity", "merge"."""
        return self.timer.seconds()

    def _encode_lazily(self, batched_inputs: list[dict], base: bool) -> EncodedImages:
        if self.extensions.one_by_one and len(batched_inputs) > 1 and not base:
            raise ValueError(
                f"{len(batched_inputs)} images to encode at once, and MODEL.FREECP.ADAPTER takes "
                "them in their order; encode them one by one"
            )
        patch = self.encoder.patch_size
        images = [at_least_a_patch(self.normalize(x), patch) for x in batched_inputs]
        batches = window_batches(images, self.window, self.stride, self.batch_size)
        once = self.protocol.resamples_once(self.window, self.stride)
        pad = self.protocol.partial_patches == "pad" and not once
        parts = self.encoder, self.affinity, self.timer
        encoded = encode_images(batched_inputs, images, batches, *parts, base=base, pad=pad)
        views = self.extensions.views
        if views is None or base:
            return encoded
        return views.added_to(encoded, self.encoder, self.window, self.stride, self.batch_size)
