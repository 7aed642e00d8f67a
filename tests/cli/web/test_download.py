"""The ZIP that people take home."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools.coco import COCO

from freecp_d2.cli.web.download import at_size_of, masks, to_coco, zipped
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
    assert (large.label_map == segmentation.label_map.repeat(3, axis=0).repeat(3, axis=1)).all()
    odd = at_size_of(segmentation, np.zeros((31, 49, 3), np.uint8))
    assert odd.label_map.shape == (31, 49) and set(np.unique(odd.label_map)) == {0, 1, 2}


def test_masks_are_of_the_classes_that_have_pixels(large):
    made = dict(masks(large))
    assert list(made) == [0, 1, 2]
    assert (sum(label * mask for label, mask in made.items()) == large.label_map).all()


def test_coco_reads_it_back(large, tmp_path):
    file = tmp_path / "segmentation.json"
    file.write_text(json.dumps(to_coco(large, "photo.jpg")))
    coco = COCO(file)
    assert coco.loadCats(coco.getCatIds()) == [{"id": i, "name": n} for i, n in enumerate(NAMES)]
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["height"], image["width"]) == ("photo.jpg", *UPLOAD)
    labels = np.full(UPLOAD, 255)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation).astype(bool)
        labels[mask] = annotation["category_id"]
        assert annotation["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["bbox"] == box
        assert annotation["score"] == pytest.approx(large.scores[annotation["category_id"]])
    assert (labels == large.label_map).all()
    (record,) = load_coco_json(str(file), str(tmp_path))
    decoded = [pycocotools.mask.decode(a["segmentation"]).sum() for a in record["annotations"]]
    assert decoded == [(large.label_map == label).sum() for label in range(3)]


def test_the_zip_holds_everything_at_the_uploads_size(large):
    archive = zipfile.ZipFile(io.BytesIO(zipped(large, "photo.jpg")))
    assert archive.testzip() is None
    images = {
        name: Image.open(io.BytesIO(archive.read(name)))
        for name in archive.namelist()
        if not name.endswith(".json")
    }
    assert set(images) == {
        *("label_map.png", "overlay.jpg", "masks/000_background.png"),
        *("masks/001_sky.png", "masks/002_näher_weiter.png"),
    }
    assert {image.size for image in images.values()} == {UPLOAD[::-1]}
    label_map = images["label_map.png"]
    assert (np.asarray(label_map) == large.label_map).all()
    assert (np.asarray(label_map.convert("RGB")) == large.colors[large.label_map]).all()
    for name, image in images.items():
        if name.startswith("masks/"):
            mask = large.label_map == int(name[6:9])
            assert (np.asarray(image) == 255 * mask).all()
    assert json.loads(archive.read("segmentation.json")) == to_coco(large, "photo.jpg")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a\\b", "..", "///", "con\0"])
def test_names_in_the_zip_stay_in_its_folder(large, name):
    odd = replace(large, class_names=(name, *NAMES[1:]))
    for path in zipfile.ZipFile(io.BytesIO(zipped(odd, "x.png"))).namelist():
        assert ".." not in path and not path.startswith("/") and "\\" not in path
        assert path.count("/") == path.startswith("masks/")
