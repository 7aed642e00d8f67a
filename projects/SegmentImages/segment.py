"""Segment one's own images into classes that are named in words.

    python projects/SegmentImages/segment.py --config-file configs/scenes/clearclip.yaml \
        --classes sky,road,tree --input photo.jpg --output output/segments

Writes, for every image, a label map (the position of the class in --classes, 16-bit PNG) and a
picture of it.
"""

import argparse
import os
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from detectron2.data import Metadata
from detectron2.utils.logger import setup_logger
from detectron2.utils.visualizer import Visualizer
from tqdm import tqdm

from freecp_d2 import FreeCP, load_config
from freecp_d2.data import Vocabulary
from freecp_d2.data.mapper import InferenceMapper, read_image


def save_png(path: Path, image: np.ndarray) -> None:
    """Write an image, all or nothing."""
    part = path.with_name(f".{path.name}")
    part.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    os.replace(part, path)


def draw(image: np.ndarray, labels: np.ndarray, classes: list[str]) -> np.ndarray:
    """The image (H, W, 3) RGB under its label map (H, W), as BGR."""
    colors = matplotlib.colormaps["gist_ncar"](np.linspace(0.05, 0.95, len(classes)))[:, :3]
    metadata = Metadata(stuff_classes=classes, stuff_colors=(255 * colors).astype(int).tolist())
    drawn = Visualizer(image, metadata).draw_sem_seg(labels, area_threshold=100, alpha=0.6)
    return drawn.get_image()[:, :, ::-1]


def main() -> None:
    """Segment every --input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--classes", required=True, help="names, separated by commas")
    parser.add_argument("--input", required=True, nargs="+", help="image files")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parser.parse_args()
    setup_logger(name="freecp_d2")
    cfg = load_config(args.config_file, args.opts)
    classes = [name.strip() for name in args.classes.split(",")]
    model = FreeCP(cfg, vocabulary=Vocabulary.from_names(classes)).to(cfg.MODEL.DEVICE).eval()
    mapper = InferenceMapper(cfg)
    args.output.mkdir(parents=True, exist_ok=True)
    for file in tqdm(args.input, unit="image"):
        labels = model([mapper({"file_name": file})])[0]["sem_seg"].argmax(0).cpu().numpy()
        name = Path(file).stem
        save_png(args.output / f"{name}_labels.png", labels.astype(np.uint16))
        save_png(args.output / f"{name}_drawn.png", draw(read_image(file), labels, classes))


if __name__ == "__main__":
    main()
