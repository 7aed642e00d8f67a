"""All base methods alone, with FreeCP, and with PAMR on top: one table a data set.

    python projects/BaseMethods/compare.py --camvid /path/to/camvid

What `make compare` runs. Each row and column is a `train_net.py --eval-only` with a folder of its
own in --output. Stopped by Ctrl-C, by SIGTERM or by kill -9, the same command goes on after the
last image. What is evaluated already, with the settings of today, is not evaluated again.
"""

import argparse
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from detectron2.config import CfgNode
from tabulate import tabulate

from freecp_d2 import load_config
from freecp_d2.cli.register import add_register_option, register_files
from freecp_d2.clip.methods import base_method_names
from freecp_d2.evaluation.results import load_results
from freecp_d2.files import write_whole
from freecp_d2.stopping import handled_by

ROOT = Path(__file__).resolve().parents[2]
PARTS = Path(__file__).with_name("parts.py")
VARIANTS: dict[str, tuple[str, ...]] = {
    "alone": ("MODEL.FREECP.ENABLED", "False"),
    "freecp": ("MODEL.FREECP.ENABLED", "True"),
    "freecp_pamr": ("MODEL.FREECP.ENABLED", "True", "MODEL.FREECP.REFINE", "pamr"),
}
"""What is compared -> its keys. The base method alone has FreeCP's windows (PROTOCOL same)."""
TITLES = {"alone": "alone", "freecp": "+ FreeCP", "freecp_pamr": "+ PAMR"}


@dataclass(frozen=True)
class DataSet:
    """What is evaluated on.

    Attributes:
        name: as it is registered.
        base: the config of its settings, without a method.
        opts: keys beside it.
        register: a file that registers it.
        env: environment variables of the evaluation.
    """

    name: str
    base: Path
    opts: tuple[str, ...] = ()
    register: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def part(self, images: int) -> "DataSet":
        """`images` of it, at equal distances."""
        name = f"{self.name}_part_{images}"
        return DataSet(
            name,
            self.base,
            (*self.opts, "DATASETS.TEST", f"('{name}',)"),
            (*self.register, PARTS),
            {**self.env, "PART_OF": self.name, "PART_IMAGES": str(images)},
        )


@dataclass(frozen=True)
class Run:
    """One evaluation."""

    dataset: DataSet
    method: str
    variant: str
    folder: Path
    opts: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """It goes on with what its folder holds."""
        command = [sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--resume"]
        for file in self.dataset.register:
            command += ["--register", str(file)]
        return [*command, "--config-file", str(self.dataset.base), *self.opts]

    def results(self) -> dict[str, Any] | None:
        """What it gave; None where images are missing or have failed, or settings are others."""
        try:
            results = load_results(self.folder / "results.json")
        except FileNotFoundError:
            return None
        cfg = load_config(self.dataset.base, [*self.opts, "MODEL.FREECP.OUTPUT", "label_map"])
        is_whole = results.get("config") == plain(cfg) and not results.get("failed")
        return results if is_whole else None


def plain(cfg: CfgNode) -> dict[str, Any]:
    """A config as results.json has it."""
    return yaml.safe_load(cfg.dump())


def method_opts(method: str) -> tuple[str, ...]:
    """The method and its block numbers for a tower of 6 blocks, of configs/scenes/."""
    file = ROOT / "configs" / "scenes" / f"{method}.yaml"
    if not file.is_file():  # one of the user's own
        return ("MODEL.CLIP.METHOD", method)
    return tuple(flat(yaml.safe_load(file.read_text())["MODEL"]["CLIP"], "MODEL.CLIP."))


def flat(section: Mapping[str, Any], prefix: str) -> list[str]:
    """KEY VALUE pairs of a nested section."""
    pairs: list[str] = []
    for key, value in section.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{key}.")
        else:
            pairs += [f"{prefix}{key}", str(value)]
    return pairs


def scenes() -> DataSet:
    """The embedded benchmark."""
    return DataSet("scenes_val", ROOT / "configs" / "scenes" / "base.yaml")


def camvid(folder: Path, output: Path) -> DataSet:
    """The photographs of projects/CamVid.

    Raises:
        FileNotFoundError: they are not in `folder`.
    """
    file = folder / "classes.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; --camvid is the folder of CamVid")
    descriptions = output / "camvid_descriptions.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    write_whole(descriptions, json.dumps(content["descriptions"]).encode())
    opts = {
        "MODEL.CLIP.NAME": folder / "clip.json",
        "MODEL.CLIP.PRETRAINED": folder / "clip.safetensors",
        "MODEL.FREECP.DESCRIPTIONS": descriptions,
    }
    project = ROOT / "projects" / "CamVid"
    return DataSet(
        "camvid_val",
        project / "configs" / "base.yaml",
        tuple(str(item) for pair in opts.items() for item in pair),
        (project / "camvid.py",),
        {"CAMVID_ROOT": str(folder)},
    )


def runs_on(
    dataset: DataSet, methods: Sequence[str], output: Path, opts: Sequence[str]
) -> list[Run]:
    """Of all methods and variants, method by method."""
    runs = []
    for method in methods:
        for variant, keys in VARIANTS.items():
            folder = output / dataset.name / f"{method}_{variant}"
            every = (*dataset.opts, *method_opts(method), *keys, *opts, "OUTPUT_DIR", str(folder))
            runs.append(Run(dataset, method, variant, folder, every))
    return runs


def evaluate(runs: Sequence[Run]) -> int:
    """Evaluate what is not yet; the exit code of the first evaluation that did not end well."""
    child: subprocess.Popen | None = None
    stopped = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = 128 + number
        if child is not None:
            child.send_signal(number)

    with handled_by(stop):
        for place, run in enumerate(runs, start=1):
            title = f"[{place}/{len(runs)}] {run.dataset.name}: {run.folder.name}"
            if run.results() is not None:
                print(f"{title}, evaluated already", flush=True)
                continue
            print(f"{title}\n$ {shlex.join(run.command)}", flush=True)
            child = subprocess.Popen(run.command, cwd=ROOT, env={**os.environ, **run.dataset.env})
            code = child.wait()
            child = None
            if stopped or code:
                return stopped or code
    return 0


def table(runs: Sequence[Run]) -> str:
    """Markdown: mIoU, precision and recall of the classes that stay, seconds an image."""
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(run.method, {})[run.variant] = run.results() or {}
    rows = []
    for method, results in by_method.items():
        kept = results["freecp"].get("purification", {}).get("ambiguity", {})
        values = [
            *(results[variant].get("metrics", {}).get("mIoU") for variant in VARIANTS),
            *(kept.get(key) for key in ("precision", "recall")),
        ]
        seconds = [results[variant].get("seconds_per_image") for variant in VARIANTS]
        times = [None if each is None else sum(each.values()) for each in seconds]
        rows.append([method, *(number(v, 1) for v in values), *(number(t, 3) for t in times)])
    titles = [TITLES[variant] for variant in VARIANTS]
    headers = ["base method", *titles, "kept: precision", "recall", *(f"{t}, s" for t in titles)]
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def number(value: float | None, digits: int) -> str:
    """A figure; "-" where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate, and print the tables; the exit code."""
    logging.getLogger("freecp_d2.config").setLevel(logging.ERROR)  # the evaluations say it
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/compare"), metavar="FOLDER")
    parser.add_argument(
        "--camvid",
        type=Path,
        default=os.environ.get("CAMVID_ROOT"),
        metavar="FOLDER",
        help="the photographs of projects/CamVid; by default $CAMVID_ROOT",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help="of each data set, at equal distances; all"
    )
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="all by default")
    add_register_option(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for all runs"
    )
    args = parser.parse_args(given)
    output = args.output.resolve()
    datasets = [scenes()]
    try:
        register_files(args.register)
        if args.camvid:
            datasets.append(camvid(args.camvid.expanduser().resolve(), output))
        else:
            print("No CamVid: --camvid or CAMVID_ROOT names the folder of its photographs")
        if args.images:
            datasets = [dataset.part(args.images) for dataset in datasets]
        methods = args.methods or base_method_names()
        files = [Path(file).resolve() for file in args.register]
        datasets = [replace(d, register=(*d.register, *files)) for d in datasets]
        each = [runs_on(dataset, methods, output, args.opts) for dataset in datasets]
        code = evaluate([run for runs in each for run in runs])
        tables = [f"{runs[0].dataset.name}\n\n{table(runs)}\n" for runs in each]
        text = "\n".join(tables)
        write_whole(output / "comparison.md", text.encode())
    except (OSError, ValueError) as error:
        sys.exit(f"compare.py: {error}")
    print(f"\n{text}\nAlso in {output / 'comparison.md'}")
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print(f"compare.py: stopped; go on with: python {shlex.join([sys.argv[0], *given])}")
    return code


if __name__ == "__main__":
    sys.exit(main())
