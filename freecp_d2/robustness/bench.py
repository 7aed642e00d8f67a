"""An image in all settings: through CLIP once, then labelled with each vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip.matmul import bf16_matmul
from ..clip.text import template_sentences
from ..data import Vocabulary, describe
from ..encoding import EncodedImages
from ..evaluation.metrics import NoClass, confusion_matrix
from ..merging import base_similarities
from ..meta_arch import FreeCP
from ..scores import base_results
from ..sliding_window import patch_padding
from ..words import Words, encode_words
from .settings import Setting, of_classes


class Bench:
    """A base method and FreeCP on it, with the words of all settings.

    Args:
        model: with FreeCP.
        settings: of vocabularies of the same classes; those with distractors have one name each
            for these.
        descriptions: class name -> sentences; a name without any, and a distractor, is described
            by its templates.
        ids: the data set's id of each output channel, without distractors.
        num_classes: of the data set.
        ignore_label: of its label maps; None: every pixel counts.

    Raises:
        ValueError: a name does not fit into CLIP's context.
    """

    def __init__(
        self,
        model: FreeCP,
        settings: Sequence[Setting],
        descriptions: Mapping[str, Sequence[str]],
        ids: Sequence[int],
        num_classes: int,
        ignore_label: int | None,
    ):
        self.model = model
        self.settings = settings
        self._descriptions = descriptions
        self.ids = list(ids)
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.words = [_encode(model, setting.vocabulary, descriptions) for setting in settings]
        queries = dict.fromkeys(name for one in settings for name in one.vocabulary.queries)
        self._position = {name: row for row, name in enumerate(queries)}
        union = Vocabulary(tuple((name,) for name in queries), repeats=True)
        self._union = encode_words(model.text_encoder, union, None).to(model.device)

    @torch.no_grad()
    def of_image(self, image: dict[str, Any], truth: Tensor) -> dict[str, Any]:
        """What each setting makes of an image, as JSON has it.

        Args:
            image: of `InferenceMapper`.
            truth: (H, W) label map of the data set.

        Returns:
            setting -> `base` and `freecp`, cells (rows, columns, pixels) of a confusion matrix
            (k + 1, k) by predicted and true class, k output channels without distractors, whose
            row is the last; and `left`, how many distractors stay after either stage.

        Raises:
            ValueError: the label map has another size than the output, or an id that is no class.
        """
        encoded = self.model.encode([image])
        (size,) = encoded.output_sizes
        if tuple(truth.shape) != tuple(size):
            raise ValueError(
                f"{image['file_name']}: its label map has {tuple(truth.shape)} pixels, the image "
                f"{tuple(size)}; check the data set's height and width"
            )
        present = set(truth.unique().tolist())
        asked = [self._asked(s, w, present) for s, w in zip(self.settings, self.words, strict=True)]
        base = self._base_labels(image, encoded, [words for words, _ in asked])
        record = {}
        for setting, (words, ids), labels in zip(self.settings, asked, base, strict=True):
            result: dict[str, Any] = {}
            if words is not None:
                (result,) = self.model.segment(encoded, words, output="label_map")
            purified = result.get("label_map", torch.zeros_like(labels))
            record[setting.name] = {
                "base": self._cells(image, labels, truth, ids),
                "freecp": self._cells(image, purified, truth, ids),
                "left": [
                    int(result[stage][len(result[stage]) - setting.distractors :].sum())
                    for stage in ("kept_redundancy", "kept")
                    if setting.distractors
                ],
            }
        return record

    def _asked(
        self, setting: Setting, words: Words, present: set[int]
    ) -> tuple[Words | None, list[int]]:
        """The words for an image, None where there are none, and the id of each channel."""
        if setting.kind != "oracle":
            return words, self.ids + [self.num_classes] * setting.distractors
        first = words.first_class
        classes = [c for c, id_ in enumerate(self.ids[first:]) if id_ in present]
        if not classes:
            return None, self.ids[:1]
        chosen = of_classes(words, classes).vocabulary
        ids = [*self.ids[:first], *(self.ids[first + c] for c in classes)]
        return _encode(self.model, chosen, self._descriptions), ids

    def _cells(
        self, image: Mapping[str, Any], labels: Tensor, truth: Tensor, ids: Sequence[int]
    ) -> list[list[int]]:
        predicted = torch.tensor(ids, device=labels.device)[labels]
        try:
            table = confusion_matrix(predicted, truth, self.num_classes + 1, self.ignore_label)
            if table[:, self.num_classes].any():
                raise NoClass(self.num_classes)
        except NoClass as error:
            raise ValueError(f"{image['file_name']}: {error}; correct the label map") from None
        table = table[np.ix_([*self.ids, self.num_classes], self.ids)]
        rows, columns = table.nonzero()
        return [rows.tolist(), columns.tolist(), table[rows, columns].tolist()]

    def _base_labels(
        self, image: dict[str, Any], encoded: EncodedImages, asked: Sequence[Words | None]
    ) -> list[Tensor]:
        """The label map (H, W) of each, of zeros where there are no words."""
        model = self.model
        if not self._has_features_of_base(encoded):
            encoded = model.encode([image], base=True)
        (size,) = encoded.output_sizes
        reread = any(batch.reread is not None for batch in encoded.batches)
        if reread or model.extensions.decorrelation:  # a similarity that depends on all words
            similarity = None
        else:
            once = model.protocol.resamples_once(model.window, model.stride)
            with bf16_matmul(False, model.device):
                (similarity,) = base_similarities(encoded, self._union, once, model.timer)
        labels = []
        for setting, words in zip(self.settings, asked, strict=True):
            if words is None:
                labels.append(torch.zeros(size, dtype=torch.int64, device=model.device))
            elif similarity is None:
                (result,) = model.segment_base(encoded, words, "label_map")
                labels.append(result["label_map"])
            else:
                labels.append(self._labels(encoded, similarity, words, setting.distractors))
        return labels

    def _labels(
        self, encoded: EncodedImages, similarity: Tensor, words: Words, distractors: int
    ) -> Tensor:
        """Of a base method, by the similarities (queries of all settings, h, w)."""
        rows = [self._position[name] for name in words.vocabulary.queries]
        maps = similarity[rows]
        if distractors and _takes_the_nearest(self.model, words):
            # The best distractor stands for all of them: softmax keeps the order.
            first = len(rows) - distractors
            maps = torch.cat([maps[:first], maps[first:].amax(dim=0, keepdim=True)])
            classes = len(words.vocabulary.classes) - distractors
            words = of_classes(words, range(classes + 1))
        (result,) = base_results(encoded, [maps], words, self.model.protocol, "label_map")
        return result["label_map"]

    def _has_features_of_base(self, encoded: EncodedImages) -> bool:
        """Whether a base method alone sees the same in the windows of an image."""
        pads = self.model.protocol.partial_patches == "pad"
        patch = self.model.encoder.patch_size
        return self.model.extensions.views is None and all(
            batch.features is not None
            and batch.features.reread is None
            and not (pads and any(patch_padding(batch.windows[0].size, patch)))
            for batch in encoded.batches
        )


def _takes_the_nearest(model: FreeCP, words: Words) -> bool:
    """Whether a base method's label is the class of the highest similarity, and no more."""
    protocol = model.protocol
    thresholded = words.num_background or protocol.threshold_without_background
    return not (thresholded or protocol.area_threshold is not None or protocol.refinement.enabled)


def _encode(
    model: FreeCP, vocabulary: Vocabulary, descriptions: Mapping[str, Sequence[str]]
) -> Words:
    sentences = _templates(vocabulary)
    for name in sentences:
        sentences[name] = describe(descriptions, name) or sentences[name]
    return model.encode_words(vocabulary, sentences)


def _templates(vocabulary: Vocabulary) -> dict[str, Sequence[str]]:
    """Every name's own: what a name without sentences is described by, without a warning of it."""
    names = vocabulary.queries
    return dict(zip(names, template_sentences(names), strict=True))
