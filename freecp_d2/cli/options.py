"""--config-file and --opts, which several commands have."""

import argparse


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """Add --config-file, which must be given."""
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a YAML file, or the name of one that the library ships, such as scenes/clearclip",
    )


def add_opts_option(parser: argparse.ArgumentParser) -> None:
    """Add --opts, which takes all that follows."""
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="last: KEY VALUE ... of the config"
    )
