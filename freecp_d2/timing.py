"""Seconds spent in the stages of a model."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StageTimer:
    """Sums seconds by stage. CUDA's are measured by events, so that no stage waits for them."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._pending: deque[tuple[str, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Count what runs in this context, on `device`, as stage `name`."""
        if device.type != "cuda":
            start = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - start
            return
        while self._pending and self._pending[0][2].query():
            self._settle()
        stream = torch.cuda.current_stream(device)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record(stream)
        yield
        events[1].record(stream)
        self._pending.append((name, events[0], events[1]))

    def seconds(self) -> dict[str, float]:
        """Stage -> seconds so far; waits for CUDA stages that still run."""
        while self._pending:
            self._settle()
        return dict(self._seconds)

    def _settle(self) -> None:
        name, start, end = self._pending.popleft()
        end.synchronize()
        self._seconds[name] += start.elapsed_time(end) / 1000
