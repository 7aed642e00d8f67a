"""Images, and a stub in place of a model, which labels by brightness."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from freecp_d2.labelling import Labeller, LocalStore, Outputs
from freecp_d2.overlay import palette
from freecp_d2.segmentation import RemovedClass, Segmentation, nothing_of

CLASSES = ("dark", "grey", "light", "gone")


def segment_by_brightness(pixels: np.ndarray, classes: tuple[str, ...] = CLASSES) -> Segmentation:
    """A third of the brightness a class; the last is removed. A red image is an error."""
    red, green, blue = pixels.astype(int).reshape(-1, 3).mean(axis=0)
    if red > 200 and green < 50 and blue < 50:
        raise ValueError("it is red")
    value = pixels.astype(np.float32).mean(axis=2) / 256
    labels = (3 * value).astype(np.int64)
    labels[value == 0] = nothing_of(len(classes))
    shares = np.array([(labels == i).mean() for i in range(len(classes))])
    scores = np.linspace(0.2, 0.8, len(classes), dtype=np.float32)
    return Segmentation(
        image=pixels,
        label_map=labels,
        class_names=classes,
        scores=scores,
        confidence=value,
        shares=shares,
        consistency=scores,
        removed=[RemovedClass(classes[-1], "redundancy", 0.01, None)],
        colors=palette(len(classes), False),
    )


def write_images(folder: Path, count: int, broken: int = 0, seed: int = 0) -> None:
    """PNGs of noise, 000.png and so on; every `broken`-th is none."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = folder / f"{number:03d}.png"
        if broken and number % broken == broken - 1:
            file.write_bytes(b"no image")
        else:
            pixels = random.integers(0, 256, (6, 5 + number % 3, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)


@pytest.fixture
def segment() -> Callable[..., Segmentation]:
    """The stub."""
    return segment_by_brightness


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of twelve images."""
    write_images(tmp_path / "photos", 12)
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path) -> LocalStore:
    """An empty output folder."""
    return LocalStore(tmp_path / "output")


@pytest.fixture
def labeller(store) -> Labeller:
    """Of the stub."""
    return Labeller(segment_by_brightness, store, "settings", Outputs(scores=True, coco=True))
