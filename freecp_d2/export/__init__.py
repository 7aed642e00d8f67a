"""FreeCP for other runtimes: PyTorch's own programs, ONNX, OpenVINO."""

import math
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from ..clip.loading import precision_on
from ..data.mapper import resize_shortest_edge
from ..data.scenes import HEIGHT, WIDTH, draw_scene
from ..meta_arch import FreeCP
from ..words import Words
from .check import Agreement, compare
from .description import describe, write_description, write_features
from .encoder import crop_program, encoder_program, save
from .head import head_program, save_head

__all__ = ["Agreement", "check_exportable", "export"]

CHECKED_SCENE = 120
"""Which of the drawn scenes an export is tried on."""
LEAST_EQUAL = 0.99
"""An export that labels fewer of its pixels as the model does is not written."""


def check_exportable(cfg: CfgNode) -> str:
    """What is to be said of the model of a config when it is exported; "" where there is nothing.

    Raises:
        ValueError: it cannot be exported.
    """
    freecp, precision = cfg.MODEL.FREECP, cfg.MODEL.CLIP.PRECISION
    side, key = min((cfg.INPUT[key], key) for key in ("MIN_SIZE_TEST", "MAX_SIZE_TEST"))
    refusals = (
        (
            not freecp.ENABLED,
            "MODEL.FREECP.ENABLED is False: a base method alone has no head to export; set it True",
        ),
        (
            freecp.PROTOCOL != "same",
            f"MODEL.FREECP.PROTOCOL is {freecp.PROTOCOL}, of base methods alone, which are not "
            "exported; set it to same",
        ),
        (
            not freecp.WINDOW or not freecp.STRIDE,
            "MODEL.FREECP.WINDOW or STRIDE is 0, the whole image at once, and an exported model "
            "has one size; set both",
        ),
        (
            0 < side < freecp.WINDOW,
            f"INPUT.{key} is {side}, less than MODEL.FREECP.WINDOW {freecp.WINDOW}: images would "
            "be smaller than the one size of an exported model; reduce the window",
        ),
        (
            freecp.AFFINITY_PROVIDER,
            f"MODEL.FREECP.AFFINITY_PROVIDER {freecp.AFFINITY_PROVIDER} is not exported; set it "
            "to ''",
        ),
        (
            freecp.RELATIONS,
            f"MODEL.FREECP.RELATIONS {freecp.RELATIONS} are not exported; set it to ''",
        ),
        (
            freecp.SYNONYM_THRESHOLD,
            f"MODEL.FREECP.SYNONYM_THRESHOLD {freecp.SYNONYM_THRESHOLD} is not exported; set it "
            "to 0",
        ),
        (
            freecp.ADAPTER,
            f"MODEL.FREECP.ADAPTER {freecp.ADAPTER} is not exported; set it to ''",
        ),
        (
            freecp.REFINE != "none",
            f"MODEL.FREECP.REFINE {freecp.REFINE} is not exported; set it to none",
        ),
        (
            precision in ("fp16", "bf16"),
            f"MODEL.CLIP.PRECISION is {precision}, and what is exported is in float32; set fp32",
        ),
    )
    for refused, why in refusals:
        if refused:
            raise ValueError(why)
    multiplied = precision_on(precision, cfg.MODEL.DEVICE)
    if multiplied == "fp32":
        return ""
    return f"MODEL.CLIP.PRECISION {precision} is {multiplied} here; exported as fp32"


def export(model: FreeCP, cfg: CfgNode, words: Words, format: str, folder: Path) -> Agreement:
    """Write the programs, the features of the words and description.json, and try them.

    Args:
        model: of `cfg`, on the CPU, in float32.
        format: "torch", "onnx" or "openvino".
        folder: where; it is made.

    Returns:
        How it agrees with `model` on a drawn image.

    Raises:
        ValueError: a base method or a precision that cannot be exported, a package that is missing,
            or a result that differs from the model's.
    """
    encoder, window = model.encoder, cfg.MODEL.FREECP.WINDOW
    rows, columns = encoder.patch_size
    description = describe(cfg, encoder, model.head, words, format)
    files = {name: folder / p["file"] for name, p in description["programs"].items()}
    folder.mkdir(parents=True)
    save(encoder_program(encoder, window), files["encoder"], format)
    save(crop_program(encoder), files["crops"], format)
    queries, features = words.text.shape
    program = head_program(
        model.head,
        encoder.logit_scale,
        (window // rows, window // columns),
        features,
        queries,
        words.num_background,
    )
    save_head(program, files["head"], format)
    write_features(folder, words)
    write_description(folder, description)
    agreement = compare(model, words, folder, description, [_drawn_image(cfg)])
    worst = max(agreement.differences.values())
    if agreement.equal < LEAST_EQUAL or not math.isfinite(worst):
        raise ValueError(
            f"the exported model labels {100 * agreement.equal:.2f} % of the pixels of a drawn "
            f"image as torch does, and differs by up to {worst:.1e}; choose another --format"
        )
    return agreement


def _drawn_image(cfg: CfgNode) -> dict[str, Any]:
    """A scene of which no side is shorter than a window."""
    short_side, long_side = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if not short_side:
        short_side, long_side = cfg.MODEL.FREECP.WINDOW, 2 * cfg.MODEL.FREECP.WINDOW
    height, width = HEIGHT, min(WIDTH, max(HEIGHT, HEIGHT * long_side // short_side))
    scene = draw_scene(CHECKED_SCENE, height, width).image
    image = resize_shortest_edge(scene, short_side, long_side)
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    return {"image": pixels.flip(0) if cfg.INPUT.FORMAT == "BGR" else pixels} | {
        "height": height,
        "width": width,
    }
