"""The image encoder for other runtimes."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.export import ExportedProgram

from ..clip import DenseCLIP
from ..clip.program import Cls, Everything, window_program
from ..clip.runtimes import as_onnx, as_openvino, required
from ..purification.stages import CROP_SIZE


def encoder_program(encoder: DenseCLIP, window: int) -> ExportedProgram:
    """What :meth:`DenseCLIP.forward` computes of windows of one size, any number of them at once.

    Args:
        encoder: of float32 weights, on the CPU. Products are in float32, also with `bf16_matmul`.
        window: side in pixels.

    Returns:
        A program `pixels` -> {`patches`, `cls`, `affinity`}: normalised (N, 3, window, window) ->
        (N, P, D) and (N, D) of unit length, and (N, P, P), :attr:`DenseFeatures.attention`; all
        float32. The positional embedding is resampled beforehand.

    Raises:
        ValueError: a base method that reads the words, or that torch.export cannot follow; other
            weights; a window smaller than a patch.
    """
    return window_program(encoder, (window, window), Everything)


def crop_program(encoder: DenseCLIP) -> ExportedProgram:
    """What :meth:`DenseCLIP.encode_cls` computes of the crops of the ambiguity stage (step 6).

    Returns:
        A program `pixels` -> {`cls`}: normalised (N, 3, 112, 112) -> (N, D) of unit length, all
        float32.

    Raises:
        ValueError: other weights than float32.
    """
    return window_program(encoder, CROP_SIZE, Cls)


def save(program: ExportedProgram, path: Path, format: str) -> None:
    """Write a program that returns a dict of tensors, whose keys name the outputs.

    Args:
        path: its suffix is :data:`SUFFIXES`'. OpenVINO's weights lie beside it, in a .bin.
        format: one of :data:`FORMATS`.

    Raises:
        ValueError: the format has no counterpart for what the program computes, or a package is
            missing.
    """
    FORMATS[format](program, path)


def _save_torch(program: ExportedProgram, path: Path) -> None:
    torch.export.save(program, path)


def _save_onnx(program: ExportedProgram, path: Path) -> None:
    as_onnx(program).save(path)


def _save_openvino(program: ExportedProgram, path: Path) -> None:
    required("openvino").save_model(as_openvino(program), path, compress_to_fp16=False)


FORMATS: dict[str, Callable[[ExportedProgram, Path], None]] = {
    "torch": _save_torch,
    "onnx": _save_onnx,
    "openvino": _save_openvino,
}
"""Name -> what writes a program."""
SUFFIXES: dict[str, str] = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
"""Of the file of a format."""
