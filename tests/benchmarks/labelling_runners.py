"""Images a second by Ray Data and by Detectron2's launch, in turn, of the same images.

    OMP_NUM_THREADS=1 python tests/benchmarks/labelling_runners.py --images 200 --rounds 3

Two processes label scenes by the small CLIP. The rate is that between the first record and the
last; what starting takes is the time before the first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from freecp_d2.data.scenes import draw_scene

ROOT = Path(__file__).parents[2]
RUNNERS = {"launch": ["--num-gpus", "2"], "ray": ["--ray", "--actors", "2"]}


def measure(runner: str, photos: Path, output: Path) -> tuple[float, float]:
    """Images a second, and seconds before the first is labelled."""
    start = time.time()
    command = [sys.executable, ROOT / "freecp.py", "label", "--config-file", "scenes/clearclip"]
    command += ["--input", photos, "--output", output, *RUNNERS[runner]]
    words = ["--vocabulary", "sky,sand,river,mountain,snow,dog,lawn,road"]
    subprocess.run([*command, *words], check=True, stdout=subprocess.DEVNULL)
    lines = (output / "manifest.jsonl").read_text().splitlines()
    times = sorted(json.loads(line)["time"] for line in lines)
    return (len(times) - 1) / (times[-1] - times[0]), times[0] - start


def main() -> None:
    """Print a row of a table a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        for seed in range(args.images):
            Image.fromarray(draw_scene(seed).image).save(folder / "photos" / f"{seed}.png")
        print("| round | runner | images/s | s before the first |\n|--:|---|--:|--:|")
        for round in range(args.rounds):
            for runner in RUNNERS:
                output = folder / f"{runner}{round}"
                rate, before = measure(runner, folder / "photos", output)
                print(f"| {round + 1} | {runner} | {rate:.2f} | {before:.0f} |", flush=True)


if __name__ == "__main__":
    main()
