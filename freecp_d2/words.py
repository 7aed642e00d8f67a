"""Words: a vocabulary with its text features, a value that any number of threads may share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .clip.text import TextEncoder, description_features, template_sentences
from .data import Vocabulary


@dataclass(frozen=True, eq=False)
class Words:
    """A vocabulary as a CLIP reads it.

    Attributes:
        vocabulary: the classes and the background in words.
        text: (Q, D) unit-length template features of its queries, the background's first.
        descriptions: (Q, D) unit-length description features of the same queries.
        query_class: (Q - num_background,) int64, the class of each query that is not background.
    """

    vocabulary: Vocabulary
    text: Tensor
    descriptions: Tensor
    query_class: Tensor

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
        )


def encode_words(
    text_encoder: TextEncoder,
    vocabulary: Vocabulary,
    sentences: Mapping[str, Sequence[str]] | None,
) -> Words:
    """The words of a vocabulary, on the CPU (METHOD.md step 0).

    Args:
        sentences: class name -> sentences about it; a class without any is described by its
            templates. None: all are, and nothing is said, as a base method alone wants it.

    Raises:
        ValueError: a name or a sentence that does not fit into CLIP's context, or one whose
            embedding is not finite.
    """
    names = vocabulary.queries
    text = text_encoder.encode(template_sentences(names))
    descriptions = text
    if sentences is not None:
        descriptions = description_features(
            text_encoder, names, sentences, text, vocabulary.num_background
        )
    return Words(vocabulary, text, descriptions, torch.tensor(vocabulary.query_class))
