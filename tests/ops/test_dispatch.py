"""What runs on which device, and that a GPU is never waited for."""

import sys
from importlib import import_module

import pytest
import torch

from freecp_d2 import ops

NAMES = ["sinkhorn_affinity", "box_mask", "refine", "soft_iou", "pamr"]
ALL = [*NAMES, "mean_attention"]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def arguments(name: str, device: str) -> tuple:
    generator = torch.Generator().manual_seed(0)
    affinity = torch.rand(2, 30, 30, generator=generator).to(device)
    maps = torch.rand(2, 4, 5, 6, generator=generator).to(device)
    return {
        "sinkhorn_affinity": (affinity,),
        "box_mask": (maps,),
        "refine": (affinity, maps, maps.round()),
        "soft_iou": (maps[0],),
        "pamr": (maps[:, :3], maps, 2, [1, 8]),
    }[name]


@pytest.mark.parametrize("name", ALL)
def test_every_device_has_a_kernel(name):
    """Its own on the CPU or CUDA where one is written, and the composite elsewhere."""
    for key in ("CPU", "CUDA", "Meta"):
        assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"freecp::{name}", key)


@pytest.mark.parametrize("name", ALL)
def test_the_kernel_is_registered_for_cuda(name):
    """Without its own kernel CUDA would take the composite, and give the same results."""
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"freecp::{name}", "CUDA")


@pytest.mark.parametrize("name", NAMES)
def test_other_devices_know_the_result(name):
    args = arguments(name, "meta")
    result = getattr(ops, name)(*args)
    expected = getattr(ops, name)(*arguments(name, "cpu"))
    assert result.is_meta and result.shape == expected.shape and result.dtype == expected.dtype


def test_the_interpreter_runs_where_there_is_no_gpu():
    knobs = import_module("triton").knobs
    assert knobs.runtime.interpret == (not torch.cuda.is_available())
    assert "triton" in sys.modules


@GPU
@pytest.mark.parametrize("name", NAMES)
def test_cuda_takes_triton_and_is_not_waited_for(name):
    args = arguments(name, "cuda")
    launcher = getattr(import_module(f"freecp_d2.ops.{name}"), f"{name}_triton")
    expected = launcher(*args)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = getattr(ops, name)(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(result, expected)


@GPU
def test_mean_attention_is_not_waited_for():
    query, record = torch.rand(2, 3, 40, 16, device="cuda"), torch.zeros(2, 40, 40, device="cuda")
    ops.mean_attention(query, query, record)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.mean_attention(query, query, record)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(record.sum(2).cpu(), torch.full((2, 40), 2.0))
