"""The ZIP that people take home."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from freecp_d2.cli.web.download import at_size_of, zipped
from freecp_d2.segmentation import Segmentation

NAMES = ("background", "sky", "näher/weiter ☃", "nowhere")
UPLOAD = (90, 150)


@pytest.fixture
def segmentation():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (30, 50))
    return Segmentation(
        image=generator.integers(0, 256, (30, 50, 3), np.uint8),
        label_map=labels,
        class_names=NAMES,
        scores=np.array([0.1, 0.25, 0.5, 0.75], np.float32),
        confidence=generator.random((30, 50), np.float32),
        shares=np.bincount(labels.ravel(), minlength=4) / labels.size,
        consistency=np.array([np.nan, 0.1, 0.2, 0.3], np.float32),
        removed=[],
        colors=generator.integers(0, 256, (4, 3), np.uint8),
    )


@pytest.fixture
def large(segmentation):
    return at_size_of(segmentation, np.full((*UPLOAD, 3), 90, np.uint8))


def test_a_shrunk_picture_gets_its_size_back(segmentation, large):
    assert large.image.shape == (*UPLOAD, 3) and large.label_map.shape == UPLOAD
    for large_map, small_map in (
        (large.label_map, segmentation.label_map),
        (large.confidence, segmentation.confidence),
    ):
        assert (large_map == small_map.repeat(3, axis=0).repeat(3, axis=1)).all()
    odd = at_size_of(segmentation, np.zeros((31, 49, 3), np.uint8))
    assert odd.label_map.shape == (31, 49) and set(np.unique(odd.label_map)) == {0, 1, 2}


def test_the_zip_holds_everything_at_the_uploads_size(large):
    archive = zipfile.ZipFile(io.BytesIO(zipped(large, "photo.jpg")))
    assert archive.testzip() is None
    images = {
        name: Image.open(io.BytesIO(archive.read(name)))
        for name in archive.namelist()
        if not name.endswith(".json")
    }
    assert set(images) == {
        *("label_map.png", "overlay.jpg", "masks/background.png"),
        *("masks/sky.png", "masks/näher_weiter ☃.png"),
    }
    assert {image.size for image in images.values()} == {UPLOAD[::-1]}
    label_map = images["label_map.png"]
    assert (np.asarray(label_map) == large.label_map).all()
    assert (np.asarray(label_map.convert("RGB")) == large.colors[large.label_map]).all()
    for name, label in (("background", 0), ("sky", 1), ("näher_weiter ☃", 2)):
        mask = np.asarray(images[f"masks/{name}.png"])
        assert (mask == 255 * (large.label_map == label)).all()
    assert json.loads(archive.read("segmentation.json")) == large.to_coco("photo.jpg")


def test_it_is_what_save_writes(large, tmp_path):
    archive = zipfile.ZipFile(io.BytesIO(zipped(large, "photo.jpg")))
    large.save(tmp_path, "photo.jpg")
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {name.replace("overlay.jpg", "overlay.png") for name in archive.namelist()} == written
    for name in archive.namelist():
        if name.endswith(".png"):
            assert archive.read(name) == (tmp_path / name).read_bytes()
    overlay = np.asarray(Image.open(archive.open("overlay.jpg"))).astype(int)
    assert abs(overlay - large.draw()).mean() < 12  # as JPEGs are, of noise


def test_pixels_of_no_class_have_the_ignored_value(large):
    labels = large.label_map.copy()
    labels[:30] = large.nothing
    archive = zipfile.ZipFile(io.BytesIO(zipped(replace(large, label_map=labels), "photo.jpg")))
    assert (np.asarray(Image.open(archive.open("label_map.png"))) == labels).all()
    assert (labels[:30] == 255).all()


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\\b", "..", "///", "con\0"])
def test_names_in_the_zip_stay_in_its_folder(large, name):
    odd = replace(large, class_names=(name, *NAMES[1:]))
    for path in zipfile.ZipFile(io.BytesIO(zipped(odd, "x.png"))).namelist():
        assert ".." not in path.split("/") and not path.startswith("/") and "\\" not in path
        assert path.count("/") == path.startswith("masks/")
