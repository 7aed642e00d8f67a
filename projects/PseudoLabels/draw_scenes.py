"""Draw scenes without labels, for FreeCP to label: images of seeds that nobody else uses.

python projects/PseudoLabels/draw_scenes.py --output output/pseudo_labels/images
"""

import argparse
from pathlib import Path

from PIL import Image

from freecp_d2.data.scenes import draw_scene
from freecp_d2.progress import progress

FIRST_SEED = 2_000_000
"""Beyond `scenes_val` (0 to 199) and what SceneCLIP was trained, tuned and looked at on."""


def draw(output: Path, count: int) -> None:
    """Write `count` scenes as PNGs, named after their seeds."""
    output.mkdir(parents=True, exist_ok=True)
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    for seed in progress(seeds, total=count, desc=f"drawing {output}", unit="scene"):
        Image.fromarray(draw_scene(seed).image).save(output / f"{seed}.png")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--count", type=int, default=1000)
    args = parser.parse_args(argv)
    draw(args.output, args.count)


if __name__ == "__main__":
    main()
