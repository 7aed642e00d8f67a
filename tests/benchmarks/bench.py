"""FreeCP's cost beside the bare CLIP forward and a plain transcription of METHOD.md.

    python tests/benchmarks/bench.py             # minutes; what `make bench` runs
    python tests/benchmarks/bench.py --quick     # small sizes, to see that it runs

Writes bench.json and bench.png to --output and prints the tables as Markdown. What is compared
runs in turn, round after round in one process; a ratio is taken in every round, and its median and
quartiles are reported. Crops of the ambiguity stage are encoded, counted and timed, but taken out
of all times that do not say "with crops". What the encoders are: encoders.py. What is measured:
inputs.py, measure.py and, for the operators, which have a command of their own, ops.py.
"""

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from encoders import ROOT
from inputs import QUICK, Sizes
from measure import measure, measure_memory
from report import figures, markdown, write


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
    report: dict = {"quick": args.quick, "rounds": sizes.rounds, "memory": measure_memory(sizes)}
    report["cpu"] = measure(sizes, args.quick, torch.device("cpu"))
    report["gpu"] = "not measured"
    if torch.cuda.is_available():
        report["gpu"] = measure(sizes, args.quick, torch.device("cuda", 0))
    report["figures"] = figures(report, sizes)
    write(report, args.output)
    print(markdown(report))


if __name__ == "__main__":
    main()
