"""Words: a vocabulary with its text features, a value that any number of threads may share."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .adapters import Adapter
from .clip.text import TextEncoder, description_features, template_sentences
from .data import Vocabulary
from .decorrelation import decorrelate_queries
from .extensions import NO_EXTENSIONS, Extensions
from .relations import related_queries


@dataclass(frozen=True, eq=False)
class Words:
    """A vocabulary as a CLIP reads it.

    Attributes:
        vocabulary: the classes and the background in words.
        text: (Q, D) unit-length template features of its queries, the background's first.
        descriptions: (Q, D) unit-length description features of the same queries.
        query_class: (Q - num_background,) int64, the class of each query that is not background.
        related: (C, C) bool of these queries, which never compete; None: any may.
        adapter: of these queries, with what it has learnt; shared by all copies. None: the text
            features stay.
        text_views: (M, Q, D) unit-length features by sets of templates, each of which is a view of
            an image; None: `text` alone.
    """

    vocabulary: Vocabulary
    text: Tensor
    descriptions: Tensor
    query_class: Tensor
    related: np.ndarray | None = None
    adapter: Adapter | None = None
    text_views: Tensor | None = None

    @property
    def texts(self) -> list[Tensor]:
        """By what each window is read, (Q, D) each: `text`, or in its place `text_views`."""
        return [self.text] if self.text_views is None else list(self.text_views)

    @property
    def num_background(self) -> int:
        """How many of the queries are background."""
        return self.vocabulary.num_background

    @property
    def first_class(self) -> int:
        """The output channel of the first class: 1 behind a scored background, else 0."""
        return int(self.num_background > 0)

    @property
    def num_channels(self) -> int:
        """How many output channels there are: the classes, and the background if it is scored."""
        return self.first_class + len(self.vocabulary.classes)

    @property
    def query_channel(self) -> Tensor:
        """(Q,) int64, the output channel of each query."""
        background = self.query_class.new_zeros(self.num_background)
        return torch.cat([background, self.first_class + self.query_class])

    def to(self, device: torch.device) -> "Words":
        """The same on `device`; itself where it is there."""
        if self.text.device == device:
            return self
        return replace(
            self,
            text=self.text.to(device),
            descriptions=self.descriptions.to(device),
            query_class=self.query_class.to(device),
            text_views=None if self.text_views is None else self.text_views.to(device),
        )


class WordsCache:
    """The words of the last vocabularies; any number of threads may ask for them.

    Args:
        encode: vocabulary -> words.
        size: how many are kept.
    """

    def __init__(self, encode: Callable[[Vocabulary], Words], size: int):
        self._encode = encode
        self._size = size
        self._kept: OrderedDict[Vocabulary, Words] = OrderedDict()
        self._lock = threading.Lock()  # of _kept

    def get(self, vocabulary: Vocabulary) -> Words:
        """Its words. Errors are those of `encode`."""
        with self._lock:
            words = self._kept.get(vocabulary)
        if words is None:
            words = self._encode(vocabulary)
        with self._lock:
            self._kept[vocabulary] = words
            self._kept.move_to_end(vocabulary)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return words

    def forget(self, vocabularies: Iterable[Vocabulary]) -> None:
        """Keep these no longer."""
        forgotten = list(vocabularies)  # a generator may ask for words
        with self._lock:
            for vocabulary in forgotten:
                self._kept.pop(vocabulary, None)


def encode_words(
    text_encoder: TextEncoder,
    vocabulary: Vocabulary,
    sentences: Mapping[str, Sequence[str]] | None,
    extensions: Extensions = NO_EXTENSIONS,
) -> Words:
    """The words of a vocabulary, on the CPU (METHOD.md step 0).

    Args:
        sentences: class name -> sentences about it; a class without any is described by its
            templates. None: all are, and nothing is said, as a base method alone wants it.
        extensions: their background is not read; the vocabulary is as it is.

    Raises:
        ValueError: a name or a sentence that does not fit into CLIP's context, one whose
            embedding is not finite, or more classes than can be decorrelated.
    """
    names = vocabulary.queries
    text = text_encoder.encode(template_sentences(names))
    descriptions = text
    if sentences is not None:
        descriptions = description_features(
            text_encoder, names, sentences, text, vocabulary.num_background
        )
    query_class = torch.tensor(vocabulary.query_class)
    classes = query_class, vocabulary.num_background, extensions.decorrelation
    text = decorrelate_queries(text, *classes)
    related = related_queries(vocabulary, extensions.relations)
    adapter, text_views = extensions.adapter, None
    if extensions.views is not None:
        text_views = text[None]
        if extensions.views.template_sets > 1:
            views = extensions.views.texts(names, text_encoder)
            text_views = torch.stack([decorrelate_queries(view, *classes) for view in views])
    learning = adapter(names, text_encoder) if adapter is not None else None
    return Words(vocabulary, text, descriptions, query_class, related, learning, text_views)
