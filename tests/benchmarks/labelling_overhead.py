"""What the core of labelling costs an image, beyond the predictor that segments it.

    python tests/benchmarks/labelling_overhead.py

The same images go through the bare predictor, one after the other, and through the core with its
label maps, journal and fsyncs, in turn; the ratio is of one round each.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from PIL import Image

from freecp_d2 import FreeCPPredictor, load_config
from freecp_d2.data.scenes import draw_scene
from freecp_d2.index import Index
from freecp_d2.labelling import Job, LocalStore, read_items
from freecp_d2.labelling.job import build_labeller, encode
from freecp_d2.labelling.worker import journal_of, waiting, work
from freecp_d2.segmenter import build_model
from freecp_d2.stopping import Stop


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="scenes/clearclip")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[])
    args = parser.parse_args()
    opts = [*args.opts, "MODEL.FREECP.OUTPUT", "label_map"]
    cfg = load_config(args.config_file, opts)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number in range(args.images):
            Image.fromarray(draw_scene(1000 + number).image).save(photos / f"{number:04d}.png")
        model = build_model(cfg)
        predictor = FreeCPPredictor(cfg, model=model)
        vocabulary = predictor.prepare()
        job = Job(cfg, str(photos), folder, vocabulary)
        words, settings = encode(job, model)
        items = list(read_items(photos))

        def bare() -> None:
            for item in items:
                predictor(item.file_name)

        def core(round_: int) -> None:
            store = LocalStore(Path(folder) / f"labels{round_}")
            labeller = build_labeller(job, model, words, settings, store)
            with closing(store.journal(journal_of(0, 1))) as journal:
                work(labeller, waiting(labeller, items, Index(), 0, 1), journal, Stop())

        seconds: dict[str, list[float]] = {"bare": [], "core": []}
        for round_ in range(-1, args.rounds):
            for name, run in (("bare", bare), ("core", partial(core, round_))):
                start = time.perf_counter()
                run()
                if round_ >= 0:
                    seconds[name].append((time.perf_counter() - start) / len(items))
    ratios = [c / b for c, b in zip(seconds["core"], seconds["bare"], strict=True)]
    for name, values in seconds.items():
        print(f"{name}: {1000 * statistics.median(values):.2f} ms an image")
    print(f"core / bare: {statistics.median(ratios):.4f} ({min(ratios):.4f} to {max(ratios):.4f})")


if __name__ == "__main__":
    main()
