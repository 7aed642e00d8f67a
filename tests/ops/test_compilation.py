"""The real compiler takes every kernel. No GPU is needed: ptxas comes with Triton."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = {
    "_box_mask_kernel",
    "_reciprocal_sum_kernel",
    "_symmetrise_kernel",
    "_product_kernel",
    "_min_max_kernel",
    "_soft_iou_kernel",
    "_weights_kernel",
    "_step_kernel",
    "_normaliser_kernel",
    "_mean_attention_kernel",
}
# Bytes of shared memory that a program can have, from the CUDA C++ Programming Guide: that of 8.6
# and 8.9, which take what 8.0 takes but have less than its 163 KB, and that of 9.0.
SHARED = {80: 99 * 1024, 90: 227 * 1024}


@pytest.mark.parametrize("sm", [80, 90])
def test_kernels_compile_ahead_of_time(tmp_path, sm):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    output = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_kernels.py"), str(sm)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    launches = json.loads(output)
    for dtype in ("*fp32", "*fp16", "*bf16"):
        assert {x["kernel"] for x in launches if dtype in x["signature"]} == KERNELS
    for launch in launches:
        assert launch["target"] and launch["binary"] > 0, launch
        assert launch["shared"] <= SHARED[sm], launch
        assert all(size < 2**16 for size in launch["grid"][1:]), launch
        # Not div.full or rcp.approx: a quotient of equal numbers is 1, and no map exceeds it.
        assert set(launch["divisions"]) <= {"div.rn.f32"}, launch
    dividing = {x["kernel"].strip("_").removesuffix("_kernel") for x in launches if x["divisions"]}
    assert dividing == {"reciprocal_sum", "min_max", "soft_iou", "weights", "normaliser"}
    # Triton's interpreter runs a program's threads in step and sees no barrier; the code for a GPU
    # shows where they stand. With one warp the compiler adds none of its own for reductions. A map
    # is loaded and the planes are set; then, with a barrier at every step, labels are compared,
    # lowered, followed and stored; edges are found; boxes are read and corners cleared, drawn and
    # summed.
    phases = {
        x["phases"] for x in launches if x["kernel"] == "_box_mask_kernel" and x["warps"] == 1
    }
    assert phases == {"LS|L|A|L|S|A|LS|A|LS"}
