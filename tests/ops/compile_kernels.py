"""Compile every kernel for GPUs that need not be there: ``python compile_kernels.py SM``.

The launchers are called with tensors on the CPU, and what they hand to Triton is compiled instead
of run, up to ptxas. A process of its own, without TRITON_INTERPRET. Prints a JSON list of what was
compiled.
"""

import json
import re
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from freecp_d2.ops.box_mask import box_mask_triton
from freecp_d2.ops.mean_attention import mean_attention_triton
from freecp_d2.ops.pamr import pamr_triton
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


def phases_of(ptx: str) -> str:
    """What a kernel does to global memory: L(oad), S(tore), A(tomic), and | where threads meet."""
    kinds = {"ld.global": "L", "st.global": "S", "atom.global": "A", "red.global": "A"}
    found = re.findall(r"\b(ld\.global|st\.global|atom\.global|red\.global|bar\.sync)", ptx)
    return re.sub(r"(.)\1+", r"\1", "".join(kinds.get(name, "|") for name in found))


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
            "warps": binary.metadata.num_warps,
            "divisions": sorted(set(re.findall(r"\b(?:div|rcp)\.[\w.]*f\d+", binary.asm["ptx"]))),
            "phases": phases_of(binary.asm["ptx"]),
        }
    )


if __name__ == "__main__":
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    JITFunction.run = compile_launch
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        # Odd sizes, and sizes and addresses that are multiples of 16.
        for classes, height, width in ((3, 5, 7), (16, 64, 64)):
            patches = height * width
            maps = torch.zeros(2, classes, height, width, dtype=dtype)
            affinity = torch.zeros(2, patches, patches, dtype=dtype)
            box_mask_triton(maps)
            sinkhorn_affinity_triton(affinity)
            refine_triton(affinity, maps, maps)
            soft_iou_triton(maps)
            pamr_triton(maps[:, :3], maps, 3, (8, 16))
        # Queries and keys as they lie in a projection (B, T, 3, heads, d).
        for heads, length, dim in ((3, 5, 80), (12, 785, 64)):
            projected = torch.zeros(2, length, 3, heads, dim, dtype=dtype)
            query, key, _ = projected.permute(2, 0, 3, 1, 4)
            mean_attention_triton(query, key, torch.zeros(2, length, length))
    # What Triton makes constants: sizes and strides of 1. More maps than pixels: D is squared.
    maps, affinity = torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1)
    box_mask_triton(maps, 0.4, True)
    sinkhorn_affinity_triton(affinity)
    refine_triton(affinity, maps, maps)
    soft_iou_triton(maps[0, :1])
    pamr_triton(maps[:, :1], maps, 1, (1, 2, 4, 8, 12, 24))
    mean_attention_triton(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1))
    box_mask_triton(torch.zeros(1, 1, 128, 128, dtype=torch.float64))
    print(json.dumps(compiled))
