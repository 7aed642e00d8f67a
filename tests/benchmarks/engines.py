"""Time what may run the image tower on a CPU: torch, torch.compile, OpenVINO, onnxruntime.

    OMP_NUM_THREADS=1 python tests/benchmarks/engines.py --output output/engines

ViT-B/16 of random weights, ClearCLIP, two windows. Each row is timed in turn with torch in fp32,
in CPU time of the process, so that other work on the machine changes little. It is written, to
engines.json and engines.md, as soon as it is there.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import open_clip
import torch
from encoders import METHOD, pace_model
from inputs import machine
from rounds import Timed, interleaved, ratio, spread
from torch import Tensor

from freecp_d2.clip import DenseCLIP
from freecp_d2.clip.engine import EngineCLIP
from freecp_d2.clip.matmul import multiplies_in_bf16

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Variant:
    """How the tower runs: its encoder, of float32 weights, and what is switched meanwhile."""

    build: Callable[[open_clip.CLIP], DenseCLIP]
    within: Callable[[], AbstractContextManager] = nullcontext


def in_bf16(model: open_clip.CLIP, **options) -> DenseCLIP:
    model = copy.deepcopy(model)
    open_clip.convert_weights_to_lp(model, torch.bfloat16)
    return DenseCLIP(model, METHOD, **options)


def variants() -> dict[str, Variant]:
    def torch_fp32(model: open_clip.CLIP, **options) -> DenseCLIP:
        return DenseCLIP(model, METHOD, **options)

    def by(engine: str, bf16: bool = False) -> Variant:
        return Variant(lambda model: EngineCLIP(model, METHOD, engine=engine, bf16=bf16))

    rows = {
        "torch fp32, MKL's products": Variant(
            torch_fp32, lambda: torch.backends.mkldnn.flags(enabled=False)
        ),
        "openvino fp32": by("openvino"),
        "openvino bf16": by("openvino", bf16=True),
        "torch bf16": Variant(in_bf16),
        "onnxruntime fp32": by("onnxruntime"),
        "torch fp32, compiled": Variant(partial(torch_fp32, compile=True)),
        "torch bf16, compiled": Variant(partial(in_bf16, compile=True)),
    }
    if multiplies_in_bf16():
        rows["torch bf16_matmul"] = Variant(partial(torch_fp32, bf16_matmul=True))
    return rows


def measure(variant: Variant, model: open_clip.CLIP, images: Tensor, rounds: int) -> dict:
    """A row: ratios to torch fp32, differences from it, what the first call costs and takes."""
    reference = DenseCLIP(model, METHOD)
    wanted = reference(images)
    before, start, cpu = resident(), time.perf_counter(), time.process_time()
    encoder = variant.build(model)

    def run():
        with variant.within():
            return encoder(images)

    got = run()
    first = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    both = {"reference": Timed(lambda: reference(images)), "variant": Timed(run)}
    samples = interleaved(both, rounds, CPU, time.process_time)
    seconds, of_reference = (samples[key]["seconds"] for key in ("variant", "reference"))
    return {
        "ratio": ratio(seconds, of_reference),
        "seconds": spread(seconds),
        "reference_seconds": spread(of_reference),
        "first_call_seconds": first,
        "memory_mib": resident() - before,
        "patches": mean_distance(got.patches, wanted.patches),
        "cls": mean_distance(got.cls, wanted.cls),
        "affinity": ((got.attention - wanted.attention).norm() / wanted.attention.norm()).item(),
    }


def mean_distance(a: Tensor, b: Tensor) -> float:
    """The mean of 1 - cos of unit vectors (..., D), without its cancellation."""
    return (a - b).square().sum(-1).mean().item() / 2


def resident() -> float:
    """Memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def table(rows: dict[str, dict]) -> str:
    """In Markdown."""
    lines = [
        "| | CPU time over torch fp32 | 1 - cos of patches | of CLS | affinity, relative "
        "| first call, CPU s | memory, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        r = row["ratio"]
        lines.append(
            f"| {name} | {r['median']:.2f} ({r['q1']:.2f} to {r['q3']:.2f}) "
            f"| {row['patches']:.1e} | {row['cls']:.1e} | {row['affinity']:.1e} "
            f"| {row['first_call_seconds']['cpu']:.1f} | {row['memory_mib']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def row_of(name: str, args: argparse.Namespace) -> dict:
    """A row that is measured in a process of its own, for the sake of its memory."""
    options = ["--row", name, "--rounds", str(args.rounds), "--side", str(args.side)]
    options += ["--quick"] * args.quick
    command = [sys.executable, "-W", "ignore", __file__, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("output/engines"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=384, help="of a window, in pixels")
    parser.add_argument("--quick", action="store_true", help="a small tower, to try this out")
    parser.add_argument("--row", choices=variants(), help="print this one as JSON, and no more")
    args = parser.parse_args()
    if args.row:
        model = pace_model(args.quick, args.side, CPU, "fp32")
        images = torch.randn(2, 3, args.side, args.side, generator=torch.Generator().manual_seed(0))
        print(json.dumps(measure(variants()[args.row], model, images, args.rounds)))
        return
    args.output.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict] = {}
    for name in variants():
        rows[name] = row_of(name, args)
        result = {"machine": machine(CPU), "side": args.side, "rows": rows}
        (args.output / "engines.json").write_text(json.dumps(result, indent=2) + "\n")
        (args.output / "engines.md").write_text(table(rows))
        print(table({name: rows[name]}).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
