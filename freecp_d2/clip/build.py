"""The frozen CLIP of a config."""

import logging
from functools import cache

from detectron2.config import CfgNode

from .dense import DenseCLIP
from .engine import EngineCLIP, bf16_on
from .loading import BF16_MATMUL, check_normalisation, load_clip, precision_on
from .methods import base_method
from .text import TextEncoder

log = logging.getLogger(__name__)


@cache
def _say_that_products_are_rounded() -> None:
    log.info(
        "MODEL.CLIP.PRECISION auto is %s: this CPU multiplies in bfloat16; fp32 is "
        "exact and slower",
        BF16_MATMUL,
    )


def build_clip(cfg: CfgNode) -> tuple[DenseCLIP, TextEncoder]:
    """The image encoder and the text encoder of MODEL.CLIP.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_clip`, :func:`check_normalisation`,
            :func:`.engine.bf16_on` and :class:`.engine.EngineCLIP`; or MODEL.CLIP.COMPILE with
            another engine than torch.
    """
    clip, model = cfg.MODEL.CLIP, cfg.MODEL
    check_normalisation(clip.NAME, clip.PRETRAINED, model.PIXEL_MEAN, model.PIXEL_STD)
    options = base_method(clip.METHOD).from_config(cfg)
    options["affinity"] = cfg.MODEL.FREECP.AFFINITY
    encoder: DenseCLIP
    if clip.ENGINE == "torch":
        precision = precision_on(clip.PRECISION, model.DEVICE)
        if clip.PRECISION == "auto" and precision == BF16_MATMUL:
            _say_that_products_are_rounded()
        weights, tokenizer = load_clip(clip.NAME, clip.PRETRAINED, precision, model.DEVICE)
        encoder = DenseCLIP(
            weights,
            clip.METHOD,
            bf16_matmul=precision == BF16_MATMUL,
            compile=clip.COMPILE,
            cuda_graphs=cfg.MODEL.FREECP.COMPILE,
            **options,
        )
    elif clip.COMPILE:
        raise ValueError(
            f"MODEL.CLIP.COMPILE is PyTorch's, and MODEL.CLIP.ENGINE is {clip.ENGINE}; set COMPILE "
            "False, or ENGINE torch"
        )
    else:
        bf16 = bf16_on(clip.ENGINE, clip.PRECISION, model.DEVICE)
        weights, tokenizer = load_clip(clip.NAME, clip.PRETRAINED, "fp32", model.DEVICE)
        encoder = EngineCLIP(weights, clip.METHOD, engine=clip.ENGINE, bf16=bf16, **options)
    return encoder, TextEncoder(weights, tokenizer, clip.TEXT_CACHE or None)
