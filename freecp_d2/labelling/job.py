"""What a run of labelling is, whoever runs it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode

from ..config import configured_descriptions
from ..data import Vocabulary
from ..meta_arch import FreeCP
from ..segmenter import Request, Segmenter
from ..words import Words
from .core import Labeller, Outputs
from .settings import hash_of_settings, settings_of
from .store import Store

Source = str | os.PathLike | Sequence[Mapping[str, Any]]
"""See :func:`.items.read_items`."""


@dataclass(frozen=True)
class Job:
    """A run. It can be pickled.

    Attributes:
        cfg: of the model.
        source: the images.
        output: the folder of the labels.
        vocabulary: the classes; MODEL.FREECP.BACKGROUND may give it a background.
        outputs: what is written of each image.
        tars: see :func:`.merge.merge`.
    """

    cfg: CfgNode
    source: Source
    output: str
    vocabulary: Vocabulary
    outputs: Outputs = field(default_factory=Outputs)
    tars: int = 0


def encode(job: Job, model: FreeCP) -> tuple[Words, dict[str, Any]]:
    """The words of a run, on the CPU, and its settings: once a run, by one of its workers."""
    vocabulary = model.with_background(job.vocabulary)
    words = model.encode_words(vocabulary, configured_descriptions(job.cfg))
    settings = settings_of(job.cfg, model, vocabulary, job.outputs)
    return words.to(torch.device("cpu")), settings


def build_labeller(
    job: Job, model: FreeCP, words: Words, settings: Mapping[str, Any], store: Store
) -> Labeller:
    """What labels the images of a run, by a model in memory."""
    segmenter = Segmenter(model, job.cfg)
    purifies = job.cfg.MODEL.FREECP.ENABLED
    request = Request(purifies, words.to(model.device), (None, None), "label_map")
    return Labeller(
        lambda pixels, file_name: segmenter.segment_pixels(pixels, file_name, request),
        store,
        hash_of_settings(settings),
        job.outputs,
        segmenter.mapper.exif_orientation,
    )
