"""How far FreeCP is from the floor, the bare CLIP forward over the same windows.

    python tests/benchmarks/floor.py

The parts are timed in turn, round after round, and reported as ratios of medians, since machines
are noisy.
"""

import statistics
import time
from collections.abc import Callable

import open_clip
import torch
from torch import Tensor

from freecp_d2.clip import DenseCLIP
from freecp_d2.purification import PurificationHead

ROUNDS = 7
WINDOWS, SIDE, CLASSES = 2, 384, 171


def interleaved(parts: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of every part."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for part in parts.values():
        part()
    for _ in range(ROUNDS):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


@torch.inference_mode()
def main() -> None:
    """Time ViT-B/16 of random weights with 171 random classes."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-16")
    encoder = DenseCLIP(model, "clearclip")
    head = PurificationHead(0.1, 0.7)
    images = torch.randn(WINDOWS, 3, SIDE, SIDE)
    text = torch.nn.functional.normalize(torch.randn(CLASSES, 512), dim=-1)
    features = encoder(images)

    def purify() -> Tensor:
        return head(images, features, text, text, encoder).maps

    seconds = interleaved(
        {
            "bare CLIP": lambda: encoder.encode_cls(images),
            "DenseCLIP": lambda: encoder(images),
            "PurificationHead": purify,
        }
    )
    floor = seconds["bare CLIP"]
    print(f"{WINDOWS} windows of {SIDE}, {CLASSES} classes, {torch.get_num_threads()} CPU threads")
    for name, value in seconds.items():
        print(f"{name:18} {1000 * value:8.1f} ms   {value / floor:5.2f} x bare CLIP")


if __name__ == "__main__":
    main()
