"""FreeCP's cost beside the bare CLIP forward and a plain transcription of METHOD.md.

    python tests/benchmarks/bench.py             # minutes; what `make bench` runs
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
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from encoders import CPU, ROOT, SceneEncoder, class_names
from evaluator import measure_evaluator
from inputs import DIMENSION, QUICK, Inputs, Sizes, image_windows, machine
from measure import measure_head, measure_memory
from ops import measure_operators
from report import draw, figures, markdown, write
from whole_image import measure_image


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "output/bench", metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--rounds", type=int, help="how often everything is timed")
    args = parser.parse_args()
    sizes = QUICK if args.quick else Sizes()
    if args.rounds:
        sizes = replace(sizes, rounds=args.rounds)
    logging.disable(logging.WARNING)  # random weights and missing descriptions are meant here
    if not args.quick:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    parts = {
        "image": lambda: measure_image(sizes, args.quick),
        "evaluator": lambda: measure_evaluator(sizes),
        "head": lambda: measure_head(sizes, args.quick),
        "operators": lambda: operators(sizes, args.quick),
        "memory": lambda: measure_memory(sizes),
    }
    report: dict = {"quick": args.quick, "rounds": sizes.rounds, "machine": machine(CPU)}
    for name, part in parts.items():
        report[name] = part()
        report["figures"] = figures(report, sizes)
        write(report, args.output / "bench.json")
        print(markdown(report, name), flush=True)
    draw(report, args.output / "bench.png")


@torch.no_grad()
def operators(sizes: Sizes, quick: bool) -> dict:
    """Each operator on the windows of the image."""
    classes = sizes.classes[2]
    inputs = Inputs(SceneEncoder(DIMENSION), image_windows(sizes), class_names(classes))
    return measure_operators(inputs, classes, sizes, quick)


if __name__ == "__main__":
    main()
