"""What is measured: sizes, windows of a scene, their features and texts."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from encoders import SceneEncoder, normalize, scene
from torch import Tensor

from freecp_d2.clip import DenseFeatures
from freecp_d2.clip.matmul import multiplies_in_bf16
from freecp_d2.sliding_window import windows_of

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
            third (head, memory) and the fourth (head, growth).
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
            alone = slice(window, window + 1)
            images = images[alone]
            features = DenseFeatures(
                features.patches[alone],
                features.cls[alone],
                features.attention[alone],
                features.grid,
            )
        text, descriptions = self.text[:classes], self.descriptions[:classes]
        return images, features, text, descriptions, self.encoder


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
        "features": [] if device.type == "cuda" else cpu_features(),
    }


def cpu_features() -> list[str]:
    """What torch says of the CPU's units, and whether oneDNN rounds to bfloat16 there."""
    units = [name for name, value in torch.cpu.get_capabilities().items() if value is True]
    return [*units, *(["multiplies_in_bf16"] if multiplies_in_bf16() else [])]
