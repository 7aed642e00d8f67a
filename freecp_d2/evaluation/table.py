"""Measured mIoU beside the published one, as Markdown.

python -m freecp_d2.evaluation.table output/*/results.json
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..data import load_vocabulary
from ..data.benchmarks.catalog import vocabulary_of
from ..data.benchmarks.layout import BENCHMARKS
from ..data.benchmarks.protocols import PAPER
from ..files import PACKAGED
from .facts import hash_of_words
from .results import load_results, method_of, printable

PUBLISHED: dict[str, Any] = json.loads(
    resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
)
BY_DATASET = {benchmark.dataset: benchmark for benchmark in BENCHMARKS.values()}
STAR = " \\*"
NOTE = "\\* not the setting of the published figure:"


def published_miou(dataset: str, method: str) -> float | None:
    """The paper's mIoU in percent, or that of the base method's authors where the paper has none.

    Args:
        dataset: as registered.
        method: a row of METHOD.md section 9, such as "gem" or "gem + FreeCP", or "naclip".

    Returns:
        None where there is none.
    """
    figures = PUBLISHED["miou"].get(method) or PUBLISHED["authors"].get(method)
    if figures is None or dataset not in PUBLISHED["benchmarks"]:
        return None
    return figures[list(PUBLISHED["benchmarks"]).index(dataset)]


def deviations(run: Mapping[str, Any]) -> list[str]:
    """What a result on a benchmark does not share with the published figure of its row.

    Each in a few words, such as "MODEL.FREECP.STRIDE 56 (112)", the published setting in brackets.

    Args:
        run: content of a results.json file.
    """
    benchmark, method = BY_DATASET[run["dataset"]], run.get("method")
    differences = []
    if run["images"] != benchmark.num_images:
        differences.append(f"{run['images']} images ({benchmark.num_images})")
    if run.get("clip") not in PUBLISHED["clip"]:
        differences.append(f"CLIP {run.get('clip')} (ViT-B-16)")
    if run.get("label_maps_as_published") is False:
        differences.append("label maps from COCO's instances (COCO-Stuff's pixel maps)")
    config = run.get("config")
    if not isinstance(config, Mapping):
        return [*differences, "the rest of its setting is unknown: its results.json has no config"]
    if run.get("pretrained") != PUBLISHED["pretrained"]:
        differences.append(f"CLIP weights {run.get('pretrained')} ({PUBLISHED['pretrained']})")
    if run.get("precision") != PUBLISHED["precision"]:
        differences.append(f"precision {run.get('precision')} ({PUBLISHED['precision']})")
    expected, words = dict(PUBLISHED["common"]), ""
    if run.get("enabled"):
        expected |= PUBLISHED["freecp"]
        by_benchmark = PUBLISHED["by_benchmark"]
        expected |= zip(by_benchmark["keys"], by_benchmark[benchmark.dataset], strict=True)
        differences += _descriptions(run)
    elif run.get("protocol") == "paper":
        protocol = PAPER[str(method)][benchmark.name]
        words = protocol.words
        expected |= {
            "INPUT.MIN_SIZE_TEST": protocol.short_side,
            "MODEL.FREECP.WINDOW": protocol.window,
            "MODEL.FREECP.STRIDE": protocol.stride,
            "MODEL.CLIP.LAST_BLOCK": "residual" if method == "sclip" else "",
        }
        if protocol.authors == "ClearCLIP" and benchmark.scored_background:
            differences.append("the protocol of the published figure is not known")
    else:
        differences.append("protocol same (paper: that of the base method's authors)")
    expected |= PUBLISHED["options"].get(method, {})
    vocabulary = load_vocabulary(words) if words else vocabulary_of(benchmark)
    if run.get("words") != hash_of_words(vocabulary):
        differences.append(f"words {run.get('vocabulary') or 'of the data set'} (the published)")
    for key, value in expected.items():
        setting = _value(config, key)
        if setting != value:
            differences.append(f"{key} {'unknown' if setting is None else setting!s} ({value!s})")
    return differences


def _descriptions(run: Mapping[str, Any]) -> list[str]:
    """What is to be said of the descriptions, of which the paper's are not ours to compare with."""
    path = _value(run["config"], "MODEL.FREECP.DESCRIPTIONS")
    if not run.get("descriptions"):
        return ["no descriptions (the paper's)"]
    if str(path).startswith(PACKAGED):
        return ["descriptions of ours (the paper's)"]
    return [f"descriptions {path}, not checked (the paper's)"]


def _value(config: Mapping[str, Any], key: str) -> Any:
    """Of a key such as MODEL.CLIP.NAME; None where there is none."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _images(run: Mapping[str, Any]) -> str:
    """How many images count, and how many of the data set failed."""
    failed = len(run.get("failed") or ())
    return f"{run['images']}, {failed} failed" if failed else str(run["images"])


def markdown_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One row a result, by benchmark in the paper's order, then method, the base method first.

    A base method alone is followed by its protocol. A result whose setting is not that of the
    published figure has a star, and below the table it is said in what it differs.

    Args:
        runs: contents of results.json files.
    """
    titles = PUBLISHED["benchmarks"]
    order = list(titles)

    def position(run: Mapping[str, Any]) -> tuple:
        name = run["dataset"]
        return order.index(name) if name in order else len(order), name, method_of(run)

    rows, notes = [], []
    for run in sorted(runs, key=position):
        name, method, measured = run["dataset"], method_of(run), run["metrics"]["mIoU"]
        title = titles.get(name, name)
        published = published_miou(name, method)
        if not run.get("enabled") and run.get("protocol"):
            method = f"{method} (protocol {run['protocol']})"
        star = ""
        if published is not None:
            differences = deviations(run)
            if differences:
                star = STAR
                notes.append(f"- {title}, {method}: {'; '.join(differences)}")
        row = (
            title,
            method,
            _images(run),
            "-" if measured is None else f"{measured:.2f}",
            "-" if published is None else f"{published}{star}",
            "-" if published is None or measured is None else f"{measured - published:+.2f}",
        )
        rows.append([printable(str(cell)) for cell in row])
    headers = ("data set", "method", "images", "mIoU", "published", "difference")
    align = ("left", "left", "right", "right", "right", "right")
    table = tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)
    return "\n".join([f"{table}\n", f"{NOTE}\n", *map(printable, notes)]) if notes else table


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
