"""Evaluate base methods without and with FreeCP on the embedded benchmark; table and pictures.

    python projects/SceneCLIP/demo.py --output output/demo

Runs `train_net.py --eval-only` for every method, and draws what those evaluations wrote.
--register and --dataset take other scenes of the same classes.
"""

import argparse
import json
import runpy
import shlex
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pycocotools.mask
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.visualizer import Visualizer
from tabulate import tabulate

import freecp_d2.data.scenes  # noqa: F401  registers scenes_val
from freecp_d2.data.mapper import read_image
from freecp_d2.evaluation import load_label_map
from freecp_d2.evaluation.results import load_results

ROOT = Path(__file__).resolve().parents[2]
DATASET = "scenes_val"
METHODS = ("maskclip", "sclip", "clearclip")
PICTURED = "clearclip"
PICTURES = 8
"""How many scenes are pictured, at equal distances."""


def evaluate(
    method: str, enabled: bool, output: Path, dataset: str, register: str | None = None
) -> Path:
    """Run train_net.py, its log on screen, and return the folder of its results."""
    folder = output / (method if enabled else f"{method}_base")
    command = [sys.executable, "train_net.py", "--eval-only"]
    command += ["--config-file", f"configs/scenes/{method}.yaml", "--coco-predictions"]
    if enabled:
        command += ["--compare-with", str(output / f"{method}_base" / "results.json")]
    if register:
        command += ["--register", register]
    command += ["MODEL.FREECP.ENABLED", str(enabled), "OUTPUT_DIR", str(folder)]
    command += ["DATASETS.TEST", str((dataset,))]
    print("$", shlex.join(command), flush=True)
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(f"demo.py: the evaluation of {method} failed with exit code {code}, see above")
    return folder


def load_predictions(results: Path) -> dict[str, np.ndarray]:
    """Image file -> predicted label map (H, W)."""
    maps: dict[str, np.ndarray] = {}
    for segment in json.loads((results / "sem_seg_predictions.json").read_text()):
        mask = pycocotools.mask.decode(segment["segmentation"])
        labels = maps.setdefault(segment["file_name"], np.zeros(mask.shape, dtype=int))
        labels[mask > 0] = segment["category_id"]
    return maps


def draw_table(scores: dict[str, tuple[float, float]]) -> str:
    """Markdown of method -> (mIoU alone, mIoU with FreeCP)."""
    rows = [(name, base, ours, ours - base) for name, (base, ours) in scores.items()]
    return tabulate(
        rows,
        headers=("base method", "alone", "+ FreeCP", "gain"),
        tablefmt="github",
        floatfmt=("", ".1f", ".1f", "+.1f"),
    )


def save_bars(scores: dict[str, tuple[float, float]], dataset: str, path: Path) -> None:
    """The table as a bar chart."""
    figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
    x = np.arange(len(scores))
    for shift, label, values in zip(
        (-0.2, 0.2), ("alone", "+ FreeCP"), zip(*scores.values(), strict=True), strict=True
    ):
        axes.bar_label(axes.bar(x + shift, values, 0.4, label=label), fmt="%.1f")
    axes.set_xticks(x, list(scores))
    axes.set_ylabel(f"mIoU on {dataset}, %")
    axes.margins(y=0.25)
    axes.legend(loc="upper center", ncols=2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def save_picture(rows: list[dict[str, np.ndarray]], path: Path) -> None:
    """One row a scene: title -> (H, W, 3) image."""
    shape = len(rows), len(rows[0])
    size = 3.2 * shape[1], 2.5 * shape[0] + 0.3
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for line, row in zip(axes, rows, strict=True):
        for axis, image in zip(line, row.values(), strict=True):
            axis.imshow(image)
    for axis, title in zip(axes[0], rows[0], strict=True):
        axis.set_title(title)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_pictures(results: dict[bool, Path], dataset: str, output: Path) -> None:
    """scene_*.png of a few scenes, and overview.png of all of these.

    Args:
        results: folders of the evaluations without and with FreeCP.
    """
    metadata = MetadataCatalog.get(dataset)
    base, ours = load_predictions(results[False]), load_predictions(results[True])
    records = DatasetCatalog.get(dataset)
    step = max(len(records) // PICTURES, 1)
    rows = []
    for record in records[step // 2 :: step][:PICTURES]:
        file = record["file_name"]
        image = read_image(file)
        labels = {
            PICTURED: base[file],
            f"{PICTURED} + FreeCP": ours[file],
            "ground truth": load_label_map(record["sem_seg_file_name"]),
        }
        row = {"image": image}
        for title, sem_seg in labels.items():
            visualizer = Visualizer(image, metadata, scale=2)
            row[title] = visualizer.draw_sem_seg(sem_seg, area_threshold=100).get_image()
        save_picture([row], output / f"scene_{record['image_id']:06d}.png")
        rows.append(row)
    save_picture(rows, output / "overview.png")


def main(argv: list[str] | None = None) -> None:
    """Evaluate, print the table, write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo", metavar="FOLDER")
    parser.add_argument(
        "--register", metavar="FILE.py", help="run this file first; it registers --dataset"
    )
    parser.add_argument("--dataset", default=DATASET, metavar="NAME", help="%(default)s by default")
    args = parser.parse_args(argv)
    output, dataset = args.output.resolve(), args.dataset
    if args.register:
        runpy.run_path(args.register)
    start = time.perf_counter()

    results = {
        method: {
            enabled: evaluate(method, enabled, output, dataset, args.register)
            for enabled in (False, True)
        }
        for method in METHODS
    }
    scores = {
        method: tuple(
            load_results(folders[enabled] / "results.json")["metrics"]["mIoU"]
            for enabled in (False, True)
        )
        for method, folders in results.items()
    }
    table = draw_table(scores)
    (output / "comparison.md").write_text(f"mIoU on {dataset}, percent\n\n{table}\n")
    save_bars(scores, dataset, output / "comparison.png")
    save_pictures(results[PICTURED], dataset, output)

    count = len(DatasetCatalog.get(dataset))
    print(f"\nmIoU on {dataset} ({count} synthetic scenes), percent\n\n{table}\n")
    print(f"Table:    {output / 'comparison.md'}, comparison.png")
    print(f"Pictures: {output / 'overview.png'}, scene_*.png")
    print(f"Results:  {output}/*/results.json, report.html")
    print(f"Time:     {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
