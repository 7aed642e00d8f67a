"""A model with what it needs to segment the images and words that people give it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from detectron2.config import CfgNode

from .background import chooses_background
from .config import configured_descriptions, configured_vocabulary
from .data import Vocabulary
from .data.mapper import InferenceMapper
from .encoding import EncodedImages, WindowsDone
from .errors import sentence
from .inputs import (
    FAILURES,
    Background,
    DescriptionsLike,
    VocabularyLike,
    as_descriptions,
    as_detectron2,
    as_pixels,
    as_vocabulary,
    with_background,
)
from .memory import memory_ran_out
from .meta_arch import FreeCP
from .presence import CONSISTENCY, check_presence
from .purification.head import check_threshold
from .segmentation import FailedImage, Segmentation, segmentation_of
from .words import Words, WordsCache

CACHED_VOCABULARIES = 32
"""How many vocabularies' text features are kept."""


class Options(TypedDict, total=False):
    """What else a call may say.

    Attributes:
        descriptions: class name -> sentences about it, or a file of them, in place of
            MODEL.FREECP.DESCRIPTIONS.
        redundancy_threshold, ambiguity_threshold: in place of the config's. A base method has none.
        scores_map: give the score of every class at every pixel, too.
        presence: what :attr:`Segmentation.presence` is scored by, one of
            :data:`freecp_d2.presence.PRESENCE_SCORES`; by default "consistency", which costs
            nothing.
    """

    descriptions: DescriptionsLike
    redundancy_threshold: float | None
    ambiguity_threshold: float | None
    scores_map: bool
    presence: str


@dataclass(frozen=True)
class Request:
    """What a call asks for: FreeCP or its base method, words, thresholds, `output`, `presence`."""

    purifies: bool
    words: Words
    thresholds: tuple[float | None, float | None]
    output: str
    presence: str = CONSISTENCY


def build_model(cfg: CfgNode) -> FreeCP:
    """The model of a config without words, on its device; torch's random state stays."""
    # open_clip draws weights before it loads others.
    with torch.random.fork_rng(devices=[]):
        model = FreeCP(**FreeCP.parts_from_config(cfg), vocabulary=None, descriptions={})
    return model.to(cfg.MODEL.DEVICE).eval()


class Segmenter:
    """Images and words in, segmentations out. Any number of threads may share it.

    Args:
        model: of `cfg`.
        cfg: how images are read and resized, and the classes and descriptions of a call that names
            none.
    """

    def __init__(self, model: FreeCP, cfg: CfgNode):
        self.model = model
        self.cfg = cfg
        self.mapper = InferenceMapper(cfg)
        descriptions = configured_descriptions(cfg)
        self.words = WordsCache(lambda v: model.encode_words(v, descriptions), CACHED_VOCABULARIES)

    def words_of(
        self,
        vocabulary: VocabularyLike,
        background: Background,
        descriptions: DescriptionsLike = None,
    ) -> Words:
        """The words of a call; errors are those of a call of the predictor."""
        if vocabulary is None:
            asked = configured_vocabulary(self.cfg)
        else:
            asked = as_vocabulary(vocabulary)
        given = isinstance(vocabulary, Vocabulary) and vocabulary.background  # of prepare, perhaps
        if chooses_background(background):
            asked = self.model.with_background(asked, background)
        elif background is False and not given:
            asked = with_background(self.model.with_background(asked), background)
        else:
            asked = with_background(asked, background)
        if descriptions is None:
            return self.words.get(asked)
        return self.model.encode_words(asked, as_descriptions(descriptions))

    def request(
        self,
        purifies: bool,
        vocabulary: VocabularyLike,
        background: Background,
        descriptions: DescriptionsLike = None,
        redundancy_threshold: float | None = None,
        ambiguity_threshold: float | None = None,
        scores_map: bool = False,
        presence: str = CONSISTENCY,
    ) -> Request:
        """The arguments of a call.

        Raises:
            ValueError: as :meth:`words_of`; thresholds of a base method, or none from 0 to 1; no
                such `presence`, or one of a base method.
        """
        thresholds = redundancy_threshold, ambiguity_threshold
        if not purifies and thresholds != (None, None):
            raise ValueError("the base method has no thresholds; leave them out")
        for stage, threshold in zip(("REDUNDANCY", "AMBIGUITY"), thresholds, strict=True):
            if threshold is not None:
                check_threshold(stage, threshold)
        check_presence([presence], purifies or presence == CONSISTENCY)
        words = self.words_of(vocabulary, background, descriptions)
        output = "sem_seg" if scores_map else "label_map"
        return Request(purifies, words, thresholds, output, presence)

    def encode(
        self,
        images: Sequence[Any],
        base: bool,
        windows_done: WindowsDone = None,
        names: Sequence[Any] | None = None,
    ) -> tuple[list[np.ndarray], list[dict[str, Any]], EncodedImages]:
        """Pixels of images, Detectron2's dicts of them, and what CLIP sees in their windows.

        Args:
            base: what a base method alone needs.
            windows_done: told of the progress.
            names: of the images' files, where `images` are not these.
        """
        pixels = [as_pixels(image, self.mapper.exif_orientation) for image in images]
        pairs = zip(pixels, names or images, strict=True)
        sources = [as_detectron2(*pair, self.mapper) for pair in pairs]
        return pixels, sources, self.model.encode(sources, base, windows_done)

    def segment(
        self, pixels: Sequence[np.ndarray], windows: EncodedImages, request: Request
    ) -> list[Segmentation]:
        """Segment what :meth:`encode` gave."""
        words, output = request.words, request.output
        if request.purifies:
            also = () if request.presence == CONSISTENCY else (request.presence,)
            results = self.model.segment(
                windows, words, *request.thresholds, output=output, presence=also
            )
        else:
            results = self.model.segment_base(windows, words, output=output)
        return [
            segmentation_of(image, result, words.vocabulary)
            for image, result in zip(pixels, results, strict=True)
        ]

    def segment_pixels(self, pixels: np.ndarray, file_name: str, request: Request) -> Segmentation:
        """The segmentation of (H, W, 3) uint8 RGB that were read from a file."""
        images, _, windows = self.encode([pixels], not request.purifies, names=[file_name])
        return self.segment(images, windows, request)[0]

    def segment_together(
        self, images: Sequence[Any], request: Request, skip: bool = False
    ) -> list[Any]:
        """The segmentations of images, which go through CLIP in batches.

        Args:
            skip: a :class:`FailedImage` in place of one that cannot be segmented.
        """
        try:
            pixels, _, windows = self.encode(images, base=not request.purifies)
            return list(self.segment(pixels, windows, request))
        except Exception as error:
            if not skip or not (isinstance(error, FAILURES) or memory_ran_out(error)):
                raise
            if len(images) == 1:
                return [FailedImage(images[0], sentence(error))]
        return [self.segment_together([image], request, skip)[0] for image in images]
