"""How a base method alone is run: as FreeCP is, or as its own authors run it (METHOD.md section 8).

Plain data, and the one function that writes it into a config.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from detectron2.config import CfgNode

from .catalog import PROTOCOL_WORDS, words_file
from .layout import BENCHMARKS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refinement:
    """What becomes of maps at the size of the output, by the image, before labels are taken.

    Attributes:
        pamr_steps: iterations of pixel-adaptive refinement; 0: none.
        pamr_dilations: of its neighbourhood, in pixels.
        tlp_grid: of text-aware propagation, before it; 0: none.
    """

    pamr_steps: int = 0
    pamr_dilations: tuple[int, ...] = (8, 16)
    tlp_grid: int = 0

    @property
    def enabled(self) -> bool:
        """Whether anything changes."""
        return bool(self.pamr_steps or self.tlp_grid)


UNREFINED = Refinement()

REFINEMENTS = ("none", "pamr", "tlp")
"""MODEL.FREECP.REFINE."""


@dataclass(frozen=True)
class BaseProtocol:
    """From an image to the labels of a base method alone.

    Attributes:
        authors: whose it is; "same": FreeCP's resize, windows and words.
        logit_scale: what cosine similarities are multiplied by before the softmax over queries.
        probability_threshold: a pixel whose best class has less than this becomes class 0.
        threshold_without_background: apply it also where class 0 is not a background.
        area_threshold: classes other than 0 with at most this share of the pixels that are not of
            class 0 are removed from the image; None: none is.
        pamr_steps: iterations of pixel-adaptive refinement on the cosine similarities; 0: none.
        pamr_dilations: of its neighbourhood, in pixels.
        tlp_grid: of text-aware propagation of the cosine similarities, in cells; 0: none.
        partial_patches: what becomes of a window that is no whole number of patches. "pad": zeros
            are added on both sides and cut off again. "stretch": the rest is not seen, and the map
            is stretched over the window.
        whole_image_at_once: without windows, resample once, from the patches to the original size;
            False: to the resized image's size first.
        short_side: that images are resized to, in pixels; None: INPUT.MIN_SIZE_TEST.
        window, stride: in pixels, 0: the whole image; None: MODEL.FREECP.WINDOW and STRIDE.
        words: a file of class names; "": the data set's own vocabulary.
        options: of the base method, keys of MODEL.CLIP.<METHOD> and their values.
    """

    authors: str
    logit_scale: float
    probability_threshold: float = 0.0
    threshold_without_background: bool = True
    area_threshold: float | None = None
    pamr_steps: int = 0
    pamr_dilations: tuple[int, ...] = (8, 16)
    tlp_grid: int = 0
    partial_patches: Literal["pad", "stretch"] = "stretch"
    whole_image_at_once: bool = True
    short_side: int | None = None
    window: int | None = None
    stride: int | None = None
    words: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def refinement(self) -> Refinement:
        """Of the cosine similarities, at the size of the output."""
        return Refinement(self.pamr_steps, self.pamr_dilations, self.tlp_grid)

    def resamples_once(self, window: int, stride: int) -> bool:
        """Whether with this window and stride the maps of an image are resampled once."""
        return not (window and stride) and self.whole_image_at_once


SAME = BaseProtocol(
    "same",
    logit_scale=50,
    threshold_without_background=False,
    partial_patches="pad",
    whole_image_at_once=False,
)
"""MODEL.FREECP.PROTOCOL "same"; its probability threshold is MODEL.FREECP.BACKGROUND_THRESHOLD."""

_SCLIP = BaseProtocol("SCLIP", logit_scale=40, window=224, stride=112)
_CLEARCLIP = BaseProtocol(
    "ClearCLIP", logit_scale=50, partial_patches="pad", window=448, stride=224
)
_NACLIP = BaseProtocol(
    "NACLIP", logit_scale=40, pamr_steps=10, whole_image_at_once=False, window=224, stride=112
)
_SCCLIP = BaseProtocol("SC-CLIP", logit_scale=40, window=224, stride=112)
_SFP = replace(_SCCLIP, authors="SFP")


def _by_benchmark(
    default: BaseProtocol, words: str, settings: Mapping[str, Mapping]
) -> Mapping[str | None, BaseProtocol]:
    return MappingProxyType(
        {None: default}
        | {
            name: replace(default, words=_words(words, name), **changes)
            for name, changes in settings.items()
        }
    )


def _words(kind: str, name: str) -> str:
    return words_file(kind, name) if name in PROTOCOL_WORDS[kind] else ""


SCLIP = _by_benchmark(
    _SCLIP,
    "sclip",
    {
        "voc21": {
            "short_side": 336,
            "logit_scale": 65,
            "probability_threshold": 0.1,
            "area_threshold": 0.1,
        },
        "voc20": {"short_side": 336},
        "pcontext60": {"short_side": 336, "logit_scale": 50, "probability_threshold": 0.1},
        "pcontext59": {"short_side": 336},
        "coco_object": {"short_side": 336, "logit_scale": 50, "probability_threshold": 0.1},
        "coco_stuff164k": {"short_side": 448},
        "ade20k": {"short_side": 336},
        "cityscapes": {"short_side": 560},
    },
)
"""Benchmark -> SCLIP's protocol; None: its defaults, for other data sets. See METHOD.md."""

CLEARCLIP = _by_benchmark(
    _CLEARCLIP,
    "clearclip",
    {
        "voc21": {"short_side": 448, "probability_threshold": 0.5},
        "voc20": {"short_side": 448},
        "pcontext60": {"short_side": 448, "probability_threshold": 0.15},
        "pcontext59": {"short_side": 448},
        "coco_object": {"short_side": 448, "probability_threshold": 0.4},
        "coco_stuff164k": {"short_side": 448},
        "ade20k": {"short_side": 448},
        "cityscapes": {"short_side": 448, "window": 224},
    },
)
"""ClearCLIP's, likewise."""

NACLIP = _by_benchmark(
    _NACLIP,
    "sclip",  # its lists are SCLIP's
    {
        "voc21": {"short_side": 336, "window": 0, "stride": 0, "probability_threshold": 0.1},
        "voc20": {"short_side": 336, "window": 0, "stride": 0},
        "pcontext60": {"short_side": 336, "probability_threshold": 0.1},
        "pcontext59": {"short_side": 336},
        "coco_object": {"short_side": 336, "probability_threshold": 0.1},
        "coco_stuff164k": {"short_side": 336},
        "ade20k": {"short_side": 336},
        "cityscapes": {"short_side": 560},
    },
)
"""NACLIP's, likewise."""

_SCCLIP_SETTINGS: Mapping[str, Mapping] = {
    "voc21": {
        "short_side": 336,
        "logit_scale": 50,
        "probability_threshold": 0.15,
        "area_threshold": 0.1,
    },
    "voc20": {"short_side": 336},
    "pcontext60": {"short_side": 336, "probability_threshold": 0.15},
    "pcontext59": {"short_side": 336},
    "coco_object": {"short_side": 336, "logit_scale": 55, "probability_threshold": 0.35},
    "coco_stuff164k": {"short_side": 336},
    "ade20k": {"short_side": 336},
    "cityscapes": {"short_side": 560},
}

SCCLIP = _by_benchmark(_SCCLIP, "sclip", _SCCLIP_SETTINGS)  # its lists are SCLIP's
"""SC-CLIP's, likewise."""

SFP = _by_benchmark(_SFP, "sfp", {**_SCCLIP_SETTINGS, "ade20k": {"short_side": 384}})
"""SFP's, likewise: SC-CLIP's but for ADE20K's short side, and for words."""

_RESCLIP = replace(
    _NACLIP, authors="ResCLIP", pamr_steps=0, options={"USE_SFR": True, "LOGIT_SCALE": 40.0}
)


def _resclip(
    temp_thd: float, rcs_share: float, sfr_scale: float, sfr_share: float, **settings: Any
) -> Mapping[str, Any]:
    options = {
        "TEMP_THD": temp_thd,
        "ATTN_RCS_WEIGHTS": (2.0, rcs_share),
        "ATTN_SFR_WEIGHTS": (sfr_scale, sfr_share),
    }
    return {"short_side": 336, "options": {**_RESCLIP.options, **options}, **settings}


_WHOLE = {"window": 0, "stride": 0}
RESCLIP = _by_benchmark(
    _RESCLIP,
    "sclip",  # its lists are SCLIP's
    {
        "voc21": _resclip(0.5, 0.3, 2.2, 0.7, probability_threshold=0.1, **_WHOLE),
        "voc20": _resclip(0.1, 0.6, 2.1, 0.6, **_WHOLE),
        "pcontext60": _resclip(0.3, 0.3, 1.8, 0.7, probability_threshold=0.1),
        "pcontext59": _resclip(0.25, 0.4, 1.8, 0.7),
        "coco_object": _resclip(0.11, 0.4, 1.8, 0.7, probability_threshold=0.1),
        "coco_stuff164k": _resclip(0.11, 0.4, 1.8, 0.7),
        "ade20k": _resclip(0.25, 0.3, 2.1, 0.7),
        "cityscapes": _resclip(0.1, 0.2, 2.1, 0.6, short_side=560),
    },
)
"""ResCLIP's, likewise: RCS and SFR."""

_PEARL = replace(_NACLIP, authors="PEARL", pamr_steps=0, tlp_grid=80, options={"ALPHA_KK": 0.08})
PEARL = _by_benchmark(
    _PEARL,
    "sclip",  # its lists are SCLIP's
    {
        "voc21": {"short_side": 336, "probability_threshold": 0.1, **_WHOLE},
        "voc20": {"short_side": 336, **_WHOLE},
        "pcontext60": {"short_side": 336, "probability_threshold": 0.1},
        "pcontext59": {"short_side": 336},
        "coco_object": {"short_side": 336, "probability_threshold": 0.1},
        "coco_stuff164k": {"short_side": 336},
        "ade20k": {"short_side": 336, "options": {"ALPHA_KK": 0.3}},
        "cityscapes": {"short_side": 560, "tlp_grid": 224, "options": {"ALPHA_KK": 0.3}},
    },
)
"""PEARL's, likewise: its alignment and its propagation."""

PAPER: Mapping[str, Mapping[str | None, BaseProtocol]] = MappingProxyType(
    {
        "maskclip": SCLIP,
        "sclip": SCLIP,
        "clearclip": CLEARCLIP,
        "gem": CLEARCLIP,
        "naclip": NACLIP,
        "scclip": SCCLIP,
        "sfp": SFP,
        "resclip": RESCLIP,
        "pearl": PEARL,
    }
)
"""Base method -> whose protocol its published row follows, by benchmark."""

PROTOCOLS = ("same", "paper")
LONG_SIDE = 2048
"""Pixels that the long side of a resized image has at most, in all of these."""


def base_protocol(cfg: CfgNode) -> BaseProtocol:
    """The protocol of a config's base method (MODEL.FREECP.PROTOCOL).

    Raises:
        ValueError: it is neither "same" nor "paper", or "paper" and the base method has none of
            its own, or DATASETS.TEST names several data sets with different ones, or FreeCP is off
            and MODEL.FREECP.REFINE asks for what the protocol settles; or as
            :func:`configured_refinement`.
    """
    freecp, method = cfg.MODEL.FREECP, cfg.MODEL.CLIP.METHOD
    if freecp.PROTOCOL not in PROTOCOLS:
        raise ValueError(
            f"MODEL.FREECP.PROTOCOL is {freecp.PROTOCOL!r}; choose one of {', '.join(PROTOCOLS)}"
        )
    if not 0 <= freecp.BACKGROUND_THRESHOLD <= 1:
        raise ValueError(
            f"MODEL.FREECP.BACKGROUND_THRESHOLD is {freecp.BACKGROUND_THRESHOLD}; give a number "
            "from 0 to 1"
        )
    refinement = configured_refinement(cfg)
    if freecp.PROTOCOL == "same":
        return replace(SAME, probability_threshold=freecp.BACKGROUND_THRESHOLD, **vars(refinement))
    if method not in PAPER:
        raise ValueError(
            f"MODEL.FREECP.PROTOCOL paper: {method} has no published protocol of its own; choose "
            f"one of {', '.join(PAPER)}, or PROTOCOL same"
        )
    if refinement.enabled and not freecp.ENABLED:
        raise ValueError(
            f"MODEL.FREECP.REFINE is {freecp.REFINE} and PROTOCOL paper, which settles how a base "
            "method alone is refined; choose REFINE none, or PROTOCOL same"
        )
    names = {b.dataset: b.name for b in BENCHMARKS.values() if b.in_paper}
    protocols = [PAPER[method][names.get(dataset)] for dataset in cfg.DATASETS.TEST or [""]]
    if any(protocol != protocols[0] for protocol in protocols):
        raise ValueError(
            f"MODEL.FREECP.PROTOCOL paper: {', '.join(cfg.DATASETS.TEST)} have different "
            "protocols; evaluate them one by one"
        )
    return protocols[0]


def configured_refinement(cfg: CfgNode) -> Refinement:
    """MODEL.FREECP.REFINE with its options.

    Raises:
        ValueError: it is none of REFINEMENTS, or an option of it is below 1.
    """
    freecp = cfg.MODEL.FREECP
    if freecp.REFINE not in REFINEMENTS:
        raise ValueError(
            f"MODEL.FREECP.REFINE is {freecp.REFINE!r}; choose one of {', '.join(REFINEMENTS)}"
        )
    if freecp.REFINE == "none":
        return UNREFINED
    if freecp.REFINE == "tlp":
        if freecp.TLP.GRID < 1:
            raise ValueError(f"MODEL.FREECP.TLP.GRID is {freecp.TLP.GRID}; give a number from 1 on")
        return Refinement(tlp_grid=freecp.TLP.GRID)
    steps, dilations = freecp.PAMR.STEPS, tuple(freecp.PAMR.DILATIONS)
    if steps < 1:
        raise ValueError(f"MODEL.FREECP.PAMR.STEPS is {steps}; give a number from 1 on")
    if not dilations or not all(isinstance(d, int) and d >= 1 for d in dilations):
        raise ValueError(
            f"MODEL.FREECP.PAMR.DILATIONS is {dilations}; give whole numbers from 1 on, such as "
            "(8, 16)"
        )
    return Refinement(steps, dilations)


def with_protocol(cfg: CfgNode) -> CfgNode:
    """`cfg` with what its base method's own protocol asks for; `cfg` itself where none is asked.

    With MODEL.FREECP.ENABLED False and PROTOCOL "paper", a copy whose INPUT.MIN_SIZE_TEST,
    INPUT.MAX_SIZE_TEST, MODEL.FREECP.WINDOW and STRIDE are the protocol's, and the options of
    MODEL.CLIP.<METHOD> that it has. So are VOCABULARY and MODEL.CLIP.LAST_BLOCK where they are
    empty. Doing it twice changes nothing more.

    Raises:
        ValueError: as :func:`base_protocol`.
    """
    protocol = base_protocol(cfg)
    if cfg.MODEL.FREECP.ENABLED or protocol.authors == SAME.authors:
        return cfg
    given, cfg = cfg, cfg.clone()
    cfg.defrost()
    if protocol.short_side is not None:
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = protocol.short_side, LONG_SIDE
    cfg.MODEL.FREECP.WINDOW, cfg.MODEL.FREECP.STRIDE = protocol.window, protocol.stride
    cfg.MODEL.FREECP.VOCABULARY = cfg.MODEL.FREECP.VOCABULARY or protocol.words
    if protocol.options:
        cfg.MODEL.CLIP[cfg.MODEL.CLIP.METHOD.upper()].update(protocol.options)
    if cfg.MODEL.CLIP.METHOD == "sclip":
        cfg.MODEL.CLIP.LAST_BLOCK = cfg.MODEL.CLIP.LAST_BLOCK or "residual"
    if cfg != given:
        log.info("MODEL.FREECP.PROTOCOL paper: %s", protocol)
    if given.is_frozen():
        cfg.freeze()
    return cfg
