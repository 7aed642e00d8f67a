"""A JSON file that registers a data set: what it gives, and what is said of a bad one."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from freecp_d2.cli.register import register_files
from freecp_d2.data import dataset_vocabulary, register_dataset
from freecp_d2.data.mapper import ground_truth
from freecp_d2.evaluation import FreeCPSemSegEvaluator

CONTENT = {
    "name": "mine",
    "classes": ["sky", ["sand", "beach"], "river"],
    "images": "images",
    "labels": "maps/val",
}


@pytest.fixture
def write(tmp_path):
    """Writes the JSON, and takes the data set out of the catalogs in the end."""

    def write(**changes) -> str:
        content = {k: v for k, v in {**CONTENT, **changes}.items() if v is not None}
        (tmp_path / "mine.json").write_text(json.dumps(content))
        return str(tmp_path / "mine.json")

    yield write
    if "mine" in DatasetCatalog:
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")


def save(path, pixels) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
    return str(path)


def test_the_catalogs_hold_what_it_says(write, tmp_path):
    register_files([write()])
    records = []
    for name in ("a/1", "a/2", "b"):
        image = save(tmp_path / f"images/{name}.jpg", np.zeros((4, 5, 3), np.uint8))
        labels = save(tmp_path / f"maps/val/{name}.png", np.zeros((4, 5), np.uint8))
        records.append({"file_name": image, "sem_seg_file_name": labels})
    save(tmp_path / "images/unlabelled.jpg", np.zeros((4, 5, 3), np.uint8))
    assert DatasetCatalog.get("mine") == records
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == ["sky", "sand", "river"] and metadata.ignore_label == 255
    assert metadata.evaluator_type == "sem_seg"
    words = dataset_vocabulary(metadata)
    assert words.classes == (("sky",), ("sand", "beach"), ("river",)) and not words.background


def test_a_background_comes_first_and_is_scored(write):
    register_dataset(write(background=["wall", "tree"], ignore_label=9))
    metadata = MetadataCatalog.get("mine")
    assert metadata.stuff_classes == ["background", "sky", "sand", "river"]
    assert metadata.ignore_label == 9
    assert dataset_vocabulary(metadata).background == ("wall", "tree")


def test_classes_of_one_name_are_classes_each(write):
    register_dataset(write(classes=["sky", "river", "river"]))
    assert dataset_vocabulary(MetadataCatalog.get("mine")).queries == ("sky", "river", "river")


@pytest.mark.parametrize(("suffix", "dtype"), [("_id.tif", np.uint16), (".png", np.uint16)])
def test_label_maps_of_16_bits_are_evaluated(suffix, dtype, write, tmp_path):
    """500 classes and 65535 ignored; a prediction that is right but for one pixel of class 300."""
    classes = [f"class {i}" for i in range(500)]
    truth = np.array([[0, 300, 499], [300, 65535, 1]], dtype)
    image = save(tmp_path / "images/x.png", np.zeros((2, 3, 3), np.uint8))
    labels = save(tmp_path / f"maps/val/x{suffix}", truth)
    file = write(classes=classes, ignore_label=65535, image_suffix=".png", label_suffix=suffix)
    (record,) = DatasetCatalog.get(register_dataset(file))
    assert record == {"file_name": image, "sem_seg_file_name": labels}
    assert torch.equal(ground_truth(labels)["sem_seg"], torch.from_numpy(truth.astype(int)))
    evaluator = FreeCPSemSegEvaluator("mine")
    evaluator.reset()
    predicted = torch.tensor([[0, 300, 499], [2, 7, 1]])
    evaluator.process([record], [{"label_map": predicted}])
    metrics = evaluator.evaluate()["sem_seg"]
    assert metrics["mIoU"] == pytest.approx(100 * (1 + 0.5 + 1 + 1 + 0) / 5)  # class 2: 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": None}, "'classes' must be a list, not None"),
        ({"images": 3}, "'images' must be text, not 3"),
        ({"ignore_label": True}, "'ignore_label' must be a whole number, not True"),
        ({"ignored": 255}, "'ignored' is no key; the keys are name, classes,"),
        ({"classes": []}, "the vocabulary is empty"),
        ({"classes": ["sky", ["sea", 3]]}, "entry 2 must be a list of names"),
        ({"classes": [f"class {i}" for i in range(256)]}, "class 255 is 'class 255', and such"),
        ({"name": "voc_2012_val_21_sem_seg"}, "there is a data set 'voc_2012_val_21_sem_seg'"),
    ],
)
def test_a_bad_object_is_named(changes, said, write):
    file = write(**changes)
    with pytest.raises(ValueError) as refused:
        register_dataset(file)
    assert str(refused.value).startswith(f"{file}: {said}") and "\n" not in str(refused.value)
    assert "mine" not in DatasetCatalog


@pytest.mark.parametrize("text", ["[1]", "{", '"mine"', "[" * 100_000])
def test_what_is_no_object_is_named(text, tmp_path):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.json: it (is not JSON|must be an object)"):
        register_dataset(tmp_path / "mine.json")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine\.json: no such file; check the path"):
        register_files([str(tmp_path / "mine.json")])


def test_missing_label_maps_and_images_are_named(write, tmp_path):
    register_dataset(write())
    with pytest.raises(FileNotFoundError, match=r'maps/val/\*\.png; correct "labels"'):
        DatasetCatalog.get("mine")
    for name in ("1", "2"):
        save(tmp_path / f"maps/val/{name}.png", np.zeros((4, 5), np.uint8))
    save(tmp_path / "images/1.jpg", np.zeros((4, 5, 3), np.uint8))
    with pytest.raises(
        FileNotFoundError, match=r"1 of 2 images are missing, the first is .*2\.jpg"
    ):
        DatasetCatalog.get("mine")
