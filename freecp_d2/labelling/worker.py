"""One worker's share: images are read ahead and written behind while the next is segmented."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..index import Index
from ..stopping import Stop
from .core import MANIFEST, Labelled, Labeller
from .items import Item, shard_of
from .store import RecordWriter

READERS = 2
"""Threads that read and decode images; one is enough for a CPU, two for a fast GPU."""
AHEAD = 4
"""How many images are in memory, read or to be written, beside the one at hand."""


def journal_of(worker: int, workers: int) -> str:
    """The name of a worker's journal."""
    return f"{MANIFEST}/{worker:04d}-of-{workers:04d}.jsonl"


def waiting(
    labeller: Labeller, items: Iterable[Item], index: Index, worker: int, workers: int
) -> Iterator[tuple[Item, dict[str, Any] | None]]:
    """The images of a worker that are not done, each with its former record."""
    for item in items:
        if shard_of(item.id, workers) == worker:
            former = index.get(item.id)
            if not labeller.is_done(item, former):
                yield item, former


def work(
    labeller: Labeller,
    images: Iterable[tuple[Item, dict[str, Any] | None]],
    journal: RecordWriter,
    stop: Stop,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Label images until there are no more or the process is asked to stop.

    What is at hand then is finished, and the rest is as if it had never been begun.

    Args:
        images: of :func:`waiting`.
        done: called after each.

    Raises:
        OSError: something could not be written.
    """

    def finish(labelled: Labelled) -> None:
        journal.add(labeller.write(labelled))
        done()

    reading: deque[Future] = deque()
    writing: deque[Future] = deque()
    source = iter(images)
    readers, writer = ThreadPoolExecutor(READERS), ThreadPoolExecutor(1)
    try:
        while stop.signal is None:
            while len(reading) < AHEAD and (image := next(source, None)) is not None:
                reading.append(readers.submit(labeller.read, *image))
            if not reading:
                break
            labelled = labeller.label(reading.popleft().result())
            writing.append(writer.submit(finish, labelled))
            while writing and (writing[0].done() or len(writing) > AHEAD):
                writing.popleft().result()
        for future in writing:
            future.result()
    finally:
        readers.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)
