"""What evaluating an image costs beside the model."""

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from encoders import CPU
from inputs import Sizes
from PIL import Image
from rounds import Timed, interleaved, milliseconds

from freecp_d2.data.mapper import ground_truth
from freecp_d2.evaluation import FreeCPSemSegEvaluator

CASES = ((480, 640, 171), (1024, 2048, 19))
"""Height, width and classes: of COCO-Stuff and of Cityscapes."""


def measure_evaluator(sizes: Sizes, quick: bool) -> list[dict]:
    """Milliseconds of the evaluator, and of a loader's worker that reads the ground truth."""
    with tempfile.TemporaryDirectory() as folder:
        return [_measure(Path(folder), *case, sizes.rounds) for case in CASES]


def _measure(folder: Path, height: int, width: int, classes: int, rounds: int) -> dict:
    blocks = np.random.default_rng(0).integers(0, classes, (2, height // 32, width // 32))
    truth, labels = np.kron(blocks, np.ones((32, 32), int))
    truth[:3] = 255
    name = f"bench_{height}x{width}"
    path = folder / f"{name}.png"
    Image.fromarray(truth.astype(np.uint8)).save(path)
    record = {"file_name": str(path), "sem_seg_file_name": str(path)}
    record |= {"height": height, "width": width}
    DatasetCatalog.register(name, lambda: [record])
    metadata = MetadataCatalog.get(name)
    metadata.set(stuff_classes=[f"class {i}" for i in range(classes)], ignore_label=255)
    try:
        evaluator = FreeCPSemSegEvaluator(name)
        evaluator.reset()
        result = {"label_map": torch.from_numpy(labels), "scores": torch.zeros(classes)}
        result |= dict.fromkeys(("kept_redundancy", "kept"), torch.ones(classes) > 0)
        read = record | ground_truth(path)
        runs = {
            "evaluator": Timed(partial(evaluator.process, [read], [result])),
            "reading": Timed(partial(ground_truth, path)),
        }
        samples = interleaved(runs, rounds, CPU)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    return {
        "size": [height, width],
        "classes": classes,
        "ms": milliseconds(samples["evaluator"]["seconds"]),
        "reading_ms": milliseconds(samples["reading"]["seconds"]),
    }
