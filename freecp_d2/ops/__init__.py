"""The operators of FreeCP, each also ``torch.ops.freecp.<name>``.

They take any floating dtype and any strides, compute in float32 at least, and return new contiguous
tensors of the input's dtype. None of them is differentiable. Where a CPU implementation is written
separately, CUDA and other devices take the composite PyTorch one beside it.
"""

from .box_mask import box_mask, component_boxes
from .refine import refine
from .sinkhorn_affinity import sinkhorn_affinity
from .soft_iou import soft_iou

__all__ = ["box_mask", "component_boxes", "refine", "sinkhorn_affinity", "soft_iou"]
