"""What the ranks of a job know of each other while each does its own work."""

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from urllib.parse import urlsplit

from torch import distributed

BEAT = 2.0
"""Seconds from one sign of life of a rank to the next."""
SILENCE = 40.0
"""A rank without a sign of life for so many seconds is dead."""
_STOP, _END = "freecp/stop", "freecp/end"


class RankError(RuntimeError):
    """A rank has died, here or on another machine; the sentence names it."""


def address(url: str) -> tuple[str, int]:
    """Host and port of tcp://host:port.

    Raises:
        ValueError: `url` is no such thing.
    """
    parts = urlsplit(url)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port:
        raise ValueError(f"--dist-url {url}: give tcp://<address of the first machine>:<port>")
    return parts.hostname, parts.port


def tell(url: str, machine: int, sentence: str) -> None:
    """Let the ranks that still run know that one of `machine` has failed.

    Args:
        url: of the store; see :class:`Heartbeat`.
    """
    with suppress(RuntimeError):  # the first rank is gone, which they notice
        _client(url).set(_END, json.dumps([machine, sentence]))


class Heartbeat:
    """A thread of a rank that ends its process where another rank has died.

    The first rank watches all others, and they watch the first, whose store they share. SIGINT and
    SIGTERM that one rank gets, all get.

    Args:
        url: tcp://address:port of the store.
        rank: of this process.
        ranks: of all machines.
        machine: this one.
        say: is given the error before the process ends, where its machine does not know it yet.
    """

    def __init__(
        self, url: str, rank: int, ranks: int, machine: int, say: Callable[[RankError], None]
    ):
        self._rank, self._ranks, self._machine, self._say = rank, ranks, machine, say
        self._store = _client(url)
        who = f"rank {rank} (process {os.getpid()} on {socket.gethostname()})"
        self._store.set(f"freecp/who/{rank}", who)
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._over = threading.Event()
        self._signals, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        """Begin; in the main thread."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread.start()

    def __exit__(self, kind: type | None, *error: object) -> None:
        if kind is not None and issubclass(kind, RuntimeError):
            time.sleep(5 * BEAT)  # perhaps GLOO's, for the end of another rank: word of it comes
        self._over.set()
        signal.set_wakeup_fd(-1)

    def _run(self) -> None:
        beat, told = 0, False
        try:
            while not self._over.is_set():
                beat += 1
                # The store's calls wait for ever for a process that hangs.
                sentence = "rank 0, on the first machine, gives no sign of life"
                silent = threading.Timer(SILENCE, self._end, (sentence, False))
                silent.daemon = True
                silent.start()
                self._store.set(_beat(self._rank), str(beat))
                self._look()
                number = self._signal()
                if number and not told:
                    self._store.set(_STOP, str(number))
                elif not told and self._store.check([_STOP]):
                    number = int(self._store.get(_STOP))
                    os.kill(os.getpid(), number)
                told = told or number > 0
                silent.cancel()
        except RuntimeError:
            silent.cancel()
            if not self._over.wait(2 * BEAT):
                sentence = "rank 0, on the first machine, has ended, or its machine"
                self._end(sentence, self._machine == 0)

    def _signal(self) -> int:
        """The first that has come since the last call, at once or after a beat; 0: none."""
        ready, *_ = select.select([self._signals], [], [], BEAT)
        came = os.read(self._signals, 64) if ready else b""
        return next((n for n in came if n in (signal.SIGINT, signal.SIGTERM)), 0)

    def _look(self) -> None:
        """See whether a rank has died."""
        if self._store.check([_END]):
            machine, sentence = json.loads(self._store.get(_END))
            self._end(sentence, machine == self._machine)
        for rank in range(1, self._ranks) if self._rank == 0 else ():
            beat = self._store.get(_beat(rank)) if self._store.check([_beat(rank)]) else b""
            now = time.monotonic()
            before, since = self._heard.setdefault(rank, (beat, now))
            if beat != before:
                self._heard[rank] = beat, now
            elif now - since > SILENCE:
                who = self._store.get(f"freecp/who/{rank}").decode()
                sentence = f"{who} has given no sign of life for {SILENCE:.0f} seconds"
                self._store.set(_END, json.dumps([-1, sentence]))
                self._end(sentence, False)

    def _end(self, sentence: str, known: bool) -> None:
        if not known:
            self._say(RankError(sentence))
        if self._rank == 0:
            time.sleep(2 * BEAT)  # its store goes with it; the others look once more
        os._exit(1)


def _beat(rank: int) -> str:
    return f"freecp/beat/{rank}"


def _client(url: str) -> distributed.TCPStore:
    host, port = address(url)
    return distributed.TCPStore(
        host, port, is_master=False, timeout=timedelta(seconds=SILENCE), wait_for_workers=False
    )
