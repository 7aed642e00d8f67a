"""DenseCLIP on windows of one size as a program of torch.export, for other runtimes."""

import copy

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from . import blocks
from .dense import DenseCLIP
from .runtimes import reason


class Everything(nn.Module):
    """All that :meth:`DenseCLIP.forward` computes."""

    def __init__(self, encoder: DenseCLIP):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """`patches`, `cls` and `affinity` of (N, 3, H, W)."""
        features = self.encoder(pixels)
        return {
            "patches": features.patches,
            "cls": features.cls,
            "affinity": features.attention,
        }


class WithoutAffinity(Everything):
    """What it computes where it is given an affinity."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """`patches` and `cls` of (N, 3, H, W)."""
        features = self.encoder(pixels, affinity=pixels)  # it is handed on as it is
        return {"patches": features.patches, "cls": features.cls}


class Patches(Everything):
    """What :meth:`DenseCLIP.encode_dense` computes."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """`patches` of (N, 3, H, W)."""
        return {"patches": self.encoder.encode_patches(pixels)[0]}


class Cls(Everything):
    """What :meth:`DenseCLIP.encode_cls` computes."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """`cls` of (N, 3, H, W)."""
        return {"cls": self.encoder.encode_cls(pixels)}


def window_program(
    encoder: DenseCLIP, size: tuple[int, int], reading: type[Everything]
) -> ExportedProgram:
    """A program `pixels` (N, 3, H, W) float32 -> a dict of float32 tensors, for any N.

    The positional embedding is resampled beforehand. Products are in float32.

    Args:
        encoder: of float32 weights, on the CPU.
        size: height and width in pixels.
        reading: what the dict holds.

    Raises:
        ValueError: a base method that torch.export cannot follow, or that :func:`require_no_words`
            refuses; other weights; windows smaller than a patch.
    """
    if reading is not Cls:
        require_no_words(encoder)
    module = reading(_at_one_size(encoder, size))
    pixels = torch.zeros(2, 3, *size)
    try:
        return torch.export.export(module, (pixels,), dynamic_shapes=({0: Dim("windows")},))
    except Exception as error:  # of any kind, by what it cannot follow
        raise ValueError(
            f"MODEL.CLIP.METHOD {encoder.method}: torch.export cannot follow it "
            f"({reason(error)}); choose another base method"
        ) from error


def require_no_words(encoder: DenseCLIP) -> None:
    """Refuse a base method that reads patches once more for the words of a vocabulary.

    Raises:
        ValueError: it does.
    """
    rows, columns = encoder.patch_size
    # 36 patches: of 30 or fewer, SC-CLIP and SFP say that they look for no outliers.
    *_, reread = encoder.encode_dense(torch.zeros(1, 3, 6 * rows, 6 * columns))
    if reread is not None:
        remedy = "choose another base method"
        if encoder.method == "resclip":
            remedy = "set MODEL.CLIP.RESCLIP.USE_SFR False"
        raise ValueError(
            f"MODEL.CLIP.METHOD {encoder.method} reads images once more for the words, which "
            f"programs for other runtimes than torch cannot; {remedy}"
        )


def _at_one_size(encoder: DenseCLIP, size: tuple[int, int]) -> DenseCLIP:
    """The encoder with the positional embedding of `size`; it shares the other weights."""
    visual = encoder.model.visual
    if visual.proj.dtype != torch.float32:
        raise ValueError(
            f"weights in {visual.proj.dtype} are not exported; set MODEL.CLIP.PRECISION fp32"
        )
    rows, columns = encoder.patch_size
    if size[0] < rows or size[1] < columns:
        raise ValueError(
            f"windows of {size[0]}x{size[1]} pixels are smaller than a patch of {rows}x{columns}; "
            "enlarge MODEL.FREECP.WINDOW"
        )
    grid = size[0] // rows, size[1] // columns
    position = blocks.positional_embedding(visual, grid, encoder.base_method.antialias)
    visual = copy.deepcopy(visual, {id(weight): weight for weight in visual.parameters()})
    visual.grid_size = grid
    visual.positional_embedding = nn.Parameter(position, requires_grad=False)
    fixed = copy.copy(encoder)
    fixed._modules = {"model": nn.ModuleDict({"visual": visual})}  # without the text tower
    fixed.bf16_matmul = False
    fixed._run_blocks = fixed._run_window = fixed._pass_blocks  # the copy's own, not compiled
    return fixed
