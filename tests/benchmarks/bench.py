"""FreeCP's cost beside the bare CLIP forward and a plain transcription of METHOD.md.

    python tests/benchmarks/bench.py             # minutes; what `make bench` runs
    python tests/benchmarks/bench.py --quick     # small sizes, to see that it runs

Writes bench.json and bench.png to --output and prints the tables as Markdown. What is compared
runs in turn, round after round in one process; a ratio is taken in every round, and its median and
quartiles are reported. Crops of the ambiguity stage are encoded, counted and timed, but taken out
of all times that do not say "with crops". What the encoders are: encoders.py.
"""

import argparse
import json
import logging
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from encoders import (
    METHOD,
    ROOT,
    SceneEncoder,
    class_names,
    normalize,
    pace_model,
    scene,
    synchronize,
)
from safetensors.torch import save_file
from tabulate import tabulate
from torch import Tensor
from transcription import dense_features, purify, segment

from freecp_d2 import FreeCP, load_config, ops
from freecp_d2.clip import DenseCLIP, DenseFeatures
from freecp_d2.data import Vocabulary
from freecp_d2.meta_arch import windows_of
from freecp_d2.purification import PurificationHead, stages

REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD = 0.05, 0.7
PATCH, SEED, DIMENSION = 16, 1000, 512
STAGES = ("class_activation_maps", "box_mask", "sinkhorn_affinity", "refine", "consistency")


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        image, window, stride: in pixels; the first head case takes these windows, all at once.
        grids: sides of the further head cases, of one window each.
        classes: of the head cases; the targets speak of the second (whole image, growth), the
            third (head, memory) and the fourth (growth).
        memory_grid: side of the window whose peak memory is measured.
    """

    image: tuple[int, int] = (448, 597)
    window: int = 384
    stride: int = 112
    grids: tuple[int, ...] = (32, 64)
    classes: tuple[int, int, int, int] = (20, 150, 171, 847)
    memory_grid: int = 64
    rounds: int = 7


QUICK = Sizes(
    image=(128, 160),
    window=96,
    stride=32,
    grids=(8, 12),
    classes=(4, 12, 16, 44),
    memory_grid=24,
    rounds=3,
)


@dataclass
class Part:
    """What is timed: `run`, less the time that `encoder` spends on crops meanwhile."""

    run: Callable[[], object]
    encoder: SceneEncoder | None = None


def interleaved(
    parts: dict[str, Part], rounds: int, device: torch.device
) -> dict[str, dict[str, list[float]]]:
    """Of every part and round, after a warm-up.

    `seconds` without crops; `with_crops`, what they cost included; `crops`, how many; and `away`,
    what was taken out.
    """
    keys = ("seconds", "with_crops", "crops", "away")
    samples: dict[str, dict[str, list[float]]] = {name: {key: [] for key in keys} for name in parts}
    for round_ in range(-1, rounds):
        for name, part in parts.items():
            if part.encoder is not None:
                part.encoder.reset()
            synchronize(device)
            start = time.perf_counter()
            part.run()
            synchronize(device)
            seconds = time.perf_counter() - start
            encoder = part.encoder
            away, crop_seconds, crops = (
                (encoder.away_seconds, encoder.crop_seconds, encoder.crops)
                if encoder
                else (0, 0, 0)
            )
            seconds -= away
            if round_ >= 0:
                values = (seconds, seconds + crop_seconds, crops, away)
                for key, value in zip(keys, values, strict=True):
                    samples[name][key].append(value)
    return samples


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "q1": q1, "q3": q3}


def milliseconds(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles in milliseconds."""
    return spread([1000 * s for s in seconds])


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios, round by round."""
    return spread([n / d for n, d in zip(numerator, denominator, strict=True)])


def slope(low: list[float], high: list[float], factor: float) -> dict[str, float]:
    """Median and quartiles of the log-log slope, when the size grows `factor`-fold."""
    return spread([math.log(b / a) / math.log(factor) for a, b in zip(low, high, strict=True)])


def image_windows(sizes: Sizes) -> Tensor:
    """The windows (B, 3, H, W) of the scene, normalised."""
    pixels = normalize(scene(SEED, *sizes.image))
    windows = windows_of(0, sizes.image, sizes.window, sizes.stride)
    return torch.stack([pixels[:, w.rows, w.columns] for w in windows])


def one_window(grid: int) -> Tensor:
    """A scene of `grid` x `grid` patches, normalised (1, 3, H, W)."""
    return normalize(scene(SEED, grid * PATCH, grid * PATCH))[None]


class Inputs:
    """Windows, their features and all texts, on a device."""

    def __init__(self, encoder: SceneEncoder, images: Tensor, names: list[str]):
        self.encoder, self.images = encoder, images.to(encoder.device)
        self.features = encoder(self.images)
        self.text = encoder.text(names)
        self.descriptions = encoder.text(names, "a picture with a {} in it.")

    def arguments(self, classes: int, window: int | None = None) -> tuple:
        """The head's arguments for the first classes; `window`: of that one alone."""
        images, features = self.images, self.features
        if window is not None:
            own = slice(window, window + 1)
            images = images[own]
            features = DenseFeatures(
                features.patches[own], features.cls[own], features.attention[own], features.grid
            )
        text, descriptions = self.text[:classes], self.descriptions[:classes]
        return images, features, text, descriptions, self.encoder


def stage_parts(inputs: Inputs, classes: int) -> dict[str, Part]:
    """Every stage of steps 2 to 5 on its own."""
    features, text = inputs.features, inputs.text[:classes]
    scale = inputs.encoder.logit_scale
    probabilities, normalized = stages.class_activation_maps(
        features.patches, text, scale, features.grid
    )
    mask, affinity = ops.box_mask(normalized), ops.sinkhorn_affinity(features.attention)
    refined = ops.refine(affinity, normalized, mask)
    activation = partial(stages.class_activation_maps, features.patches, text, scale, features.grid)
    runs = (
        activation,
        partial(ops.box_mask, normalized),
        partial(ops.sinkhorn_affinity, features.attention),
        partial(ops.refine, affinity, normalized, mask),
        partial(stages.consistency, probabilities, refined),
    )
    return {name: Part(run) for name, run in zip(STAGES, runs, strict=True)}


@torch.no_grad()
def measure_head(sizes: Sizes, quick: bool, device: torch.device) -> tuple[list, list, dict]:
    """Cases of the head over the bare forward, its stages, and how its time grows."""
    encoder = SceneEncoder(DIMENSION, device)
    names = class_names(max(sizes.classes))
    without = PurificationHead(REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD, ambiguity=False)
    head = PurificationHead(REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD)
    batches = [image_windows(sizes), *(one_window(grid) for grid in sizes.grids)]
    cases, profile, growth = [], [], {}
    every = [Inputs(encoder, images, names) for images in batches]
    for inputs in every:
        first = inputs is every[0]
        count, side = len(inputs.images), inputs.features.grid[0]
        bare = pace_model(quick, side * PATCH, device)
        parts = {"bare": Part(partial(bare.encode_image, inputs.images))}
        for classes in sizes.classes:
            arguments = inputs.arguments(classes)
            parts[f"steps 2-5, {classes}"] = Part(partial(without, *arguments))
            parts[f"steps 2-6, {classes}"] = Part(partial(head, *arguments), encoder)
            if first:
                alone = [inputs.arguments(classes, window) for window in range(count)]
                parts[f"transcription, {classes}"] = Part(
                    lambda alone=alone: [
                        purify(*one, REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD) for one in alone
                    ],
                    encoder,
                )
        print(f"head, {count} windows of {side}x{side}", file=sys.stderr, flush=True)
        samples = interleaved(parts, sizes.rounds, device)
        del bare, parts
        floor = samples["bare"]["seconds"]
        for classes in sizes.classes:
            result = head(*inputs.arguments(classes))
            own = samples[f"steps 2-5, {classes}"]["seconds"]
            full = samples[f"steps 2-6, {classes}"]
            case = {
                "grid": side,
                "windows": count,
                "classes": classes,
                "kept_redundancy": int(result.kept_redundancy.sum()),
                "kept": int(result.kept.sum()),
                "crops": full["crops"][-1],
                "bare_ms": milliseconds(floor),
                "steps_2_5_ms": milliseconds(own),
                "steps_2_6_ms": milliseconds(full["seconds"]),
                "steps_2_5_over_bare": ratio(own, floor),
                "steps_2_6_over_bare": ratio(full["seconds"], floor),
            }
            if first:
                plain = samples[f"transcription, {classes}"]["seconds"]
                case["transcription_ms"] = milliseconds(plain)
                case["over_transcription"] = ratio(full["seconds"], plain)
            cases.append(case)
            timed = interleaved(stage_parts(inputs, classes), sizes.rounds, device)
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
    growth["grid"] = measure_grid_growth(sizes, every, head, device)
    return cases, profile, growth


def grown(low: list[float], high: list[float], factor: float) -> dict[str, dict[str, float]]:
    """The ratio of times and the log-log slope."""
    return {"ratio": ratio(high, low), "slope": slope(low, high, factor)}


def measure_grid_growth(
    sizes: Sizes, every: list[Inputs], head: PurificationHead, device: torch.device
) -> dict:
    """From the smallest grid to the largest, one window each; the slope is that over patches."""
    classes = sizes.classes[2]
    parts = {
        str(inputs.features.grid[0]): Part(
            partial(head, *inputs.arguments(classes, 0)), inputs.encoder
        )
        for inputs in every
    }
    samples = interleaved(parts, sizes.rounds, device)
    low, *_, high = samples
    return {
        "from": int(low),
        "to": int(high),
        "classes": classes,
        **grown(samples[low]["seconds"], samples[high]["seconds"], (int(high) / int(low)) ** 2),
    }


@torch.no_grad()
def measure_image(sizes: Sizes, quick: bool, device: torch.device) -> dict:
    """A whole image, from uint8 to label map, beside the bare forward and the transcription."""
    classes, threshold = sizes.classes[1], (REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD)
    vit = pace_model(quick, 224, device)
    pace = DenseCLIP(vit, METHOD)
    own = SceneEncoder(DIMENSION, device, pace, pace.encode_cls)
    plain = SceneEncoder(DIMENSION, device, partial(dense_features, vit, METHOD), pace.encode_cls)
    shared = SceneEncoder(DIMENSION, device, pace)
    bf16 = DenseCLIP(pace_model(quick, 224, device, "bf16"), METHOD)
    half = SceneEncoder(DIMENSION, device, bf16, bf16.encode_cls)

    overrides = {
        "MODEL.DEVICE": str(device),
        "MODEL.CLIP.NAME": "freecp_d2://scenes/scene_clip.json",
        "MODEL.CLIP.PRETRAINED": "freecp_d2://scenes/scene_clip.safetensors",
        "MODEL.CLIP.PRECISION": "fp32",
        "MODEL.CLIP.TEXT_CACHE": "",
        "MODEL.FREECP.WINDOW": sizes.window,
        "MODEL.FREECP.STRIDE": sizes.stride,
        "MODEL.FREECP.REDUNDANCY_THRESHOLD": REDUNDANCY_THRESHOLD,
        "MODEL.FREECP.AMBIGUITY_THRESHOLD": AMBIGUITY_THRESHOLD,
        "MODEL.FREECP.DESCRIPTIONS": "",
        "MODEL.FREECP.OUTPUT": "label_map",
    }
    opts = [item for pair in overrides.items() for item in pair]
    cfg = load_config(str(ROOT / f"configs/scenes/{METHOD}.yaml"), opts)
    names = class_names(classes)
    model = FreeCP(cfg, vocabulary=Vocabulary.from_names(names)).eval()
    model.encoder = own
    words = model.words = replace(
        model.words,
        text=own.text(names),
        descriptions=own.text(names, "a picture with a {} in it."),
    )

    image = scene(SEED, *sizes.image)
    windows = image_windows(sizes).to(device)
    bare = pace_model(quick, sizes.window, device)

    stage_seconds: list[dict[str, float]] = []

    def freecp() -> Tensor:
        model.encoder = own
        model.reset_timings()
        labels = model([{"image": image}])[0]["label_map"]
        stage_seconds.append(
            {**model.timings, "ambiguity": model.timings["ambiguity"] - own.away_seconds}
        )
        return labels

    def freecp_bf16() -> Tensor:
        model.encoder = half
        return model([{"image": image}])[0]["label_map"]

    def transcribed(encoder: SceneEncoder) -> Tensor:
        return segment(
            *(image.to(device), words.text, words.descriptions, encoder, *threshold, 0),
            *(sizes.window, sizes.stride, sizes.image),
        )[1]

    print(f"whole image, {len(windows)} windows", file=sys.stderr, flush=True)
    agreement = (freecp() == transcribed(plain)).float().mean().item()
    samples = interleaved(
        {
            "bare": Part(partial(bare.encode_image, windows)),
            "cls": Part(partial(pace.encode_cls, windows)),
            "dense": Part(partial(pace, windows)),
            "freecp": Part(freecp, own),
            "bf16": Part(freecp_bf16, half),
            "transcription": Part(partial(transcribed, plain), plain),
            "shared": Part(partial(transcribed, shared), shared),
        },
        sizes.rounds,
        device,
    )
    times = {name: sample["seconds"] for name, sample in samples.items()}
    crops = {name: int(samples[name]["crops"][-1]) for name in ("freecp", "transcription")}
    return {
        "size": list(sizes.image),
        "windows": len(windows),
        "classes": classes,
        "label_agreement_with_transcription": agreement,
        "crops": crops,
        "crop_ms": {
            name: milliseconds(
                [
                    (both - alone) / max(crops[name], 1)
                    for both, alone in zip(samples[name]["with_crops"], times[name], strict=True)
                ]
            )
            for name in crops
        },
        "bare_ms": milliseconds(times["bare"]),
        "encode_cls_ms": milliseconds(times["cls"]),
        "dense_ms": milliseconds(times["dense"]),
        "freecp_ms": milliseconds(times["freecp"]),
        "freecp_stage_ms": {
            name: milliseconds([call[name] for call in stage_seconds[-sizes.rounds :]])
            for name in stage_seconds[0]
        },
        "transcription_ms": milliseconds(times["transcription"]),
        "transcription_with_our_encoder_ms": milliseconds(times["shared"]),
        "dense_over_bare": ratio(times["dense"], times["bare"]),
        "over_bare": ratio(times["freecp"], times["bare"]),
        "over_encode_cls": ratio(times["freecp"], times["cls"]),
        "over_transcription": ratio(times["freecp"], times["transcription"]),
        "bf16_ms": milliseconds(times["bf16"]),
        "bf16_over_bare": ratio(times["bf16"], times["bare"]),
        "bf16_over_transcription": ratio(times["bf16"], times["transcription"]),
        "over_transcription_with_our_encoder": ratio(times["freecp"], times["shared"]),
        "with_crops_over_transcription": ratio(
            samples["freecp"]["with_crops"], samples["transcription"]["with_crops"]
        ),
    }


@torch.no_grad()
def measure_memory(sizes: Sizes) -> dict:
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


@torch.no_grad()
def measure_operators(sizes: Sizes, quick: bool, device: torch.device) -> dict:
    """Each operator's rate beside what the device reaches on a copy and on a matrix product.

    Bytes are those that must move, each operand once; soft_iou's operations are additions, minima
    and maxima of all pairs, which no matrix unit does.
    """
    inputs = Inputs(
        SceneEncoder(DIMENSION, device), image_windows(sizes), class_names(sizes.classes[2])
    )
    _, features, text, _, encoder = inputs.arguments(sizes.classes[2])
    _, maps = stages.class_activation_maps(
        features.patches, text, encoder.logit_scale, features.grid
    )
    attention = features.attention.contiguous()
    mask, affinity = ops.box_mask(maps), ops.sinkhorn_affinity(attention)
    batch, classes, side, _ = maps.shape
    patches, one = side**2, maps[0].contiguous()
    product = min(2 * classes * patches**2, patches**3 + classes * patches**2)
    cases: dict[str, tuple[Callable[[], object], float, float]] = {
        "sinkhorn_affinity": (partial(ops.sinkhorn_affinity, attention), 2 * attention.nbytes, 0),
        "box_mask": (partial(ops.box_mask, maps), 2 * maps.nbytes, 0),
        "refine": (
            partial(ops.refine, affinity, maps, mask),
            affinity.nbytes + 3 * maps.nbytes,
            2 * batch * product,
        ),
        "soft_iou": (partial(ops.soft_iou, one), one.nbytes + 4 * classes**2, 0),
    }
    block = torch.rand(2**20 if quick else 2**26, device=device)
    matrix = torch.rand(2 * (256 if quick else 2048,), device=device)
    parts = {name: Part(run) for name, (run, _, _) in cases.items()}
    parts["copy"], parts["product"] = Part(block.clone), Part(partial(torch.matmul, matrix, matrix))
    samples = interleaved(parts, sizes.rounds, device)
    seconds = {name: statistics.median(sample["seconds"]) for name, sample in samples.items()}
    bandwidth = 2 * block.nbytes / seconds["copy"]
    rate = 2 * len(matrix) ** 3 / seconds["product"]
    return {
        "windows": batch,
        "grid": side,
        "classes": classes,
        "copy_gb_per_s": bandwidth / 1e9,
        "matrix_gflop_per_s": rate / 1e9,
        "operators": {
            name: {
                "ms": 1000 * seconds[name],
                "bandwidth_fraction": size / seconds[name] / bandwidth,
                "matrix_fraction": flop / seconds[name] / rate,
            }
            for name, (_, size, flop) in cases.items()
        },
    }


def machine(device: torch.device) -> dict:
    """What it ran on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    return {
        "device": name,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": "fp16" if device.type == "cuda" else "fp32",
    }


def measure(sizes: Sizes, quick: bool, device: torch.device) -> dict:
    """Everything, on one device."""
    cases, profile, growth = measure_head(sizes, quick, device)
    return {
        "machine": machine(device),
        "head": cases,
        "profile": profile,
        "growth": growth,
        "image": measure_image(sizes, quick, device),
        "operators": measure_operators(sizes, quick, device),
    }


def figures(report: dict, sizes: Sizes) -> list[dict]:
    """The issue's figures: what is to be reached, and what was measured."""
    cpu, gpu = report["cpu"], report["gpu"]
    head = next(case for case in cpu["head"] if case["classes"] == sizes.classes[2])
    image, memory = cpu["image"], report["memory"]
    over_memory = memory.get("over_transcription")
    rows = [
        (
            f"head without crop encodes, {head['windows']} windows of {head['grid']}x"
            f"{head['grid']}, {head['classes']} classes, over the bare forward",
            head["steps_2_6_over_bare"],
            ("at most", 0.05),
        ),
        (
            f"whole image {image['size'][0]}x{image['size'][1]}, {image['classes']} classes, over "
            f"the bare forward of its {image['windows']} windows",
            image["over_bare"],
            ("at most", 1.15),
        ),
        ("the same, over DenseCLIP.encode_cls of the windows", image["over_encode_cls"], None),
        ("the same, over the transcription", image["over_transcription"], ("at most", 0.6)),
        ("with the crops", image["with_crops_over_transcription"], None),
        (
            "with the encoder in bf16, over the transcription",
            image["bf16_over_transcription"],
            None,
        ),
        (
            f"peak memory of the head, {memory['grid']}x{memory['grid']}, {memory['classes']} "
            "classes, over the transcription",
            over_memory and {"median": over_memory},
            ("at most", 0.05),
        ),
    ]
    for axis, unit in (("classes", "classes"), ("grid", "patches a side")):
        grows = cpu["growth"][axis]
        rows.append(
            (f"head time from {grows['from']} to {grows['to']} {unit}", grows["ratio"], None)
        )
        rows.append(("its log-log slope", grows["slope"], None))
    for label, found, target in (
        ("GPU: head over the fp16 forward", gpu_figure(gpu, "head", sizes), ("at most", 0.15)),
        ("GPU: images/s over the transcription", gpu_figure(gpu, "image", sizes), ("at least", 10)),
    ):
        rows.append((label, found, target))
    return [
        {
            "figure": label,
            "to_reach": f"{target[0]} {target[1]}" if target else "stated",
            "measured": found,
            "reached": None if not target or not found else reached(found["median"], *target),
        }
        for label, found, target in rows
    ]


def reached(value: float, bound: str, target: float) -> bool:
    """Whether a value is on the right side."""
    return value <= target if bound == "at most" else value >= target


def gpu_figure(gpu: dict | str, what: str, sizes: Sizes) -> dict | None:
    """The GPU's figure of the head or of images per second, if there is a GPU."""
    if isinstance(gpu, str):
        return None
    if what == "head":
        cases = (case for case in gpu["head"] if case["classes"] == sizes.classes[2])
        return next(cases)["steps_2_6_over_bare"]
    over = gpu["image"]["with_crops_over_transcription"]
    return {"median": 1 / over["median"], "q1": 1 / over["q3"], "q3": 1 / over["q1"]}


def text_of(value: dict | None) -> str:
    """Median and quartiles as text."""
    if not value:
        return "not measured"
    if "q1" not in value:
        return f"{value['median']:.3g}"
    return f"{value['median']:.3g} ({value['q1']:.3g} to {value['q3']:.3g})"


def markdown(report: dict) -> str:
    """The tables."""
    words = {True: "yes", False: "no", None: ""}
    table = partial(tabulate, tablefmt="github")
    lines = [
        table(
            [
                (row["figure"], row["to_reach"], text_of(row["measured"]), words[row["reached"]])
                for row in report["figures"]
            ],
            headers=("figure", "to reach", "median (quartiles)", "reached"),
        )
    ]
    for device in ("cpu", "gpu"):
        found = report[device]
        if isinstance(found, str):
            continue
        profile = {(row["grid"], row["classes"]): row for row in found["profile"]}
        rows = []
        for case in found["head"]:
            stage = profile[case["grid"], case["classes"]]
            rows.append(
                (
                    f"{case['windows']} x {case['grid']}x{case['grid']}",
                    case["classes"],
                    f"{case['bare_ms']['median']:.0f}",
                    f"{case['steps_2_5_ms']['median']:.1f}",
                    f"{case['steps_2_6_ms']['median']:.1f}",
                    f"{case['steps_2_6_over_bare']['median']:.3f}",
                    *(f"{stage[f'{name}_ms']['median']:.1f}" for name in STAGES),
                )
            )
        lines.append(f"\nHead on {found['machine']['device']}, milliseconds\n")
        headers = ("windows", "classes", "bare CLIP", "steps 2-5", "steps 2-6", "over bare")
        lines.append(table(rows, headers=(*headers, *STAGES)))
        image = found["image"]
        stages_of = ", ".join(
            f"{name} {s['median']:.0f}" for name, s in image["freecp_stage_ms"].items()
        )
        lines.append(
            f"\nWhole image: bare forward {image['bare_ms']['median']:.0f} ms "
            f"(DenseCLIP.encode_cls {image['encode_cls_ms']['median']:.0f} ms), dense features "
            f"{image['dense_ms']['median']:.0f} ms, FreeCP {image['freecp_ms']['median']:.0f} ms "
            f"({stages_of}), with the encoder in bf16 {image['bf16_ms']['median']:.0f} ms, "
            f"transcription {image['transcription_ms']['median']:.0f} ms (with our encoder "
            f"{image['transcription_with_our_encoder_ms']['median']:.0f} ms). Crops come on top: "
            f"{image['crops']['freecp']} of {image['crop_ms']['freecp']['median']:.1f} ms each "
            f"(transcription: {image['crops']['transcription']} of "
            f"{image['crop_ms']['transcription']['median']:.1f} ms). Label maps agree in "
            f"{100 * image['label_agreement_with_transcription']:.2f} % of pixels."
        )
        rates = found["operators"]
        lines.append(
            f"\nOperators, {rates['windows']} windows of {rates['grid']}x{rates['grid']}, "
            f"{rates['classes']} classes, over a copy ({rates['copy_gb_per_s']:.0f} GB/s) and a "
            f"matrix product ({rates['matrix_gflop_per_s']:.0f} GFLOP/s)\n"
        )
        rows = [
            (
                name,
                f"{o['ms']:.2f}",
                f"{o['bandwidth_fraction']:.2f}",
                f"{o['matrix_fraction']:.2f}",
            )
            for name, o in rates["operators"].items()
        ]
        headers = ("operator", "ms", "of bandwidth", "of matrix rate")
        lines.append(table(rows, headers=headers))
    memory = report["memory"]
    if "not_measured" in memory:
        lines.append(f"\nMemory: not measured, {memory['not_measured']}.")
    else:
        peaks = [memory[what]["extra_bytes"] / 1e6 for what in ("head", "transcription")]
        lines.append(f"\nPeak memory: head {peaks[0]:.0f} MB, transcription {peaks[1]:.0f} MB.")
    return "\n".join(lines)


def draw(report: dict, path: Path) -> None:
    """The plot: head, whole image, memory, stages."""
    cpu = report["cpu"]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    cases = cpu["head"]
    (head, image), (memory, stage) = axes
    for grid in dict.fromkeys(case["grid"] for case in cases):
        own = [case for case in cases if case["grid"] == grid]
        over = [case["steps_2_6_over_bare"] for case in own]
        median = [o["median"] for o in over]
        error = [
            [o["median"] - o["q1"] for o in over],
            [o["q3"] - o["median"] for o in over],
        ]
        label = f"{own[0]['windows']} of {grid}x{grid}"
        x = [case["classes"] for case in own]
        head.errorbar(x, median, error, marker="o", capsize=3, label=label)
    head.axhline(0.05, color="gray", linestyle=":", label="to reach")
    head.set(xscale="log", yscale="log", xlabel="classes", title="head / bare CLIP forward")
    ticks = [case["classes"] for case in cases if case["grid"] == cases[0]["grid"]]
    head.set_xticks(ticks, [str(classes) for classes in ticks], rotation=90)
    head.set_yticks([0.002, 0.005, 0.01, 0.02, 0.05])
    head.yaxis.set_major_formatter("{x:g}")
    head.minorticks_off()
    head.legend(loc="lower right", fontsize=8)

    found = cpu["image"]
    bars = {
        "bare CLIP": "bare_ms",
        "dense features": "dense_ms",
        "FreeCP": "freecp_ms",
        "FreeCP, bf16 encoder": "bf16_ms",
        "transcription,\nour encoder": "transcription_with_our_encoder_ms",
        "transcription": "transcription_ms",
    }
    medians = [found[key]["median"] / 1000 for key in bars.values()]
    image.bar_label(image.barh(list(bars), medians), fmt=" %.2f s")
    image.invert_yaxis()
    image.set(title=f"whole image, {found['classes']} classes, without crops", xlabel="seconds")
    image.margins(x=0.2)

    found = report["memory"]
    title = f"peak memory, {found['grid']}x{found['grid']}, {found['classes']} classes"
    if "not_measured" in found:
        memory.text(0.5, 0.5, "not measured", ha="center", transform=memory.transAxes)
        memory.axis("off")
    else:
        peaks = {what: found[what]["extra_bytes"] / 1e9 for what in ("head", "transcription")}
        memory.bar_label(memory.barh(list(peaks), list(peaks.values())), fmt=" %.2f GB")
        memory.invert_yaxis()
        memory.margins(x=0.3)
        memory.set(xlabel="GB")
    memory.set_title(title)

    rows = [f"{r['grid']}x{r['grid']}, {r['classes']}" for r in cpu["profile"]]
    left = [0.0] * len(rows)
    for name in STAGES:
        values = [r[f"{name}_ms"]["median"] / r["windows"] for r in cpu["profile"]]
        stage.bar(range(len(rows)), values, bottom=left, label=name)
        left = [a + b for a, b in zip(left, values, strict=True)]
    stage.set_xticks(range(len(rows)), rows, fontsize=7, rotation=90)
    stage.set(title="stages of the head, a window (grid, classes)", ylabel="milliseconds")
    stage.legend(fontsize=8)
    figure.suptitle(f"{cpu['machine']['device']}, {cpu['machine']['threads']} threads, fp32")
    figure.savefig(path, dpi=120)
    plt.close(figure)


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

    args.output.mkdir(parents=True, exist_ok=True)
    draw(report, args.output / "bench.part.png")
    part = args.output / "bench.part.json"
    part.write_text(json.dumps(report, indent=1) + "\n")
    for suffix in ("png", "json"):
        (args.output / f"bench.part.{suffix}").rename(args.output / f"bench.{suffix}")
    print(markdown(report))


if __name__ == "__main__":
    main()
