"""--register, which several commands have: files that register data sets and base methods."""

import argparse
import runpy
from collections.abc import Sequence


def add_register_option(parser: argparse.ArgumentParser) -> None:
    """Add the option."""
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="FILE.py",
        help="run this file first; it registers a data set or a base method "
        "(projects/CamVid/camvid.py and projects/OwnBaseMethod/value_attention.py are examples); "
        "may be given several times",
    )


def register_files(files: Sequence[str]) -> None:
    """Run the files of --register.

    Raises:
        ValueError: a file wants a package that is not there.
    """
    for file in files:
        try:
            runpy.run_path(file)
        except ModuleNotFoundError as error:
            raise ValueError(f"--register {file}: {error}") from error
