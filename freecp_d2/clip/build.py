"""The frozen CLIP of a config."""

import logging
from functools import cache

from detectron2.config import CfgNode

from .dense import DenseCLIP
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
        FileNotFoundError, ValueError: as :func:`load_clip` and :func:`check_normalisation`.
    """
    clip, model = cfg.MODEL.CLIP, cfg.MODEL
    check_normalisation(clip.NAME, clip.PRETRAINED, model.PIXEL_MEAN, model.PIXEL_STD)
    precision = precision_on(clip.PRECISION, model.DEVICE)
    if clip.PRECISION == "auto" and precision == BF16_MATMUL:
        _say_that_products_are_rounded()
    weights, tokenizer = load_clip(clip.NAME, clip.PRETRAINED, precision, model.DEVICE)
    options = base_method(clip.METHOD).from_config(cfg)
    encoder = DenseCLIP(
        weights,
        clip.METHOD,
        affinity=cfg.MODEL.FREECP.AFFINITY,
        bf16_matmul=precision == BF16_MATMUL,
        compile=clip.COMPILE,
        cuda_graphs=cfg.MODEL.FREECP.COMPILE,
        **options,
    )
    return encoder, TextEncoder(weights, tokenizer, clip.TEXT_CACHE or None)
