"""What each adapter does to data sets, by the order of the images.

    python projects/Adapters/measure.py --register projects/Corruptions/corruptions.py \
        --config-file scenes/clearclip --datasets scenes_val_noise --output output/adapters

Every image is encoded once for all settings. <data set>.json in --output is setting -> the mIoU of
each order of the images, in percent.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor

import freecp_d2.purify
from freecp_d2 import FreeCP, load_config
from freecp_d2.adapters import ADAPTERS, Adapter, BaFTA, ClipOT, Views
from freecp_d2.cli.options import add_config_option, add_opts_option
from freecp_d2.cli.register import add_register_option, register_files
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.errors import add_debug_option, one_sentence, path_argument
from freecp_d2.evaluation import load_label_map
from freecp_d2.evaluation.metrics import class_ious, confusion_matrix, mean
from freecp_d2.extensions import NO_EXTENSIONS, Extensions
from freecp_d2.files import write_whole
from freecp_d2.words import Words

SEEDS = 0, 1, 2
"""Of the orders of the images."""


def adapters(cfg: CfgNode, model: FreeCP) -> dict[str, Callable[[], Adapter]]:
    """Setting -> what builds an adapter with an empty state."""
    assert model.words is not None
    queries = model.words.vocabulary.queries
    templates = ADAPTERS.get("clip_ot")(cfg, queries, model.text_encoder).templates
    return {
        "clip_ot": lambda: ClipOT(templates),
        "clip_ot, kappa 0": lambda: ClipOT(templates, kappa=0.0),
        "clip_ot, kappa 1": lambda: ClipOT(templates, kappa=1.0),
        "clip_ot, eta 0.05": lambda: ClipOT(templates, eta=0.05),
        "bafta": lambda: BaFTA(least=cfg.MODEL.FREECP.BAFTA.CERTAINTY),
        "bafta, all regions": lambda: BaFTA(),
        "bafta, prior 10": lambda: BaFTA(10.0),
        "bafta, prior 10, not centred": lambda: BaFTA(10.0, centre=False),
        "bafta, prior 200": lambda: BaFTA(200.0, cfg.MODEL.FREECP.BAFTA.CERTAINTY),
    }


VIEWS = {
    "entropy_weights": (Views(), True),
    "plain mean of the same views": (Views(), False),
    "windows alone": (Views(flip=False), True),
    "scales 0.75, 1.25": (Views(scales=(0.75, 1.25)), True),
    "plain mean of these scales": (Views(scales=(0.75, 1.25)), False),
    "two sets of templates": (Views(flip=False, template_sets=2), True),
}
"""Setting -> views of an image, and whether certainty weighs them."""


class Images:
    """A data set, as a model sees it.

    Args:
        cfg: the model's; OUTPUT is "label_map".
        every: take each n-th image.
    """

    def __init__(self, cfg: CfgNode, model: FreeCP, name: str, every: int = 1):
        records = DatasetCatalog.get(name)[::every]
        mapper = InferenceMapper(cfg)
        self.model = model
        self.inputs = [mapper(dict(x)) for x in records]
        self.truths = [load_label_map(x["sem_seg_file_name"]) for x in records]
        self.ignore = MetadataCatalog.get(name).get("ignore_label")
        self.encoded = [model.encode([x]) for x in self.inputs]

    def miou(self, label_maps: Sequence[Tensor]) -> float:
        """Of the whole data set, in percent."""
        assert self.model.words is not None
        classes = self.model.words.num_channels
        pairs = zip(label_maps, self.truths, strict=True)
        total = sum(confusion_matrix(*pair, classes, self.ignore) for pair in pairs)
        return 100 * mean(class_ious(total))

    def base(self) -> float:
        """The base method alone."""
        encoded = [self.model.encode([x], base=True) for x in self.inputs]
        return self.miou([self._labels(self.model.segment_base, seen) for seen in encoded])

    def in_order(self, seed: int | None = None, adapter: Adapter | None = None) -> float:
        """FreeCP, with an adapter that looks at the images in the order of a seed."""
        assert self.model.words is not None
        words = replace(self.model.words, adapter=adapter)
        order = np.arange(len(self.inputs))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(order)
        maps = {i: self._labels(self.model.segment, self.encoded[i], words) for i in order}
        return self.miou([maps[i] for i in range(len(order))])

    def viewed(self, views: Views, weighted: bool) -> float:
        """FreeCP on several views of each image."""
        model = self.model
        assert model.words is not None
        words = replace(model.words, text_views=model.words.text[None])
        if views.template_sets > 1:
            texts = views.texts(words.vocabulary.queries, model.text_encoder)
            words = replace(words, text_views=texts)
        certainty = freecp_d2.purify.certainty if weighted else _even
        with (
            mock.patch.object(model, "extensions", Extensions(views=views)),
            mock.patch.object(freecp_d2.purify, "certainty", certainty),
        ):
            return self.miou(
                [self._labels(model.segment, model.encode([x]), words) for x in self.inputs]
            )

    def _labels(self, segment: Callable, encoded: object, words: Words | None = None) -> Tensor:
        (found,) = segment(encoded, words or self.model.words, output="label_map")
        return found["label_map"].cpu()


def _even(probabilities: Tensor, dim: int) -> Tensor:
    return torch.ones_like(probabilities[:, 0])


@torch.no_grad()
def measure(cfg: CfgNode, name: str, every: int, only: Sequence[str]) -> dict[str, list[float]]:
    """Setting -> the mIoU of each order of the images; of one where the order does not matter."""
    model: FreeCP = build_model(cfg).eval()
    model.extensions = NO_EXTENSIONS
    streams = {
        setting: lambda build=build: [images.in_order(seed, build()) for seed in SEEDS]
        for setting, build in adapters(cfg, model).items()
    }
    still = {setting: lambda seen=seen: [images.viewed(*seen)] for setting, seen in VIEWS.items()}
    settings = {"base": lambda: [images.base()], "freecp": lambda: [images.in_order()]}
    settings |= streams | still
    if unknown := [setting for setting in only if setting not in settings]:
        raise ValueError(f"--only {unknown[0]!r}: choose from {'; '.join(settings)}")
    images = Images(cfg, model, name, every)
    figures = {}
    for setting in only or settings:
        start = time.monotonic()
        figures[setting] = settings[setting]()
        shown = " ".join(f"{figure:.2f}" for figure in figures[setting])
        print(f"{name} {setting:30} {shown}  ({time.monotonic() - start:.0f} s)", flush=True)
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_option(parser)
    parser.add_argument("--output", type=path_argument, required=True, metavar="FOLDER")
    parser.add_argument("--datasets", nargs="+", metavar="NAME", help="by default the config's")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th image")
    parser.add_argument("--only", nargs="+", default=[], metavar="SETTING", help="some settings")
    add_register_option(parser)
    add_debug_option(parser)
    add_opts_option(parser)
    args = parser.parse_args(argv)
    with one_sentence("measure.py", args.debug):
        register_files(args.register)
        cfg = load_config(args.config_file, args.opts)
        for name in args.datasets or cfg.DATASETS.TEST:
            figures = measure(cfg, name, args.every, args.only)
            write_whole(args.output / f"{name}.json", json.dumps(figures, indent=1).encode())


if __name__ == "__main__":
    main()
