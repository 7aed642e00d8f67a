"""One image through the core."""

import dataclasses
import hashlib
import io
import pickle

import numpy as np
import pycocotools.mask
import pytest
from detectron2.data.detection_utils import read_image as read_as_detectron2
from PIL import Image

from freecp_d2.labelling import Item, Labeller, Outputs, read_items


def label_of(labeller: Labeller, item: Item, former=None):
    return labeller.label(pickle.loads(pickle.dumps(labeller.read(item, former))))


def pixels_of(files: dict[str, bytes], name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(files[name])))


def test_the_label_map_and_the_record(photos, labeller, segment):
    item = next(read_items(photos))
    expected = segment(np.asarray(Image.open(photos / "000.png")))
    labelled = pickle.loads(pickle.dumps(label_of(labeller, item)))
    assert [*labelled.files] == labeller.files_of("000") == ["labels/000.png", "scores/000.png"]
    labels = pixels_of(labelled.files, "labels/000.png")
    assert labels.dtype == np.uint8 and np.array_equal(labels, expected.label_map)
    scores = pixels_of(labelled.files, "scores/000.png")
    assert np.abs(scores / 255 - expected.confidence).max() <= 0.5 / 255 + 1e-6
    record = labelled.record
    segments = record.pop("segments")
    assert record.pop("seconds") >= 0 and record.pop("time") > 1e9
    assert record == {
        "id": "000",
        "file_name": str(photos / "000.png"),
        "stamp": item.stamp,
        "sha256": hashlib.sha256((photos / "000.png").read_bytes()).hexdigest(),
        "settings": "settings",
        "height": 6,
        "width": 5,
        "classes": ["dark", "grey", "light"],
        "confidence": pytest.approx(float(expected.confidence.mean()), abs=1e-6),
    }
    assert {s["category_id"] for s in segments} == {*np.unique(labels).tolist()} - {255}
    for entry in segments:
        mask = pycocotools.mask.decode(entry["segmentation"])
        assert np.array_equal(mask, labels == entry["category_id"])


def test_detectron2_reads_the_ids(photos, labeller):
    labelled = label_of(labeller, next(read_items(photos)))
    labelled_file = photos / "label.png"
    labelled_file.write_bytes(labelled.files["labels/000.png"])
    read = read_as_detectron2(str(labelled_file), "L").squeeze(2)
    assert np.array_equal(read, pixels_of(labelled.files, "labels/000.png"))


@pytest.mark.parametrize(
    ("count", "dtype", "ignored"), [(254, "uint8", 255), (255, "uint16", 65535)]
)
def test_many_classes_have_16_bits(photos, store, segment, count, dtype, ignored):
    classes = tuple(f"class {i}" for i in range(count))
    labeller = Labeller(lambda pixels, name: segment(pixels, name, classes), store, "", Outputs())
    Image.new("RGB", (4, 3)).save(photos / "000.png")  # black is nothing
    labels = pixels_of(label_of(labeller, next(read_items(photos))).files, "labels/000.png")
    assert labels.dtype == dtype and (labels == ignored).all()


def test_doubtful_pixels_are_ignored(photos, store, segment):
    item = next(read_items(photos))
    result = segment(np.asarray(Image.open(photos / "000.png")))
    whole = pixels_of(
        label_of(Labeller(segment, store, "", Outputs()), item).files, "labels/000.png"
    )
    labelled = label_of(Labeller(segment, store, "", Outputs(min_confidence=0.5)), item)
    labels = pixels_of(labelled.files, "labels/000.png")
    doubtful = result.confidence < 0.5
    assert doubtful.any() and not doubtful.all() and not (whole == 255).any()
    assert (labels[doubtful] == 255).all() and (labels[~doubtful] == whole[~doubtful]).all()
    assert [*labelled.files] == ["labels/000.png"] and "segments" not in labelled.record


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_confidence_is_of_0_to_1(value):
    assert Outputs(min_confidence=0) != Outputs(min_confidence=1)
    with pytest.raises(ValueError, match="choose 0 to 1"):
        Outputs(min_confidence=value)


def test_a_base_method_has_the_classes_of_its_label_map(photos, store, segment):
    def base(pixels, name):
        nan = np.full(4, np.nan, np.float32)
        return dataclasses.replace(segment(pixels), consistency=nan, removed=[])

    Image.new("RGB", (4, 3), "white").save(photos / "000.png")
    record = label_of(Labeller(base, store, "", Outputs()), next(read_items(photos))).record
    assert record["classes"] == ["light"]


def test_classes_that_stay_without_any_removed(photos, store, segment):
    def kept(pixels, name):
        return dataclasses.replace(segment(pixels), removed=[])

    record = label_of(Labeller(kept, store, "", Outputs()), next(read_items(photos))).record
    assert record["classes"] == ["dark", "grey", "light", "gone"]


def test_what_is_wrong_with_an_image_is_its_record(photos, labeller):
    (photos / "000.png").write_bytes(b"no")
    Image.new("RGB", (4, 3), "red").save(photos / "001.png")
    items = list(read_items(photos))
    (photos / "002.png").unlink()
    (photos / "003.png").unlink()
    (photos / "003.png").mkdir()
    for item, sentence in zip(
        items, ["not an image", "it is red", "No such file", "Is a directory"], strict=False
    ):
        labelled = label_of(labeller, item)
        assert not labelled.files
        error = labelled.record["error"]
        assert sentence in error and item.file_name in error and "\n" not in error


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_ran_out_is_the_images_fault(photos, store, error):
    def fail(pixels, name):
        raise error

    record = label_of(Labeller(fail, store, "", Outputs()), next(read_items(photos))).record
    assert "memory ran out" in record["error"]


def test_a_fault_of_the_code_is_none_of_the_image(photos, store):
    labeller = Labeller(lambda pixels, name: pixels.nonsense, store, "", Outputs())
    with pytest.raises(AttributeError):
        label_of(labeller, next(read_items(photos)))


def test_what_is_done_is_not_done_again(photos, labeller, store):
    item = next(read_items(photos))
    assert not labeller.is_done(item, None)
    record = labeller.write(label_of(labeller, item))
    assert labeller.is_done(item, record)
    assert not labeller.is_done(item, {**record, "error": "x"})
    assert not labeller.is_done(dataclasses.replace(item, stamp="other"), record)
    assert not labeller.is_done(dataclasses.replace(item, file_name="other"), record)
    (store.folder / "scores/000.png").unlink()
    assert not labeller.is_done(item, record)


def test_a_file_that_was_only_touched_is_not_segmented_again(photos, labeller, store):
    item = next(read_items(photos))
    record = labeller.write(label_of(labeller, item))
    touched = dataclasses.replace(item, stamp="later")
    again = label_of(labeller, touched, record)
    assert not again.files
    times = {"time": again.record["time"]}
    assert again.record == {**record, "stamp": "later", **times}
    (store.folder / "labels/000.png").unlink()
    assert label_of(labeller, touched, record).files
    (photos / "000.png").write_bytes((photos / "001.png").read_bytes())
    changed = label_of(labeller, touched, record)
    assert changed.files and changed.record["sha256"] != record["sha256"]


def test_another_image_id_is_taken_without_segmenting_again(photos, labeller):
    item = next(read_items(photos))
    record = labeller.write(label_of(labeller, item))
    for image_id in (7, 8, None):
        changed = dataclasses.replace(item, image_id=image_id)
        assert not labeller.is_done(changed, record)
        again = label_of(labeller, changed, record)
        assert not again.files and again.record.get("image_id") == image_id
        record = again.record
        assert labeller.is_done(changed, record)
