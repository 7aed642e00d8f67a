"""What bench.py measures: the head, a whole image, peak memory."""

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from encoders import METHOD, ROOT, SceneEncoder, bare_forward, class_names, pace_model, scene
from inputs import (
    AMBIGUITY_THRESHOLD,
    DIMENSION,
    PATCH,
    REDUNDANCY_THRESHOLD,
    SEED,
    STAGES,
    Inputs,
    Sizes,
    image_windows,
    machine,
    one_window,
)
from ops import measure_operators
from rounds import Timed, grown, interleaved, milliseconds, ratio
from safetensors.torch import save_file
from torch import Tensor
from transcription import dense_features, purify, segment

from freecp_d2 import FreeCP, load_config, ops
from freecp_d2.clip import DenseCLIP
from freecp_d2.data import Vocabulary
from freecp_d2.purification import PurificationHead, stages
from freecp_d2.timing import StageTimer


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
        samples = interleaved(runs, sizes.rounds, device)
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
            timed = interleaved(stage_runs(inputs, classes), sizes.rounds, device)
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


def measure_grid_growth(
    sizes: Sizes, every: list[Inputs], head: PurificationHead, device: torch.device
) -> dict:
    """From the smallest grid to the largest, one window each; the slope is that over patches."""
    classes = sizes.classes[2]
    runs = {
        str(inputs.features.grid[0]): Timed(
            partial(head, *inputs.arguments(classes, 0)), inputs.encoder
        )
        for inputs in every
    }
    samples = interleaved(runs, sizes.rounds, device)
    low, *_, high = samples
    return {
        "from": int(low),
        "to": int(high),
        "classes": classes,
        **grown(samples[low]["seconds"], samples[high]["seconds"], (int(high) / int(low)) ** 2),
    }


def whole_image_model(
    sizes: Sizes, classes: int, encoder: SceneEncoder, settings: dict[str, object] | None = None
) -> FreeCP:
    """FreeCP with an encoder of the benchmark and `classes` words of its text features.

    Args:
        settings: config key -> value, beside those of the benchmark.
    """
    overrides = {
        "MODEL.DEVICE": str(encoder.device),
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
        **(settings or {}),
    }
    opts = [item for pair in overrides.items() for item in pair]
    cfg = load_config(str(ROOT / f"configs/scenes/{METHOD}.yaml"), opts)
    names = class_names(classes)
    model = FreeCP(cfg, vocabulary=Vocabulary.from_names(names)).eval()
    model.encoder = encoder
    model.words = replace(
        model.words,
        text=encoder.text(names),
        descriptions=encoder.text(names, "a picture with a {} in it."),
    )
    return model


@torch.no_grad()
def measure_image(sizes: Sizes, quick: bool, device: torch.device) -> dict:
    """A whole image, from uint8 to label map, beside the bare forward and the transcription."""
    classes, threshold = sizes.classes[1], (REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD)
    vit = pace_model(quick, 224, device)
    pace = DenseCLIP(vit, METHOD)
    ours = SceneEncoder(DIMENSION, device, pace, pace.encode_cls)
    plain = SceneEncoder(DIMENSION, device, partial(dense_features, vit, METHOD), pace.encode_cls)
    shared = SceneEncoder(DIMENSION, device, pace)
    bf16 = DenseCLIP(pace_model(quick, 224, device, "bf16"), METHOD)
    half = SceneEncoder(DIMENSION, device, bf16, bf16.encode_cls)

    model = whole_image_model(sizes, classes, ours)
    words = model.words
    image = scene(SEED, *sizes.image)
    windows = image_windows(sizes).to(device)
    bare = pace_model(quick, sizes.window, device)

    stage_seconds: list[dict[str, float]] = []

    def freecp() -> Tensor:
        model.encoder = ours
        model.timer = StageTimer()
        labels = model([{"image": image}])[0]["label_map"]
        stage_seconds.append(
            {**model.timings, "ambiguity": model.timings["ambiguity"] - ours.away_seconds}
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
            "bare": Timed(partial(bare_forward, bare, windows)),
            "cls": Timed(partial(pace.encode_cls, windows)),
            "dense": Timed(partial(pace, windows)),
            "freecp": Timed(freecp, ours),
            "bf16": Timed(freecp_bf16, half),
            "transcription": Timed(partial(transcribed, plain), plain),
            "shared": Timed(partial(transcribed, shared), shared),
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
def measure(sizes: Sizes, quick: bool, device: torch.device) -> dict:
    """Everything, on one device."""
    cases, profile, growth = measure_head(sizes, quick, device)
    classes = sizes.classes[2]
    inputs = Inputs(SceneEncoder(DIMENSION, device), image_windows(sizes), class_names(classes))
    return {
        "machine": machine(device),
        "head": cases,
        "profile": profile,
        "growth": growth,
        "image": measure_image(sizes, quick, device),
        "operators": measure_operators(inputs, classes, sizes, quick),
    }
