"""FreeCP's cost beside the bare CLIP forward and a plain transcription of METHOD.md.

    python tests/benchmarks/bench.py             # minutes, 13 GB; what `make bench` runs
    python tests/benchmarks/bench.py --quick     # small sizes, to see that it runs

Writes bench.json to --output after every part and bench.png in the end, and prints the tables as
Markdown. It measures a CPU; a GPU is measured by gpu_report.py. What is compared runs in turn,
round after round in one process; a ratio is taken in every round, and its median and quartiles are
reported. Crops of the ambiguity stage are encoded, counted and timed, but taken out of all times
that do not say "with crops". What the encoders are: encoders.py. What is measured: inputs.py,
whole_image.py, evaluator.py, measure.py and, for the operators, which have a command of their own,
ops.py.
"""

import argparse
import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from encoders import CPU, ROOT, SceneEncoder, class_names
from evaluator import measure_evaluator
from inputs import DIMENSION, QUICK, Inputs, Sizes, image_windows, machine
from measure import measure_head, measure_memory
from ops import measure_operators
from report import draw, figure_table, figures, markdown, write
from whole_image import measure_image


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "output/bench", metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--rounds", type=int, help="how often everything is timed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="these anew; others stay")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    if args.rounds:
        sizes = replace(sizes, rounds=args.rounds)
    file = args.output / "bench.json"
    report = json.loads(file.read_text()) if args.parts and file.exists() else {}
    threads = torch.get_num_threads() if args.quick else len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    report |= {"quick": args.quick, "rounds": sizes.rounds, "machine": machine(CPU)}
    for name in args.parts or PARTS:
        # One leaves gigabytes of compiled programs behind.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            report[name] = process.submit(measured, name, sizes, args.quick, threads).result()
        report["figures"] = figures(report, sizes)
        write(report, file)
        print(markdown(report, name), flush=True)
    print(figure_table(report))
    if PARTS.keys() <= report.keys():
        draw(report, args.output / "bench.png")


def measured(name: str, sizes: Sizes, quick: bool, threads: int) -> dict | list:
    """A part, in a process of its own."""
    logging.disable(logging.WARNING)  # random weights and missing descriptions are meant here
    torch.set_num_threads(threads)
    return PARTS[name](sizes, quick)


@torch.no_grad()
def operators(sizes: Sizes, quick: bool) -> dict:
    """Each operator on the windows of the image."""
    classes = sizes.classes[2]
    inputs = Inputs(SceneEncoder(DIMENSION), image_windows(sizes), class_names(classes))
    return measure_operators(inputs, classes, sizes, quick)


PARTS = {
    "image": measure_image,
    "evaluator": measure_evaluator,
    "head": measure_head,
    "operators": operators,
    "memory": measure_memory,
}


if __name__ == "__main__":
    main()
