"""The operators of FreeCP, each also ``torch.ops.freecp.<name>``.

They take any floating dtype and any strides, compute in float32 at least, and return new contiguous
tensors of the input's dtype, the same bits for the same input; :func:`mean_attention` alone adds to
a tensor that is there. None of them is differentiable: calling backward raises. Values are never
checked, since the host would have to wait for them: NaN goes through, and :func:`box_mask` gives
NaN for a map that is not in [0, 1].

Quotients are rounded as IEEE 754 says on every device, and what is promised to be in [0, 1] is
clamped to it: Triton's own `/` may be a step off, and a map just above 1 is no map any more.

CUDA takes the Triton kernels, launched without a wait. float64 takes the composite of PyTorch calls
there, save in :func:`box_mask`. The CPU has implementations of its own for :func:`box_mask`,
:func:`pamr` and :func:`sinkhorn_affinity`; every other device takes the composites.
"""

from .box_mask import box_mask, component_boxes
from .mean_attention import mean_attention
from .pamr import pamr
from .refine import refine
from .sinkhorn_affinity import sinkhorn_affinity
from .soft_iou import soft_iou

__all__ = [
    "box_mask",
    "component_boxes",
    "mean_attention",
    "pamr",
    "refine",
    "sinkhorn_affinity",
    "soft_iou",
]
