"""Background words for any classes, chosen from a lexicon by the CLIP that reads them.

After "Open World Classification with Adaptive Negative Samples" (EMNLP 2022), with real words in
place of sampled negatives: words that are none of the classes, and stand for as many others as
possible, by greedy facility location.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch
from detectron2.config import CfgNode
from torch import Tensor

from .clip.text import TextEncoder, template_sentences
from .data import Vocabulary
from .data.lexicon import lexicon

CHOICES = ("auto", "random")
"""How words are chosen: such that they stand for the lexicon, or by chance, as a control."""


@dataclass(frozen=True)
class BackgroundChoice:
    """MODEL.FREECP.BACKGROUND and BACKGROUND_WORDS.

    Attributes:
        how: one of CHOICES; "": the background is the vocabulary's.
        lexicon: sources of :func:`freecp_d2.data.lexicon.lexicon`.
        count: how many words are chosen at most.
        max_similarity: words whose cosine to a name of a class is at least this are left out.
        penalty: how much a word counts less that is like one that is chosen.
        seed: of "random".

    Raises:
        ValueError: one of them is out of range.
    """

    how: str = ""
    lexicon: tuple[str, ...] = ("coco_stuff", "ade20k")
    count: int = 64
    max_similarity: float = 0.9
    penalty: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.how not in ("", *CHOICES):
            raise ValueError(
                f"MODEL.FREECP.BACKGROUND is {self.how!r}; choose auto or random, or '' for the "
                "vocabulary's own"
            )
        for key, value, valid, what in (
            ("LEXICON", self.lexicon, len(self.lexicon) > 0, "name a source of words"),
            ("COUNT", self.count, self.count >= 1, "it must be at least 1"),
            (
                *("MAX_SIMILARITY", self.max_similarity, -1 < self.max_similarity <= 1),
                "it must be above -1 and at most 1",
            ),
            ("PENALTY", self.penalty, 0 <= self.penalty < float("inf"), "it must be at least 0"),
        ):
            if not valid:
                raise ValueError(f"MODEL.FREECP.BACKGROUND_WORDS.{key} is {value}; {what}")


NOT_CHOSEN = BackgroundChoice()
"""The background is the vocabulary's."""


def configured_choice(cfg: CfgNode) -> BackgroundChoice:
    """The choice of a config; errors are those of the class."""
    words = cfg.MODEL.FREECP.BACKGROUND_WORDS
    return BackgroundChoice(
        cfg.MODEL.FREECP.BACKGROUND,
        tuple(words.LEXICON),
        words.COUNT,
        words.MAX_SIMILARITY,
        words.PENALTY,
        words.SEED,
    )


def lexicon_sentences(choice: BackgroundChoice) -> list[list[str]]:
    """What a text encoder reads of the lexicon: one entry a word."""
    return template_sentences(lexicon(*choice.lexicon))


def choose_background(
    text_encoder: TextEncoder, vocabulary: Vocabulary, choice: BackgroundChoice
) -> Vocabulary:
    """The vocabulary with background words of `choice`, in place of those that it may have.

    Raises:
        ValueError: no word of the lexicon is left, or a class's name does not fit into CLIP's
            context.
    """
    if not choice.how:
        return vocabulary
    words = lexicon(*choice.lexicon)
    features = text_encoder.encode(lexicon_sentences(choice))
    names = [name for names in vocabulary.classes for name in names]
    targets = text_encoder.encode(template_sentences(names))
    candidates = dissimilar(features, targets, choice.max_similarity)
    if not len(candidates):
        raise ValueError(
            f"no word of {', '.join(choice.lexicon)} has a cosine below "
            f"MODEL.FREECP.BACKGROUND_WORDS.MAX_SIMILARITY {choice.max_similarity} to all classes; "
            "raise it, or name the background yourself"
        )
    if choice.how == "random":
        generator = torch.Generator().manual_seed(choice.seed)
        chosen = torch.randperm(len(candidates), generator=generator)[: choice.count].tolist()
    else:
        features = features[candidates]
        chosen = representatives(features @ features.T, choice.count, choice.penalty)
    background = tuple(words[candidates[index]] for index in chosen)
    return replace(vocabulary, background=background)


def dissimilar(words: Tensor, targets: Tensor, max_similarity: float) -> Tensor:
    """Positions (n,) int64 of the words whose cosine to every target is below `max_similarity`.

    Args:
        words: (L, D) of unit length.
        targets: (Q, D) of unit length.
    """
    return ((words @ targets.T).amax(dim=1) < max_similarity).nonzero()[:, 0]


def representatives(similarities: Tensor, count: int, penalty: float) -> list[int]:
    """Words that stand for all, by greedy facility location.

    The next word d is that of the largest gain_d - penalty * max(0, max_c S_dc) * mean gain, where
    gain_d = mean_i max(S_di - covered_i, 0), covered_i is the largest S_ic so far and at least 0,
    c runs over the words that are chosen, and the mean is that of the words that are not. Of equal
    ones the first is taken.

    Args:
        similarities: (L, L) cosines S of the words, symmetric.

    Returns:
        min(count, L) positions in the order of choice.
    """
    similarities = similarities.double()
    size = len(similarities)
    covered = similarities.new_zeros(size)
    nearest = similarities.new_zeros(size)
    left = torch.ones(size, dtype=torch.bool, device=similarities.device)
    chosen: list[int] = []
    while len(chosen) < min(count, size):
        gain = (similarities - covered).clamp_(min=0).mean(dim=1)
        value = gain - penalty * nearest * gain[left].mean()
        best = int(value.masked_fill(~left, -torch.inf).argmax())
        chosen.append(best)
        left[best] = False
        covered = covered.maximum(similarities[best])
        nearest = nearest.maximum(similarities[best])
    return chosen


def chooses_background(background: bool | Sequence[str]) -> TypeGuard[str]:
    """Whether a call's `background` is one of CHOICES."""
    return isinstance(background, str) and background in CHOICES
