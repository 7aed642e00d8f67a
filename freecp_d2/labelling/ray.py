"""Labelling by Ray Data: images are read by tasks and labelled by a pool of actors.

What an actor does is what a rank of :mod:`.launch` does, by the same core. Its journal is called by
the actor's id, which stays when Ray starts a dead actor again, here or on another machine: the new
process skips what the journal holds, so that only the images at hand are labelled again.
"""

import logging
import os
import pickle
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.config import CfgNode

from ..data.mapper import InferenceMapper
from ..index import Index
from ..inputs import grouped
from ..meta_arch import FreeCP
from ..segmentation import Segmentation
from ..segmenter import build_model
from ..stopping import Stop, stopping
from ..words import Words
from .core import MANIFEST, Labelled, Labeller, Loaded
from .finish import finish, items_of, shown
from .job import Job, build_labeller, encode
from .merge import all_records
from .settings import SETTINGS, hash_of_settings, require_same_settings
from .store import Store, open_store
from .worker import waiting

if TYPE_CHECKING:
    import ray

IMAGES_A_TASK = 32
"""So many images at most are read, and labelled, by one call of a task or an actor."""
TASKS_EACH = 4
"""So many calls at least an actor has, of fewer images where there are few."""
TASKS_AHEAD = 2
"""Calls that wait for an actor, or that it runs."""
READERS = 2
"""Tasks at once that read images, for each actor."""
ACTOR_CPUS, READER_CPUS = 0.75, 0.25
"""Ray's shares of a core without GPUs: a core is enough for an actor and a reader."""
BYTES_AHEAD = 512 << 20
"""Images that are read and not labelled yet, for each actor."""
SECONDS = 0.5
"""Between two looks at whether to stop."""
CONNECT_SECONDS = 10.0
"""So long at most a cluster takes to answer."""
STOP_SECONDS = 60.0
"""So long at most the actors finish the images at hand."""


def label_by_ray(
    job: Job,
    address: str | None,
    actors: int | None = None,
    gpus: float | None = None,
    prog: str = "freecp label",
) -> int:
    """Label the images of a run.

    Args:
        address: of a cluster, "auto" for one that this machine is of; None: Ray is started on this
            machine, and ended.
        actors: how many label at once; None: as many as the GPUs hold, or one a core.
        gpus: Ray's share of a GPU for each of them; None: a whole one, or none where there is none.
        prog: what the command is called.

    Returns:
        The exit code, as :func:`.launch.label`.

    Raises:
        OSError: something could not be read or written.
        ValueError: Ray is not installed; or of the input, or the folder holds labels of other
            settings.
    """
    ray = _import_ray()
    with ExitStack() as stack:
        store = open_store(job.output)
        stack.enter_context(store.locked(prog))
        total = sum(1 for _ in items_of(job))
        _start(ray, address)
        stack.callback(ray.shutdown)
        stop = stack.enter_context(stopping())
        pool = _pool(ray, actors, gpus)
        try:
            prepare = ray.remote(num_returns=2, **pool.share)(_prepare)
            parts, reference = prepare.remote(job)
            settings = ray.get(reference)
            require_same_settings(store, settings)
            index = Index(all_records(store))
            with shown(store, total, index.count(failed=False)):
                labeller = _labeller_without_model(job, store, settings)
                images = waiting(labeller, items_of(job), index, worker=0, workers=1)
                size = min(-(-total // (pool.actors * TASKS_EACH)), IMAGES_A_TASK)
                groups = [pickle.dumps(group) for group in grouped(images, size)]
                if groups:
                    stopped = ray.remote(num_cpus=0)(threading.Event).remote()
                    actor = job, parts, settings, stopped
                    _wait(_labels(groups, labeller, pool, actor), pool, stop, stopped)
        except Exception as error:
            raise _cause(error) from error
        return stop.exit_code or finish(job, store, settings, prog)


class Actor:
    """Labels the images that tasks have read.

    Args:
        parts: model and words, in Ray's store.
        settings: of :func:`.settings.settings_of`.
        stopped: an actor of Ray, a :class:`threading.Event`.
    """

    def __init__(self, job: Job, parts: "ray.ObjectRef", settings: dict[str, Any], stopped: Any):
        import ray

        model, words = ray.get(parts)
        self._id = str(ray.get_runtime_context().get_actor_id())
        self._stopped, self._stops, self._asked = stopped, False, 0.0
        self._writer = ThreadPoolExecutor(1)
        self._error: Exception | None = None
        try:
            store = open_store(job.output)
            if not store.exists(SETTINGS):
                raise ValueError(
                    f"{job.output}: not the same folder on all machines of the cluster; give one "
                    "that they share, or a URL"
                )
            name = f"{MANIFEST}/ray-{self._id}.jsonl"
            self._journal = store.journal(name)
            self._done = {record["id"] for record in store.records(name)}
            self._labeller = build_labeller(_on_this_device(job), model, words, settings, store)
        except (OSError, ValueError) as error:
            self._error = error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Label images, and see that their records last.

        Returns:
            One row. `stopped`: this actor's id where it was asked to stop, else "". `error`, an
            OSError or ValueError pickled: what ends the run, else empty. Raised, Ray would change
            it.
        """
        if self._error is None:
            try:
                self._label(batch["loaded"])
            except (OSError, ValueError) as error:
                self._error = error
        return {
            "stopped": [self._id if self._stops else ""],
            "error": [pickle.dumps(self._error) if self._error else b""],
        }

    def _label(self, images: Iterable[bytes]) -> None:
        writing = []
        for content in images:
            if self._is_to_stop():
                break
            loaded: Loaded = pickle.loads(content)
            if loaded.item.id not in self._done:
                labelled = self._labeller.label(loaded)
                writing.append(self._writer.submit(self._finish, labelled))
        for future in writing:
            future.result()
        self._journal.sync()

    def _is_to_stop(self) -> bool:
        import ray

        if not self._stops and time.monotonic() - self._asked > SECONDS:
            self._stops = ray.get(self._stopped.is_set.remote())
            self._asked = time.monotonic()
        return self._stops

    def _finish(self, labelled: Labelled) -> None:
        self._journal.add(self._labeller.write(labelled))


@dataclass(frozen=True)
class Pool:
    """What labels: so many actors, each with a share of what Ray counts."""

    actors: int
    share: dict[str, Any]


def _pool(ray: Any, actors: int | None, gpus: float | None) -> Pool:
    there = ray.cluster_resources()
    if gpus is None:
        gpus = 1.0 if there.get("GPU") else 0.0
    if actors is None:
        actors = max(int(there.get("GPU", 0) / gpus if gpus else there["CPU"]), 1)
    return Pool(actors, {"num_gpus": gpus} if gpus else {"num_cpus": ACTOR_CPUS})


def _prepare(job: Job) -> tuple[tuple[FreeCP, Words], dict[str, Any]]:
    """Model and words, and the settings of the run: once, by a worker that is as the actors are."""
    job = _on_this_device(job)
    model = build_model(job.cfg)
    words, settings = encode(job, model)
    return (model, words), settings


def _on_this_device(job: Job) -> Job:
    """The job for the GPU that Ray gave this process, or else the CPU."""
    import ray

    cfg: CfgNode = job.cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda" if ray.get_gpu_ids() else "cpu"
    cfg.freeze()
    return replace(job, cfg=cfg)


def _labeller_without_model(job: Job, store: Store, settings: dict[str, Any]) -> Labeller:
    orientation = InferenceMapper(job.cfg).exif_orientation
    return Labeller(_no_model, store, hash_of_settings(settings), job.outputs, orientation)


def _no_model(pixels: np.ndarray, file_name: str) -> Segmentation:
    raise NotImplementedError("a reader has no model")


def _read(batch: dict[str, np.ndarray], labeller: Labeller) -> Iterator[dict[str, list[bytes]]]:
    """Images of groups one by one, so that Ray can divide what is too large for one block."""
    for group in batch["images"]:
        for item, former in pickle.loads(group):
            yield {"loaded": [pickle.dumps(labeller.read(item, former))]}


def _labels(groups: list[bytes], labeller: Labeller, pool: Pool, actor: tuple[Any, ...]) -> Any:
    """A Ray data set of the images that are labelled; nothing is done before it is read.

    Args:
        actor: the arguments of :class:`Actor`.
    """
    from ray import data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    limits = data.ExecutionResources.for_limits(object_store_memory=BYTES_AHEAD * pool.actors)
    context.execution_options.resource_limits = limits
    images = data.from_items([{"images": g} for g in groups], override_num_blocks=len(groups))
    loaded = images.map_batches(
        partial(_read, labeller=labeller),
        batch_size=None,
        num_cpus=READER_CPUS,
        compute=data.TaskPoolStrategy(READERS * pool.actors),
    )
    return loaded.map_batches(
        Actor,
        fn_constructor_args=actor,
        batch_size=None,
        compute=data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=TASKS_AHEAD),
        **pool.share,
    )


def _wait(dataset: Any, pool: Pool, stop: Stop, stopped: Any) -> None:
    """Until all images are labelled, or all actors have stopped since the process is asked to stop.

    Args:
        stopped: tells the actors.

    Raises:
        Exception: of a task or an actor, also where it was asked.
    """
    errors: list[Exception] = []

    def run() -> None:
        ended: set[str] = set()
        try:
            for batch in dataset.iter_batches(batch_size=None):
                if error := next(filter(None, batch["error"]), None):
                    raise pickle.loads(error)
                ended.update(batch["stopped"])
                if len(ended - {""}) == pool.actors:
                    break
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and stop.signal is None:
        thread.join(SECONDS)
    if stop.signal is not None:
        stopped.set.remote()
        thread.join(STOP_SECONDS)
    if errors:
        raise errors[0]


def _import_ray() -> Any:
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # or a thread starts another Ray when this one ends
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(f"--ray: {error}; pip install 'ray[data]'") from None
    return ray


def _start(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"logging_level": "error"}
    host, _, port = (address or "").rpartition(":")
    try:
        if host and "://" not in host:  # Ray itself tries for many minutes
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        if address is None:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
            options["include_dashboard"] = False
        ray.init(address or "local", **options)
    except (OSError, ValueError) as error:
        text = " ".join(str(error).split())
        raise OSError(f"--ray {address or ''}: {text}; check the address") from None


def _cause(error: BaseException) -> BaseException:
    """What a task or an actor raised, without what Ray says around it, where it is of the input."""
    from ray.exceptions import RayError

    cause: BaseException | None = error
    while isinstance(cause, RayError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    return cause if isinstance(cause, OSError | ValueError) else error
