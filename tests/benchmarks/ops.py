"""Each operator's time, memory and rate, and the same in plain PyTorch.

    python tests/benchmarks/ops.py             # prints a table as Markdown; --output FILE for JSON
    python tests/benchmarks/ops.py --quick     # small sizes, to see that it runs

On a GPU triton.testing.do_bench times every call by events, with an empty L2 cache. Elsewhere the
calls run in turn, round after round, by the wall clock (rounds.py). The table says which it was.
On a CPU, refine, soft_iou and mean_attention are plain PyTorch themselves. Where kernels can run,
`refine` is there twice, by its product kernel and by `bmm` of the masked maps.
"""

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import triton.testing
from encoders import SceneEncoder, class_names
from inputs import DIMENSION, QUICK, Inputs, Sizes, image_windows, machine, one_window
from rounds import Timed, interleaved, milliseconds
from tabulate import tabulate
from torch import Tensor

from freecp_d2 import ops
from freecp_d2.ops.box_mask import box_mask_composite
from freecp_d2.ops.mean_attention import mean_attention_composite
from freecp_d2.ops.pamr import pamr_composite
from freecp_d2.ops.refine import product_by_bmm, refine_composite, refine_triton
from freecp_d2.ops.sinkhorn_affinity import sinkhorn_affinity_composite
from freecp_d2.ops.soft_iou import soft_iou_composite
from freecp_d2.purification import stages

DO_BENCH, INTERLEAVED = "triton.testing.do_bench", "interleaved rounds on the CPU"
HEADS, HEAD_DIM = 12, 64
"""Of a ViT-B/16, for mean_attention."""
PAMR = (10, (8, 16))
"""Steps and dilations of pamr, the defaults of MODEL.FREECP.PAMR."""
PAMR_MAPS = 16
"""About as many classes as stay in an image: pamr works on these alone."""


@dataclass(frozen=True)
class Case:
    """A call of an operator.

    Attributes:
        run, plain: the operator, and the same in PyTorch.
        size: bytes that must move, each operand once.
        flop: operations that a matrix unit can do. Those of soft_iou, additions, minima and maxima
            of all pairs, are none of these.
        dtype: of these operations' operands.
    """

    run: Callable[[], Tensor]
    plain: Callable[[], Tensor]
    size: int
    flop: int = 0
    dtype: torch.dtype = torch.float32


def cases_of(inputs: Inputs, classes: int) -> dict[str, Case]:
    """Every operator on what the head would give it; soft_iou on the maps of one window.

    mean_attention on a block's queries and keys of these windows, in half precision on a GPU, and
    pamr on the first window, with the maps of at most PAMR_MAPS classes at its size.
    """
    features = inputs.features
    _, maps = stages.class_activation_maps(
        features.patches, inputs.text[:classes], inputs.encoder.logit_scale, features.grid
    )
    attention, first = features.attention.contiguous(), maps[0].contiguous()
    mask, affinity = ops.box_mask(maps), ops.sinkhorn_affinity(attention)
    batch, patches = len(maps), maps[0, 0].numel()
    products = min(2 * classes * patches**2, patches**3 + classes * patches**2)
    image = inputs.images[:1]
    fine = F.interpolate(maps[:1, :PAMR_MAPS], image.shape[2:], mode="bilinear")
    operators = {
        "sinkhorn_affinity": (sinkhorn_affinity_composite, (attention,), 2 * attention.nbytes),
        "box_mask": (box_mask_composite, (maps,), 2 * maps.nbytes),
        "refine": (refine_composite, (affinity, maps, mask), affinity.nbytes + 3 * maps.nbytes),
        "soft_iou": (soft_iou_composite, (first,), first.nbytes + 4 * classes**2),
        "pamr": (pamr_composite, (image, fine, *PAMR), image.nbytes + 2 * fine.nbytes),
    }
    flop = {"refine": 2 * batch * products}
    cases = {
        name: Case(
            partial(getattr(ops, name), *tensors),
            partial(plain, *tensors),
            size,
            flop.get(name, 0),
        )
        for name, (plain, tensors, size) in operators.items()
    }
    if image.is_cuda or triton.knobs.runtime.interpret:
        by_bmm = partial(refine_triton, affinity, maps, mask, product_by_bmm)
        cases["refine, bmm"] = dataclasses.replace(cases["refine"], run=by_bmm)
    return cases | {"mean_attention": _mean_attention(batch, 1 + patches, image.device)}


def _mean_attention(batch: int, length: int, device: torch.device) -> Case:
    """Queries and keys as they lie in a projection (B, T, 3, heads, d); a record a side."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    projected = torch.randn(batch, length, 3, HEADS, HEAD_DIM, device=device).to(dtype)
    query, key, _ = projected.permute(2, 0, 3, 1, 4)
    records = [torch.zeros(batch, length, length, device=device) for _ in range(2)]

    def added(function: Callable[..., None], record: Tensor) -> Tensor:
        function(query, key, record)
        return record

    return Case(
        partial(added, ops.mean_attention, records[0]),
        partial(added, mean_attention_composite, records[1]),
        2 * query.numel() * query.element_size() + 2 * records[0].nbytes,
        2 * batch * HEADS * length**2 * HEAD_DIM,
        dtype,
    )


def times(
    calls: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Median and quartiles of every call in milliseconds; `rounds` is for the CPU alone."""
    if device.type == "cuda":
        quantiles = [0.5, 0.25, 0.75]
        spreads = {n: triton.testing.do_bench(c, quantiles=quantiles) for n, c in calls.items()}
        return {n: dict(zip(("median", "q1", "q3"), s, strict=True)) for n, s in spreads.items()}
    samples = interleaved({n: Timed(call) for n, call in calls.items()}, rounds, device)
    return {name: milliseconds(sample["seconds"]) for name, sample in samples.items()}


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Memory of a call, its result included, on a GPU; that of a CPU is peak_memory.py's."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def measure_operators(
    inputs: Inputs, classes: int, sizes: Sizes, quick: bool, plain: bool = False
) -> dict:
    """Each operator's rate beside what the device reaches on a copy and on a matrix product.

    Args:
        plain: also the same in PyTorch, and both's memory.
    """
    device = inputs.images.device
    cases = cases_of(inputs, classes)
    block = torch.rand(2**20 if quick else 2**26, device=device)
    side = 256 if quick else 4096 if device.type == "cuda" else 2048
    matrices = {c.dtype: torch.rand(side, side, device=device).to(c.dtype) for c in cases.values()}
    calls: dict[str, Callable[[], object]] = {name: case.run for name, case in cases.items()}
    if plain:
        calls |= {f"{name}, plain": case.plain for name, case in cases.items()}
    calls |= {"copy": block.clone}
    calls |= {f"product, {t}": partial(torch.matmul, m, m) for t, m in matrices.items()}
    spreads = times(calls, sizes.rounds, device)
    seconds = {name: spread["median"] / 1000 for name, spread in spreads.items()}
    bandwidth = 2 * block.nbytes / seconds["copy"]
    rates = {dtype: 2 * side**3 / seconds[f"product, {dtype}"] for dtype in matrices}
    measured = {}
    for name, case in cases.items():
        measured[name] = {
            "ms": 1000 * seconds[name],
            "quartiles_ms": [spreads[name]["q1"], spreads[name]["q3"]],
            "bandwidth_fraction": case.size / seconds[name] / bandwidth,
            "matrix_fraction": case.flop / seconds[name] / rates[case.dtype],
        }
        if plain:
            measured[name] |= {
                "plain_ms": 1000 * seconds[f"{name}, plain"],
                "peak_bytes": peak_bytes(case.run, device),
                "plain_peak_bytes": peak_bytes(case.plain, device),
            }
    return {
        "timer": DO_BENCH if device.type == "cuda" else INTERLEAVED,
        "windows": len(inputs.images),
        "grid": inputs.features.grid[0],
        "classes": classes,
        "copy_gb_per_s": bandwidth / 1e9,
        "matrix_gflop_per_s": rates[torch.float32] / 1e9,
        "matrix_gflop_per_s_by_dtype": {
            str(dtype).removeprefix("torch."): rate / 1e9 for dtype, rate in rates.items()
        },
        "operators": measured,
    }


def markdown(report: dict) -> str:
    """The table, with who timed it."""
    rows = [
        (
            name,
            f"{case['windows']} x {case['grid']}x{case['grid']}",
            case["classes"],
            "{:.3f} ({:.3f} to {:.3f})".format(operator["ms"], *operator["quartiles_ms"]),
            f"{operator['plain_ms']:.3f}",
            *(
                "" if size is None else f"{size / 1e6:.1f}"
                for size in (operator["peak_bytes"], operator["plain_peak_bytes"])
            ),
            f"{operator['bandwidth_fraction']:.2f}",
            f"{operator['matrix_fraction']:.2f}",
        )
        for case in report["cases"]
        for name, operator in case["operators"].items()
    ]
    headers = ("operator", "windows", "classes", "ms (quartiles)", "plain PyTorch, ms")
    headers += ("MB", "plain, MB", "of bandwidth", "of matrix rate")
    timer = report["cases"][0]["timer"]
    title = f"Operators on {report['machine']['device']}, timed by {timer}\n\n"
    return title + tabulate(sorted(rows, key=lambda row: row[0]), headers, tablefmt="github")


@torch.no_grad()
def main() -> None:
    """Measure on the GPU, or on the CPU where there is none; write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FILE", help="also as JSON")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # missing descriptions are meant here
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = QUICK if args.quick else Sizes()
    # The plain box_mask of the largest takes half a minute on a CPU.
    vocabularies = sizes.classes if device.type == "cuda" else sizes.classes[:3]
    encoder, names = SceneEncoder(DIMENSION, device), class_names(max(sizes.classes))
    cases = []
    for images in (image_windows(sizes), *(one_window(grid) for grid in sizes.grids)):
        inputs = Inputs(encoder, images, names)
        for classes in vocabularies:
            cases.append(measure_operators(inputs, classes, sizes, args.quick, plain=True))
    report = {"machine": machine(device), "cases": cases}
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(markdown(report))


if __name__ == "__main__":
    main()
