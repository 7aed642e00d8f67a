"""Segment one's own images into one's own words: FreeCP without a data set."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal, Unpack, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from .background import lexicon_sentences
from .clip.matmul import bf16_matmul
from .config import finished_config, load_config
from .data import Vocabulary, normalized_name
from .encoding import WindowsDone
from .inputs import Background, ImageLike, VocabularyLike, grouped, no_image
from .meta_arch import FreeCP
from .presence import CONSISTENCY, check_presence
from .purify import class_maps
from .segmentation import (
    ClassMaps,
    EncodedImage,
    FailedImage,
    RemovedClass,
    Segmentation,
    require_purifiable,
)
from .segmenter import Options, Segmenter, build_model

__all__ = [
    "ClassMaps",
    "EncodedImage",
    "FailedImage",
    "FreeCPPredictor",
    "ImageLike",
    "RemovedClass",
    "Segmentation",
    "VocabularyLike",
]
IMAGES_AT_ONCE = 8
"""How many images of a list are in memory, and go through CLIP, together."""


class FreeCPPredictor:
    """FreeCP for images and words of one's own.

        predictor = FreeCPPredictor("scenes/clearclip")
        result = predictor("photo.jpg", vocabulary=["dog", "sofa", "carpet"], background=True)

    It changes nothing outside itself: not Detectron2's catalogs, nor torch's settings or random
    state. Several threads may use one predictor and its `base` at once, each with words of its own.

    Args:
        config: a config of :func:`freecp_d2.load_config`, or what that function takes: a YAML
            file, or a name of :func:`freecp_d2.list_configs` such as "scenes/clearclip".
        opts: KEY, VALUE, ... that override it.
        device: MODEL.DEVICE, such as "cpu" or "cuda:1"; None: the config's.
        weights: MODEL.CLIP.PRETRAINED, an open_clip tag or a file; None: the config's.
        model: one of that config that is in memory; None: it is built.

    Raises:
        FileNotFoundError: there is no such config, or a file that it names is missing.
        ValueError: a key or value that the config does not have, or weights that do not fit.
    """

    def __init__(
        self,
        config: CfgNode | str | os.PathLike,
        opts: Sequence[str] = (),
        *,
        device: str | torch.device | None = None,
        weights: str | os.PathLike | None = None,
        model: FreeCP | None = None,
    ):
        opts = [*opts]
        opts += [] if device is None else ["MODEL.DEVICE", str(device)]
        opts += [] if weights is None else ["MODEL.CLIP.PRETRAINED", os.fspath(weights)]
        given = isinstance(config, CfgNode)
        cfg = finished_config(config, opts) if given else load_config(config, opts)
        self.cfg = cfg
        model = build_model(cfg) if model is None else model.to(cfg.MODEL.DEVICE).eval()
        self._segmenter = Segmenter(model, cfg)
        self.purifies: bool = cfg.MODEL.FREECP.ENABLED

    @property
    def base(self) -> "FreeCPPredictor":
        """The base method without FreeCP, by the same CLIP in memory; itself where it is one."""
        if not self.purifies:
            return self
        base = copy.copy(self)
        base.purifies = False
        return base

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a string is an iterable, too
        self,
        image: ImageLike,
        vocabulary: VocabularyLike = ...,
        background: Background = ...,
        **options: Unpack[Options],
    ) -> Segmentation: ...

    @overload
    def __call__(
        self,
        image: Iterable[ImageLike],
        vocabulary: VocabularyLike = ...,
        background: Background = ...,
        *,
        on_error: Literal["skip"],
        **options: Unpack[Options],
    ) -> Iterable[Segmentation | FailedImage]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        image: list[ImageLike],
        vocabulary: VocabularyLike = ...,
        background: Background = ...,
        **options: Unpack[Options],
    ) -> list[Segmentation]: ...

    @overload
    def __call__(
        self,
        image: Iterable[ImageLike],
        vocabulary: VocabularyLike = ...,
        background: Background = ...,
        **options: Unpack[Options],
    ) -> Iterator[Segmentation]: ...

    def __call__(
        self,
        image: ImageLike | Iterable[ImageLike],
        vocabulary: VocabularyLike = None,
        background: Background = False,
        *,
        on_error: Literal["raise", "skip"] = "raise",
        **options: Unpack[Options],
    ) -> Segmentation | Iterable[Segmentation | FailedImage]:
        """Segment an image, a list of images, or lazily what any other iterable gives.

        Args:
            image: a path, a PIL image of any integer mode (turned as its EXIF data say), or an
                array (H, W, 3) uint8 RGB; or several of these, of any sizes. Those of a list go
                through CLIP in batches; with MODEL.FREECP.ADAPTER one by one, in their order.
            vocabulary: see :data:`freecp_d2.inputs.VocabularyLike`; None for the config's own.
            background: True: what is none of the classes is background, by the vocabulary's own
                background names or else the 26 of METHOD.md step 0, without those that name a
                class. A list: these names. "auto": words that CLIP chooses for the classes from
                those of COCO-Stuff and ADE20K (MODEL.FREECP.BACKGROUND_WORDS); :meth:`prepare`
                tells them. "random": as many by chance. False: as MODEL.FREECP.BACKGROUND says, by
                default only where the vocabulary has background names.
            on_error: of several images, "skip" gives a :class:`FailedImage` for one that cannot be
                segmented, and goes on.
            options: see :class:`Options`.

        Returns:
            A :class:`Segmentation`, a list, or a generator of them.

        Raises:
            FileNotFoundError: no such image or vocabulary.
            TypeError: neither an image nor images.
            ValueError: an image that cannot be read, an array of another shape or dtype, a
                vocabulary that is empty, has a name twice, or one too long for CLIP.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; choose raise or skip")
        segmenter = self._segmenter
        request = segmenter.request(self.purifies, vocabulary, background, **options)
        if isinstance(image, str | os.PathLike | Image.Image | np.ndarray):
            return segmenter.segment_together([image], request)[0]
        if isinstance(image, Tensor | Mapping | bytes) or not isinstance(image, Iterable):
            raise no_image(image)
        whole = isinstance(image, list)
        together = whole and not segmenter.model.extensions.one_by_one
        groups = grouped(image, IMAGES_AT_ONCE if together else 1)
        segmented = (segmenter.segment_together(g, request, on_error == "skip") for g in groups)
        results = chain.from_iterable(segmented)
        return list(results) if whole else results

    def encode(self, image: ImageLike, windows_done: WindowsDone = None) -> EncodedImage:
        """CLIP's part, once, for :meth:`segment` any number of times.

        Args and errors are those of one image of a call.

        Args:
            windows_done: told after every batch of windows how many of how many are encoded.
        """
        base = not self.purifies
        pixels, sources, windows = self._segmenter.encode([image], base, windows_done)
        return EncodedImage(pixels[0], sources[0], windows, not self.purifies)

    def segment(
        self,
        encoded: EncodedImage,
        vocabulary: VocabularyLike = None,
        background: Background = False,
        **options: Unpack[Options],
    ) -> Segmentation:
        """Segment an image of :meth:`encode`; only the crops of look-alikes go through CLIP again.

        The base method encodes an image again that a predictor with FreeCP has encoded.

        Args:
            vocabulary, background, options: as in a call.

        Raises:
            ValueError: of the words as in a call; thresholds, or an image of `base`'s encode, where
                they do not apply.
        """
        request = self._segmenter.request(self.purifies, vocabulary, background, **options)
        windows = encoded.windows
        if self.purifies:
            require_purifiable(encoded)
        elif not encoded.base:
            windows = self._segmenter.model.encode([encoded.source], base=True)
        return self._segmenter.segment([encoded.image], windows, request)[0]

    @torch.no_grad()
    def class_maps(
        self,
        encoded: EncodedImage,
        classes: Sequence[str],
        vocabulary: VocabularyLike = None,
        background: Background = False,
    ) -> ClassMaps:
        """Class activation maps before and after refinement.

        Args:
            classes: first names of classes of the vocabulary.
            vocabulary, background: as in a call.

        Raises:
            ValueError: the predictor is a base method, which refines nothing, or there is no such
                class.
        """
        if not self.purifies:
            raise ValueError("the base method refines no maps; ask the predictor with FreeCP")
        words = self._segmenter.words_of(vocabulary, background)
        require_purifiable(encoded)
        model = self._segmenter.model
        with bf16_matmul(False, model.device):
            before, after = class_maps(encoded.windows, words, classes, model.head, model.encoder)
        return ClassMaps(tuple(classes), before.cpu().numpy(), after.cpu().numpy())

    def presence(
        self,
        image: ImageLike,
        vocabulary: VocabularyLike = None,
        background: Background = False,
        score: str = CONSISTENCY,
    ) -> dict[str, float]:
        """Which classes are in an image, without its segmentation.

        "consistency" and "local" cost no crops, no merged maps and no labels; "erasing" costs them
        all, and an image through CLIP for every class that stays.

        Args:
            image, vocabulary, background: as one image of a call.
            score: one of :data:`freecp_d2.presence.PRESENCE_SCORES`.

        Returns:
            The :attr:`Segmentation.presence` that a call gives with `presence=score`; errors are
            those, too.

        Raises:
            ValueError: the predictor is a base method, or there is no such score.
        """
        check_presence([score], self.purifies)
        segmenter = self._segmenter
        if score == "erasing":
            request = segmenter.request(True, vocabulary, background, presence=score)
            return dict(segmenter.segment_together([image], request)[0].presence)
        words = segmenter.words_of(vocabulary, background)
        _, _, windows = segmenter.encode([image], base=False)
        (values,) = segmenter.model.score_presence(windows, words, score)
        return dict(
            zip((names[0] for names in words.vocabulary.classes), values.tolist(), strict=True)
        )

    def prepare(
        self, vocabulary: VocabularyLike = None, background: Background = False
    ) -> Vocabulary:
        """Encode the words of a call, so that the call itself need not.

        Returns:
            What such a call segments into; errors are those of a call.
        """
        return self._segmenter.words_of(vocabulary, background).vocabulary

    def forget(self, vocabularies: Iterable[Vocabulary]) -> None:
        """Drop the text features of vocabularies that :meth:`prepare` gave, and their words."""
        self._segmenter.words.forget(vocabularies)
        model = self._segmenter.model
        model.text_encoder.forget(lexicon_sentences(model.extensions.background))
        normalized_name.cache_clear()
