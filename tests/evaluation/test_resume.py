"""An evaluation that goes on gives the figures of one that was never interrupted."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from freecp_d2.evaluation import FreeCPSemSegEvaluator
from freecp_d2.evaluation.dataset import ImageFault
from freecp_d2.evaluation.records import Records

IMAGES = 9
FACTS = {"words": "w", "precision": "fp32", "config": {"MODEL": {"CLIP": {"METHOD": "sclip"}}}}


@pytest.fixture(scope="module")
def name(register, tmp_path_factory) -> str:
    """A data set of nine images of random labels of five classes, and some ignored pixels."""
    random = np.random.default_rng(5)
    truths = [random.choice([0, 1, 2, 3, 255], (6, 4 + i % 3)) for i in range(IMAGES)]
    folder = tmp_path_factory.mktemp("truths")
    return register(folder, truths)


def output_of(record) -> dict:
    """What a model might say of an image, always the same."""
    with Image.open(record["file_name"]) as image:
        size = image.size[::-1]
    number = record.get("image_id", 100) + 7
    random = np.random.default_rng(number if "image_id" in record else number_of(record))
    kept = torch.from_numpy(random.random(5) < 0.5)
    return {
        "label_map": torch.from_numpy(random.integers(0, 5, size)),
        "kept_redundancy": kept | torch.from_numpy(random.random(5) < 0.5),
        "kept": kept,
        "ambiguous_losses": [tuple(random.integers(0, 5, 2).tolist()) for _ in range(3)],
    }


def number_of(record) -> int:
    """The seed of an image of which the file is known alone."""
    return 107 + int(Path(record["file_name"]).stem.split()[-1])


def evaluator_of(name: str, folder: Path, **options) -> FreeCPSemSegEvaluator:
    return FreeCPSemSegEvaluator(
        name,
        output_dir=folder,
        facts=FACTS,
        coco_predictions=True,
        segment=lambda image: output_of(image)["label_map"],
        **options,
    )


def process(evaluator, records) -> None:
    for record in records:
        evaluator.process([record], [output_of(record)])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file: (folder / file).read_bytes()
        for file in ("results.json", "per_class.csv", "report.html", "sem_seg_predictions.json")
    }


@pytest.fixture(scope="module")
def undisturbed(name, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    evaluator = evaluator_of(name, folder)
    evaluator.reset()
    process(evaluator, DatasetCatalog.get(name))
    evaluator.evaluate()
    return contents(folder)


@pytest.mark.parametrize("stops", [[0], [3], [9], [1, 2, 5], [4, 4, 8]])
def test_any_number_of_stops_gives_the_same_bytes(name, tmp_path, undisturbed, stops):
    records = DatasetCatalog.get(name)
    for stop in stops:
        evaluator = evaluator_of(name, tmp_path)
        done = evaluator.resume()
        process(evaluator, [r for r in records[:stop] if r["file_name"] not in done])
        # Neither flush() nor evaluate(): it is killed.
    evaluator = evaluator_of(name, tmp_path)
    done = evaluator.resume()
    assert done == {record["file_name"] for record in records[: max(stops)]}
    process(evaluator, [r for r in reversed(records) if r["file_name"] not in done])
    evaluator.evaluate()
    assert contents(tmp_path) == undisturbed


def test_half_a_line_and_a_damaged_one_are_done_again(name, tmp_path, undisturbed):
    records = DatasetCatalog.get(name)
    evaluator = evaluator_of(name, tmp_path)
    evaluator.reset()
    process(evaluator, records[:5])
    journal = tmp_path / "records" / "0000.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1].replace(b"confusion", b"confusiom") + lines[2][:40])
    evaluator = evaluator_of(name, tmp_path)
    done = evaluator.resume()
    assert done == {records[0]["file_name"]}
    process(evaluator, records[1:])
    evaluator.evaluate()
    assert contents(tmp_path) == undisturbed


def test_the_records_of_several_ranks_are_one(name, tmp_path, undisturbed):
    records = DatasetCatalog.get(name)
    for rank, share in enumerate((records[5:], records[:5])):
        evaluator = evaluator_of(name, tmp_path / str(rank))
        evaluator.reset()
        process(evaluator, share)
    second = tmp_path / "1" / "records" / "0000.jsonl"
    second.rename(tmp_path / "0" / "records" / "0001.jsonl")
    evaluator = evaluator_of(name, tmp_path / "0")
    assert len(evaluator.resume()) == IMAGES
    evaluator.evaluate()
    assert contents(tmp_path / "0") == undisturbed


def test_beginning_anew_forgets_all(name, tmp_path, undisturbed):
    records = DatasetCatalog.get(name)
    evaluator = evaluator_of(name, tmp_path)
    evaluator.reset()
    process(evaluator, records)
    evaluator.evaluate()
    other = evaluator_of(name, tmp_path)
    other.reset()
    assert not [p.name for p in tmp_path.iterdir() if p.name != "records"]
    process(other, records[:2])
    assert other.evaluate() is not None
    assert json.loads((tmp_path / "results.json").read_text())["images"] == 2


@pytest.mark.parametrize(
    ("facts", "options", "keys"),
    [
        ({"words": "other"}, {}, "words"),
        ({"precision": "bf16"}, {}, "precision"),
        ({"config": {"MODEL": {"CLIP": {"METHOD": "gem"}}}}, {}, "MODEL.CLIP.METHOD"),
    ],
)
def test_another_configuration_is_refused_by_name(name, tmp_path, facts, options, keys):
    evaluator = evaluator_of(name, tmp_path)
    evaluator.reset()
    process(evaluator, DatasetCatalog.get(name)[:3])
    before = {f: f.read_bytes() for f in (tmp_path / "records").iterdir()}
    other = evaluator_of(name, tmp_path)
    other.facts.update(facts)
    with pytest.raises(ValueError, match="another configuration") as error:
        other.resume()
    assert f"({keys})" in str(error.value)
    assert {f: f.read_bytes() for f in (tmp_path / "records").iterdir()} == before


def test_another_data_set_is_refused(name, register, tmp_path):
    evaluator_of(name, tmp_path / "out").reset()
    (tmp_path / "other").mkdir()
    other = register(tmp_path / "other", [np.zeros((2, 2), int)])
    with pytest.raises(ValueError, match=r"\(data set\)"):
        evaluator_of(other, tmp_path / "out").resume()


def test_another_ignore_label_is_refused(name, tmp_path, monkeypatch):
    """The records' pixels were counted with the former one."""
    evaluator_of(name, tmp_path).reset()
    monkeypatch.setitem(vars(MetadataCatalog.get(name)), "ignore_label", 0)
    with pytest.raises(ValueError, match=r"\(ignore_label\)"):
        evaluator_of(name, tmp_path).resume()


def test_device_and_folders_do_not_matter(name, tmp_path):
    evaluator_of(name, tmp_path).reset()
    other = evaluator_of(name, tmp_path)
    other.facts["device"] = "cuda"
    other.facts["config"] = {**FACTS["config"], "OUTPUT_DIR": "x", "DATALOADER": {"NUM_WORKERS": 9}}
    assert other.resume() == frozenset()


def test_to_resume_takes_a_folder_and_a_model(name, tmp_path):
    with pytest.raises(ValueError, match="output_dir, and segment"):
        FreeCPSemSegEvaluator(name).resume()
    with pytest.raises(ValueError, match="output_dir, and segment"):
        FreeCPSemSegEvaluator(name, output_dir=tmp_path).resume()


def test_an_image_that_the_data_set_no_longer_has(name, tmp_path):
    """As after one that was taken out; its record is neither counted nor written."""
    evaluator = evaluator_of(name, tmp_path)
    evaluator.reset()
    records = DatasetCatalog.get(name)
    process(evaluator, records)
    taken = records.pop(4)
    try:
        again = evaluator_of(name, tmp_path)
        assert taken["file_name"] not in again.resume()
        again.evaluate()
    finally:
        records.insert(4, taken)
    segments = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    assert len({segment["file_name"] for segment in segments}) == IMAGES - 1
    assert json.loads((tmp_path / "results.json").read_text())["images"] == IMAGES - 1


def test_images_that_failed_are_named_and_tried_again(name, tmp_path, undisturbed, caplog):
    records = DatasetCatalog.get(name)
    evaluator = evaluator_of(name, tmp_path)
    evaluator.reset()
    process(evaluator, records[:4] + records[5:])
    evaluator.fail(records[4]["file_name"], f"{records[4]['file_name']}: broken")
    evaluator.evaluate()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["images"] == IMAGES - 1
    assert results["failed"] == {records[4]["file_name"]: f"{records[4]['file_name']}: broken"}
    assert "INCOMPLETE, 1 of 9 images" in caplog.text
    page = (tmp_path / "report.html").read_text()
    assert "incomplete" in page.lower() and records[4]["file_name"] in page
    again = evaluator_of(name, tmp_path)
    assert again.resume() == {r["file_name"] for r in records} - {records[4]["file_name"]}
    process(again, [records[4]])
    again.evaluate()
    assert contents(tmp_path) == undisturbed


def test_a_broken_truth_is_the_images_fault(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2), int)] * 3)
    records = DatasetCatalog.get(name)
    Path(records[0]["sem_seg_file_name"]).write_bytes(b"no")
    Image.new("L", (9, 9)).save(records[1]["sem_seg_file_name"])
    Image.new("L", (2, 2), 77).save(records[2]["sem_seg_file_name"])
    evaluator = evaluator_of(name, tmp_path / "out")
    evaluator.reset()
    for record in records:
        with pytest.raises(ImageFault) as error:
            evaluator.process([record], [{"label_map": torch.zeros(2, 2, dtype=torch.int64)}])
        assert record["sem_seg_file_name"] in str(error.value) and "\n" not in str(error.value)
    assert list(Records(evaluator.records_folder).evaluated()) == []


def test_a_full_disk_costs_the_image_at_hand_alone(name, tmp_path, undisturbed, monkeypatch):
    records = DatasetCatalog.get(name)
    evaluator = evaluator_of(name, tmp_path)
    evaluator.reset()
    process(evaluator, records[:4])
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:9]))
    with pytest.raises(OSError, match="No space left.*0000.jsonl"):
        process(evaluator, records[4:])
    monkeypatch.undo()
    evaluator = evaluator_of(name, tmp_path)
    assert evaluator.resume() == {record["file_name"] for record in records[:4]}
    process(evaluator, records[4:])
    evaluator.evaluate()
    assert contents(tmp_path) == undisturbed
