"""What a predictor gives, by hand, and files of it as others read them."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from detectron2.data.datasets import load_coco_json, load_sem_seg
from PIL import Image
from pycocotools.coco import COCO

from freecp_d2.data import Vocabulary
from freecp_d2.segmentation import RemovedClass, Segmentation, segmentation_of, write_masks

LABELS = np.array([[0, 0, 2], [0, 2, 2], [255, 2, 2], [255, 1, 2]])


@pytest.fixture
def segmentation() -> Segmentation:
    shares = np.bincount(LABELS.ravel(), minlength=4)[:4] / LABELS.size
    return Segmentation(
        image=np.full((4, 3, 3), 200, np.uint8),
        label_map=LABELS,
        class_names=("sky", "dog", "sand", "a/b: c?"),
        scores=np.array([0.9, 0.5, 0.8, 0.0], np.float32),
        confidence=np.where(LABELS == 255, 0, 0.5).astype(np.float32),
        shares=shares,
        consistency=np.array([0.4, 0.3, 0.2, 0.1], np.float32),
        removed=[RemovedClass("a/b: c?", "redundancy", 0.1, None)],
        colors=np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]], np.uint8),
        presence={"sky": 0.41236, "dog": 0.3, "sand": 0.2, "a/b: c?": 0.1},
    )


def test_masks(segmentation):
    assert np.array_equal(segmentation.mask("sand"), LABELS == 2)
    assert not segmentation.mask("a/b: c?").any()
    assert list(segmentation.masks) == ["sand", "sky", "dog"]
    assert sum(mask.sum() for mask in segmentation.masks.values()) == (LABELS != 255).sum()
    with pytest.raises(ValueError, match="'cat' is none of the classes; they are sky, dog, sand"):
        segmentation.mask("cat")


def test_two_classes_of_one_name_share_a_mask(segmentation):
    twice = replace(segmentation, class_names=("sky", "sand", "sand", "x"))
    assert np.array_equal(twice.mask("sand"), (LABELS == 1) | (LABELS == 2))
    assert list(twice.masks) == ["sand", "sky"]


def test_a_line_says_what_it_is(segmentation):
    assert repr(segmentation) == (
        "Segmentation of 3 x 4 pixels: sand 50 %, sky 25 %, dog 8 %, nothing 17 %; "
        "removed: a/b: c? (redundancy)"
    )
    many = replace(
        segmentation,
        class_names=tuple(f"class {i}" for i in range(100)),
        shares=np.full(100, 0.01),
        removed=[RemovedClass(f"gone {i}", "ambiguity", 0.1, "sky") for i in range(50)],
    )
    assert len(repr(many)) < 600
    assert "class 11 1 %, and 88 more" in repr(many) and "and 38 more" in repr(many)
    half = replace(many, shares=np.full(100, 0.005))
    assert "class 11 < 1 %, and 88 more, nothing 50 %; removed" in repr(half)
    small = replace(segmentation, shares=np.array([0.996, 0.004, 0, 0]), removed=[])
    assert repr(small).endswith(": sky 100 %, dog < 1 %")


def test_a_notebook_shows_the_drawing(segmentation):
    with Image.open(io.BytesIO(segmentation._repr_png_())) as picture:
        assert np.array_equal(np.asarray(picture), segmentation.draw())


@pytest.mark.parametrize(("count", "nothing", "mode"), [(254, 255, "P"), (255, 65535, "I;16")])
def test_label_images_have_room_for_nothing(count, nothing, mode, segmentation):
    labels = np.where(LABELS == 255, nothing, LABELS + count - 3)
    many = replace(
        segmentation,
        label_map=labels,
        class_names=tuple(map(str, range(count))),
        colors=np.zeros((count, 3), np.uint8),
    )
    assert many.nothing == nothing
    image = many.label_image()
    assert image.mode == mode and np.array_equal(np.asarray(image), labels)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("shape", ["rle", "polygons"])
def test_coco_is_read_by_its_readers(first, shape, segmentation, tmp_path):
    """By pycocotools, and by Detectron2's loader of instances."""
    content = segmentation.to_coco("photo.jpg", 7, first, shape)
    file = tmp_path / "coco.json"
    file.write_text(json.dumps(content))
    coco = COCO(str(file))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(segmentation.class_names)
    assert coco.getCatIds() == [first + i for i in range(4)]
    (image,) = coco.loadImgs([7])
    assert image["presence"] == segmentation.presence | {"sky": 0.4124}
    ids = coco.getAnnIds(imgIds=[7], iscrowd=False)
    assert ids == [1, 2, 3]
    for annotation in coco.loadAnns(ids):
        name = segmentation.class_names[annotation["category_id"] - first]
        assert np.array_equal(coco.annToMask(annotation) > 0, segmentation.mask(name))
    (record,) = load_coco_json(str(file), "images")
    assert record["file_name"] == "images/photo.jpg" and record["image_id"] == 7
    assert [a["category_id"] - first for a in record["annotations"]] == [0, 1, 2]
    assert all(a["iscrowd"] == 0 and a["segmentation"] for a in record["annotations"])


def test_it_is_saved(segmentation, tmp_path):
    segmentation.save(tmp_path / "new", "photo.jpg")
    files = {p.relative_to(tmp_path / "new").as_posix() for p in tmp_path.rglob("*.*")}
    assert files == {
        *("label_map.png", "overlay.png", "segmentation.json"),
        *(f"masks/{name}.png" for name in ("sky", "dog", "sand")),
    }
    with Image.open(tmp_path / "new/label_map.png") as labels:
        assert np.array_equal(np.asarray(labels), LABELS)
        assert labels.getpalette()[:12] == segmentation.colors.flatten().tolist()
    with Image.open(tmp_path / "new/masks/sand.png") as mask:
        assert np.array_equal(np.asarray(mask), 255 * (LABELS == 2))
    content = json.loads((tmp_path / "new/segmentation.json").read_text())
    assert content == segmentation.to_coco("photo.jpg")
    with pytest.raises(OSError):
        segmentation.save(tmp_path / "new/overlay.png")


def test_names_of_masks_are_names_of_files(segmentation, tmp_path):
    names = ("a/b", "a\\b", "..", "犬" * 200)
    odd = replace(segmentation, class_names=names, shares=np.array([0.4, 0.3, 0.2, 0.1]))
    files = write_masks(tmp_path, odd)
    assert [file.name for file in files[:3]] == ["a_b.png", "a_b_1.png", "_.png"]
    assert files[3].name.startswith("犬" * 50) and len(files[3].name.encode()) < 255
    assert {file for file in tmp_path.iterdir()} == set(files)
    numbered = replace(odd, class_names=("a_b_2", "a/b", "a\\b", "c"))
    assert len({*write_masks(tmp_path / "numbered", numbered)}) == 4


def test_detectron2_pairs_label_images_with_photographs(segmentation, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for stem in ("b", "a"):
        Image.fromarray(segmentation.image).save(tmp_path / f"images/{stem}.jpg")
        segmentation.label_image().save(tmp_path / f"labels/{stem}.png")
    records = load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images"))
    assert [r["file_name"][-5:] for r in records] == ["a.jpg", "b.jpg"]
    assert [r["sem_seg_file_name"][-5:] for r in records] == ["a.png", "b.png"]


@pytest.mark.parametrize("background", [(), ("wall",)])
def test_where_no_class_has_a_score_there_is_nothing(background):
    import torch

    score = torch.tensor([[0.0, 0.3], [0.7, 0.0]])
    labels = torch.tensor([[0, 0], [1, 0]])
    vocabulary = Vocabulary((("cat",), ("dog",)), background)
    if background:
        labels = torch.tensor([[0, 0], [2, 0]])
        score = torch.tensor([[1.0, 0.7], [0.7, 1.0]])
    result = {
        "label_map": labels,
        "confidence": score,
        "scores": torch.full((2 + bool(background),), 0.7),
    }
    image = np.zeros((2, 2, 3), np.uint8)
    found = segmentation_of(image, result, vocabulary)
    if background:
        assert np.array_equal(found.label_map, labels) and found.shares.sum() == 1
    else:
        assert found.label_map.tolist() == [[255, 0], [1, 255]] and found.nothing == 255
        assert found.shares.tolist() == [0.25, 0.25]
    assert np.array_equal(found.confidence, score)


def test_a_scores_map_gives_the_same(segmentation):
    import torch

    scores_map = torch.tensor([[[0.0, 0.3], [0.2, 0.0]], [[0.0, 0.1], [0.7, 0.0]]])
    vocabulary = Vocabulary((("cat",), ("dog",)))
    found = segmentation_of(np.zeros((2, 2, 3), np.uint8), {"sem_seg": scores_map}, vocabulary)
    assert found.label_map.tolist() == [[255, 0], [1, 255]]
    assert np.array_equal(found.scores_map, scores_map)
    assert found.scores.tolist() == scores_map.amax(dim=(1, 2)).tolist()
    assert found.confidence.tolist() == scores_map.amax(dim=0).tolist()
