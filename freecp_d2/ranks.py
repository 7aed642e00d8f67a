"""The processes of one job, on one machine or several: they start together and end together.

:func:`launch` is Detectron2's with an end: a signal to the process that started them stops all
ranks, and when one dies, on whichever machine, the others do not wait for it.
"""

import atexit
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from detectron2.utils import comm
from torch import distributed
from torch.multiprocessing import ProcessRaisedException, start_processes

from .heartbeat import Heartbeat, RankError, address, tell
from .stopping import handled_by

ALL_HERE = timedelta(minutes=30)
"""So long the first rank waits for the last to start."""
NO_TIMEOUT = timedelta(days=365)
"""Of what ranks do together: they have shares of their own, and the first may wait long."""
GRACE = 20.0
"""Seconds from the end of a rank that failed to the end of the others by force."""


def launch(
    function: Callable[..., int | None],
    args: tuple[Any, ...],
    *,
    ranks: int,
    machines: int = 1,
    machine: int = 0,
    url: str = "auto",
) -> int:
    """Run `function(*args)` on each rank, with Detectron2's process groups; its exit code.

    A single rank is this process. Else each machine calls this in its main thread, and starts
    processes, to which `function` and `args` are pickled. SIGINT and SIGTERM to this process go to
    the ranks of all machines. Ranks leave when all have returned.

    Args:
        function: gives the exit code, the same on all ranks; None is 0.
        ranks: on each machine. Where there are GPUs, each has its own.
        machines: how many.
        machine: which of them this is, from 0.
        url: tcp://<address of machine 0>:<port>; "auto": a free port, of one machine.

    Raises:
        RankError: a rank has died.
        SystemExit: as a rank raised it.
        ValueError: `url` is none of these, there is no such machine, or there are more ranks than
            GPUs.
        torch.multiprocessing.ProcessRaisedException: `function` raised another exception.
    """
    if ranks * machines <= 1:
        return function(*args) or 0
    if url == "auto":
        url = f"tcp://127.0.0.1:{_free_port()}"
    address(url)
    if machine not in range(machines):
        raise ValueError(f"--machine-rank {machine}: there are {machines} machines, counted from 0")
    if torch.cuda.is_available() and ranks > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus {ranks}: this machine has {torch.cuda.device_count()}; choose fewer"
        )
    said = multiprocessing.get_context("spawn").SimpleQueue()
    everything = (function, args, ranks, machines, machine, url, said)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # of the ranks: what is said is said once
    with _passed_on() as signals:
        context = start_processes(_rank, everything, ranks, join=False)
        failed = _wait(context.processes, url, machines, machine)
    if failed is None:
        return 0
    if signals:
        return 128 + signals[0]
    process = context.processes[failed]
    sentences = []
    while not said.empty():
        sentences.append(said.get())
    if process.exitcode < 0:
        raise RankError(_end_of(machine * ranks + failed, process))
    if os.path.exists(context.error_files[failed]):
        traceback = pickle.loads(Path(context.error_files[failed]).read_bytes())
        raise ProcessRaisedException(traceback, failed, process.pid)
    if sentences:
        raise sentences[0]
    return process.exitcode


def _rank(
    local_rank: int,
    function: Callable[..., int | None],
    args: tuple[Any, ...],
    ranks: int,
    machines: int,
    machine: int,
    url: str,
    said: Any,
) -> None:
    """What a process is from start to end; it leaves by `os._exit`."""
    status = 1

    def leave() -> None:
        # The threads of GLOO may still want the interpreter, and abort when it is gone.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
    rank = machine * ranks + local_rank
    try:
        _join(local_rank, rank, ranks, machines, url)
        with Heartbeat(url, rank, ranks * machines, machine, said.put):
            status = _code(function, args)
            comm.synchronize()
    except SystemExit as end:
        said.put(end)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        status = 130
        raise SystemExit(status) from None


def _code(function: Callable[..., int | None], args: tuple[Any, ...]) -> int:
    """The exit code that `function` returns or ends with."""
    try:
        return function(*args) or 0
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        return end.code or 0


def _join(local_rank: int, rank: int, ranks: int, machines: int, url: str) -> None:
    """Come together with the other ranks, as Detectron2's own launch does."""
    host, port = address(url)
    try:
        store = distributed.TCPStore(host, port, ranks * machines, rank == 0, timeout=ALL_HERE)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        sys.exit(f"--dist-url {url}: {reason}; check address and port, or choose another port")
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    distributed.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=rank,
        world_size=ranks * machines,
        timeout=NO_TIMEOUT,
    )
    comm.create_local_process_group(ranks)
    comm.synchronize()


def _wait(processes: list[Any], url: str, machines: int, machine: int) -> int | None:
    """Wait until all have ended; which was the first that failed, None where none did."""
    failed = None
    deadline = float("inf")
    while running := [process for process in processes if process.exitcode is None]:
        wait([process.sentinel for process in running], timeout=1)
        if time.monotonic() > deadline:
            for process in running:
                process.kill()
        if failed is None:
            failed = _first_failed(processes)
            if failed is not None:
                deadline = time.monotonic() + GRACE
                _end_the_others(processes, failed, url, machines, machine)
    return _first_failed(processes) if failed is None else failed


def _end_the_others(
    processes: list[Any], failed: int, url: str, machines: int, machine: int
) -> None:
    """Where one has not ended as agreed, with an exit code above 1."""
    if processes[failed].exitcode > 1:
        return
    if machines == 1:
        for process in processes:
            if process.exitcode is None:
                process.terminate()
    else:
        sentence = _end_of(machine * len(processes) + failed, processes[failed])
        # A thread, since a first rank that hangs accepts it and never answers.
        threading.Thread(target=tell, args=(url, machine, sentence), daemon=True).start()


def _first_failed(processes: list[Any]) -> int | None:
    """One that a signal ended goes before those that may have ended for that."""
    codes = [process.exitcode or 0 for process in processes]
    if min(codes) < 0:
        return codes.index(min(codes))
    return next((index for index, code in enumerate(codes) if code), None)


def _end_of(rank: int, process: Any) -> str:
    who = f"rank {rank} (process {process.pid} on {socket.gethostname()})"
    if process.exitcode >= 0:
        return f"{who} has failed; it says there why"
    name = signal.Signals(-process.exitcode).name
    reason = "; where nobody sent it, memory ran out" if name == "SIGKILL" else ""
    return f"{who} was ended by {name}{reason}"


@contextmanager
def _passed_on() -> Iterator[list[int]]:
    """Pass SIGINT and SIGTERM to the children; yields those that came."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for child in multiprocessing.active_children():
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, number)

    with handled_by(handle):
        yield came


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
