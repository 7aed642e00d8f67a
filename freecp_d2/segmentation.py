"""What a predictor gives of an image: its classes, and why others are not among them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from detectron2.data import Metadata

from .data import Vocabulary
from .encoding import EncodedImages


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


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image as CLIP sees it, for :meth:`FreeCPPredictor.segment`.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        source: Detectron2's dict of it, resized.
        windows: its CLIP features.
        base: whether they are a base method's alone.
    """

    image: np.ndarray
    source: dict[str, Any]
    windows: EncodedImages
    base: bool


def segmentation_of(
    image: np.ndarray, result: Mapping[str, Any], vocabulary: Vocabulary
) -> Segmentation:
    """What a model with `output` "label_map" gives of an image, with names.

    Args:
        image: (H, W, 3) uint8 RGB.
        result: of :meth:`freecp_d2.FreeCP.segment` or `segment_base`.
    """
    labels = result["label_map"].cpu().numpy()
    names = [names[0] for names in vocabulary.classes]
    first_class = int(vocabulary.num_background > 0)
    class_names = (*["background"] * first_class, *names)
    shares = np.bincount(labels.ravel(), minlength=len(class_names)) / labels.size
    consistency = np.full(len(class_names), np.nan, dtype=np.float32)
    removed = []
    if "consistency" in result:
        consistency[first_class:] = result["consistency"].cpu().numpy()
        removed = _removed_classes(result, names, shares[first_class:])
    return Segmentation(
        image=image,
        label_map=labels,
        class_names=class_names,
        scores=result["scores"].cpu().numpy(),
        shares=shares,
        consistency=consistency,
        removed=removed,
        colors=_colors(len(names), bool(first_class)),
    )


def _removed_classes(
    result: Mapping[str, Any], names: list[str], shares: np.ndarray
) -> list[RemovedClass]:
    winners: dict[int, list[int]] = {}
    for loser, winner in result["ambiguous_losses"]:
        winners.setdefault(loser, []).append(winner)
    removed = []
    for index in (~result["kept"]).nonzero().flatten().tolist():
        ambiguous = bool(result["kept_redundancy"][index])
        share = {winner: shares[winner] for winner in winners.get(index, ())}
        removed.append(
            RemovedClass(
                names[index],
                "ambiguity" if ambiguous else "redundancy",
                float(result["consistency"][index]),
                names[max(share, key=share.__getitem__)] if ambiguous else None,
            )
        )
    return removed


def _colors(classes: int, background: bool) -> np.ndarray:
    """(K, 3) uint8: hues at steps of the golden ratio, in five shades; background is grey."""
    index = np.arange(classes)
    shades = np.array([(0.85, 0.95), (0.6, 0.75), (0.45, 1.0), (0.9, 0.6), (0.3, 0.85)])
    saturation, value = shades[index % len(shades)].T
    hue = (0.58 + index * 0.61803398875) % 1
    from matplotlib.colors import hsv_to_rgb  # see Segmentation.draw

    rgb = hsv_to_rgb(np.stack([hue, saturation, value], axis=1))
    colors = (255 * rgb).round().astype(np.uint8)
    return np.concatenate([np.full((int(background), 3), 64, np.uint8), colors])
