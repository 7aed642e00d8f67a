"""Affinity by the likeness of another ViT's features, as ProxyCLIP takes it of DINO.

ProxyCLIP (Lan et al., ECCV 2024) takes the cosine of patch features of the last block, after the
final norm. Those below `beta` times the window's mean are cut off, and `gamma` times the others go
through a softmax. Read off proxyclip_segmentor.py and open_clip/transformer.py (custom_attn) of
github.com/mc-lan/ProxyCLIP.
"""

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from huggingface_hub import hf_hub_url
from torch import Tensor, nn

from ..clip.hub import cached_file, why_unreachable
from ..clip.loading import BF16_MATMUL, PRECISIONS, precision_on
from ..clip.matmul import bf16_matmul
from ..files import local_path
from ..sliding_window import Window
from .provider import AFFINITY_PROVIDERS, SourceImage, WindowAffinity

_FAMILIES = ["vision_transformer", "eva"]
"""Modules of timm whose ViTs take any grid: DINO and DINOv2 in the first, DINOv3 in the second."""
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def cosine_affinity(
    features: Tensor, grid: tuple[int, int], beta: float = 1.2, gamma: float = 3.0
) -> Tensor:
    """Affinity of patches from features on a grid of their own.

    They are resampled bilinearly to `grid`. A patch always stays like itself, where ProxyCLIP
    would give NaN because no cosine reaches `beta` times their mean.

    Args:
        features: (B, D, h', w') floating.
        grid: (h, w) of the patches, N = h * w.
        beta: cosines below this times their mean over the window become 0.
        gamma: what the others are multiplied by before the softmax; above 0.

    Returns:
        (B, N, N) float32 of at least 0, whose rows sum to 1.
    """
    with torch.autocast(features.device.type, enabled=False):
        resampled = F.interpolate(
            features.float(), grid, mode="bilinear", align_corners=False, antialias=True
        )
        unit = F.normalize(resampled.flatten(2), dim=1)
        cosine = unit.mT @ unit
        above = cosine - beta * cosine.mean(dim=(1, 2), keepdim=True)
        itself = torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
        return (gamma * above).masked_fill((above < 0) & ~itself, -math.inf).softmax(dim=-1)


@AFFINITY_PROVIDERS.register()
class TimmViT(nn.Module):
    """The likeness of features of a frozen ViT of timm, such as DINO, DINOv2 or DINOv3.

    Args:
        vit: a VisionTransformer or Eva of timm that was made with `dynamic_img_size`; its
            `pretrained_cfg` says how it wants pixels normalised.
        beta, gamma: see :func:`cosine_affinity`.
        pixel_mean, pixel_std: of RGB, 0-255, by which windows are normalised for CLIP.
        bf16_matmul: multiply float32 in bfloat16 on CPUs; see MODEL.CLIP.PRECISION.

    Raises:
        ValueError: beta is not finite, or gamma not above 0.
    """

    @configurable
    def __init__(
        self,
        *,
        vit: Any,
        beta: float = 1.2,
        gamma: float = 3.0,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        bf16_matmul: bool = False,
    ):
        super().__init__()
        if not math.isfinite(beta):
            raise ValueError(f"MODEL.FREECP.AFFINITY_VIT_BETA is {beta}; give a number")
        if not 0 < gamma < math.inf:
            raise ValueError(f"MODEL.FREECP.AFFINITY_VIT_GAMMA is {gamma}; it must be above 0")
        self.vit = vit.eval().requires_grad_(False)
        self.beta = beta
        self.gamma = gamma
        self.bf16_matmul = bf16_matmul
        wanted = vit.pretrained_cfg
        mean, std = (torch.tensor(wanted[key]).view(3, 1, 1) for key in ("mean", "std"))
        # From CLIP's normalisation to this ViT's.
        scale = torch.tensor(pixel_std).view(3, 1, 1) / 255 / std
        shift = (torch.tensor(pixel_mean).view(3, 1, 1) / 255 - mean) / std
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments from a config."""
        freecp, model = cfg.MODEL.FREECP, cfg.MODEL
        vit = load_vit(freecp.AFFINITY_VIT, freecp.AFFINITY_VIT_WEIGHTS)
        precision = precision_on(model.CLIP.PRECISION, model.DEVICE)
        return {
            "vit": vit.to(model.DEVICE, PRECISIONS.get(precision, torch.float32)),
            "bf16_matmul": precision == BF16_MATMUL,
            "beta": freecp.AFFINITY_VIT_BETA,
            "gamma": freecp.AFFINITY_VIT_GAMMA,
            "pixel_mean": model.PIXEL_MEAN,
            "pixel_std": model.PIXEL_STD,
        }

    def train(self, mode: bool = True) -> "TimmViT":
        """Stay in eval mode: the ViT is frozen."""
        return super().train(False)

    def of_images(
        self, images: Sequence[SourceImage], patch_size: tuple[int, int]
    ) -> WindowAffinity:
        """See :class:`.provider.AffinityProvider`. It needs the windows' pixels alone."""

        def affinity(windows: Sequence[Window], pixels: Tensor) -> Tensor:
            (height, width), (rows, columns) = pixels.shape[2:], patch_size
            grid = height // rows, width // columns
            features = self.features(pixels[:, :, : grid[0] * rows, : grid[1] * columns])
            return cosine_affinity(features, grid, self.beta, self.gamma)

        return affinity

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Patch features (B, D, h', w') of the last block, after the final norm.

        Args:
            pixels: (B, 3, H, W) normalised for CLIP; resampled to whole patches of this ViT.
        """
        sides = zip(pixels.shape[2:], self.vit.patch_embed.patch_size, strict=True)
        grid = [(max(round(side / patch), 1), patch) for side, patch in sides]
        size = [count * patch for count, patch in grid]
        pixels = pixels * self.get_buffer("scale") + self.get_buffer("shift")
        if list(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        with bf16_matmul(self.bf16_matmul, pixels.device):
            tokens = self.vit.forward_features(pixels.to(self.vit.patch_embed.proj.weight.dtype))
        patches = tokens[:, self.vit.num_prefix_tokens :]
        return patches.mT.unflatten(2, [count for count, _ in grid])


def load_vit(name: str, weights: str = "") -> nn.Module:
    """A ViT of timm in float32, for any size of image.

    Args:
        name: timm's, of a ViT that was trained without classes, such as vit_base_patch8_224.dino.
        weights: the path of its state dict (.safetensors, or .pth of which tensors alone are
            read), as timm or its authors publish it; "": timm's own, from the Hugging Face hub.

    Raises:
        FileNotFoundError: no such file, or the hub does not answer.
        ValueError: no such ViT, or weights that are damaged or of another model.
    """
    key = "MODEL.FREECP.AFFINITY_VIT"
    try:
        source = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the model has not
        source = None
    if source is None:
        known = timm.list_models(pretrained=True, module=_FAMILIES)
        close = difflib.get_close_matches(name, known) or ["vit_base_patch8_224.dino"]
        raise ValueError(f"{key} {name!r} is no model of timm; did you mean {', '.join(close)}?")
    if not timm.models.is_model_in_modules(name, _FAMILIES):
        raise ValueError(
            f"{key} {name} is no plain ViT; choose one such as vit_base_patch8_224.dino"
        )
    if source.num_classes:
        raise ValueError(
            f"{key} {name} was trained on {source.num_classes} classes; choose a ViT without, such "
            "as vit_base_patch8_224.dino"
        )
    file = _weights_file(name, weights, source.hf_hub_id or "")
    overlay = {"file": str(file)} if file else None
    options: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except Exception as error:  # damaged bytes make the readers fail in any way
        raise ValueError(
            f"{key}_WEIGHTS: {file or source.hf_hub_id} is damaged, or no state dict of {name} "
            f"({' '.join(str(error).split())[:200]}); fetch it again"
        ) from error


def _weights_file(name: str, weights: str, repository: str) -> Path | None:
    """The file of the weights where it is on this machine; None: the hub has it."""
    key = "MODEL.FREECP.AFFINITY_VIT_WEIGHTS"
    if weights:
        file = local_path(weights)
        if not file.is_file():
            raise FileNotFoundError(f"{key}: there is no file {file}; check the path")
        return file
    cached = cached_file(repository, _HUB_FILES)
    if cached is None:
        url = hf_hub_url(repository, _HUB_FILES[0])
        if why := why_unreachable(url):
            raise FileNotFoundError(
                f"{key} is empty, and the weights of {name} are not on this machine and cannot be "
                f"downloaded ({why}); go online once, set HF_ENDPOINT to a mirror, or fetch {url} "
                "elsewhere and set the key to its path"
            )
    return cached
