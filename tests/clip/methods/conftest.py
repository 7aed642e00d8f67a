"""Vectors of base methods that have a CLIP of their own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from freecp_d2.clip import DenseCLIP

FOLDER = Path(__file__).parents[2] / "data" / "base_methods"
MEAN, STD = [122.771, 116.746, 104.094], [68.501, 66.632, 70.323]


@dataclass(frozen=True)
class Published:
    """What was recorded from the code of a method's authors; images are (3, H, W) uint8."""

    method: str
    cases: dict[str, dict]
    inputs: dict[str, Tensor]

    @property
    def folder(self) -> Path:
        return FOLDER / self.method

    def tensors(self, case: str) -> dict[str, Tensor]:
        with np.load(self.folder / f"{case}.npz") as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}

    def image(self, name: str) -> Tensor:
        """Normalised, (1, 3, H, W)."""
        return normalised(self.inputs[name])[None]

    def windows(self) -> Tensor:
        """Three windows of an image, normalised, (3, 3, 128, 128)."""
        image = self.image("large_image")[0]
        corners = ((0, 0), (60, 200), (130, 90))
        return torch.stack([image[:, y : y + 128, x : x + 128] for y, x in corners])

    def clip(self, dtype: torch.dtype = torch.float32, **options) -> DenseCLIP:
        config = json.loads((self.folder / "clip.json").read_text())
        model = open_clip.CLIP(**config, cast_dtype=None if dtype == torch.float32 else dtype)
        weights = load_file(self.folder / "clip.safetensors")
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and not any(key.startswith("visual") for key in missing)
        if dtype != torch.float32:
            open_clip.convert_weights_to_lp(model, dtype=dtype)
        return DenseCLIP(model, self.method, **options)


@pytest.fixture(scope="session")
def build_tiny_clip() -> Callable[[int], open_clip.CLIP]:
    """A CLIP of so many blocks, always with the same random weights."""

    def build(layers: int) -> open_clip.CLIP:
        torch.manual_seed(0)
        vision = {"image_size": 64, "layers": layers, "width": 64, "head_width": 16}
        text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 2, "layers": 1}
        return open_clip.CLIP(embed_dim=24, vision_cfg={**vision, "patch_size": 16}, text_cfg=text)

    return build


def normalised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() - mean) / std


@pytest.fixture(scope="session")
def published() -> Callable[[str], Published]:
    @cache
    def load(method: str) -> Published:
        cases = json.loads((FOLDER / method / "cases.json").read_text())
        return Published(method, cases, load_file(FOLDER / method / "inputs.safetensors"))

    return load
