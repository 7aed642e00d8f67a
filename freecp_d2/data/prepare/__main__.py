"""Make the label maps that evaluation reads from the official downloads, or --verify them."""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from ...errors import add_debug_option, one_sentence, sentence
from ...files import cannot_write
from ...stopping import Stop, stopping
from ..benchmarks.layout import BENCHMARKS, Benchmark
from . import prepare, verify


def main(argv: Sequence[str] | None = None, prog: str = "python -m freecp_d2.data.prepare") -> int:
    """Prepare or verify benchmarks one after the other; 1 when any has a fault.

    SIGTERM and Ctrl-C stop it after the files at hand, with 143 and 130.
    """
    given = list(sys.argv[1:] if argv is None else argv)
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
    add_debug_option(parser)
    args = parser.parse_args(given)
    if args.workers < 1:
        parser.error(f"--workers {args.workers}: must be at least 1")
    if not os.path.isdir(args.root):
        parser.error(f"{args.root or repr('')}: no such folder; set --root or DETECTRON2_DATASETS")
    faults = False
    with one_sentence(prog, args.debug), stopping() as stop:
        for name in dict.fromkeys(args.benchmark):
            faults |= _report(BENCHMARKS[name], args, stop)
            if stop.signal:
                print(stop.sentence(prog, given), file=sys.stderr)
                return stop.exit_code
    return int(faults)


def _report(benchmark: Benchmark, args: argparse.Namespace, stop: Stop) -> bool:
    """Do one benchmark, print what came of it, and say whether there was a fault."""
    options = benchmark, args.root, args.workers, args.partial, stop
    try:
        if args.verify:
            seen = verify(*options)
            summary = f"{seen.images} images, {seen.masks} label maps"
            faults, notes = seen.faults, seen.notes
        else:
            done = prepare(*options)
            summary = (
                f"{done.images} images; label maps: {done.written} written, {done.skipped} there "
                f"already, in {done.folder}"
            )
            faults, notes = done.faults, done.notes
    except BrokenProcessPool:
        summary, notes = "stopped", []
        faults = ["a process was killed (out of memory?); run again, perhaps with fewer --workers"]
    except (OSError, ValueError) as error:
        if args.debug or cannot_write(error):
            raise
        summary, faults, notes = "nothing done", [sentence(error)], []
    print(f"{benchmark.name}: {summary}")
    for note in notes:
        print(f"  note: {note}")
    for fault in faults:
        print(f"  fault: {fault}", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
