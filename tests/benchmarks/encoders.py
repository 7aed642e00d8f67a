"""Encoders of the benchmark: what they find is SceneCLIP's, what they cost is a ViT-B/16's.

Purification on noise is no measurement, and there are no weights of ViT-B/16 here. So the ViT-B/16
runs with random weights and its output is dropped; in its place come the features that SceneCLIP,
trained on the embedded scenes, has for the same pixels, zero-padded to ViT-B/16's dimension. Patch
size and grid are the same.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from freecp_d2.clip import DenseCLIP, DenseFeatures, load_clip
from freecp_d2.clip.loading import PRECISIONS
from freecp_d2.clip.text import encode_sentences
from freecp_d2.data.scenes import CLASSES, draw_scene

ROOT = Path(__file__).resolve().parents[2]
SCENE_CLIP = ROOT / "freecp_d2" / "data" / "scenes" / "scene_clip"
METHOD = "clearclip"
CPU = torch.device("cpu")
MEAN, STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)
ADJECTIVES = (
    *("red", "blue", "green", "yellow", "black", "white", "brown", "gray", "small", "large"),
    *("old", "new", "dark", "bright", "wet", "round", "tall", "wooden", "painted", "broken"),
)


def class_names(count: int) -> list[str]:
    """The scenes' 41 classes, then each with an adjective: at most 861 names."""
    names = [*CLASSES, *(f"{word} {name}" for word in ADJECTIVES for name in CLASSES)]
    if count > len(names):
        raise ValueError(f"{count} names wanted; there are {len(names)}")
    return names[:count]


def scene(seed: int, height: int, width: int) -> Tensor:
    """A scene (3, H, W) uint8, RGB."""
    image = torch.from_numpy(draw_scene(seed, height, width).image.copy())
    return image.permute(2, 0, 1).contiguous()


def normalize(images: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) as CLIP wants it."""
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return (images.float() - mean) / std


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class SceneEncoder(DenseCLIP):
    """SceneCLIP, zero-padded to `dimension`, that counts its crops and the time they take.

    Args:
        dimension: of the features.
        pace_dense, pace_cls: run for their cost alone, on the same images.

    Attributes:
        crops: how many were encoded since :meth:`reset`.
        crop_seconds: what `pace_cls` took for them (SceneCLIP itself, without one).
        away_seconds: the time inside of `encode_cls`, SceneCLIP's included.
    """

    def __init__(
        self,
        dimension: int = 512,
        device: str | torch.device = "cpu",
        pace_dense: Callable[[Tensor], object] | None = None,
        pace_cls: Callable[[Tensor], object] | None = None,
    ):
        config, weights = SCENE_CLIP.with_suffix(".json"), SCENE_CLIP.with_suffix(".safetensors")
        model, self.tokenizer = load_clip(str(config), str(weights), "fp32", device)
        super().__init__(model, METHOD)
        self.device = torch.device(device)
        self.padding = (0, dimension - model.visual.output_dim)
        self.pace_dense, self.pace_cls = pace_dense, pace_cls
        self.seen: dict[bytes, DenseFeatures] = {}
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.crops, self.crop_seconds, self.away_seconds = 0, 0.0, 0.0

    def forward(self, images: Tensor) -> DenseFeatures:
        """SceneCLIP's features, computed once an image and remembered."""
        if self.pace_dense is not None:
            self.pace_dense(images)
        key = images[:, :, ::61, ::61].cpu().numpy().tobytes()
        if key not in self.seen:
            features = super().forward(images)
            self.seen[key] = dataclasses.replace(
                features,
                patches=F.pad(features.patches, self.padding),
                cls=F.pad(features.cls, self.padding),
            )
        return self.seen[key]

    def encode_cls(self, images: Tensor) -> Tensor:
        """As DenseCLIP's."""
        synchronize(self.device)
        start = time.perf_counter()
        if self.pace_cls is not None:
            self.pace_cls(images)
            synchronize(self.device)
            self.crop_seconds += time.perf_counter() - start
        embeddings = F.pad(super().encode_cls(images), self.padding)
        synchronize(self.device)
        self.away_seconds += time.perf_counter() - start
        if self.pace_cls is None:
            self.crop_seconds = self.away_seconds
        self.crops += len(images)
        return embeddings

    def text(self, names: list[str], sentence: str = "a photo of a {}.") -> Tensor:
        """(Q, dimension) features of one sentence a name."""
        sentences = [[sentence.format(name)] for name in names]
        features = encode_sentences(self.model, self.tokenizer, sentences)
        return F.pad(features, self.padding).to(self.device)


def pace_model(
    quick: bool, side: int, device: torch.device = CPU, precision: str = "auto"
) -> open_clip.CLIP:
    """ViT-B/16 of random weights for images of `side`; `quick`: one of SceneCLIP's make.

    Precision "auto": fp16 on CUDA, fp32 elsewhere.
    """
    torch.manual_seed(0)
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    if not quick:
        model = open_clip.create_model(
            "ViT-B-16", force_image_size=side, precision=precision, device=device
        )
    else:
        config = json.loads(SCENE_CLIP.with_suffix(".json").read_text())
        config["vision_cfg"]["image_size"] = side
        dtype = PRECISIONS[precision]
        model = open_clip.CLIP(**config, cast_dtype=dtype).to(device)
        if precision != "fp32":
            open_clip.convert_weights_to_lp(model, dtype)
    return model.eval().requires_grad_(False)


def bare_forward(model: open_clip.CLIP, images: Tensor) -> Tensor:
    """CLIP's own embeddings (B, D) of float32 images, which it wants in its weights' precision."""
    return model.encode_image(images.to(model.visual.conv1.weight.dtype))
