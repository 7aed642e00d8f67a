"""Measured mIoU beside the paper's, as Markdown.

python -m freecp_d2.evaluation.table output/*/results.json
"""

import argparse
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..data.benchmarks.layout import BENCHMARKS
from .results import load_results, method_of

PUBLISHED: dict[str, Any] = json.loads(
    resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
)
NUM_IMAGES = {benchmark.dataset: benchmark.num_images for benchmark in BENCHMARKS.values()}
STAR = " \\*"
NOTE = (
    "\\* not the setting of the published figure: another CLIP than ViT-B/16, or not all images of "
    "the benchmark."
)


def published_miou(dataset: str, method: str) -> float | None:
    """The paper's mIoU in percent.

    Args:
        dataset: as registered.
        method: a row of METHOD.md section 9, such as "gem" or "gem + FreeCP".

    Returns:
        None where the paper has none.
    """
    figures = PUBLISHED["miou"].get(method)
    if figures is None or dataset not in PUBLISHED["benchmarks"]:
        return None
    return figures[list(PUBLISHED["benchmarks"]).index(dataset)]


def markdown_table(runs: Sequence[dict[str, Any]]) -> str:
    """One row a result, by benchmark in the paper's order, then method, the base method first.

    A result whose CLIP or number of images is not that of the published figure has a star.

    Args:
        runs: contents of results.json files.
    """
    titles = PUBLISHED["benchmarks"]
    order = list(titles)

    def position(run: dict[str, Any]) -> tuple:
        name = run["dataset"]
        return order.index(name) if name in order else len(order), name, method_of(run)

    rows = []
    for run in sorted(runs, key=position):
        name, method, measured = run["dataset"], method_of(run), run["metrics"]["mIoU"]
        published = published_miou(name, method)
        known = published is not None
        as_published = (
            run["images"] == NUM_IMAGES.get(name) and run.get("clip") in PUBLISHED["clip"]
        )
        rows.append(
            (
                titles.get(name, name),
                method,
                run["images"],
                "-" if measured is None else f"{measured:.2f}",
                f"{published:.1f}{'' if as_published else STAR}" if known else "-",
                f"{measured - published:+.2f}" if known and measured is not None else "-",
            )
        )
    headers = ("data set", "method", "images", "mIoU", "published", "difference")
    align = ("left", "left", "right", "right", "right", "right")
    table = tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)
    return f"{table}\n\n{NOTE}" if any(STAR in row[4] for row in rows) else table


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of the named files."""
    parser = argparse.ArgumentParser(
        prog="python -m freecp_d2.evaluation.table", description=__doc__.splitlines()[0]
    )
    parser.add_argument("results", nargs="+", type=Path, metavar="results.json")
    try:
        print(markdown_table([load_results(path) for path in parser.parse_args(argv).results]))
    except (OSError, ValueError) as error:
        parser.exit(2, f"table: {error}\n")


if __name__ == "__main__":
    main()
