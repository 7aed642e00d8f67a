"""Compile every kernel for GPUs that need not be there: ``python compile_kernels.py SM DTYPE``.

The launchers are called with tensors on the CPU, and what they hand to Triton is compiled instead
of run, up to ptxas. A process of its own, without TRITON_INTERPRET. Prints a JSON list of what was
compiled.
"""

import json
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from freecp_d2.ops.box_mask import box_mask_triton
from freecp_d2.ops.refine import refine_triton
from freecp_d2.ops.sinkhorn_affinity import sinkhorn_affinity_triton
from freecp_d2.ops.soft_iou import soft_iou_triton

NAMES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
}
compiled: list[dict[str, Any]] = []


def specialise(value: Tensor | int) -> tuple[str, bool]:
    """The type of an argument, and whether the kernel may take it for a multiple of 16."""
    if isinstance(value, Tensor):
        return "*" + NAMES[value.dtype], value.data_ptr() % 16 == 0
    if value == 1:
        return "constexpr", False
    return "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0


def compile_launch(
    kernel: JITFunction, *args: Any, grid: tuple, warmup: bool, **options: Any
) -> None:
    """In place of JITFunction.run: what that does until the launch, for the target."""
    signature, constants, attributes = {}, {}, {}
    for index, (parameter, value) in enumerate(zip(kernel.params, args, strict=True)):
        kind, aligned = ("constexpr", False) if parameter.is_constexpr else specialise(value)
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[(index,)] = value
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    binary = triton.compile(source, target=target, options=options)
    compiled.append(
        {
            "kernel": kernel.__name__,
            "signature": list(signature.values()),
            "grid": grid,
            "target": f".target sm_{target.arch}" in binary.asm["ptx"],
            "binary": len(binary.asm["cubin"]),
            "shared": binary.metadata.shared,
        }
    )


if __name__ == "__main__":
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    dtype = {name: dtype for dtype, name in NAMES.items()}[sys.argv[2]]
    JITFunction.run = compile_launch
    for batch, classes, height, width in ((1, 1, 1, 1), (2, 3, 5, 7), (2, 4, 8, 8), (1, 2, 64, 64)):
        patches = height * width
        maps = torch.zeros(batch, classes, height, width, dtype=dtype)
        affinity = torch.zeros(batch, patches, patches, dtype=dtype)
        for full_extent in (False, True):
            box_mask_triton(maps, 0.4, full_extent)
        sinkhorn_affinity_triton(affinity)
        refine_triton(affinity, maps, maps)
        refine_triton(affinity.mT, maps.mT, maps)
        many = torch.zeros(batch, 9, 1, 1, dtype=dtype)  # More maps than pixels: D is squared.
        refine_triton(affinity[:, :1, :1], many, many)
        soft_iou_triton(maps[0])
    print(json.dumps(compiled))
