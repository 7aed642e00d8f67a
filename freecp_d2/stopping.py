"""Ends that lose nothing: the work at hand is finished before a signal takes effect."""

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether the process was asked to end.

    Attributes:
        signal: SIGINT or SIGTERM; None before.
    """

    signal: int | None = None

    def sentence(self, prog: str, argv: Sequence[str]) -> str:
        """What a command that stopped says last: the line that goes on.

        Args:
            prog, argv: what it was called, and its arguments.
        """
        name = signal.Signals(self.signal or 0).name
        command = f"python {sys.argv[0]}" if prog.endswith(".py") else prog
        return f"{prog}: stopped by {name}; go on with: {command} {shlex.join(argv)}"

    @property
    def exit_code(self) -> int:
        """As shells have it: 130 for SIGINT, 143 for SIGTERM, 0 where there was none."""
        return 128 + self.signal if self.signal else 0


@contextmanager
def stopping() -> Iterator[Stop]:
    """Note SIGTERM and SIGINT in place of ending at once; a second one ends the block at once.

    What comes within a second is the same one: a terminal and a parent both send it.

    To be called in the main thread. Handlers are put back at the end.

    Raises:
        KeyboardInterrupt: a second SIGINT or SIGTERM came.
    """
    stop = Stop()

    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if stop.signal is None:
            stop.signal, first = number, time.monotonic()
        elif time.monotonic() - first > 1:
            raise KeyboardInterrupt

    with handled_by(note):
        yield stop


@contextmanager
def handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Give SIGINT and SIGTERM to `handler`, in the main thread, until the end of the block."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
