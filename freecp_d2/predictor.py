"""Segment one's own images into one's own words: FreeCP without a data set."""

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torch import Tensor

from .config import configured_vocabulary, finished_config, load_config
from .data import Vocabulary, normalized_name
from .data.mapper import InferenceMapper
from .inputs import (
    ImageLike,
    VocabularyLike,
    as_detectron2,
    as_pixels,
    as_vocabulary,
    no_image,
    with_background,
)
from .meta_arch import FreeCP
from .purify import class_maps
from .segmentation import ClassMaps, EncodedImage, RemovedClass, Segmentation, segmentation_of
from .words import Words, WordsCache

__all__ = [
    "ClassMaps",
    "EncodedImage",
    "FreeCPPredictor",
    "ImageLike",
    "RemovedClass",
    "Segmentation",
    "VocabularyLike",
]
CACHED_VOCABULARIES = 32
"""How many vocabularies' text features a predictor keeps."""


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

    Raises:
        FileNotFoundError: there is no such config, or a file that it names is missing.
        ValueError: a key or value that the config does not have, or weights that do not fit.
    """

    def __init__(self, config: CfgNode | str | os.PathLike, opts: Sequence[str] = ()):
        opts = [*opts, "MODEL.FREECP.OUTPUT", "label_map"]
        given = isinstance(config, CfgNode)
        cfg = finished_config(config, opts) if given else load_config(config, opts)
        self.cfg = cfg
        with torch.random.fork_rng(devices=[]):  # open_clip draws weights before it loads others
            parts = FreeCP.parts_from_config(cfg)
        self._descriptions: Mapping[str, Sequence[str]] = parts["descriptions"]
        self._model = FreeCP(**parts, vocabulary=None).to(cfg.MODEL.DEVICE).eval()
        self._mapper = InferenceMapper(cfg)
        self._words = WordsCache(self._encode_words, CACHED_VOCABULARIES)
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
        background: bool | Sequence[str] = ...,
    ) -> Segmentation: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        image: list[ImageLike],
        vocabulary: VocabularyLike = ...,
        background: bool | Sequence[str] = ...,
    ) -> list[Segmentation]: ...

    @overload
    def __call__(
        self,
        image: Iterable[ImageLike],
        vocabulary: VocabularyLike = ...,
        background: bool | Sequence[str] = ...,
    ) -> Iterator[Segmentation]: ...

    def __call__(
        self,
        image: ImageLike | Iterable[ImageLike],
        vocabulary: VocabularyLike = None,
        background: bool | Sequence[str] = False,
    ) -> Segmentation | list[Segmentation] | Iterator[Segmentation]:
        """Segment an image, a list of images, or lazily what any other iterable gives.

        Args:
            image: a path, a PIL image of any integer mode (turned as its EXIF data say), or an
                array (H, W, 3) uint8 RGB; or several of these, of any sizes.
            vocabulary: a list of names; a list of lists, the names of one class each; a
                :class:`Vocabulary`; the path of a file of one; or None for the config's own.
            background: True: what is none of the classes is background, by the vocabulary's own
                background names or else the 26 of METHOD.md step 0, without those that name a
                class. A list: these names. False: only where the vocabulary has background names.

        Returns:
            A :class:`Segmentation`, a list, or a generator of them.

        Raises:
            FileNotFoundError: no such image or vocabulary.
            TypeError: neither an image nor images.
            ValueError: an image that cannot be read, an array of another shape or dtype, a
                vocabulary that is empty, has a name twice, or one too long for CLIP.
        """
        words = self._words_of(vocabulary, background)
        if isinstance(image, str | os.PathLike | Image.Image | np.ndarray):
            return self._segment(self._encode(image), words)
        if isinstance(image, Tensor | Mapping | bytes) or not isinstance(image, Iterable):
            raise no_image(image)
        results = (self._segment(self._encode(one), words) for one in image)
        return list(results) if isinstance(image, list) else results

    def encode(self, image: ImageLike) -> EncodedImage:
        """CLIP's part, once, for :meth:`segment` any number of times.

        Args and errors are those of one image of a call.
        """
        return self._encode(image)

    def segment(
        self,
        encoded: EncodedImage,
        vocabulary: VocabularyLike = None,
        background: bool | Sequence[str] = False,
        redundancy_threshold: float | None = None,
        ambiguity_threshold: float | None = None,
    ) -> Segmentation:
        """Segment an image of :meth:`encode`; only the crops of look-alikes go through CLIP again.

        The base method encodes an image again that a predictor with FreeCP has encoded.

        Args:
            vocabulary, background: as in a call.
            redundancy_threshold, ambiguity_threshold: in place of the config's.

        Raises:
            ValueError: of the words as in a call; thresholds, or an image of `base`'s encode, where
                they do not apply.
        """
        words = self._words_of(vocabulary, background)
        if not self.purifies and (redundancy_threshold, ambiguity_threshold) != (None, None):
            raise ValueError("the base method has no thresholds; leave them out")
        return self._segment(encoded, words, redundancy_threshold, ambiguity_threshold)

    @torch.no_grad()
    def class_maps(
        self,
        encoded: EncodedImage,
        classes: Sequence[str],
        vocabulary: VocabularyLike = None,
        background: bool | Sequence[str] = False,
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
        words = self._words_of(vocabulary, background)
        _require_purifiable(encoded)
        head, encoder = self._model.head, self._model.encoder
        before, after = class_maps(encoded.windows, words, classes, head, encoder)
        return ClassMaps(tuple(classes), before.cpu().numpy(), after.cpu().numpy())

    def prepare(
        self, vocabulary: VocabularyLike = None, background: bool | Sequence[str] = False
    ) -> Vocabulary:
        """Encode the words of a call, so that the call itself need not.

        Returns:
            What such a call segments into; errors are those of a call.
        """
        return self._words_of(vocabulary, background).vocabulary

    def forget(self, vocabularies: Iterable[Vocabulary]) -> None:
        """Drop the text features of vocabularies that :meth:`prepare` gave, and their words."""
        self._words.forget(vocabularies)
        self._model.text_encoder.forget()
        normalized_name.cache_clear()

    def _words_of(self, vocabulary: VocabularyLike, background: bool | Sequence[str]) -> Words:
        if vocabulary is None:
            asked = configured_vocabulary(self.cfg)
        else:
            asked = as_vocabulary(vocabulary)
        return self._words.get(with_background(asked, background))

    def _encode_words(self, vocabulary: Vocabulary) -> Words:
        return self._model.encode_words(vocabulary, self._descriptions)

    def _encode(self, image: object) -> EncodedImage:
        pixels = as_pixels(image, self._mapper.exif_orientation)
        source = as_detectron2(pixels, image, self._mapper)
        base = not self.purifies
        return EncodedImage(pixels, source, self._model.encode([source], base), base)

    def _segment(
        self, encoded: EncodedImage, words: Words, *thresholds: float | None
    ) -> Segmentation:
        if self.purifies:
            _require_purifiable(encoded)
            (result,) = self._model.segment(encoded.windows, words, *thresholds)
        else:
            windows = encoded.windows
            if not encoded.base:
                windows = self._model.encode([encoded.source], base=True)
            (result,) = self._model.segment_base(windows, words)
        return segmentation_of(encoded.image, result, words.vocabulary)


def _require_purifiable(encoded: EncodedImage) -> None:
    if encoded.base:
        raise ValueError("an image that the base method encoded; encode it by this predictor")
