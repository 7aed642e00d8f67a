"""A whole image, from uint8 to label map, by every encoder beside the transcription."""

import ctypes
import sys
import time
from dataclasses import replace
from functools import partial

import open_clip
import torch
from encoders import CPU, METHOD, ROOT, SceneEncoder, bare_forward, class_names, pace_model, scene
from inputs import (
    AMBIGUITY_THRESHOLD,
    DIMENSION,
    REDUNDANCY_THRESHOLD,
    SEED,
    Sizes,
    image_windows,
)
from peak_memory import resident
from rounds import Timed, interleaved, milliseconds, ratio
from torch import Tensor
from transcription import dense_features, segment

from freecp_d2 import FreeCP, load_config
from freecp_d2.clip import DenseCLIP
from freecp_d2.clip.engine import EngineCLIP
from freecp_d2.clip.matmul import multiplies_in_bf16
from freecp_d2.data import Vocabulary
from freecp_d2.purification.stages import CROP_SIZE
from freecp_d2.timing import StageTimer


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


def encoders_of(vit: open_clip.CLIP, low: open_clip.CLIP) -> dict[str, DenseCLIP]:
    """The image tower in every precision and by every engine that this CPU has.

    Args:
        vit, low: of the same weights, in float32 and in bfloat16.
    """
    engine = partial(EngineCLIP, vit, METHOD)
    rounded = {"bf16_matmul": DenseCLIP(vit, METHOD, bf16_matmul=True)}
    return {
        "fp32": DenseCLIP(vit, METHOD),
        **(rounded if multiplies_in_bf16() else {}),
        "bf16": DenseCLIP(low, METHOD),
        "fp32, compiled": DenseCLIP(vit, METHOD, compile=True),
        "bf16, compiled": DenseCLIP(low, METHOD, compile=True),
        "OpenVINO, fp32": engine(engine="openvino"),
        "OpenVINO, bf16": engine(engine="openvino", bf16=True),
        "onnxruntime, fp32": engine(engine="onnxruntime"),
    }


def first_call(encoder: DenseCLIP, windows: Tensor) -> tuple[Tensor, dict]:
    """Patch features of the windows; its seconds, and the bytes that the process grows by."""
    ctypes.CDLL(None).malloc_trim(0)
    before, start = resident("VmRSS"), time.perf_counter()
    patches = encoder(windows).patches
    seconds = time.perf_counter() - start
    grown = resident("VmRSS") - before
    return patches, {"first_call_seconds": seconds, "first_call_bytes": grown}


@torch.no_grad()
def measure_image(sizes: Sizes, quick: bool) -> dict:
    """FreeCP by every encoder, the bare forward and the transcription, in turn."""
    classes, threshold = sizes.classes[1], (REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD)
    vit = pace_model(quick, 224)
    encoders = encoders_of(vit, pace_model(quick, 224, precision="bf16"))
    paced = {
        name: SceneEncoder(DIMENSION, CPU, encoder, encoder.encode_cls)
        for name, encoder in encoders.items()
    }
    crop = pace_model(quick, CROP_SIZE[0])
    plain = SceneEncoder(
        DIMENSION, CPU, partial(dense_features, vit, METHOD), partial(bare_forward, crop)
    )
    model = whole_image_model(sizes, classes, paced["fp32"])
    words, image = model.words, scene(SEED, *sizes.image)
    windows = image_windows(sizes)
    bare = pace_model(quick, sizes.window)
    stage_seconds: list[dict[str, float]] = []

    def freecp(name: str) -> Tensor:
        model.encoder = paced[name]
        model.timer = StageTimer()
        labels = model([{"image": image}])[0]["label_map"]
        if name == "fp32":
            away = paced[name].away_seconds
            ambiguity = model.timings["ambiguity"] - away
            stage_seconds.append({**model.timings, "ambiguity": ambiguity})
        return labels

    def transcribed() -> Tensor:
        return segment(
            *(image, words.text, words.descriptions, plain, *threshold, 0),
            *(sizes.window, sizes.stride, sizes.image),
        )[1]

    print(f"whole image, {len(windows)} windows", file=sys.stderr, flush=True)
    found = {name: first_call(encoder, windows) for name, encoder in encoders.items()}
    exact, _ = found["fp32"]
    agreement = (freecp("fp32") == transcribed()).float().mean().item()
    runs = {
        "bare": Timed(partial(bare_forward, bare, windows)),
        "cls": Timed(partial(encoders["fp32"].encode_cls, windows)),
        "dense": Timed(partial(encoders["fp32"], windows)),
        "transcription": Timed(transcribed, plain),
        **{name: Timed(partial(freecp, name), encoder) for name, encoder in paced.items()},
    }
    samples = interleaved(runs, sizes.rounds, CPU)
    times = {name: sample["seconds"] for name, sample in samples.items()}
    crops = {name: int(samples[name]["crops"][-1]) for name in ("fp32", "transcription")}
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
        "transcription_ms": milliseconds(times["transcription"]),
        "stage_ms": {
            name: milliseconds([call[name] for call in stage_seconds[-sizes.rounds :]])
            for name in stage_seconds[0]
        },
        "over_bare": ratio(times["fp32"], times["bare"]),
        "over_encode_cls": ratio(times["fp32"], times["cls"]),
        "encoders": {
            name: {
                "ms": milliseconds(times[name]),
                "over_transcription": ratio(times[name], times["transcription"]),
                "with_crops_over_transcription": ratio(
                    samples[name]["with_crops"], samples["transcription"]["with_crops"]
                ),
                "one_minus_cosine": (1 - (patches * exact).sum(dim=-1)).max().item(),
                **first,
            }
            for name, (patches, first) in found.items()
        },
    }
