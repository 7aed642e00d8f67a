"""What a predictor gives of an image: its classes, and why others are not among them."""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from .coco import Shape, annotations
from .data import Vocabulary
from .encoding import EncodedImages
from .files import write_whole

NOTHING, NOTHING_OF_MANY = 255, 65535
LISTED = 12
"""How many names a sentence has at most."""
LONGEST_STEM = 200
"""Bytes of a file's name without its suffix."""
_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]')


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


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """An image in classes, K of them with the background.

    Attributes:
        image: (H, W, 3) uint8 RGB, turned as its EXIF data say, unless INPUT.EXIF_ORIENTATION is
            False.
        label_map: (H, W) int64, indices into `class_names`, or :attr:`nothing`.
        class_names: the first name of each class; "background" first where it is scored.
        scores: (K,) float32 in [0, 1], the highest score of each class in the image.
        confidence: (H, W) float32 in [0, 1], the highest score at each pixel.
        shares: (K,) float64, the fraction of pixels of each class; with the pixels of
            :attr:`nothing` they sum to 1.
        consistency: (K,) float32, each class's largest of all windows (METHOD.md step 5). NaN where
            there is none: of the background, and of the base method.
        removed: the classes that purification removed everywhere, in the order of `class_names`.
        colors: (K, 3) uint8 RGB.
        scores_map: (K, H, W) float32 in [0, 1], the score of every class at every pixel, where it
            was asked for; else None.
        presence: class -> its presence score (:mod:`freecp_d2.presence`), by default its
            consistency. The background has none, and the base method gives none.
    """

    image: np.ndarray
    label_map: np.ndarray
    class_names: tuple[str, ...]
    scores: np.ndarray
    confidence: np.ndarray
    shares: np.ndarray
    consistency: np.ndarray
    removed: list[RemovedClass]
    colors: np.ndarray
    scores_map: np.ndarray | None = None
    presence: Mapping[str, float] = field(default_factory=dict)

    @property
    def nothing(self) -> int:
        """The label of pixels at which no class has a score, without a scored background.

        It is no index of `class_names`, and is what label maps on disk ignore: 255, or 65535 with
        more than 254 classes. Evaluations label such pixels as the first class instead, as the
        published code does.
        """
        return nothing_of(len(self.class_names))

    def mask(self, name: str) -> np.ndarray:
        """(H, W) bool, where a class is.

        Raises:
            ValueError: there is no such class.
        """
        if name not in self.class_names:
            raise ValueError(f"{name!r} is none of the classes; they are {_listed(self)}")
        labels = [i for i, other in enumerate(self.class_names) if other == name]
        return np.isin(self.label_map, labels)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks of the classes that are somewhere, the largest first."""
        return {name: self.mask(name) for name in _names_somewhere(self)}

    def draw(self, alpha: float = 0.6, scale: float = 1.0) -> np.ndarray:
        """The image under its label map, with outlines and names.

        Args:
            alpha: how opaque the classes are, from 0 to 1.
            scale: of the picture; small images have no room for names otherwise.

        Returns:
            (H * scale, W * scale, 3) uint8 RGB.
        """
        from .overlay import draw_overlay

        return draw_overlay(
            *(self.image, self.label_map, self.class_names, self.colors),
            ignore_label=self.nothing,
            alpha=alpha,
            scale=scale,
        )

    def label_image(self) -> Image.Image:
        """The label map as Detectron2's `load_sem_seg` reads it: indexed, 16 bits with 255 or more.

        Pixels of :attr:`nothing` have that value.
        """
        if self.nothing != NOTHING:
            return Image.fromarray(self.label_map.astype(np.uint16))
        picture = Image.fromarray(self.label_map.astype(np.uint8), mode="P")
        # With fewer colours than 256 Pillow writes fewer bits, which cannot hold `nothing`.
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(self.colors)] = self.colors
        picture.putpalette(colors.tobytes())
        return picture

    def to_coco(
        self,
        file_name: str = "image.jpg",
        image_id: int = 1,
        first_category_id: int = 0,
        shape: Shape = "rle",
    ) -> dict[str, Any]:
        """The image in COCO's format: an annotation a class, as COCO's of stuff are.

        The image has `presence`, too, which readers of the format leave alone.

        Args:
            file_name: of the image, as the readers of the format know it.
            first_category_id: 0, so that category ids are `label_map`'s, or 1, as many tools want.
            shape: "rle", or "polygons", which cannot have holes.

        Returns:
            What `json.dump` writes and `pycocotools.coco.COCO` and Detectron2's `load_coco_json`
            read.
        """
        height, width = self.label_map.shape
        scores = dict(enumerate(self.scores))
        classes = annotations(self.label_map, scores, ignore=(self.nothing,), shape=shape)
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        presence = {name: round(score, 4) for name, score in self.presence.items()}
        return {
            "images": [{**image, "presence": presence}],
            "categories": [
                {"id": i, "name": name}
                for i, name in enumerate(self.class_names, first_category_id)
            ],
            "annotations": [
                {
                    **annotation,
                    "id": number,
                    "image_id": image_id,
                    "category_id": annotation["category_id"] + first_category_id,
                }
                for number, annotation in enumerate(classes, start=1)
            ],
        }

    def save(self, folder: str | os.PathLike, file_name: str = "image.jpg") -> None:
        """Write `label_map.png`, `masks/<class>.png`, `overlay.png` and `segmentation.json`.

        Args:
            folder: made where it is not there. Each file appears whole; older ones are replaced,
                and masks of other classes stay.
            file_name: of the image, for `segmentation.json` (:meth:`to_coco`).

        Raises:
            OSError: it cannot be written.
        """
        folder = Path(folder)
        write_png(folder / "label_map.png", self.label_image())
        write_masks(folder / "masks", self)
        write_png(folder / "overlay.png", Image.fromarray(self.draw()))
        content = json.dumps(self.to_coco(file_name))
        write_whole(folder / "segmentation.json", content.encode())

    def __repr__(self) -> str:
        height, width = self.label_map.shape
        order = [i for i in np.argsort(-self.shares, kind="stable") if self.shares[i]]
        shown = [f"{self.class_names[i]} {_percent(self.shares[i])}" for i in order[:LISTED]]
        if len(order) > LISTED:
            shown.append(f"and {len(order) - LISTED} more")
        nothing = 1 - self.shares.sum()
        if nothing * height * width >= 0.5:
            shown.append(f"nothing {_percent(nothing)}")
        gone = [f"{removed.name} ({removed.stage})" for removed in self.removed[:LISTED]]
        if len(self.removed) > LISTED:
            gone.append(f"and {len(self.removed) - LISTED} more")
        lines = [f"Segmentation of {width} x {height} pixels: {', '.join(shown)}"]
        if gone:
            lines.append(f"removed: {', '.join(gone)}")
        return "; ".join(lines)

    def _repr_png_(self) -> bytes:
        """What a notebook shows."""
        content = io.BytesIO()
        Image.fromarray(self.draw()).save(content, "png")
        return content.getvalue()


@dataclass(frozen=True)
class FailedImage:
    """An image that could not be segmented (`on_error="skip"`).

    Attributes:
        image: as it was given.
        error: why, in a sentence.
    """

    image: Any
    error: str


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


def require_purifiable(encoded: EncodedImage) -> None:
    """That FreeCP can use it.

    Raises:
        ValueError: a base method encoded it.
    """
    if encoded.base:
        raise ValueError("an image that the base method encoded; encode it by this predictor")


def segmentation_of(
    image: np.ndarray, result: Mapping[str, Any], vocabulary: Vocabulary
) -> Segmentation:
    """What a model gives of an image, with names.

    Args:
        image: (H, W, 3) uint8 RGB.
        result: of :meth:`freecp_d2.FreeCP.segment` or `segment_base`, of either output.
    """
    class_names = vocabulary.class_names
    first_class = int(vocabulary.num_background > 0)
    names = list(class_names[first_class:])
    scores_map = None
    if "sem_seg" in result:
        scores_map = result["sem_seg"].cpu().numpy()
        labels, confidence = scores_map.argmax(axis=0), scores_map.max(axis=0)
        scores = scores_map.max(axis=(1, 2))
    else:
        labels, confidence, scores = (
            result[key].cpu().numpy() for key in ("label_map", "confidence", "scores")
        )
    from .overlay import palette  # with scikit-image, which takes its time

    labels = np.where(confidence > 0, labels, nothing_of(len(class_names)))
    counts = np.bincount(labels.ravel(), minlength=len(class_names))[: len(class_names)]
    shares = counts / labels.size
    consistency = np.full(len(class_names), np.nan, dtype=np.float32)
    removed, presence = [], {}
    if "consistency" in result:
        consistency[first_class:] = result["consistency"].cpu().numpy()
        # What was asked for in its place.
        scored = next(iter(result.get("presence", {}).values()), result["consistency"])
        presence = dict(zip(names, scored.tolist(), strict=True))
        removed = _removed_classes(result, names, shares[first_class:])
    return Segmentation(
        image=image,
        label_map=labels,
        class_names=class_names,
        scores=scores,
        confidence=confidence,
        shares=shares,
        consistency=consistency,
        removed=removed,
        colors=palette(len(class_names), bool(first_class)),
        scores_map=scores_map,
        presence=presence,
    )


def write_png(path: Path, image: Image.Image) -> None:
    """Write a picture, all or nothing."""
    content = io.BytesIO()
    image.save(content, "png")
    write_whole(path, content.getvalue())


def mask_files(segmentation: Segmentation) -> Iterator[tuple[str, np.ndarray]]:
    """(<class>.png, (H, W) bool) of every class that is somewhere.

    Characters that a file name cannot have are "_"; of names that are then alike, or too long, the
    later ones have a number. One mask is in memory at a time.
    """
    taken: set[str] = set()
    for name in _names_somewhere(segmentation):
        safe = os.fsencode(_UNSAFE.sub("_", name).strip(". ") or "_")[:LONGEST_STEM]
        stem = safe.decode(errors="ignore")
        while stem in taken:
            stem = f"{stem}_{len(taken)}"
        taken.add(stem)
        yield f"{stem}.png", segmentation.mask(name)


def write_masks(folder: Path, segmentation: Segmentation) -> list[Path]:
    """The files of :func:`mask_files`, 255 where a class is and 0 elsewhere; their paths."""
    files = []
    for name, mask in mask_files(segmentation):
        files.append(folder / name)
        write_png(files[-1], Image.fromarray(mask.astype(np.uint8) * 255))
    return files


def nothing_of(classes: int) -> int:
    """:attr:`Segmentation.nothing` of so many classes."""
    return NOTHING if classes < NOTHING else NOTHING_OF_MANY


def _names_somewhere(segmentation: Segmentation) -> list[str]:
    """Of the classes that have pixels, the largest first."""
    order = np.argsort(-segmentation.shares, kind="stable")
    names = (segmentation.class_names[i] for i in order if segmentation.shares[i])
    return list(dict.fromkeys(names))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "< 1 %"


def _listed(segmentation: Segmentation) -> str:
    names = segmentation.class_names
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED])}{more}"


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
