"""One function over many files, in processes where they pay, under a progress bar."""

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from time import perf_counter
from types import FrameType
from typing import TypeVar

from tqdm import tqdm

from ...stopping import Stop
from ...workers import begin_worker

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIAL_SECONDS = 1.0
"""So long this process works alone, to see how long a file takes."""
WORKER_SECONDS = 2.0
"""What a process must save of the rest, at the least, to be started: a start costs under one."""
PATIENCE = 5.0
"""Seconds from SIGTERM to the end of a process: its parent has perhaps got it, too, and lets it
finish the files at hand."""
CHUNK = 16
"""Files handed to a process at once."""


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    label: str,
    stop: Stop | None = None,
) -> Iterator[Result]:
    """The results of `function` for `items`, in their order.

    This process begins, and starts others for the rest only when that saves time. They import
    neither torch nor Detectron2, and end when this one does.

    Args:
        function: of a module's top level; it and the items go to spawned processes.
        workers: at most so many processes; 1 stays in this one.
        label: stands before the progress bar.
        stop: once it has a signal there are no more results; the files at hand are finished.

    Raises:
        BrokenProcessPool: a process died.
    """
    with closing(_results(function, items, workers)) as results:
        try:
            for result in tqdm(results, label, len(items), unit="file"):
                yield result
                if stop and stop.signal:
                    return
        except BrokenProcessPool:
            if not stop or not stop.signal:  # which others have got, too
                raise


def _results(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Result]:
    start, done = perf_counter(), 0
    while done < len(items) and (workers == 1 or perf_counter() - start < TRIAL_SECONDS):
        yield function(items[done])
        done += 1
    rest = items[done:]
    if not rest:
        return
    per_file = (perf_counter() - start) / max(done, 1)
    workers = worthwhile(workers, len(rest), per_file)
    if workers == 1:
        yield from map(function, rest)
        return
    os.environ["FREECP_D2_PREPARE_WORKER"] = "1"  # see freecp_d2/__init__.py
    try:
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin)
        results = pool.map(function, rest, chunksize=CHUNK)  # starts all processes
    finally:
        del os.environ["FREECP_D2_PREPARE_WORKER"]
    with pool:
        yield from results


def _begin() -> None:
    """The first that a process of the pool does."""
    begin_worker()

    def end_later(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(PATIENCE, os._exit, (1,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, end_later)


def worthwhile(workers: int, files: int, seconds: float) -> int:
    """How many of at most `workers` processes save time on `files` that take `seconds` each."""
    most = min(workers, -(-files // CHUNK))
    count = 1
    while count < most and files * seconds * (1 / count - 1 / (count + 1)) > WORKER_SECONDS:
        count += 1
    return count
