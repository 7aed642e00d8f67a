"""Classes that lie on each other in the world: parts and companions are no look-alikes.

After C2SRT. A person and their shirt, a train and its rails have much the same refined maps, and
both are right; in the ambiguity stage (METHOD.md step 6) one would remove the other.
"""

from collections.abc import Set
from pathlib import Path
from typing import TypeAlias

import numpy as np
from detectron2.config import CfgNode

from .data import Vocabulary, normalized_name
from .data.vocabulary import read_json

KEY = "MODEL.FREECP.RELATIONS"
RELATIONS = ("part", "together")

Relations: TypeAlias = Set[tuple[str, str]]
"""Pairs of normalised names, each in both orders."""


def load_relations(path: str | Path) -> Relations:
    """The relations of a file (MODEL.FREECP.RELATIONS), JSON in UTF-8: {a: {b: relation}}.

    A relation is "part", b is a part of a, or "together", they are found together. Both mean the
    same: neither removes the other.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else, or a class in relation to itself.
    """
    content = read_json(path, KEY)
    example = 'give {"train": {"rail": "together"}}'
    if not isinstance(content, dict):
        raise ValueError(f"{KEY} {path}: it is no object; {example}")
    pairs = set()
    for name, others in content.items():
        if not isinstance(others, dict):
            raise ValueError(f"{KEY} {path}: {name!r} has {others!r}, no object; {example}")
        for other, relation in others.items():
            if relation not in RELATIONS:
                raise ValueError(
                    f"{KEY} {path}: {name!r} to {other!r} is {relation!r}; choose one of "
                    f"{', '.join(RELATIONS)}"
                )
            pair = normalized_name(name), normalized_name(other)
            if pair[0] == pair[1]:
                raise ValueError(f"{KEY} {path}: {name!r} is related to itself; remove it")
            pairs |= {pair, pair[::-1]}
    return frozenset(pairs)


def configured_relations(cfg: CfgNode) -> Relations:
    """Those of MODEL.FREECP.RELATIONS; none where it is empty.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_relations`.
    """
    file = cfg.MODEL.FREECP.RELATIONS
    return load_relations(file) if file else frozenset()


def related_queries(vocabulary: Vocabulary, relations: Relations) -> np.ndarray | None:
    """Which queries never compete.

    Classes are related where a name of one is to a name of the other; names that no class has do
    not matter.

    Returns:
        (C, C) bool, symmetric, of the queries that are not background; None where there are none.
    """
    of_name: dict[str, list[int]] = {}
    for index, names in enumerate(vocabulary.classes):
        for name in names:
            of_name.setdefault(normalized_name(name), []).append(index)
    related = np.zeros((len(vocabulary.classes),) * 2, dtype=bool)
    for name, other in relations:
        for row in of_name.get(name, ()):
            related[row, of_name.get(other, [])] = True
    np.fill_diagonal(related, False)  # of a class whose own names are related
    if not related.any():
        return None
    query_class = np.array(vocabulary.query_class)
    return related[np.ix_(query_class, query_class)]
