"""Results of several evaluations on one HTML page, sortable, that needs no network.

python -m freecp_d2.evaluation.compare output/*
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ..files import write_whole
from .pages import difference, render
from .results import METRICS, load_results, method_of, printable, settings_of
from .table import PUBLISHED, deviations, published_miou


@dataclass(frozen=True)
class Run:
    """A results.json, and what the page calls it."""

    path: Path
    name: str
    results: Mapping[str, Any]


class Row(NamedTuple):
    """A run in the table of all runs; what does not exist is None.

    Attributes:
        report: address of its report.html.
        base: name of the run of the base method alone that `gain` is over.
        starred: it differs from the setting of the published figure in this.
    """

    run: Run
    report: str | None
    method: str
    title: str
    metrics: Mapping[str, float | None]
    base: str | None
    gain: float | None
    published: float | None
    starred: Sequence[str]
    f1: float | None
    milliseconds: float | None


class Group(NamedTuple):
    """Runs on one data set with the same classes.

    Attributes:
        settings: (key, a value a run) of what is not the same in all of them.
        classes: (name, IoU a run, the largest, how far it is above the smallest).
    """

    title: str
    runs: Sequence[Run]
    settings: Sequence[tuple[str, Sequence[str]]]
    classes: Sequence[tuple[str, Sequence[float | None], float | None, float | None]]


def find_results(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Files of results, each once, and those of `paths` where there are none.

    Args:
        paths: folders, whose results.json is taken and those of the folders in it, and JSON files.
            A file that is not called .json has none, so that a shell's `output/*` may name it.
    """
    found: dict[Path, None] = {}
    without = []
    for path in paths:
        if path.is_dir():
            files = sorted(path.glob("results.json")) + sorted(path.glob("*/results.json"))
        else:
            files = [path] if path.suffix == ".json" or not path.exists() else []
        found |= dict.fromkeys(files)
        if not files:
            without.append(path)
    return list(found), without


def load_runs(files: Sequence[Path]) -> list[Run]:
    """Runs by the names of their folders, as far as these differ.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_results`.
    """
    names = [str(path.parent if path.name == "results.json" else path) for path in files]
    if len(names) > 1:
        names = [os.path.abspath(name) for name in names]  # some may be relative, others not
        common = os.path.commonpath(names)
        names = [os.path.relpath(name, common) for name in names]
    return [Run(path, name, load_results(path)) for path, name in zip(files, names, strict=True)]


def write_comparison(path: Path, runs: Sequence[Run]) -> None:
    """Write the page; it links to the report.html beside each results.json.

    Raises:
        OSError: it cannot be written.
    """
    write_whole(
        path,
        render(
            "compare.html",
            rows=[_row(run, runs, path.parent) for run in runs],
            metrics=METRICS,
            groups=_groups(runs),
        ),
    )


def base_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run of the base method alone to compare with: of the same data set, classes and CLIP.

    Where there are several, the first that was run as with FreeCP (protocol "same"), else the
    first.
    """
    if not run.results.get("enabled"):
        return None

    def identity(results: Mapping[str, Any]) -> tuple:
        keys = ("method", "dataset", "images", "clip", "pretrained")
        return *(results.get(key) for key in keys), _class_names(results)

    bases = [
        other
        for other in runs
        if other.results.get("enabled") is False
        and identity(other.results) == identity(run.results)
    ]
    same = [base for base in bases if base.results.get("protocol") == "same"]
    return next(iter(same + bases), None)


def _row(run: Run, runs: Sequence[Run], folder: Path) -> Row:
    results = run.results
    method = method_of(results)
    base = base_of(run, runs)
    published = published_miou(results["dataset"], method)
    report = run.path.with_name("report.html")
    miou = results["metrics"]["mIoU"]
    seconds = results.get("seconds_per_image")
    purification = results.get("purification") or {}
    protocol = results.get("protocol") if results.get("enabled") is False else None
    return Row(
        run=run,
        report=quote(os.path.relpath(report, folder)) if report.is_file() else None,
        method=f"{method} (protocol {protocol})" if protocol else method,
        title=PUBLISHED["benchmarks"].get(results["dataset"], results["dataset"]),
        metrics=results["metrics"],
        base=None if base is None else base.name,
        gain=None if base is None else difference(miou, base.results["metrics"]["mIoU"]),
        published=published,
        starred=[] if published is None else deviations(results),
        f1=purification.get("ambiguity", {}).get("f1"),
        milliseconds=1000 * sum(seconds.values()) if seconds else None,
    )


def _groups(runs: Sequence[Run]) -> list[Group]:
    by_classes: dict[tuple, list[Run]] = {}
    for run in runs:
        key = run.results["dataset"], _class_names(run.results)
        by_classes.setdefault(key, []).append(run)
    groups = []
    for (dataset, names), members in by_classes.items():
        if len(members) > 1:
            title = PUBLISHED["benchmarks"].get(dataset, dataset)
            groups.append(Group(title, members, _differences(members), _classes(members, names)))
    return groups


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    each = [settings_of(run.results) for run in runs]
    keys = dict.fromkeys(key for settings in each for key in settings)
    rows = [(key, [settings.get(key, "unknown") for settings in each]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _classes(runs: Sequence[Run], names: Sequence[str]) -> list[tuple]:
    rows = []
    for index, name in enumerate(names):
        values = [run.results["classes"][index]["IoU"] for run in runs]
        known = [value for value in values if value is not None]
        spread = max(known) - min(known) if len(known) > 1 else None
        rows.append((name, values, max(known, default=None), spread))
    return rows


def _class_names(results: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get("name")) for entry in results["classes"])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of the named results and say where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m freecp_d2.evaluation.compare", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="a folder of results, a folder of such folders, or a results.json",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("compare.html"), help="%(default)s by default"
    )
    args = parser.parse_args(argv)
    try:
        files, without = find_results(args.paths)
        if without:
            print(f"No results.json in {printable(', '.join(map(str, without)))}")
        if not files:
            raise ValueError("nothing to compare; name the OUTPUT_DIR of evaluations")
        write_comparison(args.output, load_runs(files))
    except (OSError, ValueError) as error:
        parser.exit(2, f"compare: {error}\n")
    print(f"{args.output}: {len(files)} runs")


if __name__ == "__main__":
    main()
