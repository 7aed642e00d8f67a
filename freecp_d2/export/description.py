"""description.json: what a program in another language must know to run an exported FreeCP."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from ..clip import DenseCLIP
from ..clip.digests import hash_of_tensors
from ..purification import PurificationHead
from ..purification.stages import CROP_SIZE
from ..words import Words
from .encoder import SUFFIXES
from .head import BOX_THRESHOLD

FORMAT_VERSION = 1
"""Counts up where a reader of an older one would go wrong."""
DESCRIPTION = "description.json"
FEATURES = ("text", "descriptions")
"""Of the words, each (Q, D) float32 of unit length, the background's first, in a .npy file."""
PROGRAMS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (("pixels",), ("patches", "cls", "affinity")),
    "crops": (("pixels",), ("cls",)),
    "head": (("patches", "affinity", "text"), ("refined", "consistency", "keep", "soft_iou")),
}
"""Name -> its inputs and outputs, in their order."""


def describe(
    cfg: CfgNode, encoder: DenseCLIP, head: PurificationHead, words: Words, format: str
) -> dict[str, Any]:
    """What description.json holds, but for the digests of the files; see docs/export.md.

    Args:
        cfg: of the model, with the protocol of its benchmark written into it.
        format: "torch", "onnx" or "openvino".
    """
    freecp, clip = cfg.MODEL.FREECP, cfg.MODEL.CLIP
    vocabulary = words.vocabulary
    rows, columns = encoder.patch_size
    suffix = SUFFIXES[format]
    return {
        "format_version": FORMAT_VERSION,
        "format": format,
        "programs": {
            name: {"file": f"{name}{suffix}", "inputs": [*inputs], "outputs": [*outputs]}
            for name, (inputs, outputs) in PROGRAMS.items()
        },
        "features": {name: f"{name}.npy" for name in FEATURES},
        "labels": [*vocabulary.class_names],
        "queries": [*vocabulary.queries],
        "query_label": words.query_channel.tolist(),
        "num_background": vocabulary.num_background,
        "image": {
            "channels": "RGB",
            "exif_orientation": cfg.INPUT.EXIF_ORIENTATION,
            "short_side": cfg.INPUT.MIN_SIZE_TEST,
            "long_side": cfg.INPUT.MAX_SIZE_TEST,
            "interpolation": "bilinear, without antialiasing, rounded to uint8 (cv2.INTER_LINEAR)",
            "mean": [*cfg.MODEL.PIXEL_MEAN],
            "std": [*cfg.MODEL.PIXEL_STD],
        },
        "window": freecp.WINDOW,
        "stride": freecp.STRIDE,
        "patch_size": [rows, columns],
        "logit_scale": encoder.logit_scale,
        "redundancy_threshold": head.redundancy_threshold if head.redundancy else None,
        "ambiguity_threshold": head.ambiguity_threshold if head.ambiguity else None,
        "consistency": freecp.CONSISTENCY,
        "boxes": {"threshold": BOX_THRESHOLD, "full_extent": head.box_full_extent},
        "crop_size": [*CROP_SIZE],
        "clip": {
            "name": clip.NAME,
            "pretrained": clip.PRETRAINED,
            "method": clip.METHOD,
            "affinity": freecp.AFFINITY,
            "sha256": hash_of_tensors(encoder.model.state_dict().items()).hexdigest(),
        },
    }


def write_features(folder: Path, words: Words) -> None:
    """The files of :data:`FEATURES`."""
    for name in FEATURES:
        np.save(folder / f"{name}.npy", getattr(words, name).numpy(), allow_pickle=False)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write description.json with the SHA-256 of all other files of the folder."""
    files = sorted(file for file in folder.iterdir() if file.name != DESCRIPTION)
    digests = {file.name: _sha256(file) for file in files}
    text = json.dumps({**description, "sha256": digests}, ensure_ascii=False, indent=1)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def files_of_export(folder: Path) -> set[str]:
    """The names of an earlier export's files; none where a folder holds no description.json."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        return {DESCRIPTION, *description["sha256"]}
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return set()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
