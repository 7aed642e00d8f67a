"""That the ranks of a job are its own, and not those of another job on the same port."""

import argparse
import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from detectron2.utils import comm

T = TypeVar("T")


def job_token(args: argparse.Namespace) -> str:
    """What the ranks of one job share, and those of another do not.

    It is made before the ranks are, and goes to each with its arguments. On one machine it is
    random. Several machines, each with a launcher of its own, agree on a hash of the arguments and
    the config file: only jobs that are to do the very same have the same.

    Args:
        args: of Detectron2's `default_argument_parser`.
    """
    if args.num_machines == 1:
        return uuid.uuid4().hex
    shared = {key: value for key, value in vars(args).items() if key != "machine_rank"}
    content = Path(args.config_file).read_bytes() if Path(args.config_file).is_file() else b""
    return hashlib.sha256(repr(sorted(shared.items())).encode() + content).hexdigest()


def require_one_job(token: str, ranks: int) -> None:
    """See that all ranks of the process group were started by this job.

    Jobs that meet on one port (--dist-url) mix their ranks, and each would count some images of
    the other. To be called by all ranks, before anything is written; all raise or none.

    Args:
        token: of :func:`job_token`.
        ranks: how many this job started.

    Raises:
        ValueError: a rank has another token, or there are more or fewer ranks.
    """
    tokens = comm.all_gather(token)
    strangers = sum(other != token for other in tokens)
    if strangers or len(tokens) != ranks:
        raise ValueError(
            f"{strangers} of {len(tokens)} ranks belong to another job ({ranks} were started by "
            "this one), so the figures would be wrong; start it again, with --dist-url auto on one "
            "machine or a port of its own on several"
        )


def from_main(function: Callable[[], T]) -> T:
    """What `function` gives on rank 0, on all ranks; only rank 0 calls it.

    To be called by all ranks.

    Raises:
        Exception: what it raises, on all ranks.
    """
    result: T | None = None
    error: Exception | None = None
    if comm.is_main_process():
        try:
            result = function()
        except Exception as raised:
            error = raised
    result, error = comm.all_gather((result, error))[0]
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
