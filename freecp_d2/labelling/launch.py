"""Labelling by the ranks of Detectron2's `launch`, on machines that see one folder."""

from contextlib import ExitStack, closing
from typing import Any

from detectron2.utils import comm

from ..distributed import from_main
from ..index import Index
from ..meta_arch import FreeCP
from ..segmenter import build_model
from ..stopping import stopping
from ..words import Words
from .finish import finish, items_of, shown
from .job import Job, build_labeller, encode
from .merge import all_records
from .settings import require_same_settings
from .store import Store, open_store
from .worker import journal_of, waiting, work


def label(job: Job, prog: str) -> int:
    """What each rank runs; one process without ranks is one, too.

    Which images a rank labels depends on their ids alone. Words are encoded by rank 0.

    Args:
        prog: what the command is called.

    Returns:
        The exit code: 0; 3 where images could not be labelled; 130 or 143 where a signal stopped
        it.

    Raises:
        OSError: something could not be read or written.
        ValueError: of the input, or the folder holds labels of other settings.
    """
    rank, ranks = comm.get_rank(), comm.get_world_size()
    with ExitStack() as stack:
        stop = stack.enter_context(stopping())
        store, total = from_main(lambda: _begin(job, stack, prog))
        model = build_model(job.cfg)
        words, settings = from_main(lambda: _encode(job, store, model))
        labeller = build_labeller(job, model, words, settings, store)
        index = Index(all_records(store))
        with shown(store, total, index.count(failed=False), hidden=rank > 0):
            with closing(store.journal(journal_of(rank, ranks))) as journal:
                images = waiting(labeller, items_of(job), index, rank, ranks)
                work(labeller, images, journal, stop)
            stopped = next(filter(None, comm.all_gather(stop.exit_code)), 0)
        return stopped or from_main(lambda: finish(job, store, settings, prog))


def _begin(job: Job, stack: ExitStack, prog: str) -> tuple[Store, int]:
    """The folder, held by this process, and how many images there are."""
    store = open_store(job.output)
    stack.enter_context(store.locked(prog))
    return store, sum(1 for _ in items_of(job))


def _encode(job: Job, store: Store, model: FreeCP) -> tuple[Words, dict[str, Any]]:
    words, settings = encode(job, model)
    require_same_settings(store, settings)
    return words, settings
