"""Which classes are in an image, by three scores, and which class is read off which other's place.

`local` is after SRDL, `erasing` with its dependency matrix after C2SRT; `consistency` is FreeCP's
own (METHOD.md step 5). CLIP stays as it is, and no gradient is taken.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import transfers
from .clip import DenseCLIP
from .encoding import EncodedImages
from .purification import PurificationHead
from .purify import PurifiedWindows
from .scores import best_of_class, class_scores
from .sliding_window import Window
from .words import Words

CONSISTENCY = "consistency"
PRESENCE_SCORES = (CONSISTENCY, "local", "erasing")
"""What a class's presence may be scored by."""
TEMPERATURE = 0.02
MASS = 0.5
MOST_PATCHES = 32
"""`local` takes the fewest patches with this share of a softmax at this temperature."""
ERASED = 0.5
"""Where a class's refined map is above this, `erasing` paints it over."""
VIEWS_AT_ONCE = 16
"""How many such pictures go through CLIP at once."""
NOT_THERE = -1.0
"""`erasing` of a class that purification has removed: as low as a difference of two shares gets."""


def check_presence(scores: Sequence[str], purifies: bool) -> None:
    """TEST.PRESENCE, or what a call asks for.

    Raises:
        ValueError: one of `scores` is none of :data:`PRESENCE_SCORES`, or a base method alone is to
            give some.
    """
    for score in scores:
        if score not in PRESENCE_SCORES:
            raise ValueError(
                f"the presence score is {score!r}; choose one of {', '.join(PRESENCE_SCORES)}"
            )
    if scores and not purifies:
        raise ValueError("a base method alone scores no presence; set MODEL.FREECP.ENABLED True")


def local_presence(patches: Tensor, cls: Tensor, text: Tensor) -> Tensor:
    """How like a text is the image together with the few patches that are most like it.

    For each text the fewest patches that hold :data:`MASS` of softmax(cos / TEMPERATURE) over the
    patches, at most :data:`MOST_PATCHES`, are averaged, and the CLS feature is added.

    Args:
        patches: (B, N, D) of unit length.
        cls: (B, D) of unit length.
        text: (Q, D) of unit length.

    Returns:
        (B, Q) float32 cosines.
    """
    with torch.autocast(patches.device.type, enabled=False):
        weights = (patches @ text.T / TEMPERATURE).softmax(dim=1)
        largest, index = weights.topk(min(MOST_PATCHES, patches.shape[1]), dim=1)
        chosen = (largest.cumsum(dim=1) - largest < MASS).to(patches.dtype)
        share = torch.zeros_like(weights).scatter_(1, index, chosen / chosen.sum(1, keepdim=True))
        local = share.transpose(1, 2) @ patches
        return F.cosine_similarity(local + cls[:, None], text[None], dim=-1)


def erased_views(image: Tensor, maps: Tensor) -> Tensor:
    """An image (3, H, W), and S times the same without one class each: (1 + S, 3, H, W).

    Where a map of `maps`, (S, H, W), is above :data:`ERASED`, there is the image's mean colour.
    """
    painted = torch.where(maps[:, None] > ERASED, image.mean(dim=(1, 2), keepdim=True), image)
    return torch.cat([image[None], painted])


def dependency(
    image: Tensor, maps: Tensor, classes: Tensor, words: Words, encoder: DenseCLIP
) -> Tensor:
    """How much of CLIP's belief in each class goes when one class is painted over.

    The image and :func:`erased_views` of it are read whole, at the size that CLIP was trained at.

    Args:
        image: (3, H, W) normalised.
        maps: (S, H, W) in [0, 1], of `classes`, (S,) int64 of the vocabulary's.

    Returns:
        (S, S) float32 in [-1, 1]: row c, column j is the share of class j in CLIP's softmax over
        the S classes, less that share without class c.
    """
    size = encoder.model.visual.image_size
    small = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
    maps = F.interpolate(maps[None], size, mode="bilinear", antialias=True)[0]
    views = erased_views(small, maps).split(VIEWS_AT_ONCE)
    features = torch.cat([encoder.encode_cls(chunk) for chunk in views])
    similarity = features @ words.text[words.num_background :].T
    # A cosine is at least -1, and :func:`class_scores` wants at least 0.
    of_classes = class_scores(similarity.T + 1, words.query_class, len(words.vocabulary.classes))
    shares = (encoder.logit_scale * of_classes[classes]).softmax(dim=0).T
    return shares[:1] - shares[1:]


def add_presence(
    results: Sequence[dict[str, Any]],
    encoded: EncodedImages,
    purified: PurifiedWindows,
    words: Words,
    encoder: DenseCLIP,
    scores: Sequence[str],
) -> None:
    """Add `presence`, score -> (classes,) float32 on the CPU, to the result of every image.

    With "erasing" also `dependency`, the ids (S,) int64 of the classes that stay, and
    :func:`dependency` of them, on the CPU.

    Args:
        results: of the images of `encoded`, whose windows are in memory.
        purified: their windows.
        scores: of :data:`PRESENCE_SCORES`.

    Raises:
        ValueError: NaN in an image's features; it names the file.
    """
    local = _by_window(encoded, words, "local", None, encoder) if "local" in scores else None
    for index, (image, result) in enumerate(zip(encoded.images, results, strict=True)):
        presence: dict[str, Tensor] = {}
        for score in scores:
            if score == CONSISTENCY:
                presence[score] = result["consistency"]
            elif score == "local":
                assert local is not None
                presence[score] = local[index]
            else:
                ids, matrix = _dependency_of(purified.of_image(index), image, words, encoder)
                values = torch.full((len(words.vocabulary.classes),), NOT_THERE)
                values[ids] = matrix.diagonal()
                presence[score] = values
                result["dependency"] = ids, matrix
        result["presence"] = presence


def presence_without_maps(
    encoded: EncodedImages, words: Words, head: PurificationHead, encoder: DenseCLIP, score: str
) -> list[Tensor]:
    """`consistency` or `local` of every image, without crops, merged maps or labels.

    Returns:
        (classes,) float32 on the CPU, the largest of a class's names and of all windows.

    Raises:
        ValueError: NaN in an image's features; it names the file.
    """
    return _by_window(encoded, words, score, head, encoder)


def _by_window(
    encoded: EncodedImages,
    words: Words,
    score: str,
    head: PurificationHead | None,
    encoder: DenseCLIP,
) -> list[Tensor]:
    windows: list[Window] = []
    of_batches: list[Tensor] = []
    texts = [words.text] if score == "local" else words.texts
    for batch, text in ((batch, text) for batch in encoded.batches for text in texts):
        assert batch.features is not None
        windows += batch.windows
        if score == "local":
            patches = batch.features.patches_for(text)
            of_classes = text[words.num_background :]
            of_batches.append(local_presence(patches, batch.features.cls, of_classes))
        else:
            assert head is not None
            candidates, _ = head.select(
                batch.features,
                text,
                words.descriptions,
                encoder.logit_scale,
                words.num_background,
            )
            of_batches.append(candidates.consistency)
    (values,) = transfers.to_host([torch.cat(of_batches)])
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        name = encoded.names[windows[int(finite.argmin())].image]
        raise ValueError(
            f"{name}: NaN or infinity in its CLIP features; check the image and the weights "
            "(MODEL.CLIP.PRETRAINED), or use MODEL.CLIP.PRECISION fp32"
        )
    images = np.array([window.image for window in windows])
    # A cosine is at least -1, and best_of_class wants at least 0.
    least = 0 if score == CONSISTENCY else -1
    return [
        best_of_class(values[images == index] - least, words) + least
        for index in range(len(encoded.images))
    ]


def _dependency_of(
    purified: PurifiedWindows, image: Tensor, words: Words, encoder: DenseCLIP
) -> tuple[Tensor, Tensor]:
    """The ids of the classes that stay in an image, sorted, and :func:`dependency`, on the CPU."""
    maps, queries = purified.merged((image.shape[1], image.shape[2]))
    if not len(queries):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0)
    classes, row = words.query_class[queries].unique(return_inverse=True)
    matrix = dependency(image, class_scores(maps, row, len(classes)), classes, words, encoder)
    return classes.cpu(), matrix.float().cpu()
