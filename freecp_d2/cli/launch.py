"""Commands that run on several ranks, by Detectron2's options for that."""

import argparse
import sys
from collections.abc import Callable, Sequence

from ..ranks import RankError, launch
from ..stopping import Stop


def launch_by(args: argparse.Namespace, run: Callable[[argparse.Namespace], int]) -> int:
    """`run(args)` on as many ranks as the options say; its exit code.

    Args:
        args: `num_gpus`, `num_machines`, `machine_rank`, `dist_url` and `prog`, among others.

    Raises:
        SystemExit: as `run` raises it; or a rank has died, or the options do not fit.
    """
    try:
        return launch(
            run,
            (args,),
            ranks=args.num_gpus,
            machines=args.num_machines,
            machine=args.machine_rank,
            url=args.dist_url,
        )
    except (RankError, ValueError) as error:
        sys.exit(f"{args.prog}: {error}")


def say_how_to_go_on(args: argparse.Namespace, code: int, argv: Sequence[str]) -> None:
    """On the first machine, the last line of a command that a signal stopped.

    Args:
        args: `prog` and `machine_rank`, among others.
        code: the exit code.
        argv: the arguments that go on.
    """
    if code > 128 and args.machine_rank == 0:
        print(Stop(code - 128).sentence(args.prog, argv), file=sys.stderr)
