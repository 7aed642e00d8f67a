"""Do the scores of `freecp rank` know in which images the labels are wrong?

    python projects/ActiveLearning/correlations.py --config-file scenes/clearclip \
        --output output/correlations

Spearman's correlation, over the images of the first data set of DATASETS.TEST, of each score with
the share of wrong pixels, FreeCP's and the base method's; with its standard deviation over images
drawn with replacement. <data set>.json in --output has these and every image's figures.
"""

import argparse
import json
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from scipy.stats import spearmanr
from tabulate import tabulate

from freecp_d2 import FreeCP, load_config
from freecp_d2.cli.options import add_config_option, add_opts_option
from freecp_d2.cli.register import add_register_option, register_files
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.errors import add_debug_option, one_sentence, path_argument
from freecp_d2.evaluation import load_label_map
from freecp_d2.files import write_whole
from freecp_d2.progress import progress
from freecp_d2.ranking import SCORES, disagreement, template_halves
from freecp_d2.words import Words

METHODS = ("FreeCP", "base method")
RESAMPLED = 200
"""How often images are drawn with replacement."""


def wrong_share(labels: np.ndarray, truth: np.ndarray, ignore: int | None) -> float:
    """The share of pixels whose label is another, of those that count; nan where none does."""
    counts = np.ones(truth.shape, bool) if ignore is None else truth != ignore
    return float((labels != truth)[counts].mean()) if counts.any() else float("nan")


@torch.no_grad()
def looked_at(
    model: FreeCP, x: dict, halves: tuple[Words, Words], truth: np.ndarray, ignore: int | None
) -> dict[str, float]:
    """The scores of an image, and under METHODS the share of its pixels that each labels wrong."""
    assert model.words is not None
    encoded = model.encode([x])
    maps = (
        model.segment(encoded, model.words, output="label_map"),
        model.segment_base(model.encode([x], base=True), model.words, output="label_map"),
    )
    shares = [wrong_share(found[0]["label_map"].cpu().numpy(), truth, ignore) for found in maps]
    return disagreement(model, encoded, halves).scores | dict(zip(METHODS, shares, strict=True))


def correlations(
    images: Sequence[Mapping[str, float]], seed: int = 0
) -> dict[str, dict[str, tuple[float, float]]]:
    """score -> method -> Spearman's correlation, and its standard deviation over bootstraps."""
    draws = np.random.default_rng(seed).integers(0, len(images), (RESAMPLED, len(images)))
    column = {key: np.array([image[key] for image in images]) for key in (*SCORES, *METHODS)}

    def spearman(score: str, method: str, chosen: np.ndarray) -> float:
        a, b = column[score][chosen], column[method][chosen]
        known = ~np.isnan(b)
        return float(spearmanr(a[known], b[known]).statistic)

    everything = np.arange(len(images))
    return {
        score: {
            method: (
                spearman(score, method, everything),
                float(np.nanstd([spearman(score, method, draw) for draw in draws])),
            )
            for method in METHODS
        }
        for score in SCORES
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_option(parser)
    parser.add_argument("--output", type=path_argument, required=True, metavar="FOLDER")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th image")
    add_register_option(parser)
    add_debug_option(parser)
    add_opts_option(parser)
    args = parser.parse_args(argv)
    with one_sentence("correlations.py", args.debug):
        register_files(args.register)
        cfg = load_config(args.config_file, args.opts)
        name = cfg.DATASETS.TEST[0]
        ignore = MetadataCatalog.get(name).get("ignore_label")
        model, mapper = build_model(cfg).eval(), InferenceMapper(cfg)
        records = DatasetCatalog.get(name)[:: args.every]
        halves = template_halves(model, model.words)
        images = [
            looked_at(
                model, mapper(dict(x)), halves, load_label_map(x["sem_seg_file_name"]), ignore
            )
            for x in progress(records, total=len(records), desc=name, unit="image")
        ]
        table = correlations(images)
        content = {"correlations": table, "images": images}
        write_whole(args.output / f"{name}.json", json.dumps(content, indent=1).encode())
    rows = [
        [score, *("{:.2f} ± {:.2f}".format(*by_method[method]) for method in METHODS)]
        for score, by_method in table.items()
    ]
    print(tabulate(rows, [f"{name}, {len(images)} images", *METHODS], tablefmt="github"))


if __name__ == "__main__":
    main()
