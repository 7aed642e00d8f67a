"""What is made of all records."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image
from pycocotools.coco import COCO

from freecp_d2.index import Index
from freecp_d2.labelling import read_items, register_labels
from freecp_d2.labelling.merge import merge
from freecp_d2.overlay import palette

CLASSES = ["dark", "grey", "light", "gone"]
SETTINGS = {"classes": CLASSES, "scores": True, "coco": True}


@pytest.fixture
def merged(photos, labeller, store):
    """Eleven labels and a failure, merged."""
    (photos / "004.png").write_bytes(b"no")
    records = [labeller.write(labeller.label(labeller.read(i))) for i in read_items(photos)]
    merge(store, Index(reversed(records)), SETTINGS, tars=4)
    return store.folder


def labels_of(folder, id):
    return np.asarray(Image.open(folder / "labels" / f"{id}.png"))


def test_the_manifest_has_a_line_an_image_by_id(merged):
    records = [json.loads(line) for line in (merged / "manifest.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [f"{i:03d}" for i in range(12)]
    assert ["error" in record for record in records].index(True) == 4
    assert not any("segments" in record for record in records)


@pytest.fixture
def registered(merged):
    name = f"labels of {merged}"
    register_labels(name, merged / "sem_seg.json")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_detectron2_registers_it_in_one_line(merged, photos, registered):
    metadata = MetadataCatalog.get(registered)
    assert metadata.stuff_classes == CLASSES and metadata.ignore_label == 255
    assert metadata.evaluator_type == "sem_seg" and len(metadata.stuff_colors) == 4
    records = DatasetCatalog.get(registered)
    assert [r["file_name"] for r in records] == [
        str(photos / f"{i:03d}.png") for i in range(12) if i != 4
    ]
    assert [r["image_id"] for r in records] == [*range(1, 12)]
    for record in records:
        files = (record[f"{kind}file_name"] for kind in ("", "sem_seg_", "scores_"))
        sizes = {Image.open(file).size for file in files}
        assert sizes == {(record["width"], record["height"])}


def test_a_name_that_is_taken_and_a_file_that_is_none(merged, registered):
    with pytest.raises(ValueError, match="already"):
        register_labels(registered, merged / "sem_seg.json")
    (merged / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="not the sem_seg.json"):
        register_labels("other", merged / "other.json")
    with pytest.raises(FileNotFoundError):
        register_labels("other", merged / "none.json")
    assert "other" not in DatasetCatalog


def test_coco_reads_the_segments(merged):
    file = str(merged / "segmentation.json")
    coco = COCO(file)
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == CLASSES
    assert len(coco.imgs) == 11 and len({*coco.anns}) == len(coco.dataset["annotations"])
    for image_id, image in coco.imgs.items():
        id = re.sub(r".*/|\.png", "", image["file_name"])
        expected = labels_of(merged, id)
        drawn = np.full(expected.shape, 255)
        for annotation in coco.loadAnns(coco.getAnnIds(image_id)):
            drawn[coco.annToMask(annotation) == 1] = annotation["category_id"]
        assert np.array_equal(drawn, expected)
    assert len(load_coco_json(file, "")) == 11


def test_tars_are_webdatasets(merged, photos):
    tars = sorted((merged / "tars").iterdir())
    assert [t.name for t in tars] == [f"00000{i}-of-000003.tar" for i in range(3)]
    samples: dict[str, dict[str, bytes]] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            for entry in tar:
                # WebDataset's rule: the key ends at the first full stop of the base name.
                key, suffix = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", entry.name).groups()
                samples.setdefault(key, {})[suffix] = tar.extractfile(entry).read()
    assert [*samples] == [f"{i:03d}" for i in range(12) if i != 4]
    for key, sample in samples.items():
        assert {*sample} == {"png", "seg.png", "json", "scores.png"}
        assert sample["png"] == (photos / f"{key}.png").read_bytes()
        assert sample["seg.png"] == (merged / "labels" / f"{key}.png").read_bytes()
        assert json.loads(sample["json"])["id"] == key
        Image.open(io.BytesIO(sample["scores.png"])).verify()


def test_tars_of_fewer_images_go(photos, labeller, store):
    records = [labeller.write(labeller.label(labeller.read(i))) for i in read_items(photos)]
    for count in (4, 12):
        merge(store, Index(records[:count]), SETTINGS, tars=4)
    names = sorted(file.name for file in (store.folder / "tars").iterdir())
    assert names == [f"00000{i}-of-000003.tar" for i in range(3)]


def test_full_stops_of_an_id_are_none_of_a_tars_suffix(photos, labeller, store):
    for number in range(1, 12):
        (photos / f"{number:03d}.png").unlink()
    (photos / "000.png").rename(photos / "a.v2.png")
    records = [labeller.write(labeller.label(labeller.read(i))) for i in read_items(photos)]
    merge(store, Index(records), SETTINGS, tars=4)
    with tarfile.open(store.folder / "tars/000000-of-000001.tar") as tar:
        assert tar.getnames()[0] == "a%2Ev2.png"
    assert store.exists("labels/a.v2.png")


def test_without_images_the_files_are_valid(store):
    merge(store, Index(), SETTINGS, tars=4)
    assert json.loads(store.read("sem_seg.json"))["images"] == []
    coco = json.loads(store.read("segmentation.json"))
    assert coco["images"] == coco["annotations"] == []


@pytest.mark.parametrize("first", ["background", "sky"])
def test_colours_are_those_of_overlays(store, first):
    merge(store, Index(), {**SETTINGS, "classes": [first, "road", "car"]})
    colors = json.loads(store.read("sem_seg.json"))["stuff_colors"]
    assert colors == palette(3, first == "background").tolist()
