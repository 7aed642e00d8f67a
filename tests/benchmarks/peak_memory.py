"""Peak memory of one call, above what was there before it, in a process of its own (Linux).

    python tests/benchmarks/peak_memory.py head|transcription INPUTS.safetensors

INPUTS holds `images`, `patches`, `attention`, `text` and `descriptions` of one window. Prints JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from encoders import SceneEncoder
from inputs import AMBIGUITY_THRESHOLD, REDUNDANCY_THRESHOLD
from safetensors.torch import load_file
from torch import Tensor
from transcription import purify

from freecp_d2.clip import DenseFeatures
from freecp_d2.purification import PurificationHead


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


def measure(purify: Callable[[dict[str, Tensor]], object], inputs: dict[str, Tensor]) -> dict:
    """Bytes and seconds of `purify(inputs)`, after a run on a smaller grid."""
    side = inputs["images"].shape[-1] // 4 // 16 * 16
    count = (side // 16) ** 2
    purify(
        {
            **inputs,
            "images": F.interpolate(inputs["images"], (side, side)),
            "patches": inputs["patches"][:, :count],
            "attention": inputs["attention"][:, :count, :count].contiguous(),
        }
    )
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = resident("VmHWM")
    start = time.perf_counter()
    result = purify(inputs)
    seconds = time.perf_counter() - start
    extra = resident("VmHWM") - before
    return {"extra_bytes": extra, "seconds": seconds, "kept": int(result.kept.sum())}


def main() -> None:
    """Measure one of the two."""
    what, path = sys.argv[1:]
    inputs = load_file(path)
    encoder = SceneEncoder(inputs["text"].shape[1])
    head = PurificationHead(REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD)

    @torch.no_grad()
    def run(inputs: dict[str, Tensor]) -> object:
        images = inputs["images"]
        grid = (images.shape[2] // 16, images.shape[3] // 16)
        cls = inputs["patches"][:, 0]
        features = DenseFeatures(inputs["patches"], cls, inputs["attention"], grid)
        arguments = (images, features, inputs["text"], inputs["descriptions"], encoder)
        if what == "head":
            return head(*arguments)
        return purify(*arguments, REDUNDANCY_THRESHOLD, AMBIGUITY_THRESHOLD)

    print(json.dumps(measure(run, inputs)))


if __name__ == "__main__":
    main()
