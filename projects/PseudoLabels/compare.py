"""Time a student and its teacher on the same images, and picture both.

    python projects/PseudoLabels/compare.py --teacher scenes/sclip \
        --student output/pseudo_labels/student --output output/pseudo_labels/compare

Each image is segmented by one and then by the other, so that whatever else the machine does slows
both. The picture shows images at equal distances in DATASETS.TEST: image, teacher, student, truth.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from freecp import openmp_settings

os.environ.update(openmp_settings())

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from pseudo_labels import load_student_config

from freecp_d2 import FreeCPPredictor
from freecp_d2.data.mapper import read_image
from freecp_d2.evaluation import load_label_map
from freecp_d2.files import whole_file, write_whole
from freecp_d2.overlay import draw_overlay, palette

Segment = Callable[[np.ndarray], np.ndarray]
"""(H, W, 3) uint8 RGB -> (H, W) class ids."""


def load_student(folder: Path) -> tuple[Segment, str]:
    """The student of an OUTPUT_DIR of train_net.py, and the data set that it was tested on.

    Raises:
        FileNotFoundError: there is no student.
    """
    weights = folder / "model_final.pth"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file; train the student to the end")
    opts = ["PSEUDO_LABELS.RELATION_WEIGHT", 0.0]  # a loss, which wants the teacher's text
    cfg = load_student_config(folder / "config.yaml", opts)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(weights))
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    @torch.inference_mode()
    def segment(image: np.ndarray) -> np.ndarray:
        pixels = image[:, :, ::-1] if cfg.INPUT.FORMAT == "BGR" else image
        pixels = resize(T.AugInput(np.ascontiguousarray(pixels))).apply_image(pixels)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        (result,) = model([{"image": tensor, "height": height, "width": width}])
        return result["sem_seg"].argmax(0).cpu().numpy()

    return segment, cfg.DATASETS.TEST[0]


def load_teacher(config: str, dataset: str) -> Segment:
    """FreeCP with the classes of a data set."""
    predictor = FreeCPPredictor(config, ["DATASETS.TEST", str((dataset,))])
    return lambda image: predictor(image).label_map


def seconds_per_image(segments: dict[str, Segment], images: list[np.ndarray]) -> dict[str, float]:
    """The median for each, interleaved; one image is segmented before that."""
    seconds: dict[str, list[float]] = {name: [] for name in segments}
    for segment in segments.values():
        segment(images[0])
    for image in images:
        for name, segment in segments.items():
            start = time.perf_counter()
            segment(image)
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def save_picture(path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    """One row an image: title -> (H, W, 3) uint8 RGB."""
    shape = len(rows), len(rows[0])
    size = 2.9 * shape[1], 2.3 * shape[0] + 0.3
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, picture in zip(line, row.values(), strict=True):
            axis.imshow(picture)
            axis.axis("off")
    for axis, title in zip(axes[0], rows[0], strict=True):
        axis.set_title(title)
    with whole_file(path) as part:
        figure.savefig(part, dpi=80, pil_kwargs={"quality": 85})
    plt.close(figure)


def compare(teacher: str, student: Path, output: Path, timed: int, pictured: int) -> dict:
    """Write compare.json and compare.jpg to `output`; returns what the first holds."""
    segment, dataset = load_student(student)
    segments = {"teacher": load_teacher(teacher, dataset), "student": segment}
    records = DatasetCatalog.get(dataset)
    images = [read_image(record["file_name"]) for record in records[:timed]]
    seconds = seconds_per_image(segments, images)
    figures = {name: 1 / value for name, value in seconds.items()}

    metadata = MetadataCatalog.get(dataset)
    names = metadata.stuff_classes
    colors = np.array(metadata.get("stuff_colors") or palette(len(names), False), np.uint8)
    rows = []
    for record in records[:: max(len(records) // pictured, 1)][:pictured]:
        image = read_image(record["file_name"])
        maps = {name: segment(image) for name, segment in segments.items()}
        maps["truth"] = load_label_map(record["sem_seg_file_name"])
        ignored = metadata.get("ignore_label", 255)
        overlays = {
            name: draw_overlay(image, labels, names, colors, ignore_label=ignored, scale=2)
            for name, labels in maps.items()
        }
        rows.append({"image": image, **overlays})
    save_picture(output / "compare.jpg", rows)
    content = {"images": len(images), "threads": torch.get_num_threads(), "per_second": figures}
    write_whole(output / "compare.json", f"{json.dumps(content, indent=1)}\n".encode())
    return content


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="scenes/sclip", metavar="CONFIG")
    parser.add_argument("--student", type=Path, required=True, metavar="OUTPUT_DIR")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--timed", type=int, default=100, metavar="N", help="images")
    parser.add_argument("--pictured", type=int, default=5, metavar="N", help="images")
    args = parser.parse_args(argv)
    result = compare(args.teacher, args.student, args.output, args.timed, args.pictured)
    print(f"{result['images']} images, {result['threads']} threads, median")
    for name, rate in result["per_second"].items():
        print(f"  {name}  {rate:.1f} images/s")
    print(f"Picture: {args.output / 'compare.jpg'}")


if __name__ == "__main__":
    main()
