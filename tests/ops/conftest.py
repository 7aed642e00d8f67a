"""What the tests of the operators share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
