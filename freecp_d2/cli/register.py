"""--register, which several commands have: files that register data sets and base methods."""

import argparse
import runpy
from collections.abc import Sequence

from ..data.registration import register_dataset


def add_register_option(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="FILE",
        help="first run this .py, which registers a data set or a base method "
        "(projects/CamVid/camvid.py and projects/OwnBaseMethod/value_attention.py are examples), "
        "or register the data set that this .json describes (docs/my_dataset.md); may be given "
        "several times",
    )


def register_files(files: Sequence[str]) -> None:
    """Run the files of --register, or register the data sets that they describe.

    Raises:
        FileNotFoundError, ValueError: a .json that is not there, or as `register_dataset` has it.
        ValueError: a file wants a package that is not there.
    """
    for file in files:
        if file.endswith(".json"):
            register_dataset(file)
            continue
        try:
            runpy.run_path(file)
        except ModuleNotFoundError as error:
            raise ValueError(f"--register {file}: {error}") from error
