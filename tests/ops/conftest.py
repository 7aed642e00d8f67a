"""What the tests of the operators share."""

from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.cuda.is_available()


@pytest.fixture(scope="session", params=["cpu", "cuda"] if GPU else ["cpu"])
def device(request) -> str:
    """Every device that is here."""
    return request.param


@pytest.fixture(scope="session")
def device_of_triton() -> str:
    """Where kernels can be launched: on the GPU, or in the interpreter where there is none."""
    return "cuda" if GPU else "cpu"


class Implementation:
    """Calls an operator with tensors on the CPU and gets its result there."""

    def __init__(self, kind: str):
        self.kind = kind
        self.device = "cuda" if GPU and kind != "cpu" else "cpu"
        self.interpreted = kind == "triton" and not GPU

    def __call__(self, op: Callable[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        if self.kind in ("composite", "triton"):
            name = op.__name__
            op = getattr(import_module(f"freecp_d2.ops.{name}"), f"{name}_{self.kind}")
        result = op(*map(self._move, args), **kwargs)
        assert result.device.type == self.device and result.is_contiguous()
        return result.cpu()

    def _move(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        base = value if value._base is None else value._base
        moved = base.to(self.device)
        offset = value.storage_offset() - base.storage_offset() + moved.storage_offset()
        return moved.as_strided(value.shape, value.stride(), offset)


@pytest.fixture(scope="session", params=["cpu", "composite", "triton", *(["cuda"] if GPU else [])])
def run(request) -> Implementation:
    """Every implementation of the operators.

    "cpu" and "cuda" are the public function on that device, "composite" and "triton" what is behind
    it, on the GPU if there is one. Without one, Triton's interpreter runs the kernels.
    """
    return Implementation(request.param)


class _Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


@pytest.fixture
def largest_tensor() -> Callable[..., int]:
    """Call a function and say how many elements its largest intermediate tensor has."""

    def call(function: Callable, *args) -> int:
        with _Largest() as mode:
            function(*args)
        return mode.numel

    return call


class _SloppyDivision(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.div:
            result = result.nextafter(2 * result)
        return result


@pytest.fixture
def sloppy_division(monkeypatch) -> _SloppyDivision:
    """Quotients that are a step too large, by PyTorch and in Triton's interpreter."""
    divide = np.divide

    def sloppy(a, b):
        result = divide(a, b)
        return np.nextafter(result, 2 * result)

    builder = import_module("triton.runtime.interpreter").InterpreterBuilder
    for name in ("create_fdiv", "create_precise_divf"):
        monkeypatch.setattr(
            builder, name, lambda self, lhs, rhs, **_: self.binary_op(lhs, rhs, sloppy)
        )
    return _SloppyDivision()


@pytest.fixture
def random_maps() -> Callable[..., Tensor]:
    """Smooth random maps in [0, 1] of a shape that ends in (h, w), the same for the same shape."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        maps = torch.rand(shape, generator=generator).flatten(0, -3)
        maps = torch.nn.functional.avg_pool2d(maps, 3, 1, 1)
        low, high = maps.aminmax()
        return ((maps - low) / (high - low).clamp(min=1e-3)).view(shape).to(dtype)

    return make
