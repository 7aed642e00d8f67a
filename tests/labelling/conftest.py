"""Images, a stub in place of a model, which labels by brightness, and a server of S3."""

import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from freecp_d2.labelling import Labeller, LocalStore, Outputs
from freecp_d2.overlay import palette
from freecp_d2.segmentation import RemovedClass, Segmentation, nothing_of

CLASSES = ("dark", "grey", "light", "gone")


def segment_by_brightness(
    pixels: np.ndarray, file_name: str = "", classes: tuple[str, ...] = CLASSES
) -> Segmentation:
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


@pytest.fixture(name="write_images")
def write_images_() -> Callable[..., None]:
    """Writes images of noise."""
    return write_images


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Its endpoint, on a port of its own; file systems of this session find it."""
    pytest.importorskip("s3fs", reason="no s3fs: pip install 'freecp_d2[s3]'")
    moto = pytest.importorskip("moto.server", reason="no moto: pip install 'moto[s3]' flask")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; processes that a test starts find the server, too."""
    for key, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(key, value)
    bucket = uuid.uuid4().hex
    fsspec.filesystem("s3", use_listings_cache=False).call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}"
