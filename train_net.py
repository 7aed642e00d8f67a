"""Evaluate FreeCP, or a base method alone, on data sets of Detectron2's catalogs.

    python train_net.py --config-file configs/scenes/clearclip.yaml --eval-only

Detectron2's entry point: its options, `Trainer`, `main(args)` and `launch`. What they do is in
freecp_d2/cli/evaluate.py, which `freecp evaluate` runs where the library is installed.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from freecp import openmp_settings

os.environ.update(openmp_settings())

from freecp_d2.cli import evaluate
from freecp_d2.cli.evaluate import Trainer, launch_ranks
from freecp_d2.cli.evaluate import evaluate as main

__all__ = ["Trainer", "launch_ranks", "main", "parse_args"]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Detectron2's options and those of `freecp evaluate`; --eval-only is the one task."""
    args = evaluate.parse_args(argv, "train_net.py")
    if not args.eval_only:
        sys.exit("train_net.py: FreeCP is training-free, nothing to train: use --eval-only")
    return args


if __name__ == "__main__":
    sys.exit(launch_ranks(parse_args(), sys.argv[1:]))
