"""Segment one's own images into one's own words: FreeCP without a data set."""

import copy
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor

from .config import finished_config, load_config
from .data import Vocabulary, load_vocabulary, normalized_name
from .data.images import read_image, resize_shortest_edge, to_pixels
from .data.mapper import InferenceMapper
from .files import PACKAGED
from .meta_arch import EncodedImages, FreeCP, configured_vocabulary
from .sliding_window import WindowMean, upsample

CACHED_VOCABULARIES = 32
"""How many vocabularies' text features a predictor keeps."""
FILE_SUFFIXES = ".txt .json .csv .tsv .yaml .yml .names .lst .list .py .md".split()
"""A word that ends so is the path of a file, there or not, and no class."""
_UNUSED = Vocabulary((("unused",),))

ImageLike: TypeAlias = str | os.PathLike | Image.Image | np.ndarray
VocabularyLike: TypeAlias = (
    Vocabulary | Sequence[str] | Sequence[Sequence[str]] | str | os.PathLike | None
)


@dataclass(frozen=True)
class RemovedClass:
    """A class that purification found nowhere in the image.

    Attributes:
        name: its first name.
        stage: which stage removed it last.
        consistency: the largest of its names and of all windows (METHOD.md step 5).
        beaten_by: for the stage "ambiguity" the look-alike that won, the one with the largest share
            where different windows had different winners; None for "redundancy".
    """

    name: str
    stage: Literal["redundancy", "ambiguity"]
    consistency: float
    beaten_by: str | None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """An image in classes, K of them with the background.

    Attributes:
        image: (H, W, 3) uint8 RGB, turned as its EXIF data say, unless INPUT.EXIF_ORIENTATION is
            False.
        label_map: (H, W) int64, indices into `class_names`.
        class_names: the first name of each class; "background" first where it is scored.
        scores: (K,) float32 in [0, 1], the highest score of each class in the image.
        shares: (K,) float64, the fraction of pixels of each class; they sum to 1.
        consistency: (K,) float32, each class's largest of all windows (METHOD.md step 5). NaN where
            there is none: of the background, and of the base method.
        removed: the classes that purification removed everywhere, in the order of `class_names`.
        colors: (K, 3) uint8 RGB.
    """

    image: np.ndarray
    label_map: np.ndarray
    class_names: tuple[str, ...]
    scores: np.ndarray
    shares: np.ndarray
    consistency: np.ndarray
    removed: list[RemovedClass]
    colors: np.ndarray

    def draw(self, alpha: float = 0.6, scale: float = 1.0) -> np.ndarray:
        """The image under its label map, by Detectron2's Visualizer.

        Args:
            alpha: how opaque the classes are, from 0 to 1.
            scale: of the picture; small images have no room for names otherwise.

        Returns:
            (H * scale, W * scale, 3) uint8 RGB.
        """
        from detectron2.utils.visualizer import Visualizer  # with matplotlib, which takes its time

        from .fonts import set_fonts

        metadata = Metadata(stuff_classes=list(self.class_names), stuff_colors=self.colors.tolist())
        visualizer = Visualizer(self.image, metadata, scale)
        smallest = max(self.label_map.size // 500, 1)
        drawn = visualizer.draw_sem_seg(self.label_map, smallest, alpha)
        set_fonts(drawn.ax)
        return drawn.get_image()


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image as CLIP sees it, for :meth:`FreeCPPredictor.segment`.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        source: Detectron2's dict of it, resized.
        windows: its CLIP features; None for the base method, which encodes while it segments.
    """

    image: np.ndarray
    source: dict[str, Any]
    windows: EncodedImages | None


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Class activation maps of K classes, means over the windows.

    Attributes:
        names: of the classes.
        activation: (K, h, w) float32, probabilities among all queries (METHOD.md step 2), at the
            size that the image is resized to for CLIP.
        refined: (K, h, w) float32 in [0, 1], after refinement (METHOD.md step 4).
    """

    names: tuple[str, ...]
    activation: np.ndarray
    refined: np.ndarray


class FreeCPPredictor:
    """FreeCP for images and words of one's own.

        predictor = FreeCPPredictor("scenes/clearclip")
        result = predictor("photo.jpg", vocabulary=["dog", "sofa", "carpet"], background=True)

    It changes nothing outside itself: not Detectron2's catalogs, nor torch's settings or random
    state. Several threads may use one predictor and its `base`; they take turns.

    Args:
        config: a config of :func:`freecp_d2.load_config`, or what that function takes: a YAML
            file, or a name of :func:`freecp_d2.list_configs` such as "scenes/clearclip".
        opts: KEY, VALUE, ... that override it.

    Raises:
        FileNotFoundError: there is no such config, or a file that it names is missing.
        ValueError: a key or value that the config does not have, or weights that do not fit.
    """

    def __init__(self, config: CfgNode | str | os.PathLike, opts: Sequence[str] = ()):
        own = isinstance(config, CfgNode)
        cfg = finished_config(config, opts) if own else load_config(config, opts)
        self.cfg = cfg
        with torch.random.fork_rng(devices=[]):  # open_clip draws weights before it loads others
            arguments = FreeCP.from_config(cfg, _UNUSED)
        self._descriptions: Mapping[str, Sequence[str]] = arguments["descriptions"]
        self._model = _Model(**{**arguments, "vocabulary": None}).to(cfg.MODEL.DEVICE).eval()
        self._model.output = "label_map"
        self._mapper = InferenceMapper(cfg)
        self._lock = threading.RLock()
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
        words = self.prepare(vocabulary, background)
        if isinstance(image, str | os.PathLike | Image.Image | np.ndarray):
            return self._segment(self._pixels(image), image, words)
        if isinstance(image, Tensor | Mapping | bytes) or not isinstance(image, Iterable):
            raise _no_image(image)
        results = (self._segment(self._pixels(one), one, words) for one in image)
        return list(results) if isinstance(image, list) else results

    def encode(self, image: ImageLike) -> EncodedImage:
        """CLIP's part, once, for :meth:`segment` any number of times.

        Args and errors are those of one image of a call.
        """
        pixels = self._pixels(image)
        source = self._source(pixels, image)
        if not self.purifies:
            return EncodedImage(pixels, source, None)
        with self._using(None) as model:
            return EncodedImage(pixels, source, model.encode([source]))

    def segment(
        self,
        encoded: EncodedImage,
        vocabulary: VocabularyLike = None,
        background: bool | Sequence[str] = False,
        redundancy_threshold: float | None = None,
        ambiguity_threshold: float | None = None,
    ) -> Segmentation:
        """Segment an image of :meth:`encode`; only the crops of look-alikes go through CLIP again.

        Args:
            vocabulary, background: as in a call.
            redundancy_threshold, ambiguity_threshold: in place of the config's.

        Raises:
            ValueError: of the words as in a call; thresholds, or an image of `base`'s encode, where
                they do not apply.
        """
        words = self.prepare(vocabulary, background)
        if not self.purifies:
            if redundancy_threshold is not None or ambiguity_threshold is not None:
                raise ValueError("the base method has no thresholds; leave them out")
            return self._segment(encoded.image, encoded.source["file_name"], words)
        windows = _windows(encoded)
        with self._using(words) as model:
            assert model.head is not None
            own = model.head.redundancy_threshold, model.head.ambiguity_threshold
            try:
                if redundancy_threshold is not None:
                    model.head.redundancy_threshold = redundancy_threshold
                if ambiguity_threshold is not None:
                    model.head.ambiguity_threshold = ambiguity_threshold
                (result,) = model.segment(windows)
            finally:
                model.head.redundancy_threshold, model.head.ambiguity_threshold = own
        return self._segmentation(encoded.image, result, words)

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
        words, windows = self.prepare(vocabulary, background), _windows(encoded)
        names = [own[0] for own in words.classes]
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no class of the vocabulary; ask for one of it")
        with self._using(words) as model:
            assert model.head is not None
            everything = torch.arange(len(classes), device=model.device)
            (size,) = windows.sizes
            queries = [
                [i for i, own in enumerate(words.query_class) if names[own] == name]
                for name in classes
            ]
            means = [
                WindowMean(len(classes), size, model.get_buffer("pixel_mean")) for _ in range(2)
            ]
            for batch in windows.batches:
                found = model.head.select(
                    batch.features, model.text, model.descriptions, model.encoder.logit_scale
                )
                activation = found.probabilities[:, words.num_background :]
                for mean, maps in zip(means, (activation, found.refined), strict=True):
                    own_maps = torch.stack([maps[:, own].amax(dim=1) for own in queries], dim=1)
                    for window, window_maps in zip(batch.windows, own_maps, strict=True):
                        mean.add(window, upsample(window_maps, window.size), everything)
        before, after = (mean.mean().cpu().numpy() for mean in means)
        return ClassMaps(tuple(classes), before, after)

    def prepare(
        self, vocabulary: VocabularyLike = None, background: bool | Sequence[str] = False
    ) -> Vocabulary:
        """Encode the words of a call, so that the call itself need not.

        Returns:
            What such a call segments into; errors are those of a call.
        """
        words = configured_vocabulary(self.cfg) if vocabulary is None else _words(vocabulary)
        if background is True and not words.background:
            classes = {normalized_name(name) for names in words.classes for name in names}
            default = load_vocabulary(f"{PACKAGED}benchmarks/published/voc21.json").background
            background = [name for name in default if normalized_name(name) not in classes]
        if isinstance(background, str):
            raise ValueError(f"background is {background!r}; give True or a list of names")
        if not isinstance(background, bool):
            words = replace(words, background=tuple(background))
        with self._using(words):
            return words

    def forget(self, vocabularies: Iterable[Vocabulary]) -> None:
        """Drop the text features of vocabularies that :meth:`prepare` gave, and their words."""
        with self._lock:
            for words in vocabularies:
                self._model.forget(words)
        normalized_name.cache_clear()

    def _pixels(self, image: object) -> np.ndarray:
        return _pixels(image, self._mapper.exif_orientation)

    def _source(self, pixels: np.ndarray, image: object) -> dict[str, Any]:
        """Detectron2's dict of an image."""
        resized = resize_shortest_edge(pixels, self._mapper.min_size, self._mapper.max_size)
        if self._mapper.image_format == "BGR":
            resized = resized[:, :, ::-1]
        return {
            "file_name": os.fspath(image) if isinstance(image, str | os.PathLike) else "the image",
            "height": pixels.shape[0],
            "width": pixels.shape[1],
            "image": torch.from_numpy(resized.transpose(2, 0, 1).copy()),
        }

    @contextmanager
    def _using(self, words: Vocabulary | None) -> Iterator["_Model"]:
        """The model, for this thread alone, in this predictor's mode and with these words."""
        with self._lock:
            model, head = self._model, self._model.head
            model.set_vocabulary(words, self._descriptions)
            try:
                model.head = head if self.purifies else None
                yield model
            finally:
                model.head = head

    def _segment(self, pixels: np.ndarray, image: object, words: Vocabulary) -> Segmentation:
        source = self._source(pixels, image)
        with self._using(words) as model:
            (result,) = model([source])
        return self._segmentation(pixels, result, words)

    def _segmentation(
        self, pixels: np.ndarray, result: dict[str, Any], words: Vocabulary
    ) -> Segmentation:
        labels = result["label_map"].cpu().numpy()
        own_names = [names[0] for names in words.classes]
        before = ["background"] * (words.num_background > 0)
        count = len(before) + len(own_names)
        shares = np.bincount(labels.ravel(), minlength=count) / labels.size
        consistency = np.full(count, np.nan, dtype=np.float32)
        removed = []
        if self.purifies:
            consistency[len(before) :] = result["consistency"].cpu().numpy()
            winners: dict[int, list[int]] = {}
            for loser, winner in result["ambiguous_losses"]:
                winners.setdefault(loser, []).append(winner)
            for index in (~result["kept"]).nonzero().flatten().tolist():
                ambiguous = bool(result["kept_redundancy"][index])
                share = {w: shares[len(before) + w] for w in winners.get(index, ())}
                removed.append(
                    RemovedClass(
                        own_names[index],
                        "ambiguity" if ambiguous else "redundancy",
                        float(result["consistency"][index]),
                        own_names[max(share, key=share.__getitem__)] if ambiguous else None,
                    )
                )
        return Segmentation(
            image=pixels,
            label_map=labels,
            class_names=(*before, *own_names),
            scores=result["scores"].cpu().numpy(),
            shares=shares,
            consistency=consistency,
            removed=removed,
            colors=_colors(len(own_names), bool(before)),
        )


class _Model(FreeCP):
    """FreeCP that starts without a vocabulary and keeps the text features of the last ones."""

    def set_vocabulary(
        self,
        vocabulary: Vocabulary | None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        if vocabulary is None:
            return
        if "_known" not in vars(self):
            self._known: OrderedDict[Vocabulary, tuple] = OrderedDict()
        if vocabulary not in self._known:
            super().set_vocabulary(vocabulary, descriptions)
            self._known[vocabulary] = self.text, self.descriptions, self.query_class
            if len(self._known) > CACHED_VOCABULARIES:
                self._known.popitem(last=False)
        self._known.move_to_end(vocabulary)
        self.text, self.descriptions, self.query_class = self._known[vocabulary]
        self.vocabulary = vocabulary
        if self.head is not None:
            self.head.num_background = vocabulary.num_background

    def forget(self, vocabulary: Vocabulary) -> None:
        """Back to where :meth:`set_vocabulary` was not called with it."""
        vars(self).get("_known", {}).pop(vocabulary, None)
        if getattr(self, "vocabulary", None) == vocabulary:
            del self.vocabulary
            self.text = self.descriptions = self.query_class = None  # type: ignore[assignment]
        if isinstance(self.tokenizer, SimpleTokenizer):  # it keeps the pieces of every word
            pieces = self.tokenizer.cache.items()
            self.tokenizer.cache = {word: own for word, own in pieces if word == own}


def _words(vocabulary: Any) -> Vocabulary:
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    if isinstance(vocabulary, str | os.PathLike):
        path = os.path.expanduser(os.fspath(vocabulary))
        if not path.startswith(PACKAGED) and not os.path.isfile(path):
            raise FileNotFoundError(f"vocabulary {path!r}: {_no_vocabulary(vocabulary)}")
        return load_vocabulary(path)
    if not isinstance(vocabulary, Sequence):
        raise TypeError(f"a vocabulary is a list of names or a file, not {type(vocabulary)}")
    classes = []
    for number, entry in enumerate(vocabulary, start=1):
        names = [entry] if isinstance(entry, str) else entry
        if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise TypeError(f"class {number} must be a name or a list of names, not {entry!r}")
        classes.append(tuple(name.strip() for name in names))
    return Vocabulary(tuple(classes))


def names_a_file(text: str) -> bool:
    """Whether words are the path of a vocabulary's file rather than class names.

    They are where there is such a file, or where they look like one: "words.txt", "../words".
    """
    if os.path.isfile(text) or text.startswith(PACKAGED):
        return True
    path = Path(text)
    return "," not in text and (
        path.suffix.lower() in FILE_SUFFIXES or text.startswith(("/", "./", "../", "~/"))
    )


def _no_vocabulary(given: str | os.PathLike) -> str:
    """Why it is no file of a vocabulary, and what was meant perhaps."""
    if os.path.isdir(given):
        return "this is a folder; give the path of a file with one class a line"
    if not isinstance(given, str) or names_a_file(given):
        return "there is no such file; check the path"
    names = [name.strip() for name in given.split(",") if name.strip()]
    return (
        f"there is no such file; give a list of names, {names}, or the path of a file with one "
        "class a line"
    )


def _pixels(image: object, exif_orientation: bool) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a path, a PIL image or an array."""
    if isinstance(image, str | os.PathLike):
        if not PathManager.isfile(os.fspath(image)):
            what = "a folder, not an image" if os.path.isdir(image) else "no such file"
            raise FileNotFoundError(f"{os.fspath(image)}: {what}; check the path")
        return read_image(image, exif_orientation=exif_orientation)
    if isinstance(image, Image.Image):
        try:
            return to_pixels(image, "a PIL image", exif_orientation)[0]
        except (OSError, ValueError) as error:
            raise ValueError(f"a PIL image that cannot be read ({error}); replace it") from error
    if not isinstance(image, np.ndarray):
        raise _no_image(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"an array of shape {image.shape} and dtype {image.dtype}; an image is (height, width, "
            "3) uint8 in RGB order, and several images are a list"
        )
    return image.copy()


def _no_image(image: object) -> TypeError:
    return TypeError(
        f"{type(image)} is no image; give a path, a PIL image, a NumPy array (height, width, 3) "
        "uint8 in RGB order, or a list of these"
    )


def _windows(encoded: EncodedImage) -> EncodedImages:
    if encoded.windows is None:
        raise ValueError("an image that the base method encoded; encode it by this predictor")
    return encoded.windows


def _colors(classes: int, background: bool) -> np.ndarray:
    """(K, 3) uint8: hues at steps of the golden ratio, in five shades; background is grey."""
    index = np.arange(classes)
    shades = np.array([(0.85, 0.95), (0.6, 0.75), (0.45, 1.0), (0.9, 0.6), (0.3, 0.85)])
    saturation, value = shades[index % len(shades)].T
    hue = (0.58 + index * 0.61803398875) % 1
    from matplotlib.colors import hsv_to_rgb  # see Segmentation.draw

    rgb = hsv_to_rgb(np.stack([hue, saturation, value], axis=1))
    own = (255 * rgb).round().astype(np.uint8)
    return np.concatenate([np.full((int(background), 3), 64, np.uint8), own])
