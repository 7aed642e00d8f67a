"""Products of float32 matrices on CPUs: by oneDNN, and in bfloat16 where it is wanted.

Which precision such products have is one switch of the process, oneDNN's. Here it is set around a
block of code, and blocks of threads that want it otherwise take turns.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_changed = threading.Condition()
_queue: deque[object] = deque()
_running = {True: 0, False: 0}
_of_thread = threading.local()
_before = ""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, of float32 on a CPU by oneDNN.

    PyTorch leaves such products to MKL, which takes more than twice as long on AMD's CPUs
    (docs/performance.md), unless their precision may be less. Where gradients are recorded it is
    PyTorch's own product, and in a program that is exported.

    Args:
        x: (..., K).
        weight: (M, K).
        bias: (M,), or None.

    Returns:
        (..., M).
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def multiplies_in_bf16() -> bool:
    """Whether oneDNN multiplies float32 in bfloat16 on this CPU where it may.

    It does by AMX. Units for bfloat16 alone (avx512_bf16) are no reason for it, so it is tried.
    """
    x = torch.full((256, 256), 1 + 2**-12)  # in bfloat16: 1
    with bf16_matmul(True, x.device):
        return linear(x, x)[0, 0].item() == len(x)


@contextmanager
def bf16_matmul(wanted: bool, device: torch.device) -> Iterator[None]:
    """Multiply in bfloat16 within it; or, with False, as the process does otherwise.

    Threads run beside others that want the same, and wait for those that do not, first come first
    served. Blocks of one thread may be nested. The switch is put back when the last one leaves,
    whatever ended it. It means nothing on a device other than the CPU.
    """
    outer = getattr(_of_thread, "wanted", None)
    if device.type != "cpu" or outer == wanted:
        yield
        return
    if outer is not None:
        _leave(outer)
    try:
        _enter(wanted)
        _of_thread.wanted = wanted
        try:
            yield
        finally:
            _leave(wanted)
    finally:
        _of_thread.wanted = outer
        if outer is not None:
            _enter(outer)


class OnDevice(Protocol):
    """What has a device."""

    @property
    def device(self) -> torch.device: ...


S = TypeVar("S", bound=OnDevice)
P = ParamSpec("P")
R = TypeVar("R")


def exact_products(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """A method beside which no other thread multiplies in bfloat16."""

    @wraps(method)
    def exact(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with bf16_matmul(False, self.device):
            return method(self, *args, **kwargs)

    return exact


def _enter(wanted: bool) -> None:
    global _before
    switch = _switch()
    ticket = object()
    with _changed:
        _queue.append(ticket)
        try:
            _changed.wait_for(lambda: _queue[0] is ticket and not _running[not wanted])
            _running[wanted] += 1
        finally:
            _queue.remove(ticket)
            _changed.notify_all()
        if wanted and _running[True] == 1:
            _before, switch.fp32_precision = switch.fp32_precision, "bf16"


def _leave(wanted: bool) -> None:
    with _changed:
        _running[wanted] -= 1
        if wanted and not _running[True]:
            _switch().fp32_precision = _before
        _changed.notify_all()


def _switch() -> Any:
    return vars(torch.backends)["mkldnn"].matmul
