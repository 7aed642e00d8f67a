"""What each adapter does to a data set and to its corruptions, by the order of the images.

    python projects/Adapters/measure.py --config-file scenes/clearclip --output output/adapters
    CAMVID_ROOT=FOLDER python projects/Adapters/measure.py --register projects/CamVid/camvid.py \
        --config-file projects/CamVid/configs/clearclip.yaml --output output/adapters KEY VALUE ...

Every image is encoded once for all settings. It writes <data set>.json: condition -> setting -> the
mIoU of each order of the images.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

import freecp_d2.purify
from freecp_d2 import FreeCP
from freecp_d2.adapters import ADAPTERS, BaFTA, ClipOT, Views
from freecp_d2.cli.register import add_register_option, register_files
from freecp_d2.config import load_config
from freecp_d2.data.corruptions import CORRUPTIONS
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.evaluation.metrics import class_ious, confusion_matrix, mean
from freecp_d2.extensions import NO_EXTENSIONS, Extensions

SEEDS = 0, 1, 2


def read(record: dict, mapper: InferenceMapper, condition: str) -> dict:
    """An image as the model takes it, corrupted after its resize."""
    x = mapper(record)
    if condition != "clean":
        image = x["image"].permute(1, 2, 0).numpy()
        damaged = CORRUPTIONS[condition](image.astype(np.uint8), seed=len(record["file_name"]))
        x["image"] = torch.from_numpy(damaged).permute(2, 0, 1)
    return x


def miou(label_maps: list, truths: list, classes: int, ignore: int | None) -> float:
    """Of the whole data set, in percent."""
    pairs = zip(label_maps, truths, strict=True)
    total = sum(confusion_matrix(labels, truth, classes, ignore) for labels, truth in pairs)
    return 100 * mean(class_ious(total))


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--conditions", nargs="*", default=["clean", *CORRUPTIONS])
    parser.add_argument("--step", type=int, default=1, help="every so many images")
    parser.add_argument("--variants", nargs="*", help="of those below; all by default")
    parser.add_argument("opts", nargs="*")
    add_register_option(parser)
    args = parser.parse_args()
    register_files(args.register)
    cfg = load_config(args.config_file, [*args.opts, "MODEL.FREECP.OUTPUT", "label_map"])
    (name,) = cfg.DATASETS.TEST
    records = DatasetCatalog.get(name)[:: args.step]
    ignore = MetadataCatalog.get(name).get("ignore_label")
    truths = [np.array(Image.open(record["sem_seg_file_name"])) for record in records]
    model: FreeCP = build_model(cfg)
    mapper = InferenceMapper(cfg)
    words = model.words
    assert words is not None
    count = words.num_channels
    templates = ADAPTERS.get("clip_ot")(cfg, words.vocabulary.queries, model.text_encoder).templates
    two_sets = Views(template_sets=2).texts(words.vocabulary.queries, model.text_encoder)
    streams = {
        "clip_ot": lambda: ClipOT(templates),
        "clip_ot, kappa 0": lambda: ClipOT(templates, kappa=0.0),
        "clip_ot, kappa 1": lambda: ClipOT(templates, kappa=1.0),
        "clip_ot, eta 0.05": lambda: ClipOT(templates, eta=0.05),
        "bafta": lambda: BaFTA(least=cfg.MODEL.FREECP.BAFTA.CERTAINTY),
        "bafta, all regions": lambda: BaFTA(),
        "bafta, prior 10": lambda: BaFTA(10.0),
        "bafta, prior 10, not centred": lambda: BaFTA(10.0, centre=False),
    }
    one = words.text[None]
    still = {  # views of an image, texts, weighted
        "entropy_weights": (Views(), one, True),
        "plain mean of the same views": (Views(), one, False),
        "windows alone": (Views(flip=False), one, True),
        "scales 0.75, 1.25": (Views(scales=(0.75, 1.25)), one, True),
        "plain mean of these scales": (Views(scales=(0.75, 1.25)), one, False),
        "two sets of templates": (Views(flip=False), two_sets, True),
    }
    chosen = args.variants or ["base", "freecp", *streams, *still]
    results: dict[str, dict[str, list[float]]] = {}
    for condition in args.conditions:
        figures = results[condition] = {}
        inputs = [read(record, mapper, condition) for record in records]
        encoded = [model.encode([x]) for x in inputs]
        for variant in chosen:
            start = time.monotonic()
            if variant == "base":
                outs = [model.segment_base(model.encode([x], base=True), words) for x in inputs]
            elif variant == "freecp":
                outs = [model.segment(windows, words) for windows in encoded]
            elif variant in still:
                views, texts, weighted = still[variant]
                model.extensions = Extensions(views=views)
                seen = replace(words, text_views=texts)
                plain = mock.patch.object(
                    freecp_d2.purify, "certainty", lambda p, dim: torch.ones_like(p[:, 0])
                )
                with mock.patch.object(model, "output", "label_map"):
                    if not weighted:
                        plain.start()
                    outs = [model.segment(model.encode([x]), seen) for x in inputs]
                    mock.patch.stopall()
                model.extensions = NO_EXTENSIONS
            if variant in streams:
                figures[variant] = []
                for seed in SEEDS:
                    order = np.random.default_rng(seed).permutation(len(records))
                    learning = replace(words, adapter=streams[variant]())
                    maps = {i: model.segment(encoded[i], learning)[0]["label_map"] for i in order}
                    labels = [maps[i] for i in range(len(records))]
                    figures[variant].append(miou(labels, truths, count, ignore))
            else:
                labels = [out[0]["label_map"] for out in outs]
                figures[variant] = [miou(labels, truths, count, ignore)]
            seconds = time.monotonic() - start
            shown = " ".join(f"{figure:.2f}" for figure in figures[variant])
            print(f"{name} {condition:9} {variant:30} {shown}  ({seconds:.0f} s)", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{name}.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
