"""Products of float32 matrices in bfloat16, with float32 sums, on CPUs that have units for it.

Which precision such products have is one switch of the process, oneDNN's. Here it is set around a
block of code, and blocks of threads that want it otherwise take turns.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch

_changed = threading.Condition()
_queue: deque[object] = deque()
_running = {True: 0, False: 0}
_of_thread = threading.local()
_before = ""


def has_bf16_units() -> bool:
    """Whether this CPU multiplies bfloat16 by itself, and torch can tell."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(unit, False) for unit in ("avx512_bf16", "amx_bf16", "bf16"))


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
    _enter(wanted)
    _of_thread.wanted = wanted
    try:
        yield
    finally:
        _leave(wanted)
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
