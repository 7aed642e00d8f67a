"""One command for a GPU: its tests, the vectors, operators, speed, launches, memory.

    python tests/benchmarks/gpu_report.py        # under 9 minutes; what `make gpu-report` runs
    python tests/benchmarks/gpu_report.py --parts speed memory          # these anew, others stay
    python tests/benchmarks/gpu_report.py --device cpu --quick          # small, to see that it runs

Writes docs/performance/gpu-<device>.json and .png (a run on the CPU output/gpu_report/), whole
after every step, and prints a summary. A part is a process of its own with a time limit: one that
fails, hangs or breaks the GPU's context costs what it had not yet written, and no other part.
Limits are in PARTS; a part has less where those after it would get too little, and says so. What is
measured is in gpu_parts.py.
"""

import argparse
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import gpu_parts
import torch
import triton
from encoders import ROOT
from gpu_summary import draw, markdown
from inputs import QUICK, Sizes, machine

GPU_TESTS = ("tests/ops", "tests/purification", "tests/test_cuda_graphs.py")
VECTORS = "tests/test_devices.py"
"""Together the selection of `make test-gpu`."""
WORKERS = 4
"""Most of the tests' time is Triton's compiler."""
TOTAL = 510
"""Seconds of all parts; with imports and the picture it stays below 540."""
FOLDERS = {"cuda": ROOT / "docs" / "performance", "cpu": ROOT / "output" / "gpu_report"}


@dataclass(frozen=True)
class Part:
    """A part's seconds: what it may take, and what is kept for it when parts before it are slow."""

    seconds: float
    least: float


PARTS = {
    "tests": Part(180, 60),
    "vectors": Part(75, 40),
    "operators": Part(110, 45),
    "speed": Part(170, 80),
    "launches": Part(45, 25),
    "memory": Part(80, 30),
}
"""In this order."""


@dataclass(frozen=True)
class Task:
    """What a part is to be measured with.

    Attributes:
        device: cuda or cpu.
        quick: small sizes.
        notes: where the part writes while it runs.
        limit: seconds.
    """

    device: str
    quick: bool
    notes: Path
    limit: float


def run_process(
    command: list[str], log: Path, limit: float, environment: dict | None = None
) -> str:
    """Run it in the repository's folder; at its limit interrupt it, then kill it and its children.

    Returns:
        why it ended otherwise than by success, or "".
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            return f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # Python says where it was
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                pass
            return f"stopped at its limit of {limit:.0f} s"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


def tests(task: Task) -> dict:
    """The tests of `make test-gpu`, but for those of the vectors."""
    selection: list[str] = [*GPU_TESTS]
    if task.quick:
        selection = ["tests/ops/test_dispatch.py"]
    workers = min(WORKERS, len(os.sched_getaffinity(0)) // 4)
    return run_pytest(task, [*selection, *(["-n", str(workers)] if workers > 1 else [])])


def vectors(task: Task) -> dict:
    """Encoder, head, operators and FreeCP against the vectors in every precision, on the device."""
    cases = f"{task.device} and clearclip and not background" if task.quick else task.device
    return run_pytest(task, [VECTORS, "-k", cases])


def run_pytest(task: Task, arguments: list[str]) -> dict:
    """Counts, failures, and what the tests found worst."""
    notes, log = task.notes.with_suffix(".jsonl"), task.notes.with_suffix(".log")
    command = [sys.executable, str(Path(__file__).with_name("outcomes.py")), str(notes)]
    command += ["-q", "-p", "no:cacheprovider", "--tb=short", *arguments]
    error = run_process(command, log, task.limit - 15, {"OMP_NUM_THREADS": "1"})
    found = read_outcomes(notes.read_text().splitlines() if notes.exists() else [])
    # An exit code of 1 says that tests failed, which is in `failures`.
    if error and not (error == "exit code 1" and found["failures"]):
        found |= {"error": error, "output": log.read_text()[-3000:]}
    return found


def read_outcomes(lines: Iterable[str]) -> dict:
    """What the notes of outcomes.py come to."""
    outcomes: Counter[str] = Counter()
    unfinished: dict[str, None] = {}
    failures, slowest, worst = [], [], {}
    for note in map(json.loads, lines):
        if note["outcome"] == "begun":
            unfinished[note["test"]] = None
            continue
        unfinished.pop(note["test"], None)
        outcomes[note["outcome"]] += 1
        slowest.append((note["seconds"], note["test"]))
        if note["outcome"] == "failed":
            failures.append({"test": note["test"], "message": note["message"][:500]})
        for name, text in note["properties"]:
            value = json.loads(text)
            of_precision = worst.setdefault(name, {})
            before = of_precision.setdefault(value["precision"], {**value, "tests": 0})
            of_precision[value["precision"]] = {
                # NaN is the worst.
                "worst": max(value["worst"], before["worst"], key=lambda x: (math.isnan(x), x)),
                "allowed": value["allowed"],
                "tests": before["tests"] + 1,
            }
    return {
        **{outcome: outcomes[outcome] for outcome in ("passed", "failed", "skipped")},
        "failures": failures,
        "unfinished": list(unfinished),
        "slowest_s": dict((name, s) for s, name in sorted(slowest, reverse=True)[:5]),
        **({"differences": worst} if worst else {}),
    }


def measured(part: str, task: Task) -> dict:
    """A part of gpu_parts.py, by this command in a process of its own."""
    if task.device == "cpu" and part in gpu_parts.ON_A_CPU:
        return {"not_measured": gpu_parts.ON_A_CPU[part]}
    log = task.notes.with_suffix(".log")
    command = [sys.executable, __file__, "--device", task.device, "--measure", part]
    command += ["--notes", str(task.notes), "--until", str(time.monotonic() + task.limit - 15)]
    command += ["--quick"] if task.quick else []
    environment = {} if task.device == "cuda" else {"TRITON_INTERPRET": "1"}
    error = run_process(command, log, task.limit - 10, environment)
    found = json.loads(task.notes.read_text()) if task.notes.exists() else {}
    if error:
        found = {"error": error, "output": log.read_text()[-1500:], **found}
    return found


def measure(part: str, task: Task) -> int:
    """In that process, which has `task.limit`: note what a part knows so far, and why it failed.

    Returns:
        an exit code.
    """
    logging.disable(logging.WARNING)  # random weights and missing descriptions are meant here
    known: dict = {}
    sizes = QUICK if task.quick else Sizes()
    device = torch.device(task.device, 0 if task.device == "cuda" else None)
    arguments = sizes, task.quick, device, gpu_parts.Clock(task.limit)
    try:
        with torch.no_grad():
            for known in gpu_parts.PARTS[part](*arguments):
                write(known, task.notes)
    except Exception as error:
        traceback.print_exc()
        write({**known, "error": f"{type(error).__name__}: {error}"[:500]}, task.notes)
        return 1
    return 0


def write(value: dict, path: Path) -> None:
    """JSON, in place of what was there when it is whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def limits_of(parts: list[str], left: float) -> float:
    """Seconds of the first of `parts`, so that the others keep their least."""
    return min(PARTS[parts[0]].seconds, left - sum(PARTS[name].least for name in parts[1:]))


def missing(report: dict) -> dict[str, str]:
    """Part -> what is missing of it."""
    why = {}
    for name in PARTS:
        part = report["parts"].get(name)
        cases = part.get("cases", []) if part else []
        errors = [case["error"] for case in cases if "error" in case]
        if part is None:
            why[name] = "not run yet"
        elif "error" in part:
            why[name] = f"ended early: {part['error']}"
        elif part.get("shortened"):
            why[name] = "shortened: some cases are left out for want of time"
        elif "not_measured" in part:
            why[name] = part["not_measured"]
        elif errors:
            why[name] = f"{len(errors)} of {len(cases)} cases: {errors[0]}"
    return why


MEASURE: dict[str, Callable[[Task], dict]] = {
    name: {"tests": tests, "vectors": vectors}.get(name, partial(measured, name)) for name in PARTS
}


def make_report(report: dict, parts: list[str], device: str, quick: bool, path: Path) -> None:
    """Measure the parts one after the other; `path` and its picture are whole after each."""
    end = time.monotonic() + TOTAL
    with tempfile.TemporaryDirectory() as folder:
        for index, name in enumerate(parts):
            limit = limits_of(parts[index:], end - time.monotonic())
            short = f", not {PARTS[name].seconds:.0f}" if limit < PARTS[name].seconds else ""
            print(f"{name}: at most {limit:.0f} s{short}", file=sys.stderr, flush=True)
            start = time.monotonic()
            task = Task(device, quick, Path(folder) / f"{name}.json", limit)
            try:
                found = MEASURE[name](task)
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"[:500]}
            times = {"seconds": round(time.monotonic() - start, 1), "limit_s": round(limit, 1)}
            report["parts"][name] = {**times, **found}
            report["missing"] = missing(report)
            write(report, path)
            try:
                draw(report, path.with_suffix(".png"))
            except Exception:  # costs a picture, not the parts that are to come
                traceback.print_exc()
            print(f"  {report['missing'].get(name, 'done')}", file=sys.stderr, flush=True)


def name_of(device: torch.device) -> str:
    """gpu-<its name>, in letters that any file system takes."""
    kind = "gpu" if device.type == "cuda" else device.type
    words = re.sub(r"[^a-z0-9]+", "-", machine(device)["device"].lower()).strip("-")
    return f"{kind}-{words}"


def main(arguments: list[str] | None = None) -> int:
    """Measure, write, print; the exit code is 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where the report goes")
    parser.add_argument("--device", choices=FOLDERS, default="cuda", help="the first GPU, or cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, few tests")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    for name in ("--measure", "--notes", "--until"):  # of a part's own process
        parser.add_argument(name, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    device = torch.device(args.device, 0 if args.device == "cuda" else None)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("make gpu-report: torch finds no CUDA GPU", file=sys.stderr)
        return 1
    if args.measure:
        left = float(args.until) - time.monotonic()
        task = Task(args.device, args.quick, Path(args.notes), left)
        return measure(args.measure, task)
    folder = args.output or FOLDERS[device.type]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name_of(device)}.json"
    report: dict = {
        "machine": {**machine(device), "triton": triton.__version__},
        "date": date.today().isoformat(),
        "quick": args.quick,
        "missing": {},
        "parts": {},
    }
    if len(args.parts) < len(PARTS) and path.exists():
        report["parts"] = json.loads(path.read_text())["parts"]
    parts = [name for name in PARTS if name in args.parts]
    make_report(report, parts, args.device, args.quick, path)
    print(markdown(report))
    print(f"\n{path}")
    failed = any("error" in part or part.get("failed") for part in report["parts"].values())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
