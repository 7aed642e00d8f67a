"""What labelling costs beside the model, as the number of images grows.

    python tests/benchmarks/labelling.py 1000 10000 100000 1000000

The core with a stub in place of the model, each number in a process of its own: a list of so many
ids, all of one image of 64 x 64 pixels, is read, labelled and merged as `freecp label` does it.
Journals are written; label maps are encoded and dropped, since a disk of its own speed is not what
is asked. 1000000 takes a quarter of an hour or more, and 3 GB in --folder.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import closing, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

from freecp_d2 import get_config
from freecp_d2.data.vocabulary import Vocabulary
from freecp_d2.index import Index
from freecp_d2.labelling import Job, Labeller, LocalStore, Outputs
from freecp_d2.labelling.finish import finish, items_of
from freecp_d2.labelling.merge import all_records
from freecp_d2.labelling.worker import journal_of, waiting, work
from freecp_d2.overlay import palette
from freecp_d2.segmentation import Segmentation
from freecp_d2.stopping import Stop

SIDE = 64
WORDS = ("sky", "lawn", "road", "sand")
LABELS = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 16 % len(WORDS)
CONFIDENCE = np.full((SIDE, SIDE), 0.5, np.float32)
COLUMNS = "list", "label", "merge", "again"


class DroppingStore(LocalStore):
    """Label maps go nowhere, and are there."""

    def write(self, name: str, content: bytes) -> None:
        if not name.startswith("labels/"):
            super().write(name, content)

    def exists(self, name: str) -> bool:
        return name.startswith("labels/") or super().exists(name)


def segment(pixels: np.ndarray, file_name: str) -> Segmentation:
    """The stub: stripes."""
    k = len(WORDS)
    scores = np.full(k, 0.5, np.float32)
    shares, colors = np.full(k, 1 / k), palette(k, False)
    return Segmentation(pixels, LABELS, WORDS, scores, CONFIDENCE, shares, scores, [], colors)


def measure(count: int, folder: Path) -> dict[str, float]:
    """Seconds of each part, bytes of manifest.jsonl, and MiB of memory at most."""
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(folder / "image.png")
    with (folder / "list.jsonl").open("w") as file:
        for number in range(count):
            file.write(json.dumps({"file_name": "image.png", "id": f"{number:09d}"}) + "\n")
    vocabulary = Vocabulary.from_names(list(WORDS))
    cfg = get_config("scenes/clearclip", ["MODEL.DEVICE", "cpu"])
    job = Job(cfg, str(folder / "list.jsonl"), str(folder / "output"), vocabulary)
    store = DroppingStore(folder / "output")
    labeller = Labeller(segment, store, "settings", Outputs())
    settings = {"classes": list(WORDS), "coco": False, "scores": False}
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = [time.perf_counter()]
    assert sum(1 for _ in items_of(job)) == count
    times.append(time.perf_counter())
    index = Index(all_records(store))
    with closing(store.journal(journal_of(0, 1))) as journal:
        work(labeller, waiting(labeller, items_of(job), index, 0, 1), journal, Stop())
    times.append(time.perf_counter())
    assert finish(job, store, settings, "labelling") == 0
    times.append(time.perf_counter())
    index = Index(all_records(store))
    assert next(waiting(labeller, items_of(job), index, 0, 1), None) is None
    times.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **dict(zip(COLUMNS, np.diff(times).tolist(), strict=True)),
        "manifest": (folder / "output" / "manifest.jsonl").stat().st_size,
        "start": start / 1024,
        "peak": peak / 1024,
    }


def main() -> None:
    """Print a row of a table a number."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("counts", type=int, nargs="+", metavar="N")
    parser.add_argument("--folder", help="of temporary files")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            with redirect_stdout(sys.stderr):
                result = measure(args.counts[0], Path(folder))
        print(json.dumps(result))
        return
    names = "".join(f" {name} |" for name in COLUMNS)
    print(
        f"| images |{names} all, s per 1000 | manifest, bytes an image | peak RSS, MiB | growth |"
    )
    print("|--:" * (len(COLUMNS) + 5) + "|")
    for count in args.counts:
        command = [sys.executable, __file__, str(count), "--here"]
        command += ["--folder", args.folder] if args.folder else []
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        parts = "".join(f" {result[name]:.1f} |" for name in COLUMNS)
        seconds = sum(result[name] for name in COLUMNS[:3]) / count * 1000
        print(
            f"| {count} |{parts} {seconds:.2f} | {result['manifest'] / count:.0f} |"
            f" {result['peak']:.0f} | {result['peak'] - result['start']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
