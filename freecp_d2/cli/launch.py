"""Commands that run on several ranks, by Detectron2's options for that."""

import argparse
import sys
from collections.abc import Callable

from ..ranks import RankError, launch


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
