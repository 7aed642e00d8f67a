"""How torch's threads should wait for each other: alone on the cores, and beside a second process.

    python tests/benchmarks/thread_waits.py

Each setting of OpenMP runs in processes of its own, in turn: one alone, then two at a time. Table:
median milliseconds of a drawn scene by FreeCP with SceneCLIP, and of two windows of 384 by the
image tower of a ViT-B/16. See `freecp.openmp_settings`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

SETTINGS: dict[str, dict[str, str]] = {
    "torch's default": {},
    "GOMP_SPINCOUNT 1000": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
    "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def milliseconds(run: Callable[[], object]) -> float:
    """Of one run."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def timed(images: int) -> dict[str, float]:
    """Of this process, after a first image."""
    import open_clip
    import torch

    from freecp_d2 import FreeCPPredictor
    from freecp_d2.clip import DenseCLIP
    from freecp_d2.data.scenes import draw_scene

    predictor = FreeCPPredictor("scenes/clearclip")
    scenes = [draw_scene(number).image for number in range(images)]
    torch.manual_seed(0)
    tower = DenseCLIP(open_clip.create_model("ViT-B-16-quickgelu")).eval()
    windows = torch.randn(2, 3, 384, 384)
    predictor(scenes[0])
    tower(windows)
    return {
        "SceneCLIP": median(milliseconds(partial(predictor, s)) for s in scenes),
        "ViT-B/16": median(milliseconds(partial(tower, windows)) for _ in range(images // 5)),
    }


def at_once(setting: dict[str, str], processes: int, images: int) -> list[dict[str, float]]:
    """:func:`timed` of so many processes that run at the same time."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-W", "ignore", __file__, "--images", str(images), "--this-process"]
    running = [
        subprocess.Popen(command, env=environment | setting, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    return [json.loads(process.communicate()[0]) for process in running]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=40, help="a process")
    parser.add_argument("--this-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.this_process:
        print(json.dumps(timed(args.images)))
        return
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for name, setting in SETTINGS.items():
            for processes in (1, 2):
                found.setdefault((name, processes), []).extend(
                    at_once(setting, processes, args.images)
                )
    for (name, processes), figures in found.items():
        row = "  ".join(f"{of} {median(f[of] for f in figures):6.1f}" for of in figures[0])
        print(f"{name:20} {processes} at a time  {row}")


if __name__ == "__main__":
    main()
