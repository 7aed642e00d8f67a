"""Make the label maps that evaluation reads from the official downloads, or --verify them."""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from ..benchmarks.layout import BENCHMARKS, Benchmark
from . import prepare, verify


def main(argv: Sequence[str] | None = None, prog: str = "python -m freecp_d2.data.prepare") -> int:
    """Prepare or verify benchmarks one after the other; 1 when any has a fault."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument("benchmark", nargs="+", choices=list(BENCHMARKS))
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        type=os.path.expanduser,
        help="folder of the data sets; DETECTRON2_DATASETS, or else ./datasets",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes at most; they are started where they save time",
    )
    parser.add_argument(
        "--verify", action="store_true", help="write nothing; report counts, sizes and ids"
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="the folder holds a part of the set on purpose: a low count is no fault",
    )
    args = parser.parse_args(argv)
    if not os.path.isdir(args.root):
        parser.error(f"{args.root}: no such folder; set --root or DETECTRON2_DATASETS")
    faults = [_report(BENCHMARKS[name], args) for name in dict.fromkeys(args.benchmark)]
    return int(any(faults))


def _report(benchmark: Benchmark, args: argparse.Namespace) -> bool:
    """Do one benchmark, print what came of it, and say whether there was a fault."""
    try:
        if args.verify:
            seen = verify(benchmark, args.root, args.workers, args.partial)
            summary = f"{seen.images} images, {seen.masks} label maps"
            faults, notes = seen.faults, seen.notes
        else:
            done = prepare(benchmark, args.root, args.workers, args.partial)
            summary = (
                f"{done.images} images; label maps: {done.written} written, {done.skipped} there "
                f"already, in {done.folder}"
            )
            faults, notes = done.faults, done.notes
    except BrokenProcessPool:
        summary, notes = "stopped", []
        faults = ["a process was killed (out of memory?); run again, perhaps with fewer --workers"]
    except (OSError, ValueError) as error:
        summary, faults, notes = "nothing done", [str(error)], []
    print(f"{benchmark.name}: {summary}")
    for note in notes:
        print(f"  note: {note}")
    for fault in faults:
        print(f"  fault: {fault}", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
