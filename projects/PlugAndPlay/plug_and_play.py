"""Class purification around any Detectron2 model that gives semantic scores: PurifiedSegmentor.

from plug_and_play import add_purified_config      # registers PurifiedSegmentor
cfg = get_cfg()
add_purified_config(cfg)
file = "projects/PlugAndPlay/configs/purified_semantic_R_50_FPN.yaml"
cfg.merge_from_file(file, allow_unsafe=False)  # Detectron2 would run what a YAML tag names
model = build_model(cfg)
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import Tensor, nn

from freecp_d2 import add_freecp_config
from freecp_d2.clip.build import build_clip
from freecp_d2.config import configured_descriptions, configured_vocabulary
from freecp_d2.data import Vocabulary
from freecp_d2.encoding import Normalize
from freecp_d2.extensions import Extensions, configured_extensions
from freecp_d2.purification import Encoder, NonFiniteInput, PurificationHead, Selected
from freecp_d2.words import encode_words

Affinity: TypeAlias = Callable[
    [tuple[Any, ...], Any, tuple[int, int]], tuple[Tensor, Sequence[int]]
]
"""What a submodule took (its positional arguments) and gave for one image, and the image's height
and width in it -> (N, N) affinity of at least 0 without a zero row or column, and the grid (h, w)
that divides the image evenly, N = h * w, row by row."""


def add_purified_config(cfg: CfgNode) -> None:
    """Add MODEL.PURIFIED, MODEL.FREECP and MODEL.CLIP; the keys of the wrapped model stay.

    Of MODEL.FREECP the two thresholds, CONSISTENCY, BOX_FULL_EXTENT, REDUNDANCY and CROP_BATCH_SIZE
    are read, and for the ambiguity stage VOCABULARY and DESCRIPTIONS; of MODEL.CLIP all, for that
    stage.
    """
    freecp = get_cfg()
    add_freecp_config(freecp)
    cfg.MODEL.FREECP = freecp.MODEL.FREECP
    cfg.MODEL.CLIP = freecp.MODEL.CLIP
    purified = cfg.MODEL.PURIFIED = CfgNode()
    # The meta-architecture that is wrapped; it reads the rest of the config as ever.
    purified.META_ARCHITECTURE = "SemanticSegmentor"
    # Its submodule, and which of its outputs, whose likeness from place to place is the affinity.
    # The memory grows with the square of that map's area: a stride of 16 or 32 is right.
    purified.SUBMODULE = "backbone"
    purified.FEATURE = "p4"
    # True: `sem_seg` holds logits. False: probabilities, or other scores of at least 0.
    purified.SOFTMAX = True
    # How many of the first channels are background: never removed.
    purified.NUM_BACKGROUND = 0
    # True: look-alike classes compete (METHOD.md step 6) before the CLIP of MODEL.CLIP.
    purified.AMBIGUITY = False
    # Of RGB, 0-255, for that CLIP; MODEL.PIXEL_MEAN and PIXEL_STD are the wrapped model's.
    purified.CLIP_PIXEL_MEAN = freecp.MODEL.PIXEL_MEAN
    purified.CLIP_PIXEL_STD = freecp.MODEL.PIXEL_STD


class FeatureAffinity:
    """Cosine similarity of a submodule's features from place to place, at least 0.

    The submodule takes the padded image (1, 3, H, W) and gives feature maps (1, D, h, w), bare or
    by name. The grid has the maps' stride and covers the image without its padding.

    Args:
        name: of the feature map; "": the output is the map.
    """

    def __init__(self, name: str = ""):
        self.name = name

    def __call__(
        self, inputs: tuple[Any, ...], output: Any, size: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """See :data:`Affinity`.

        Raises:
            ValueError: there is no feature map of that name.
        """
        if self.name and self.name not in output:
            raise ValueError(
                f"MODEL.PURIFIED.FEATURE is {self.name!r}; the submodule gives {', '.join(output)}"
            )
        features = (output[self.name] if self.name else output).float()
        padded = inputs[0].shape[-2:]
        share = [side / whole for side, whole in zip(size, padded, strict=True)]
        sides = zip(features.shape[-2:], share, strict=True)
        height, width = (max(1, round(cells * inside)) for cells, inside in sides)
        # Features at the centres of the image's cells, which are those of the map wherever the
        # image is a multiple of the stride.
        theta = features.new_tensor([[[share[1], 0, share[1] - 1], [0, share[0], share[0] - 1]]])
        places = F.affine_grid(theta, [1, 1, height, width], align_corners=False)
        sampled = F.grid_sample(features, places, padding_mode="border", align_corners=False)
        unit = F.normalize(sampled[0].flatten(1), dim=0)
        similarity = (unit.T @ unit).clamp(min=0)
        similarity.fill_diagonal_(1)  # also where the features are all zero
        return similarity, (height, width)


@META_ARCH_REGISTRY.register()
class PurifiedSegmentor(nn.Module):
    """A Detectron2 model whose semantic scores lose the classes that are not in the image.

    Its scores, as probabilities averaged over the cells of a grid, and an affinity of these cells
    go through METHOD.md steps 3 to 5, and with an encoder step 6. Training, and the keys of the
    state dict, are the wrapped model's: its checkpoints load as ever.

    Args:
        segmentor: takes Detectron2's dicts and gives, in eval mode, dicts with `sem_seg`,
            (K, H, W); K counts `head.num_background` background channels and C classes.
        head: the purification; `head.ambiguity` is set to whether there is an encoder.
        submodule: name of that part of `segmentor` whose output `affinity` reads. It must run
            once an image.
        affinity: see :data:`Affinity`.
        softmax: the scores are logits; False: they are at least 0, and are divided by their sum.
        encoder: the CLIP that look-alikes compete before, or None: they stay.
        descriptions: (C, D) unit-length features of the classes' descriptions, with an encoder.
        related: (C, C) bool, the classes that never compete; None: any may.
        pixel_mean, pixel_std: of RGB, 0-255, for the encoder.
        input_format: channel order of the images, RGB or BGR.

    Raises:
        ValueError: no such submodule, an encoder without descriptions, or an unknown input_format.
    """

    @configurable
    def __init__(
        self,
        *,
        segmentor: nn.Module,
        head: PurificationHead,
        submodule: str = "backbone",
        affinity: Affinity,
        softmax: bool = True,
        encoder: Encoder | None = None,
        descriptions: Tensor | None = None,
        related: np.ndarray | None = None,
        pixel_mean: Sequence[float] = (122.771, 116.746, 104.094),
        pixel_std: Sequence[float] = (68.501, 66.632, 70.323),
        input_format: str = "RGB",
    ):
        super().__init__()
        if (encoder is None) != (descriptions is None):
            raise ValueError("the ambiguity stage needs both an encoder and descriptions")
        modules = dict(segmentor.named_modules())
        if submodule not in modules:
            raise ValueError(
                f"MODEL.PURIFIED.SUBMODULE is {submodule!r}; the parts of "
                f"{type(segmentor).__name__} are {', '.join(dict(segmentor.named_children()))}"
            )
        self.segmentor = segmentor
        self.head = head
        self.head.ambiguity = encoder is not None
        self.affinity = affinity
        self.softmax = softmax
        self.encoder = encoder
        self.related = related
        self.normalize = Normalize(pixel_mean, pixel_std, input_format)
        self.register_buffer("descriptions", descriptions, persistent=False)
        self._seen: list[tuple[tuple[Any, ...], Any]] = []
        modules[submodule].register_forward_hook(self._see)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The constructor's arguments from a config with :func:`add_purified_config`'s keys.

        Raises:
            ValueError: an extension that reads or changes what CLIP sees of the whole image.
        """
        purified, extensions = cfg.MODEL.PURIFIED, configured_extensions(cfg)
        if (
            extensions != Extensions(relations=extensions.relations)
            or cfg.MODEL.FREECP.SYNONYM_THRESHOLD
        ):
            raise ValueError(
                "MODEL.FREECP.ADAPTER, BACKGROUND, DECORRELATION and SYNONYM_THRESHOLD are about "
                "scores that CLIP gives, and here another model gives them; leave them as they are "
                "by default"
            )
        wrapped = cfg.clone()
        wrapped.defrost()
        wrapped.MODEL.META_ARCHITECTURE = purified.META_ARCHITECTURE
        clip = cfg.clone()
        clip.defrost()
        clip.MODEL.PIXEL_MEAN, clip.MODEL.PIXEL_STD = (
            purified.CLIP_PIXEL_MEAN,
            purified.CLIP_PIXEL_STD,
        )
        encoder = descriptions = related = None
        if purified.AMBIGUITY:
            vocabulary = configured_vocabulary(cfg)
            names = [names[:1] for names in vocabulary.classes]
            if not vocabulary.num_background:
                names = names[purified.NUM_BACKGROUND :]
            encoder, text_encoder = build_clip(clip)
            sentences = configured_descriptions(cfg)
            words = encode_words(text_encoder, Vocabulary(tuple(names)), sentences, extensions)
            descriptions, related = words.descriptions.to(cfg.MODEL.DEVICE), words.related
        return {
            "segmentor": build_model(wrapped),
            "head": PurificationHead(cfg, num_background=purified.NUM_BACKGROUND),
            "submodule": purified.SUBMODULE,
            "affinity": FeatureAffinity(purified.FEATURE),
            "softmax": purified.SOFTMAX,
            "encoder": encoder,
            "descriptions": descriptions,
            "related": related,
            "pixel_mean": purified.CLIP_PIXEL_MEAN,
            "pixel_std": purified.CLIP_PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.normalize.device

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The wrapped model's."""
        return self.segmentor.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the wrapped model."""
        return self.segmentor.load_state_dict(*args, **kwargs)

    def forward(self, batched_inputs: list[dict]) -> Any:
        """The wrapped model's losses in training mode; else its outputs, one image at a time.

        Args:
            batched_inputs: what the wrapped model takes. With an encoder the images are
                (3, H, W), 0-255.

        Returns:
            One dict an image: all that the wrapped model gives, but in `sem_seg` the channels of
            removed classes are the lowest number of their dtype everywhere, so that they win no
            pixel, while the other scores are untouched. Where no class stays and there is no
            background, `sem_seg` is untouched altogether. And on the CPU, of the classes without
            the background: `kept_redundancy` and `kept`, (C,) bool, which stayed after the first
            and after both stages, `consistency`, (C,) float32, and `ambiguous_losses`, sorted
            pairs (loser, winner).

        Raises:
            ValueError: NaN or infinity in the scores or the features of an image (it names the
                file), negative scores that should be probabilities, or no `sem_seg`.
        """
        if self.training:
            return self.segmentor(batched_inputs)
        return [self._purified(x) for x in batched_inputs]

    @torch.no_grad()
    def _purified(self, x: dict) -> dict:
        self._seen.clear()
        (output,) = self.segmentor([x])
        if "sem_seg" not in output:
            raise ValueError(
                f"{type(self.segmentor).__name__} gives {', '.join(output)}; purification needs "
                "sem_seg"
            )
        if len(self._seen) != 1:
            raise ValueError(
                f"MODEL.PURIFIED.SUBMODULE ran {len(self._seen)} times for one image; choose one "
                "that runs once"
            )
        name = x.get("file_name", "an image of the batch")
        affinity, grid = self.affinity(*self._seen.pop(), tuple(x["image"].shape[-2:]))
        sem_seg = output["sem_seg"]
        probabilities = F.adaptive_avg_pool2d(self._probabilities(sem_seg, name), tuple(grid))
        candidates = self.head.select_maps(probabilities[None], affinity[None])
        try:
            (selected,) = self.head.fetch([candidates])
        except NonFiniteInput:
            raise ValueError(
                f"{name}: NaN or infinity in the scores or the affinity of "
                f"{type(self.segmentor).__name__}; check its weights (MODEL.WEIGHTS) or the image"
            ) from None
        kept, winners = candidates.kept[0], []
        if self.encoder is not None:
            kept, winners = self._compete(x, grid, selected)
        stays = F.pad(kept, (self.head.num_background, 0), value=True)
        if stays.any():
            lowest = torch.finfo(sem_seg.dtype).min
            sem_seg = sem_seg.masked_fill(~stays[:, None, None], lowest)
        return output | {
            "sem_seg": sem_seg,
            "kept": kept.cpu(),
            "kept_redundancy": torch.from_numpy(selected.kept[0]),
            "consistency": torch.from_numpy(selected.consistency[0]),
            "ambiguous_losses": [(i, winner) for i, winner in enumerate(winners) if winner >= 0],
        }

    def _probabilities(self, sem_seg: Tensor, name: str) -> Tensor:
        """(K, H, W) float32 that sum to 1 over the channels."""
        if self.softmax:
            return sem_seg.float().softmax(dim=0)
        if (sem_seg < 0).any():
            raise ValueError(f"{name}: negative scores; set MODEL.PURIFIED.SOFTMAX True for logits")
        total = sem_seg.float().sum(dim=0)
        return sem_seg.float() / total.masked_fill(total == 0, 1)

    def _compete(
        self, x: dict, grid: Sequence[int], selected: Selected
    ) -> tuple[Tensor, list[int]]:
        """Which classes stay (C,), and who beat each of the others, -1 for nobody."""
        assert self.encoder is not None
        classes = selected.kept.shape[1]
        if len(self.descriptions) != classes:
            raise ValueError(
                f"descriptions of {len(self.descriptions)} classes, but "
                f"{type(self.segmentor).__name__} scores {classes} without the background; name "
                "its classes (MODEL.FREECP.VOCABULARY)"
            )
        # A cell of the grid becomes a patch of the encoder.
        size = [n * p for n, p in zip(grid, self.encoder.patch_size, strict=True)]
        image = F.interpolate(self.normalize(x)[None], size, mode="bilinear", antialias=True)
        kept, beaten_by = self.head.compete(
            *(image, selected, self.descriptions, self.encoder),
            num_background=0,
            related=self.related,
        )
        return kept[0], beaten_by[0].tolist()

    def _see(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not self.training:
            self._seen.append((inputs, output))
