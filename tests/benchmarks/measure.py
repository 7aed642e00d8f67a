"""The head and its peak memory, as bench.py measures them."""

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from encoders import CPU, SceneEncoder, bare_forward, class_names, pace_model
from inputs import (
    AMBIGUITY_THRESHOLD,
    DIMENSION,
    PATCH,
    REDUNDANCY_THRESHOLD,
    STAGES,
    Inputs,
    Sizes,
    image_windows,
    one_window,
)
from rounds import Timed, grown, interleaved, milliseconds, ratio
from safetensors.torch import save_file
from transcription import purify

from freecp_d2 import ops
from freecp_d2.purification import PurificationHead, stages


def stage_runs(inputs: Inputs, classes: int) -> dict[str, Timed]:
    """Every stage of steps 2 to 5 on its own."""
    features, text = inputs.features, inputs.text[:classes]
    scale = inputs.encoder.logit_scale
    probabilities, normalized = stages.class_activation_maps(
        features.patches, text, scale, features.grid
    )
    mask, affinity = ops.box_mask(normalized), ops.sinkhorn_affinity(features.attention)
    refined = ops.refine(affinity, normalized, mask)
    activation = partial(stages.class_activation_maps, features.patches, text, scale, features.grid)
    calls = (
        activation,
        partial(ops.box_mask, normalized),
        partial(ops.sinkhorn_affinity, features.attention),
        partial(ops.refine, affinity, normalized, mask),
        partial(stages.consistency, probabilities, refined),
    )
    return {name: Timed(run) for name, run in zip(STAGES, calls, strict=True)}


@torch.no_grad()
def measure_head(sizes: Sizes, quick: bool) -> dict:
    """Cases of the head over the bare forward, its stages, and how its time grows."""
    encoder = SceneEncoder(DIMENSION)
    names = class_names(max(sizes.classes))
    without = PurificationHead(REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD, ambiguity=False)
    head = PurificationHead(REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD)
    batches = [image_windows(sizes), *(one_window(grid) for grid in sizes.grids)]
    cases, profile, growth = [], [], {}
    every = [Inputs(encoder, images, names) for images in batches]
    for inputs in every:
        first = inputs is every[0]
        count, side = len(inputs.images), inputs.features.grid[0]
        bare = pace_model(quick, side * PATCH)
        runs = {"bare": Timed(partial(bare_forward, bare, inputs.images))}
        for classes in sizes.classes:
            arguments = inputs.arguments(classes)
            runs[f"steps 2-5, {classes}"] = Timed(partial(without, *arguments))
            runs[f"steps 2-6, {classes}"] = Timed(partial(head, *arguments), encoder)
            if first:
                alone = [inputs.arguments(classes, window) for window in range(count)]
                runs[f"transcription, {classes}"] = Timed(
                    lambda alone=alone: [
                        purify(*one, REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD) for one in alone
                    ],
                    encoder,
                )
        print(f"head, {count} windows of {side}x{side}", file=sys.stderr, flush=True)
        samples = interleaved(runs, sizes.rounds, CPU)
        del bare, runs
        floor = samples["bare"]["seconds"]
        for classes in sizes.classes:
            result = head(*inputs.arguments(classes))
            redundancy = samples[f"steps 2-5, {classes}"]["seconds"]
            full = samples[f"steps 2-6, {classes}"]
            case = {
                "grid": side,
                "windows": count,
                "classes": classes,
                "kept_redundancy": int(result.kept_redundancy.sum()),
                "kept": int(result.kept.sum()),
                "crops": full["crops"][-1],
                "bare_ms": milliseconds(floor),
                "steps_2_5_ms": milliseconds(redundancy),
                "steps_2_6_ms": milliseconds(full["seconds"]),
                "steps_2_5_over_bare": ratio(redundancy, floor),
                "steps_2_6_over_bare": ratio(full["seconds"], floor),
            }
            if first:
                plain = samples[f"transcription, {classes}"]["seconds"]
                case["transcription_ms"] = milliseconds(plain)
                case["over_transcription"] = ratio(full["seconds"], plain)
            cases.append(case)
            timed = interleaved(stage_runs(inputs, classes), sizes.rounds, CPU)
            profile.append(
                {
                    "grid": side,
                    "windows": count,
                    "classes": classes,
                    **{f"{name}_ms": milliseconds(timed[name]["seconds"]) for name in STAGES},
                }
            )
        if first:
            low, high = sizes.classes[1], sizes.classes[3]
            pair = (samples[f"steps 2-6, {n}"]["seconds"] for n in (low, high))
            growth["classes"] = {
                "from": low,
                "to": high,
                "grid": side,
                **grown(*pair, high / low),
            }
    growth["grid"] = measure_grid_growth(sizes, every, head)
    return {"cases": cases, "profile": profile, "growth": growth}


def measure_grid_growth(sizes: Sizes, every: list[Inputs], head: PurificationHead) -> dict:
    """From the smallest grid to the largest, one window each; the slope is that over patches."""
    classes = sizes.classes[2]
    runs = {
        str(inputs.features.grid[0]): Timed(
            partial(head, *inputs.arguments(classes, 0)), inputs.encoder
        )
        for inputs in every
    }
    samples = interleaved(runs, sizes.rounds, CPU)
    low, *_, high = samples
    return {
        "from": int(low),
        "to": int(high),
        "classes": classes,
        **grown(samples[low]["seconds"], samples[high]["seconds"], (int(high) / int(low)) ** 2),
    }


@torch.no_grad()
def measure_memory(sizes: Sizes, quick: bool) -> dict:
    """Peak memory of the head and of the transcription, each in a process of its own."""
    classes, patches = sizes.classes[2], sizes.memory_grid**2
    case = {"grid": sizes.memory_grid, "classes": classes}
    if not Path("/proc/self/clear_refs").exists():
        return {**case, "not_measured": "only Linux can reset a process's peak"}
    needed = 4 * classes * patches**2
    case["cnn_tensor_bytes"] = needed
    inputs = Inputs(SceneEncoder(DIMENSION), one_window(sizes.memory_grid), class_names(classes))
    tensors = {
        "images": inputs.images,
        "patches": inputs.features.patches.contiguous(),
        "attention": inputs.features.attention.contiguous(),
        "text": inputs.text,
        "descriptions": inputs.descriptions,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.safetensors"
        save_file(tensors, path)
        del inputs, tensors
        for what in ("head", "transcription"):
            available = available_memory()
            if what == "transcription" and available < 1.1 * needed + 2**30:
                return {
                    **case,
                    "not_measured": f"the transcription's (C, N, N) tensor has {needed / 1e9:.1f} "
                    f"GB, and {available / 1e9:.1f} GB are free",
                }
            print(f"memory of the {what}", file=sys.stderr, flush=True)
            script = Path(__file__).with_name("peak_memory.py")
            command = [sys.executable, str(script), what, str(path)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            case[what] = json.loads(output.splitlines()[-1])
    return {
        **case,
        "over_transcription": case["head"]["extra_bytes"] / case["transcription"]["extra_bytes"],
    }


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    raise KeyError("MemAvailable")
