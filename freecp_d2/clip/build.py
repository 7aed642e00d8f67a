"""The frozen CLIP of a config."""

from detectron2.config import CfgNode

from .dense import DenseCLIP
from .loading import check_normalisation, load_clip
from .methods import base_method
from .text import TextEncoder


def build_clip(cfg: CfgNode) -> tuple[DenseCLIP, TextEncoder]:
    """The image encoder and the text encoder of MODEL.CLIP.

    Raises:
        FileNotFoundError, ValueError: as :func:`load_clip` and :func:`check_normalisation`.
    """
    clip, model = cfg.MODEL.CLIP, cfg.MODEL
    check_normalisation(clip.NAME, clip.PRETRAINED, model.PIXEL_MEAN, model.PIXEL_STD)
    weights, tokenizer = load_clip(clip.NAME, clip.PRETRAINED, clip.PRECISION, model.DEVICE)
    options = base_method(clip.METHOD).from_config(cfg)
    encoder = DenseCLIP(weights, clip.METHOD, affinity=cfg.MODEL.FREECP.AFFINITY, **options)
    return encoder, TextEncoder(weights, tokenizer, clip.TEXT_CACHE or None)
