"""What refining maps by the image costs on the classes that stay, and on all queries.

    python tests/benchmarks/refinement.py

On one thread. Maps are those of the embedded CLIP, its FreeCP and 171 names on drawn scenes; the
scene of the median number of classes that stay is taken. All runs go in turn, round after round in
one process, and a ratio is taken in every round. Time is the thread's own, so that other processes
change little of it. "plain" is the operator's composite of PyTorch calls. Peak memory is that of
one call, above what was there before it, each in a process forked for it (Linux); the refined maps
are counted. Prints Markdown; --json FILE keeps it.
"""

import argparse
import json
import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from encoders import class_names, scene
from inputs import SEED, machine
from peak_memory import resident
from rounds import ratio, spread
from tabulate import tabulate
from torch import Tensor

from freecp_d2 import get_config
from freecp_d2.data import Vocabulary
from freecp_d2.data.benchmarks.protocols import Refinement
from freecp_d2.merging import base_similarities, merge_windows
from freecp_d2.meta_arch import FreeCP
from freecp_d2.ops.pamr import pamr_composite
from freecp_d2.purify import purify_windows
from freecp_d2.refinement import refined_strips
from freecp_d2.sliding_window import upsample

CPU = torch.device("cpu")
PAMR, TLP = Refinement(pamr_steps=10), Refinement(tlp_grid=80)
YARDSTICK = "pamr, all queries"


def maps_of(model: FreeCP, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The image normalised, cosines of all queries, maps that stay, and the words of these."""
    words = model.words
    assert words is not None
    x = [{"image": image}]
    (similarity,) = base_similarities(model.encode(x, base=True), words, False, model.timer)
    encoded = model.encode(x)
    arguments = encoded, words, model.head, model.encoder, None, None, model.timer
    purified = purify_windows(*arguments)
    size = encoded.images[0].shape[1], encoded.images[0].shape[2]
    maps, queries = merge_windows(purified.windows, purified.maps, purified.kept, size)
    return encoded.images[0], similarity, maps, words.text[queries]


def runs_of(
    image: Tensor, similarity: Tensor, maps: Tensor, text: Tensor, all_text: Tensor
) -> dict[str, Callable[[], object]]:
    """Name -> what is timed."""
    size = image.shape[1:]

    def refine(values: Tensor, words: Tensor, how: Refinement) -> list:
        return list(refined_strips(values, image, words, size, how))

    def plain(values: Tensor) -> Tensor:
        guide, steps = image[None], PAMR.pamr_steps
        return pamr_composite(guide, upsample(values, size)[None], steps, PAMR.pamr_dilations)

    return {
        "pamr, classes that stay": partial(refine, maps, text, PAMR),
        YARDSTICK: partial(refine, similarity, all_text, PAMR),
        "plain pamr, classes that stay": partial(plain, maps),
        "plain pamr, all queries": partial(plain, similarity),
        "tlp, classes that stay": partial(refine, maps, text, TLP),
        "tlp, all queries": partial(refine, similarity, all_text, TLP),
    }


def extra_bytes(run: Callable[[], object]) -> int:
    """Peak memory of a run, in a process forked for it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_extra_bytes, args=(run, theirs))
    process.start()
    size = ours.recv()
    process.join()
    return size


def _extra_bytes(run: Callable[[], object], pipe: multiprocessing.connection.Connection) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmRSS")
    kept = run()
    pipe.send(resident("VmHWM") - before)
    del kept


@torch.no_grad()
def measure(size: tuple[int, int], scenes: int, classes: int, rounds: int) -> dict:
    """Seconds and bytes of every run on a scene of `size`."""
    torch.set_num_threads(1)
    short = str(min(size))
    opts = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", short, "MODEL.FREECP.OUTPUT", "label_map"]
    cfg = get_config("scenes/clearclip", opts)
    model = FreeCP(cfg, vocabulary=Vocabulary.from_names(class_names(classes)))
    assert model.words is not None
    images = [scene(SEED + i, *size) for i in range(scenes)]
    counts = sorted((int(model([{"image": x}])[0]["kept"].sum()), i) for i, x in enumerate(images))
    chosen = maps_of(model, images[counts[scenes // 2][1]])
    runs = runs_of(*chosen, model.words.text)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(-1, rounds):
        for name, run in runs.items():
            start = time.thread_time()
            run()
            if round_ >= 0:
                seconds[name].append(time.thread_time() - start)
    return {
        "size": size,
        "classes_that_stay": [count for count, _ in counts],
        "queries": classes,
        "runs": {
            name: {
                "maps": len(chosen[2]) if "stay" in name else classes,
                "seconds": spread(seconds[name]),
                "over_yardstick": ratio(seconds[name], seconds[YARDSTICK]),
                "extra_bytes": extra_bytes(run),
            }
            for name, run in runs.items()
        },
    }


def markdown(cases: Sequence[dict]) -> str:
    """The table, its times the median of all rounds, with quartiles."""
    rows = [
        [
            "{} x {}".format(*case["size"]),
            name,
            run["maps"],
            "{:.0f} ({:.0f} to {:.0f})".format(
                *(1000 * run["seconds"][key] for key in ("median", "q1", "q3"))
            ),
            f"{run['over_yardstick']['median']:.3f}",
            f"{run['extra_bytes'] / 2**20:.0f}",
        ]
        for case in cases
        for name, run in case["runs"].items()
    ]
    headers = ("image", "refinement", "maps", "ms (quartiles)", "over pamr of all", "peak, MiB")
    align = ("left", "left", *["right"] * 4)
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="%(default)s")
    parser.add_argument("--scenes", type=int, default=5, help="to choose from; %(default)s")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)  # missing descriptions are meant here
    sizes, classes = ([(96, 120)], 20) if args.quick else ([(448, 597), (480, 640)], 171)
    cases = [measure(size, args.scenes, classes, args.rounds) for size in sizes]
    report = {"machine": machine(CPU), "rounds": args.rounds, "cases": cases}
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    for case in cases:
        counts = ", ".join(map(str, case["classes_that_stay"]))
        print("{} x {}: classes that stay of {}: {}".format(*case["size"], case["queries"], counts))
    print(markdown(cases))


if __name__ == "__main__":
    main()
