"""An exported FreeCP beside the model that it was made of."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import ops
from ..clip import DenseFeatures
from ..clip.runtimes import openvino_core, required
from ..meta_arch import FreeCP
from ..purification import Candidates, PurificationHead
from ..words import Words

Run: TypeAlias = Callable[..., list[Tensor]]
"""Tensors in, tensors out, in the order of the program's."""


@dataclass(frozen=True)
class Agreement:
    """How an exported FreeCP agrees with its model on images.

    Attributes:
        differences: output of a program -> its largest difference, each program given what the
            model has before it.
        equal: share of pixels that get the same label, from 0 to 1.
    """

    differences: Mapping[str, float]
    equal: float


def load_program(folder: Path, description: Mapping[str, Any], name: str) -> Run:
    """One of the description's programs, on the CPU, in the runtime of its format."""
    program = description["programs"][name]
    file = folder / program["file"]
    if description["format"] == "torch":
        module = torch.export.load(file).module()

        def in_torch(*inputs: Tensor) -> list[Tensor]:
            results = module(*inputs)
            return [results[output] for output in program["outputs"]]

        return in_torch
    if description["format"] == "onnx":
        session = required("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])

        def run(*inputs: Tensor) -> list[Tensor]:
            feed = {n: x.numpy() for n, x in zip(program["inputs"], inputs, strict=True)}
            return [torch.from_numpy(x) for x in session.run(program["outputs"], feed)]

        return run
    openvino = required("openvino")
    precision = {openvino.properties.hint.inference_precision: openvino.Type.f32}
    compiled = openvino_core().compile_model(file, "CPU", precision)

    def infer(*inputs: Tensor) -> list[Tensor]:
        feed = {n: x.numpy() for n, x in zip(program["inputs"], inputs, strict=True)}
        outputs = compiled(feed)
        return [torch.from_numpy(outputs[output].copy()) for output in program["outputs"]]

    return infer


class ExportedEncoder(nn.Module):
    """The programs of the encoder and of the crops in place of a :class:`freecp_d2.clip.DenseCLIP`.

    Args:
        encode: pixels -> patches, cls, affinity.
        encode_crops: pixels -> cls.
        logit_scale, patch_size: as a DenseCLIP has them.
    """

    def __init__(
        self, encode: Run, encode_crops: Run, logit_scale: float, patch_size: tuple[int, int]
    ):
        super().__init__()
        self.encode = encode
        self.encode_crops = encode_crops
        self.logit_scale = logit_scale
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> DenseFeatures:
        """As :meth:`freecp_d2.clip.DenseCLIP.forward`."""
        patches, cls, affinity = self.encode(images.contiguous())
        height, width = (
            side // p for side, p in zip(images.shape[2:], self.patch_size, strict=True)
        )
        return DenseFeatures(patches, cls, affinity, (height, width))

    def encode_cls(self, images: Tensor) -> Tensor:
        """As :meth:`freecp_d2.clip.DenseCLIP.encode_cls`."""
        return self.encode_crops(images.contiguous())[0]


class ExportedHead(PurificationHead):
    """A head whose steps 2 to 5 the program does; its other options are those of `head`."""

    def __init__(self, head: PurificationHead, run: Run):
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in vars(head).items() if not k.startswith("_")})
        self.run = run

    def select(
        self, features: DenseFeatures, text: Tensor, *args: Any, **options: Any
    ) -> tuple[Candidates, Tensor]:
        """As :meth:`PurificationHead.select`, without probabilities."""
        refined, consistency, keep, _ = self.run(features.patches, features.attention, text)
        sums = {"consistency": consistency.sum(dim=1)}
        return Candidates(refined, consistency, keep, sums), refined[:0]


@torch.no_grad()
def compare(
    model: FreeCP,
    words: Words,
    folder: Path,
    description: Mapping[str, Any],
    inputs: Sequence[dict[str, Any]],
) -> Agreement:
    """Run a model and the programs of a folder on images.

    Args:
        model: on the CPU, in float32.
        words: that the head was exported for.
        inputs: Detectron2's dicts of the images.
    """
    encode, encode_crops, run_head = (
        load_program(folder, description, name) for name in ("encoder", "crops", "head")
    )
    encoder = ExportedEncoder(
        encode, encode_crops, model.encoder.logit_scale, model.encoder.patch_size
    )
    exported = copy.copy(model)
    head = ExportedHead(model.head, run_head)
    exported._modules = {**model._modules, "encoder": encoder, "head": head}
    encoded = model.encode([*inputs])
    differences: dict[str, float] = {}

    def note(name: str, ours: Tensor, theirs: Tensor) -> None:
        worst = (ours.double() - theirs.double()).abs().max().item()
        differences[name] = max(worst, differences.get(name, 0.0))

    for batch in encoded.batches:
        ours, theirs = batch.features, encoder(batch.pixels)
        assert ours is not None
        note("patches", ours.patches, theirs.patches)
        note("cls", ours.cls, theirs.cls)
        note("affinity", ours.attention, theirs.attention)
        options = model.encoder.logit_scale, words.num_background
        selected, _ = model.head.select(ours, words.text, words.descriptions, *options)
        refined, consistency, keep, soft_iou = run_head(ours.patches, ours.attention, words.text)
        note("refined", selected.refined, refined)
        note("consistency", selected.consistency, consistency)
        stay = keep[:, :, None] & keep[:, None]
        note("soft_iou", ops.soft_iou(selected.refined) * stay, soft_iou)
    labels = [
        torch.cat([result["label_map"].flatten() for result in results])
        for results in (
            model.segment(encoded, words, output="label_map"),
            exported.segment(exported.encode([*inputs]), words, output="label_map"),
        )
    ]
    return Agreement(differences, (labels[0] == labels[1]).double().mean().item())
