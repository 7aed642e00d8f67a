"""FreeCP's head without images as a program of one grid (METHOD.md steps 2 to 5, and step 6's IoU).

The operators of `freecp_d2.ops` are written out in PyTorch's own, so that a saved program needs
nothing of this package, and every runtime has what it needs. Two loops whose length depends on the
maps are `while_loop`, ONNX's Loop.
"""

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.export import Dim, ExportedProgram

from ..clip.runtimes import names_of, required
from ..ops.refine import refine_composite
from ..ops.sinkhorn_affinity import sinkhorn_affinity_composite
from ..purification import PurificationHead
from ..purification.stages import class_activation_maps, consistency

BOX_THRESHOLD = 0.4
"""Of :func:`freecp_d2.ops.box_mask`, as METHOD.md step 4 has it."""


class Head(nn.Module):
    """What :func:`head_program` exports.

    Args:
        head: its redundancy threshold and its options.
        logit_scale: of CLIP, already exponentiated.
        grid: height and width of a window in patches.
        num_background: how many of the queries are background.
    """

    def __init__(
        self,
        head: PurificationHead,
        logit_scale: float,
        grid: tuple[int, int],
        num_background: int,
    ):
        super().__init__()
        self.head = head
        self.logit_scale = logit_scale
        self.grid = grid
        self.num_background = num_background

    def forward(self, patches: Tensor, affinity: Tensor, text: Tensor) -> dict[str, Tensor]:
        """As :func:`head_program` says."""
        probabilities, normalized = class_activation_maps(
            patches, text, self.logit_scale, self.grid
        )
        probabilities = probabilities[:, self.num_background :]
        normalized = normalized[:, self.num_background :]
        mask = box_mask(normalized, self.head.box_full_extent)
        refined = refine_composite(sinkhorn_affinity_composite(affinity), normalized, mask)
        score = consistency(probabilities, refined, self.head.true_iou)
        threshold = self.head.redundancy_threshold if self.head.redundancy else -1
        keep = score > threshold
        return {
            "refined": refined,
            "consistency": score,
            "keep": keep,
            "soft_iou": soft_iou(refined, keep),
        }


def head_program(
    head: PurificationHead,
    logit_scale: float,
    grid: tuple[int, int],
    features: int,
    queries: int,
    num_background: int,
) -> ExportedProgram:
    """Redundancy purification for a fixed grid and number of words, and any number N of windows.

    The words themselves are an input, so that one program serves all vocabularies of so many
    queries.

    Args:
        head: its redundancy threshold and its options.
        logit_scale: of CLIP, already exponentiated.
        grid: height h and width w of a window in patches.
        features: D.
        queries: Q, those of the C classes and the background's.
        num_background: how many of the queries are background.

    Returns:
        A program of float32 tensors (`patches`, `affinity`, `text`) -> {`refined`, `consistency`,
        `keep`, `soft_iou`}. Patches (N, P, D) and text (Q, D) have unit length, the background's
        words first; affinity (N, P, P), at least 0, has no row or column of zeros; P = h * w.
        Refined (N, C, h, w) in [0, 1] are the maps of all classes; consistency (N, C) is NaN where
        an input is; keep (N, C) bool, whether it is above the threshold, so that the class stays;
        soft_iou (N, C, C) of the refined maps is 0 where one of the two does not stay.
    """
    patches = grid[0] * grid[1]
    batch = Dim("batch")
    exported = torch.export.export(
        Head(head, logit_scale, grid, num_background),
        (
            torch.rand(2, patches, features),
            torch.rand(2, patches, patches),
            torch.rand(queries, features),
        ),
        dynamic_shapes=({0: batch}, {0: batch}, None),
    )
    return exported.run_decompositions({})  # no region of autocast, nothing in place


def save_head(program: ExportedProgram, path: Path, format: str) -> None:
    """Write the head as "torch" (.pt2), "onnx" (.onnx) or "openvino" (.xml and .bin).

    ONNX does without onnxscript's rewriting rules: they take an addition of 1e-8, as METHOD.md
    steps 4 and 5 have it, for one of zero, and leave it out. OpenVINO comes by way of ONNX: its
    reader of PyTorch's programs has neither `scatter_reduce` nor this `while_loop`.
    """
    if format == "torch":
        torch.export.save(program, path)
        return
    required("onnxscript")
    from onnxscript import optimizer

    inputs, outputs = names_of(program)
    onnx = torch.onnx.export(
        program, input_names=inputs, output_names=outputs, optimize=False, verbose=False
    )
    assert onnx is not None
    optimizer.inline(onnx.model)
    optimizer.fold_constants(onnx.model)
    optimizer.remove_unused_nodes(onnx.model)
    optimizer.remove_unused_functions(onnx.model)
    if format == "onnx":
        onnx.save(path)
        return
    openvino = required("openvino")
    serialised = io.BytesIO(onnx.model_proto.SerializeToString())
    openvino.save_model(openvino.convert_model(serialised), path, compress_to_fp16=False)


def box_mask(maps: Tensor, full_extent: bool) -> Tensor:
    """:func:`freecp_d2.ops.box_mask` of float32 maps (B, C, h, w) in [0, 1], bit for bit."""
    height, width = maps.shape[2:]
    labels = component_labels(foreground(maps.flatten(0, 1))).flatten(1).long()
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32),
        torch.arange(width, dtype=torch.float32),
        indexing="ij",
    )
    right, left, bottom, top, present = (
        _largest(values.flatten().expand(labels.shape), labels)[:, 1:]
        for values in (x + 1, width - x, y + 1, height - y, torch.ones_like(x))
    )
    left, top = width - left, height - top
    if not full_extent:
        right, bottom = right.clamp(max=width - 1), bottom.clamp(max=height - 1)
    # Running sums over +1 and -1 at the corners are above zero inside of boxes.
    columns = width + 1
    corners = present.new_zeros(present.shape[0], (height + 1) * columns)
    index = torch.cat((top, bottom, top, bottom), 1) * columns
    index = (index + torch.cat((left, right, right, left), 1)).long()
    corners = corners.scatter_reduce(
        1, index, torch.cat((present, present, -present, -present), 1), "sum"
    )
    cover = corners.unflatten(1, (height + 1, columns)).cumsum(1).cumsum(2)
    return (cover[:, :height, :width] > 0).to(maps.dtype).view(maps.shape)


def foreground(maps: Tensor) -> Tensor:
    """Pixels of maps (M, h, w) whose quantised value is above the threshold, bool."""
    quantised = (255 * maps).floor()
    peak = quantised.amax(dim=(1, 2), keepdim=True)
    return quantised > (BOX_THRESHOLD * peak).floor()


def component_labels(inside: Tensor) -> Tensor:
    """Connected components (8 neighbours) of masks (M, h, w).

    Returns:
        (M, h, w) float32, equal within a component: the number of its last pixel, the first pixel
        of a mask being 1. 0 outside.
    """
    height, width = inside.shape[1:]
    numbers = torch.arange(1, height * width + 1, dtype=torch.float32).view(height, width)

    def goes_on(labels: Tensor, changed: Tensor) -> Tensor:
        return changed.clone()

    def join(labels: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
        # A label that sees a higher one beside any of its pixels points to it, then pixels take
        # over what their labels point to.
        near = F.max_pool2d(labels[:, None], 3, stride=1, padding=1)[:, 0].flatten(1)
        index = labels.flatten(1).long()
        target = _largest(near, index)
        target = target.gather(1, target.gather(1, index).long()).view(labels.shape)
        joined = torch.where(inside, target, 0.0)
        return joined, (joined != labels).any()

    labels = torch.where(inside, numbers, 0.0)
    return while_loop(goes_on, join, (labels, inside.any()))[0]


def soft_iou(maps: Tensor, keep: Tensor) -> Tensor:
    """:func:`freecp_d2.ops.soft_iou` of maps (B, C, h, w) where both stay by `keep` (B, C)."""
    maps = maps.flatten(2)
    classes = maps.shape[1]
    anywhere = keep.any(dim=0)
    order = anywhere.float().argsort(descending=True)
    count = anywhere.sum()
    numbers = torch.arange(classes)

    def goes_on(done: Tensor, iou: Tensor) -> Tensor:
        return (done < count).all()

    def compare(done: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        index = order.gather(0, done)
        of_class = maps.index_select(1, index)
        union = torch.maximum(maps, of_class).sum(dim=2)
        values = torch.minimum(maps, of_class).sum(dim=2) / union.masked_fill(union == 0, 1)
        return done + 1, torch.where(numbers == index, values[:, :, None], iou)

    iou = maps.new_zeros(maps.shape[0], classes, classes)
    iou = while_loop(goes_on, compare, (torch.zeros(1, dtype=torch.int64), iou))[1]
    return iou * (keep[:, :, None] & keep[:, None, :])


def _largest(values: Tensor, labels: Tensor) -> Tensor:
    """(M, size + 1): at a label the largest of its pixels' values (M, size), from 0."""
    nothing = F.pad(torch.zeros_like(values), (1, 0))
    return nothing.scatter_reduce(1, labels, values, "amax")
