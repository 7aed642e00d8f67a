"""The words that a vocabulary is tried with."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..data import Vocabulary, normalized_name
from ..words import Words


@dataclass(frozen=True)
class Setting:
    """A way to ask for the same classes.

    Attributes:
        kind: "official", "plain", "synonyms", "near", "random" or "oracle".
        vocabulary: the classes, and behind them the distractors. An oracle asks of these only for
            the classes that are in the image.
        distractors: how many classes at the end are distractors.
        number: of the synonyms, from 1, or of the random draw, from 0; None: there is but one.
    """

    kind: str
    vocabulary: Vocabulary
    distractors: int = 0
    number: int | None = None

    @property
    def name(self) -> str:
        """Such as "near 50" or "random 50, seed 0"."""
        if self.kind == "random":
            return f"random {self.distractors}, seed {self.number}"
        if self.kind == "near":
            return f"near {self.distractors}"
        return self.kind if self.number is None else f"{self.kind} {self.number}"


def name_settings(official: Vocabulary, names: Vocabulary | None) -> list[Setting]:
    """The official names, the plain ones, and all synonyms in their turn.

    Args:
        names: of the same classes; the first name of each is the plain one, the others are its
            synonyms. A class without any keeps its plain name, and one that has fewer than another
            has them several times. None: there are the official names alone.

    Raises:
        ValueError: they are of more or fewer classes.
    """
    settings = [Setting("official", official)]
    if names is None:
        return settings
    if len(names.classes) != len(official.classes):
        raise ValueError(
            f"the names are of {len(names.classes)} classes, the vocabulary has "
            f"{len(official.classes)}; give names of the same classes in the same order"
        )
    plain = tuple(one[:1] for one in names.classes)
    settings.append(Setting("plain", replace(official, classes=plain)))
    for number in range(max(map(len, names.classes)) - 1):
        chosen = tuple(
            (one[1 + number % (len(one) - 1)],) if len(one) > 1 else one for one in names.classes
        )
        settings.append(Setting("synonyms", replace(official, classes=chosen), number=number + 1))
    return settings


def distractor_settings(
    official: Vocabulary, pool: Sequence[str], counts: Sequence[int], seeds: int
) -> list[Setting]:
    """The official names with distractors, near and random.

    Args:
        pool: of :func:`distractor_pool`.
        counts: how many distractors. Where the pool is smaller, all of it are taken, which are near
            and random alike: they are there once, as "near".
        seeds: how many random draws.
    """
    settings = []
    for count in sorted({min(count, len(pool)) for count in counts} - {0}):
        draws: list[tuple[str, Sequence[str], int | None]] = [("near", pool[:count], None)]
        if count < len(pool):
            draws += [("random", draw(pool, count, seed), seed) for seed in range(seeds)]
        for kind, words, number in draws:
            classes = (*official.classes, *((word,) for word in words))
            settings.append(Setting(kind, replace(official, classes=classes), count, number))
    return settings


def draw(pool: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` words at random; a smaller count has the first of them."""
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
    return [pool[i] for i in order[:count].tolist()]


def distractor_pool(
    words: Sequence[str], features: Tensor, targets: Tensor, max_similarity: float
) -> list[str]:
    """The words that are no synonym of a target, those nearest to one first.

    Args:
        words: W of them.
        features: (W, D) of unit length.
        targets: (T, D) likewise.
        max_similarity: a word whose cosine to any target is at least this is a synonym.
    """
    nearest = (features @ targets.T).amax(dim=1)
    order = nearest.argsort(descending=True, stable=True).tolist()
    return [words[i] for i in order if nearest[i] < max_similarity]


def without_names(words: Sequence[str], vocabularies: Sequence[Vocabulary]) -> list[str]:
    """The words that are in none of the vocabularies, be it as a name of the background."""
    taken = {normalized_name(name) for one in vocabularies for name in one.queries}
    return [word for word in words if normalized_name(word) not in taken]


def of_classes(words: Words, classes: Sequence[int]) -> Words:
    """The background, and of the classes only these.

    Args:
        classes: at least one index, without the background.
    """
    of_query = words.query_class.tolist()
    background = words.num_background
    queries = [*range(background)]
    queries += [
        background + query for wanted in classes for query, c in enumerate(of_query) if c == wanted
    ]
    chosen = tuple(words.vocabulary.classes[c] for c in classes)
    vocabulary = replace(words.vocabulary, classes=chosen)
    query_class = torch.tensor(vocabulary.query_class, device=words.query_class.device)
    related = words.related
    if related is not None:
        rows = [query - background for query in queries[background:]]
        related = related[np.ix_(rows, rows)]
    text, descriptions = words.text[queries], words.descriptions[queries]
    return Words(vocabulary, text, descriptions, query_class, related)
