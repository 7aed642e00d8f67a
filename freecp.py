"""The command line of freecp_d2: `freecp segment`, `evaluate`, `label` and others.

It stands beside the package, since `import freecp_d2` loads torch, and help should not wait for it.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "segment": ("freecp_d2.cli.segment", "images and videos into classes named in words"),
    "tag": ("freecp_d2.cli.tag", "which classes are in images, without masks"),
    "web": ("freecp_d2.cli.web", "a web page: drop a picture, type classes"),
    "evaluate": ("freecp_d2.cli.evaluate", "FreeCP, or a base method alone, on data sets"),
    "robustness": ("freecp_d2.cli.robustness", "other names and distractors on a data set"),
    "label": ("freecp_d2.cli.label", "any number of images into label maps, on many machines"),
    "export": ("freecp_d2.cli.export", "for other runtimes: torch.export, ONNX, OpenVINO"),
    "rank": ("freecp_d2.cli.rank", "which images to annotate first"),
    "prepare": ("freecp_d2.data.prepare.__main__", "the label maps of benchmarks, or check them"),
}
"""Name -> the module whose `main(argv, prog)` it is, and what it does."""


def openmp_settings() -> dict[str, str]:
    """Environment variables, to be set before torch is loaded; none if OMP_WAIT_POLICY is set.

    torch's threads wait for each other many times an image. By default they spin for milliseconds
    then, which makes two processes on the same cores five times slower; if they slept at once, as
    PASSIVE alone has it, a small CLIP would take twice as long. So they spin for microseconds. See
    docs/labelling_at_scale.md.
    """
    if "OMP_WAIT_POLICY" in os.environ:
        return {}
    spins = os.environ.get("GOMP_SPINCOUNT", "1000")
    return {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": spins}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run a subcommand; its exit code.

    Args:
        argv: its name and its own arguments; by default those of this process.
    """
    parser = argparse.ArgumentParser("freecp", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for name, (_, help) in SUBCOMMANDS.items():
        commands.add_parser(name, help=help, add_help=False)
    given = list(sys.argv[1:] if argv is None else argv)
    name = parser.parse_args(given[:1]).command
    os.environ.update(openmp_settings())
    module = importlib.import_module(SUBCOMMANDS[name][0])
    return module.main(given[1:], f"freecp {name}")


if __name__ == "__main__":
    sys.exit(main())
