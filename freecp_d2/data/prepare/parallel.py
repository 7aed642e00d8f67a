"""One function over many files, in processes, under a progress bar."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

CHUNK = 16
"""Files handed to a process at once; fewer than that are not worth starting one."""


def each(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, label: str
) -> Iterator[Result]:
    """The results of `function` for `items`, in their order.

    Args:
        function: of a module's top level; it and the items go to spawned processes.
        workers: at most so many processes; 1 stays in this one.
        label: stands before the progress bar.

    Raises:
        BrokenProcessPool: a process died.
    """
    workers = min(workers, -(-len(items) // CHUNK))
    if workers <= 1:
        yield from tqdm(map(function, items), label, len(items), unit="file")
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        results = pool.map(function, items, chunksize=CHUNK)
        yield from tqdm(results, label, len(items), unit="file")
