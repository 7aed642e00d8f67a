"""What an evaluation knows of a data set, and the sentences about one that cannot be evaluated."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from freecp_d2.data import Vocabulary
from freecp_d2.data.mapper import ground_truth
from freecp_d2.evaluation.dataset import ImageFault, category_ids, load_base, load_dataset
from freecp_d2.evaluation.results import METRICS

CLASSES = ("a", "b", "c", "d", "e")
IGNORE = 255


def confusion_of(name: str, predicted: np.ndarray, **read) -> np.ndarray:
    """Of the only image of a data set."""
    dataset = load_dataset(name)
    (record,) = DatasetCatalog.get(name)
    truth = dataset.truth(record | read)
    return dataset.confusion(record["file_name"], torch.from_numpy(predicted), truth)


def test_category_ids_are_the_data_sets_own(register, tmp_path):
    own = [11, 3, 90, 7, 182]
    ids = {category: index for index, category in enumerate(own)}
    name = register(tmp_path, [np.zeros((1, 1))], stuff_dataset_id_to_contiguous_id=ids)
    assert category_ids(load_dataset(name)) == dict(enumerate(own))
    name = register(tmp_path, [np.zeros((1, 1))])
    assert category_ids(load_dataset(name)) == {index: index for index in range(5)}


def test_a_class_without_category_id_is_named(register, tmp_path):
    ids = {i: i for i in range(4)}
    name = register(tmp_path, [np.zeros((1, 1))], stuff_dataset_id_to_contiguous_id=ids)
    with pytest.raises(ValueError, match="no id of 'e'"):
        category_ids(load_dataset(name))


def test_missing_ground_truth_is_found_before_inference(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2))] * 3)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 3") as error:
        load_dataset(name)
    assert str(tmp_path / "1.png") in str(error.value) and "\n" not in str(error.value)


def corrupt(path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def several_channels(path) -> None:
    Image.new("RGB", (2, 2)).save(path)


def another_size(path) -> None:
    Image.new("L", (2, 3)).save(path)


def no_class(path) -> None:
    Image.new("L", (2, 2), 77).save(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (corrupt, "replace the file"),
        (several_channels, "one channel"),
        (another_size, "has size"),
        (no_class, "id 77"),
    ],
)
def test_bad_ground_truth_is_named(register, tmp_path, spoil, said):
    name = register(tmp_path, [np.zeros((2, 2))])
    spoil(tmp_path / "0.png")
    with pytest.raises(ImageFault, match=said) as error:
        confusion_of(name, np.zeros((2, 2), int))
    assert str(tmp_path / "0.png") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", [None, corrupt, another_size, no_class])
def test_a_ground_truth_that_was_read_before_is_not_read_again(register, tmp_path, spoil):
    """As by the workers of `build_test_loader`; what is wrong with it is said in the same words."""
    name = register(tmp_path, [np.array([[0, 1], [2, IGNORE]])])
    if spoil is not None:
        spoil(tmp_path / "0.png")
    (record,) = DatasetCatalog.get(name)
    predicted = np.array([[0, 1], [1, 1]])
    said = []
    for read in ({}, ground_truth(record["sem_seg_file_name"])):
        if spoil is None:
            said.append(confusion_of(name, predicted, **read).tolist())
        else:
            with pytest.raises(ImageFault) as caught:
                confusion_of(name, predicted, **read)
            said.append(str(caught.value))
        (tmp_path / "0.png").write_bytes(b"")
    assert said[0] == said[1]


def test_a_benchmarks_map_of_another_size_points_to_verify(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("1\n")
    Image.new("L", (2, 2)).save(voc / "JPEGImages/1.jpg")
    Image.new("L", (2, 3)).save(voc / "SegmentationClass/1.png")
    with pytest.raises(ImageFault, match="has size.*freecp_d2.data.prepare voc21 --verify"):
        confusion_of("voc_2012_val_21_sem_seg", np.zeros((2, 2), int))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("count", range(3, 7))
def test_a_vocabulary_of_another_size(register, tmp_path, count, background):
    name = register(tmp_path, [np.zeros((2, 2))])
    vocabulary = Vocabulary(
        tuple((f"class {i}", f"thing {i}") for i in range(count)), ("wall", "A") * background
    )
    dataset = load_dataset(name)
    if count + background == len(CLASSES):
        dataset.check_vocabulary(vocabulary)
        return
    with pytest.raises(ValueError, match=f"{count + background} classes.*class 0.*VOCABULARY") as e:
        dataset.check_vocabulary(vocabulary)
    assert name in str(e.value) and "has 5 (a, b, c, d, e)" in str(e.value)


@pytest.mark.parametrize("first", ["a", "Background", "__background__", "void"])
def test_a_background_that_the_data_set_has_not_is_refused(register, tmp_path, first):
    """Each label would be one too high, and the evaluation end well."""
    name = register(tmp_path, [np.zeros((2, 2))])
    metadata = MetadataCatalog.get(name)
    classes = [first, *metadata.stuff_classes[1:]]
    metadata.__dict__["stuff_classes"] = classes
    dataset = load_dataset(name)
    words = Vocabulary(tuple((c,) for c in classes[1:]), ("wall", "sky"))
    if first in ("a", "void"):
        with pytest.raises(
            ValueError, match=f"{name}: the vocabulary has a back.*{first!r}; check"
        ):
            dataset.check_vocabulary(words)
        words = Vocabulary(words.classes, ("wall", first.upper()))
    dataset.check_vocabulary(words)


@pytest.mark.parametrize("images", [1, 3])
def test_a_base_of_other_images_is_refused(register, tmp_path, images):
    truths = [np.zeros((2, 2))] * 2
    name = register(tmp_path, truths)
    dataset = load_dataset(name)
    file = tmp_path / "results.json"
    classes = [{"name": key, "IoU": 1} for key in CLASSES]
    base = {"dataset": name, "images": 2, "metrics": dict.fromkeys(METRICS, 1), "classes": classes}
    file.write_text(json.dumps(base))
    assert load_base(file, dataset) == base
    file.write_text(json.dumps(base | {"images": images}))
    with pytest.raises(ValueError, match=f"results on {images} images, and {name} has 2; eval"):
        load_base(file, dataset)


def test_without_an_ignore_label_every_pixel_counts(register, tmp_path, caplog):
    truth = np.array([[0, 1], [2, 4]])
    with caplog.at_level("INFO"):
        name = register(tmp_path, [truth], ignore_label=None)
        confusion = confusion_of(name, np.array([[0, 1], [2, 3]]))
    assert "every pixel counts" in caplog.text
    assert np.argwhere(confusion).tolist() == [[0, 0], [1, 1], [2, 2], [3, 4]]
    name = register(tmp_path, [np.array([[0, IGNORE]])], ignore_label=None)
    with pytest.raises(ImageFault, match="id 255 .*ignore_label, which is not set"):
        confusion_of(name, np.zeros((1, 2), int))


def test_a_class_twice_is_warned_of(register, tmp_path, caplog):
    name = register(tmp_path, [np.arange(5)[None]], stuff_classes=["a", "b", "a", "c", "a"])
    load_dataset(name)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert name in warning and "(a: ids 0, 2, 4)" in warning


def registered(records: list[dict], **metadata) -> str:
    name = "test_wrong_data_set"
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog.list():
            catalog.pop(name)
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**metadata)
    return name


@pytest.mark.parametrize(
    ("records", "metadata", "said"),
    [
        ([{"file_name": "x.jpg", "sem_seg_file_name": "x.png"}], {}, "no stuff_classes"),
        ([{"file_name": "x.jpg"}], {"stuff_classes": ["a"]}, "x.jpg has no sem_seg_file_name"),
        ([{"sem_seg_file_name": "x.png"}], {"stuff_classes": ["a"]}, "image 1 has no file_name"),
        ([], {"stuff_classes": ["a"]}, "has no images"),
        (
            [{"file_name": "x.jpg", "sem_seg_file_name": f"{i}.png"} for i in range(2)],
            {"stuff_classes": ["a"]},
            r"x\.jpg is in two records.*0\.png and 1\.png",
        ),
        (
            [{"file_name": "x.jpg", "sem_seg_file_name": "x.png"}] * 2,
            {"stuff_classes": ["a"]},
            r"x\.jpg is in two records",
        ),
    ],
)
def test_what_is_no_data_set_to_evaluate(records, metadata, said):
    name = registered(records, **metadata)
    with pytest.raises(ValueError, match=said) as error:
        load_dataset(name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_data_set(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2))])
    with pytest.raises(ValueError, match=f"no data set '{name}x'; did you mean .*{name}"):
        load_dataset(f"{name}x")
    assert f"{name}x" not in MetadataCatalog.list()


def test_an_image_of_another_data_set(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2))])
    with pytest.raises(ValueError, match=f"other.jpg: not an image of {name}"):
        load_dataset(name).truth({"file_name": "other.jpg"})
