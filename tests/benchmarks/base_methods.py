"""What each base method costs over ClearCLIP: time and peak memory of encoding windows.

    python tests/benchmarks/base_methods.py

A ViT-B/16 of random weights in fp32, on one thread. All methods run in turn, round after round in
one process, and a ratio is taken in every round. Time is the thread's own, so that other processes
change little of it. Peak memory is that of one call, above what was there before it, when glibc has
given back what it had kept (Linux). Prints Markdown; --json FILE keeps it.
"""

import argparse
import ctypes
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from encoders import pace_model
from inputs import SEED, machine
from peak_memory import resident
from rounds import ratio, spread
from tabulate import tabulate
from torch import Tensor

from freecp_d2.clip import DenseCLIP
from freecp_d2.clip.methods import base_method_names

YARDSTICK = "clearclip"
CPU = torch.device("cpu")
SMALL_TOWER = {"gem_depth": 4, "rcs_blocks": (2, 3, 4), "pre_adjust_idx": 3, "post_adjust_idx": 1}
SMALL_TOWER |= {"multi_start_idx": 1, "multi_end_idx": 5, "cross_s": 1, "cross_e": 5}
"""Blocks of --quick's 6, as in configs/scenes/."""


def encoders_of(methods: Sequence[str], side: int, quick: bool) -> dict[str, DenseCLIP]:
    """They share one tower of random weights."""
    model, options = pace_model(quick, side, CPU), SMALL_TOWER if quick else {}
    return {method: DenseCLIP(model, method, **options) for method in methods}


def windows_of(side: int, count: int) -> Tensor:
    """Random windows (count, 3, side, side)."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(SEED))


def extra_bytes(encoder: DenseCLIP, windows: Tensor) -> int:
    """Peak memory of encoding."""
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    encoder(windows)
    return resident("VmHWM") - before


@torch.no_grad()
def measure(methods: Sequence[str], side: int, count: int, rounds: int, quick: bool) -> dict:
    """Seconds a window and bytes of each method, and their ratios over :data:`YARDSTICK`."""
    torch.set_num_threads(1)
    windows = windows_of(side, count)
    encoders = encoders_of(methods, side, quick)
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    for round_ in range(-1, rounds):
        for method, encoder in encoders.items():
            start = time.thread_time()
            encoder(windows)
            if round_ >= 0:
                seconds[method].append(time.thread_time() - start)
    memory = {method: extra_bytes(encoder, windows) for method, encoder in encoders.items()}
    return {
        "machine": machine(CPU),
        "side": side,
        "windows": count,
        "rounds": rounds,
        "methods": {
            name: {
                "seconds_per_window": spread([s / count for s in seconds[name]]),
                "over_yardstick": ratio(seconds[name], seconds[YARDSTICK]),
                "extra_bytes": memory[name],
                "bytes_over_yardstick": memory[name] / max(memory[YARDSTICK], 1),
            }
            for name in methods
        },
    }


def markdown(report: dict) -> str:
    """The table, its times the median of all rounds, with quartiles."""
    rows = []
    for name, cost in report["methods"].items():
        over = cost["over_yardstick"]
        rows.append(
            [
                name,
                f"{1000 * cost['seconds_per_window']['median']:.0f}",
                f"{over['median']:.2f} ({over['q1']:.2f} to {over['q3']:.2f})",
                f"{cost['extra_bytes'] / 2**20:.0f}",
                f"{cost['bytes_over_yardstick']:.2f}",
            ]
        )
    headers = ("base method", "ms a window", f"over {YARDSTICK}", "peak, MiB", "over")
    align = ("left", *["right"] * 4)
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=384, help="of the windows; %(default)s")
    parser.add_argument("--windows", type=int, default=2, help="at once; %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    parser.add_argument("--quick", action="store_true", help="a small CLIP, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    sizes = (args.side, args.windows, args.rounds, args.quick)
    report = measure(base_method_names(), *sizes)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    print(markdown(report))


if __name__ == "__main__":
    main()
