"""How a run begins and ends, whoever runs it: what is to be done, and what became of it."""

import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from ..index import Index
from .core import MANIFEST
from .items import Item, read_items
from .job import Job
from .merge import all_records, merge
from .store import Store

NAMED = 20
"""So many images that could not be labelled are named at most."""
SECONDS = 1.0
"""Between two looks at the journals of all workers."""


def items_of(job: Job) -> Iterator[Item]:
    """The images of a run. Errors are those of :func:`.items.read_items`."""
    return read_items(job.source, job.output)


@contextmanager
def shown(store: Store, total: int, labelled: int, hidden: bool = False) -> Iterator[None]:
    """A bar with rate and time left of all workers, which write their journals meanwhile.

    Args:
        total: how many images there are.
        labelled: how many of them were labelled before.
        hidden: show nothing.
    """
    if hidden:
        yield
        return
    rarely: dict[str, Any] = {}
    if not sys.stderr.isatty():
        rarely = {"mininterval": 30, "maxinterval": math.inf}
    before = store.written(MANIFEST)
    end = threading.Event()
    with tqdm(total=total, initial=min(labelled, total), unit="image", **rarely) as bar:

        def look() -> None:
            seen = 0
            while not end.wait(SECONDS):
                written = store.written(MANIFEST) - before
                bar.update(written - seen)
                seen = written
            bar.update(store.written(MANIFEST) - before - seen)

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def finish(job: Job, store: Store, settings: Mapping[str, Any], prog: str) -> int:
    """Merge the records, say what became of the images, and give the exit code.

    Args:
        settings: of :func:`.settings.settings_of`.
        prog: what the command is called.

    Returns:
        0, or 3 where images could not be labelled.
    """
    index = Index(all_records(store))
    merge(store, index, settings, job.tars)
    total = failed = 0
    for item in items_of(job):
        total += 1
        record = index.get(item.id) or {"error": f"{item.file_name}: it came after the run began"}
        if "error" in record:
            failed += 1
            if failed <= NAMED:
                print(f"{prog}: {record['error']}", file=sys.stderr)
    if failed > NAMED:
        print(f"{prog}: and {failed - NAMED} more; manifest.jsonl has all", file=sys.stderr)
    print(f"{total - failed} of {total} images are labelled: {store.url}")
    return 3 if failed else 0
