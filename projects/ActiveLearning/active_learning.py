"""Does a ranking find the images that are worth annotating?

    python projects/ActiveLearning/active_learning.py --output output/active_learning

A small segmentor of Detectron2 is trained on the first N scenes of a pool by each strategy, and
tested on `scenes_val`. Each seed has a pool of its own, and an initialisation. results.json is
written after every run: the same command goes on after the last one.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freecp import openmp_settings

os.environ.update(openmp_settings())
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "PseudoLabels"))

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.engine import SimpleTrainer, hooks
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.env import seed_all_rng
from matplotlib.figure import Figure
from pseudo_labels import PseudoLabelMapper, load_student_config
from tabulate import tabulate
from torch import nn

from freecp_d2 import load_config
from freecp_d2.data.scenes import CLASSES, catalog
from freecp_d2.errors import add_debug_option, one_sentence, path_argument
from freecp_d2.evaluation import load_label_map
from freecp_d2.evaluation.metrics import class_ious, confusion_matrix, mean
from freecp_d2.files import whole_file, write_whole
from freecp_d2.progress import progress
from freecp_d2.ranking import disagreement, greedy_order, template_halves
from freecp_d2.segmenter import Segmenter
from freecp_d2.segmenter import build_model as build_freecp

CONFIG = Path(__file__).with_name("student.yaml")
FIRST_SEED = 3_000_000
"""Of the first pool: beyond what SceneCLIP and the scenes of projects/PseudoLabels are drawn of."""
STRATEGIES = ("discrepancy", "random", "entropy", "classes", "cover")
"""By the scores "largest", by chance, by the scores "entropy" and "classes", and by "largest" with
`greedy_order`; see freecp_d2/ranking.py."""


def rank_pool(records: Sequence[dict[str, Any]], config: str) -> list[dict[str, Any]]:
    """`scores` and `channels` of :func:`freecp_d2.ranking.disagreement` of every image."""
    cfg = load_config(config)
    segmenter = Segmenter(build_freecp(cfg), cfg)
    halves = template_halves(segmenter.model, segmenter.words_of(None, False))
    ranked = []
    for record in progress(records, total=len(records), desc="ranking", unit="image"):
        _, _, windows = segmenter.encode([record["file_name"]], False)
        found = disagreement(segmenter.model, windows, halves)
        ranked.append({"scores": found.scores, "channels": found.channels})
    return ranked


def order_of(strategy: str, ranked: Sequence[dict[str, Any]], seed: int) -> list[int]:
    """Positions of a pool's images, the most wanted first.

    Args:
        strategy: one of STRATEGIES.
        ranked: of :func:`rank_pool`.
        seed: of "random".
    """
    if strategy == "random":
        return np.random.default_rng(seed).permutation(len(ranked)).tolist()
    score = {"entropy": "entropy", "classes": "classes"}.get(strategy, "largest")
    scores = [image["scores"][score] for image in ranked]
    if strategy == "cover":
        return greedy_order(scores, [image["channels"] for image in ranked])
    return np.argsort(-np.array(scores), kind="stable").tolist()


def train(cfg: CfgNode, records: Sequence[dict[str, Any]], seed: int) -> nn.Module:
    """The segmentor of a config, trained on images with their own label maps."""
    seed_all_rng(seed)
    model = build_model(cfg)
    loader = build_detection_train_loader(
        list(records),
        mapper=PseudoLabelMapper(cfg, True),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    optimizer = build_optimizer(cfg, model)
    trainer = SimpleTrainer(model.train(), loader, optimizer)
    scheduler = build_lr_scheduler(cfg, optimizer)
    trainer.register_hooks([hooks.LRScheduler(optimizer, scheduler)])
    trainer.train(0, cfg.SOLVER.MAX_ITER)
    return model.eval()


@torch.inference_mode()
def evaluate(cfg: CfgNode, model: nn.Module, records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """`mIoU` and `pixel_accuracy`, percent, over all classes that are there or predicted."""
    mapper = PseudoLabelMapper(cfg, False)
    confusion = np.zeros((len(CLASSES), len(CLASSES)), dtype=np.int64)
    for record in records:
        (result,) = model([mapper(record)])
        truth = load_label_map(record["sem_seg_file_name"])
        confusion += confusion_matrix(result["sem_seg"].argmax(dim=0), truth, len(CLASSES), 255)
    right = confusion.trace() / confusion.sum()
    return {"mIoU": 100 * mean(class_ious(confusion)), "pixel_accuracy": 100 * float(right)}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Do all runs that results.json lacks; its content.

    Raises:
        ValueError: --output holds results of other settings, or N is beyond the pool.
    """
    if max(args.counts) > args.pool:
        raise ValueError(f"--counts {max(args.counts)} is more than the {args.pool} of --pool")
    cfg = load_student_config(CONFIG, args.opts)
    settings = {
        "student": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "config": args.config,
        "pool": args.pool,
        "val": args.val,
    }
    path = args.output / "results.json"
    results = json.loads(path.read_text()) if path.is_file() else {"settings": settings, "runs": {}}
    if changed := [key for key in settings if results["settings"].get(key) != settings[key]]:
        raise ValueError(
            f"{args.output} holds results of other settings ({', '.join(changed)}); choose another "
            "--output, or remove the folder"
        )
    test = DatasetCatalog.get("scenes_val")[: args.val]
    wanted = [(k, n, s) for k in range(args.seeds) for n in args.counts for s in args.strategies]
    for seed, count, strategy in wanted:
        name = f"{strategy}/{count}/{seed}"
        if name in results["runs"]:
            continue
        pool = pool_of(args.output, seed, args.pool)
        ranked = ranked_pool(args.output / f"pool_{seed}.json", pool, args.config)
        chosen = [pool[i] for i in order_of(strategy, ranked, seed)[:count]]
        start = time.monotonic()
        model = train(cfg, chosen, seed)
        figures = evaluate(cfg, model, test)
        seconds = round(time.monotonic() - start, 1)
        results["runs"][name] = {
            **figures,
            "classes": len(np.unique([load_label_map(x["sem_seg_file_name"]) for x in chosen])),
            "seconds": seconds,
        }
        write_whole(path, json.dumps(results, indent=1).encode())
        print(f"{name}: mIoU {figures['mIoU']:.2f}, {seconds} s", flush=True)
    return results


def pool_of(output: Path, seed: int, size: int) -> list[dict[str, Any]]:
    """Detectron2's dicts of a seed's pool, which is drawn under `output` if it is not there."""
    first = FIRST_SEED + 10_000 * seed
    return catalog.load_scenes(output / f"pool_{seed}_{size}", range(first, first + size))


def ranked_pool(path: Path, pool: Sequence[dict[str, Any]], config: str) -> list[dict[str, Any]]:
    """:func:`rank_pool`, kept in a file."""
    if not path.is_file():
        write_whole(path, json.dumps(rank_pool(pool, config)).encode())
    return json.loads(path.read_text())


def summary(results: dict[str, Any], figure: str = "mIoU") -> dict[str, dict[int, list[float]]]:
    """strategy -> N -> a figure of each seed."""
    table: dict[str, dict[int, list[float]]] = {}
    for name, values in results["runs"].items():
        strategy, count, _ = name.split("/")
        table.setdefault(strategy, {}).setdefault(int(count), []).append(values[figure])
    return table


def draw(table: dict[str, dict[int, list[float]]], path: Path) -> None:
    """Curves of means over seeds; a bar spans one standard deviation to each side."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for strategy, by_count in table.items():
        counts = sorted(by_count)
        means = [np.mean(by_count[n]) for n in counts]
        spread = [np.std(by_count[n]) for n in counts]
        axes.errorbar(counts, means, spread, marker="o", capsize=4, label=strategy)
    axes.set(xlabel="images annotated", ylabel="mIoU on scenes_val, percent")
    axes.legend()
    with whole_file(path) as part:
        figure.savefig(part, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=path_argument, required=True, metavar="FOLDER")
    add("--config", default="scenes/clearclip", help="of FreeCP, which ranks")
    add("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES[:3])
    add("--counts", nargs="+", type=int, default=[20, 40, 80], help="images to train on")
    add("--seeds", type=int, default=3)
    add("--pool", type=int, default=200, help="scenes to choose from")
    add("--val", type=int, default=200, help="images of scenes_val to test on")
    add_debug_option(parser)
    add("--opts", nargs=argparse.REMAINDER, default=[], help="last: KEY VALUE of the student")
    args = parser.parse_args(argv)
    with one_sentence("active_learning.py", args.debug):
        table = summary(run(args))
        draw(table, args.output / "curves.png")
    counts = sorted({n for by_count in table.values() for n in by_count})
    rows = [
        [strategy, *(f"{np.mean(v[n]):.2f} ± {np.std(v[n]):.2f}" if n in v else "" for n in counts)]
        for strategy, v in table.items()
    ]
    print(tabulate(rows, ["mIoU", *(f"{n} images" for n in counts)], tablefmt="github"))


if __name__ == "__main__":
    main()
