"""Functions of tensors as CUDA graphs: one launch in place of hundreds."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

P = ParamSpec("P")
R = TypeVar("R")

MAX_GRAPHS = 16
"""So many graphs of a function are kept, each with the memory of what it computes."""
WARM_UPS = 3
"""How often a function runs before it is captured: kernels are compiled, and libraries set up."""

_capturing = threading.Lock()


@dataclass(frozen=True)
class Captured:
    """A graph, the tensors that it reads, and those that it writes, in their structure."""

    replay: Callable[[], None]
    inputs: list[Tensor]
    outputs: Any


class Graphed:
    """A function captured as a CUDA graph, once for every shape and type of its tensors.

    What it computes is to the bit what the function computes. It must not wait for the device, and
    everything that it reads besides its arguments must stay where it is. Threads take turns.

    Args:
        function: of positional arguments, tensors or hashable. It returns tensors in tuples, named
            tuples, lists or dicts.
    """

    def __init__(self, function: Callable[P, R]):
        self.function = function
        self._captured: OrderedDict[tuple, Captured] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        """The function's results, in memory of their own.

        Raises:
            ValueError: tensors that are not on CUDA.
        """
        tensors = [value for value in args if isinstance(value, Tensor)]
        key = tuple(_kind(value) if isinstance(value, Tensor) else value for value in args)
        with self._lock:
            captured = self._captured.get(key)
            if captured is None:
                # A process may capture one graph at a time, whatever it is of.
                with _capturing:
                    captured = self._captured[key] = capture(self.function, args)
                if len(self._captured) > MAX_GRAPHS:
                    self._captured.popitem(last=False)
            self._captured.move_to_end(key)
            for mine, given in zip(captured.inputs, tensors, strict=True):
                mine.copy_(given)
            captured.replay()
            return tree_map_only(Tensor, torch.clone, captured.outputs)


def capture(function: Callable[..., Any], args: tuple[Any, ...]) -> Captured:
    """A function as a CUDA graph, for arguments like these.

    Raises:
        ValueError: tensors that are not on CUDA.
    """
    static = [value.clone() if isinstance(value, Tensor) else value for value in args]
    inputs = [value for value in static if isinstance(value, Tensor)]
    device = inputs[0].device
    if device.type != "cuda":
        raise ValueError(
            f"MODEL.FREECP.COMPILE makes CUDA graphs, and the model is on {device.type}; set it to "
            "False"
        )
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function(*static)
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device meanwhile. Without a stream torch takes one for all graphs of
    # the process, which is of the device that had the first.
    with (
        torch.cuda.device(device),
        torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
    ):
        outputs = function(*static)
    return Captured(graph.replay, inputs, outputs)


def _kind(tensor: Tensor) -> tuple:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
