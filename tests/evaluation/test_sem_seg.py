"""The evaluator's figures against brute force and Detectron2's, its files, and bad input."""

import csv
import gc
import json
import math
import tempfile
import tracemalloc
from itertools import chain
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from freecp_d2.cli.evaluate import Trainer, evaluate_images
from freecp_d2.config import load_config
from freecp_d2.evaluation import FreeCPSemSegEvaluator, load_label_map

CLASSES = ("a", "b", "c", "d", "e")
IGNORE = 255
NAN = float("nan")


def scores_of(labels: np.ndarray, channels: int = len(CLASSES)) -> torch.Tensor:
    """(K, H, W) scores whose argmax is `labels`."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), channels)
    return one_hot.permute(2, 0, 1).float()


def run(evaluator, name: str, outputs: list[dict]) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for record, output in zip(DatasetCatalog.get(name), outputs, strict=True):
        evaluator.process([record], [output])
    return evaluator.evaluate()


def run_maps(name: str, predictions: list[np.ndarray], **options) -> dict[str, float]:
    outputs = [{"label_map": torch.from_numpy(labels)} for labels in predictions]
    return run(FreeCPSemSegEvaluator(name, **options), name, outputs)["sem_seg"]


def brute_force(truths: list[np.ndarray], predictions: list[np.ndarray]) -> dict[str, float]:
    """All figures in percent, pixel by pixel."""
    maps = zip(truths, predictions, strict=True)
    pixels = list(chain.from_iterable(zip(t.flat, p.flat, strict=True) for t, p in maps))
    pixels = [(t, p) for t, p in pixels if t != IGNORE]

    def share(part: int, whole: int) -> float:
        return 100 * part / whole if whole else NAN

    def average(values: list[float]) -> float:
        values = [value for value in values if not math.isnan(value)]
        return sum(values) / len(values) if values else NAN

    hits = [sum(t == k == p for t, p in pixels) for k in range(len(CLASSES))]
    union = [sum(k in (t, p) for t, p in pixels) for k in range(len(CLASSES))]
    truth = [sum(t == k for t, _ in pixels) for k in range(len(CLASSES))]
    ious = list(map(share, hits, union))
    accuracies = list(map(share, hits, truth))
    present = [iou for iou, count in zip(ious, truth, strict=True) if count]
    weighted = [iou * n for iou, n in zip(ious, truth, strict=True) if n]
    return {
        "mIoU": average(ious),
        "mIoU-detectron2": average(present),
        "fwIoU": sum(weighted) / len(pixels) if pixels else NAN,
        "mACC": average(accuracies),
        "pACC": share(sum(hits), len(pixels)),
        **{f"IoU-{name}": iou for name, iou in zip(CLASSES, ious, strict=True)},
        **{f"ACC-{name}": accuracy for name, accuracy in zip(CLASSES, accuracies, strict=True)},
    }


@st.composite
def label_maps(draw) -> list[tuple[np.ndarray, np.ndarray]]:
    """(truth, prediction) of a few images; some classes may be absent, some pixels are ignored."""
    images = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
        truth = draw(arrays(np.int64, size, elements=st.sampled_from([0, 1, 2, 3, IGNORE])))
        predicted = draw(arrays(np.int64, size, elements=st.sampled_from([0, 1, 2, 4])))
        images.append((truth, predicted))
    return images


@settings(max_examples=40, deadline=None)
@given(images=label_maps())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # Detectron2's, where nothing is present
def test_metrics_are_the_brute_force_and_detectron2s(register, images):
    truths, predictions = zip(*images, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        name = register(Path(folder), truths)
        ours = run_maps(name, predictions)
        scores = [{"sem_seg": scores_of(labels)} for labels in predictions]
        assert run(FreeCPSemSegEvaluator(name), name, scores)["sem_seg"] == pytest.approx(
            ours, abs=0, rel=0, nan_ok=True
        )
        theirs = SemSegEvaluator(name, sem_seg_loading_fn=load_label_map)
        theirs = run(theirs, name, scores)["sem_seg"]
    assert ours == pytest.approx(brute_force(truths, predictions), abs=1e-9, rel=0, nan_ok=True)
    theirs["mIoU-detectron2"] = theirs.pop("mIoU")
    if math.isnan(theirs["mIoU-detectron2"]):
        theirs["fwIoU"] = NAN  # nothing is present: theirs is an empty sum, 0
    for key, value in ours.items():
        absent_but_predicted = key.startswith("IoU-") and math.isnan(theirs[key]) and value == 0
        if key != "mIoU" and not absent_but_predicted:
            assert value == pytest.approx(theirs[key], abs=1e-9, nan_ok=True), key


def test_a_predicted_but_absent_class_counts_zero(register, tmp_path):
    name = register(tmp_path, [np.array([[0, 0], [1, 1]])])
    result = run_maps(name, [np.array([[0, 0], [1, 2]])])
    assert result["mIoU"] == pytest.approx(100 * (1 + 0.5 + 0) / 3)
    assert result["mIoU-detectron2"] == pytest.approx(100 * (1 + 0.5) / 2)


def test_classes_predicted_on_ignored_pixels_are_not_predicted(register, tmp_path):
    name = register(tmp_path, [np.array([[0, 0], [IGNORE, IGNORE]])])
    assert run_maps(name, [np.array([[0, 0], [3, 4]])])["mIoU"] == pytest.approx(100)


PRESENT = ([0, 1], [1, 2], [3])
KEPT = (
    {"kept_redundancy": [0, 1, 4], "kept": [0, 4], "ambiguous_losses": [(1, 0), (1, 4), (1, 0)]},
    {"kept_redundancy": [1, 2, 3], "kept": [1], "ambiguous_losses": [(2, 1), (3, 1)]},
    {"kept_redundancy": [], "kept": [], "ambiguous_losses": [(1, 4), (2, 2)]},
)


@pytest.mark.parametrize("background", [0, 1])
def test_purification_by_hand(register, tmp_path, background):
    """With a scored background, its id 0 is everywhere and counts nowhere."""
    classes = ["background"] * background + list(CLASSES)
    truths = [np.array([[*ids, IGNORE]]) for ids in PRESENT]
    truths = [np.where(t == IGNORE, IGNORE, t + background) for t in truths]
    truths = [np.hstack([t, np.zeros((1, background), int)]) for t in truths]
    name = register(tmp_path, truths, stuff_classes=classes)
    outputs = []
    for truth, sets in zip(truths, KEPT, strict=True):
        output = {"label_map": torch.zeros(truth.shape, dtype=torch.long)}
        for key in ("kept_redundancy", "kept"):
            output[key] = torch.tensor([i in sets[key] for i in range(len(CLASSES))])
        outputs.append({**output, "ambiguous_losses": sets["ambiguous_losses"]})
    found = run(FreeCPSemSegEvaluator(name, output_dir=tmp_path / "out"), name, outputs)
    expected = {"truth/classes": sum(map(len, PRESENT)) / 3}
    for stage, key in (("redundancy", "kept_redundancy"), ("ambiguity", "kept")):
        kept = [set(sets[key]) for sets in KEPT]
        right = sum(len(k & set(p)) for k, p in zip(kept, PRESENT, strict=True))
        precision, recall = right / sum(map(len, kept)), right / sum(map(len, PRESENT))
        expected[f"{stage}/precision"] = 100 * precision
        expected[f"{stage}/recall"] = 100 * recall
        expected[f"{stage}/f1"] = 100 * 2 * precision * recall / (precision + recall)
        expected[f"{stage}/classes"] = sum(map(len, kept)) / 3
    assert found["purification"] == pytest.approx(expected, abs=1e-9)

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["purification"]["ambiguity"]["classes"] == 1
    pairs = {(p["loser"], p["winner"]): p for p in results["ambiguous_losses"]}
    counts = {key: (p["images"], p["right"], p["wrong"]) for key, p in pairs.items()}
    assert counts == {
        ("b", "e"): (2, 0, 1),  # wrong in the first image; neither is in the third
        ("b", "a"): (1, 0, 0),  # both are there
        ("c", "b"): (1, 0, 0),
        ("d", "b"): (1, 1, 0),
    }
    assert next(iter(pairs)) == ("b", "e")


def test_a_class_twice_has_two_figures(register, tmp_path):
    """As in LVIS and ADE20K-847; figures are kept by name."""
    truth = np.array([[0, 1, 2, 2]])
    name = register(tmp_path, [truth], stuff_classes=["bag", "cat", "bag", "bag (2)", "bag"])
    found = run_maps(name, [np.array([[0, 1, 0, 2]])], output_dir=tmp_path / "out")
    assert (found["IoU-bag"], found["IoU-cat"], found["IoU-bag (2)"]) == (50, 100, 50)
    assert found["mIoU"] == pytest.approx(200 / 3)
    classes = json.loads((tmp_path / "out" / "results.json").read_text())["classes"]
    names = [entry["name"] for entry in classes]
    assert names == ["bag", "cat", "bag (2)", "bag (2) (2)", "bag (3)"]
    assert [entry["IoU"] for entry in classes] == [50, 100, 50, None, None]


def test_outputs_without_kept_classes_have_no_purification(register, tmp_path):
    truth = np.zeros((2, 2), int)
    name = register(tmp_path, [truth])
    evaluator = FreeCPSemSegEvaluator(name, output_dir=tmp_path / "out")
    assert set(run(evaluator, name, [{"sem_seg": scores_of(truth)}])) == {"sem_seg"}
    assert "purification" not in evaluator.results


def test_results_are_written(register, tmp_path):
    rng = np.random.default_rng(0)
    truths = [rng.choice([0, 1, IGNORE], (6, 5)) for _ in range(3)]
    predictions = [rng.choice([0, 1, 3], (6, 5)) for _ in range(3)]
    name = register(tmp_path, truths, label_maps_as_published=False)
    seconds = {"encode": 5.0}
    evaluator = FreeCPSemSegEvaluator(
        name,
        output_dir=tmp_path / "out",
        facts={"method": "sclip", "enabled": True},
        stage_seconds=lambda: seconds,
    )
    evaluator.reset()
    for record, labels in zip(DatasetCatalog.get(name), predictions, strict=True):
        evaluator.process([record], [{"label_map": torch.from_numpy(labels)}])
    seconds.update(encode=11.0, merge=1.5)
    evaluator.evaluate()

    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert sorted(files) == ["per_class.csv", "records", "report.html", "results.json"]
    text = files["results.json"].read_text()
    results = json.loads(text)
    expected = brute_force(truths, predictions)
    assert results == evaluator.results and results["label_maps_as_published"] is False
    assert (results["dataset"], results["images"], results["method"]) == (name, 3, "sclip")
    assert results["metrics"]["mIoU"] == pytest.approx(expected["mIoU"], abs=1e-9)
    assert results["seconds_per_image"] == {"encode": 2.0, "merge": 0.5}
    assert "NaN" not in text and results["classes"][2]["IoU"] is None
    assert results["classes"][3]["IoU"] == 0
    with files["per_class.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(CLASSES)
    assert float(rows[0]["IoU"]) == pytest.approx(expected["IoU-a"], abs=1e-9)
    assert rows[2]["IoU"] == "" and float(rows[3]["IoU"]) == 0
    assert int(rows[1]["pixels"]) == sum(int((truth == 1).sum()) for truth in truths)


def test_seconds_of_an_image_that_failed_are_reported(register, tmp_path):
    """Images go through the model at once, and the first to be counted has the time of all."""
    name = register(tmp_path, [np.zeros((2, 2))] * 3)
    records = DatasetCatalog.get(name)
    Path(records[0]["sem_seg_file_name"]).write_bytes(b"no")
    seconds = {"encode": 0.0}
    evaluator = FreeCPSemSegEvaluator(name, stage_seconds=lambda: seconds)
    evaluator.reset()

    def model(images: list[dict]) -> list[dict]:
        seconds["encode"] += 2.0 * len(images)
        return [{"label_map": torch.zeros(2, 2, dtype=torch.long)} for _ in images]

    evaluate_images(model, records, evaluator)
    evaluator.evaluate()
    assert evaluator.results["seconds_per_image"] == {"encode": 3.0}  # 6 of 2 images


def test_everything_ignored_is_null(register, tmp_path):
    name = register(tmp_path, [np.full((2, 2), IGNORE)])
    result = run_maps(name, [np.zeros((2, 2), int)], output_dir=tmp_path / "out")
    assert math.isnan(result["mIoU"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["metrics"].values()) == {None}


def test_coco_predictions_decode_to_the_label_maps(register, tmp_path):
    rng = np.random.default_rng(1)
    predictions = [rng.integers(0, 5, size) for size in [(9, 4), (3, 8)]]
    category_ids = [11, 3, 90, 7, 182]
    name = register(
        tmp_path,
        [np.zeros_like(labels) for labels in predictions],
        stuff_dataset_id_to_contiguous_id={c: i for i, c in enumerate(category_ids)},
    )
    run_maps(name, predictions, output_dir=tmp_path / "out", coco_predictions=True)
    assert not list((tmp_path / "out").glob(".*.part"))
    segments = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    for record, labels in zip(DatasetCatalog.get(name), predictions, strict=True):
        decoded = np.full(labels.shape, -1)
        for segment in segments:
            if segment["image_id"] == record["image_id"]:
                assert segment["file_name"] == record["file_name"]
                mask = pycocotools.mask.decode(segment["segmentation"]) > 0
                assert (decoded[mask] == -1).all()
                decoded[mask] = category_ids.index(segment["category_id"])
        np.testing.assert_array_equal(decoded, labels)


def test_memory_does_not_grow_with_the_number_of_images(register, tmp_path):
    rng = np.random.default_rng(0)
    name = register(tmp_path, rng.integers(0, 5, (1000, 24, 32)))
    records = DatasetCatalog.get(name)
    evaluator = FreeCPSemSegEvaluator(name, output_dir=tmp_path / "out", coco_predictions=True)
    evaluator.reset()
    used = {}
    tracemalloc.start()
    try:
        for count, record in enumerate(records, start=1):
            output = {
                "label_map": torch.from_numpy(rng.integers(0, 5, (24, 32))),
                "kept_redundancy": torch.from_numpy(rng.random(5) < 0.8),
                "kept": torch.from_numpy(rng.random(5) < 0.6),
                "ambiguous_losses": [tuple(rng.permutation(5)[:2].tolist())],
            }
            evaluator.process([record], [output])
            if count in (200, 1000):
                gc.collect()
                used[count] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used[1000] - used[200] < 100 * 1024  # 800 label maps would be 600 KB as bytes
    evaluator.evaluate()
    assert evaluator.results["images"] == 1000
    assert len(json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())) == 5000


def test_the_loader_of_an_evaluation_reads_the_ground_truth():
    loader = Trainer.build_test_loader(load_config("scenes/clearclip"), "scenes_val")
    record = DatasetCatalog.get("scenes_val")[0]
    image = next(iter(loader))[0]
    assert image["file_name"] == record["file_name"] and image["sem_seg"].dtype == torch.uint8
    expected = load_label_map(record["sem_seg_file_name"])
    np.testing.assert_array_equal(image["sem_seg"].numpy(), expected)


DATA = Path(__file__).parents[1] / "data"


def test_masks_of_0_and_255_are_warned_of(caplog):
    """A real kind of mistake: the object is 255, and so is the ignored label."""
    name = "test_mask255"
    record = {"file_name": "image.png"}
    DatasetCatalog.register(name, lambda: [record | {"sem_seg_file_name": mask}])
    MetadataCatalog.get(name).set(stuff_classes=["background", "disc"], ignore_label=255)
    mask = DATA / "mask255/labels.png"
    try:
        labels = load_label_map(mask)
        assert set(np.unique(labels)) == {0, 255}
        evaluator = FreeCPSemSegEvaluator(name)
        run(evaluator, name, [{"label_map": torch.from_numpy((labels > 0).astype(int))}])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "1 of 2 classes have no ground-truth pixel (disc)" in warning and "255" in warning
    assert evaluator.results["absent_classes"] == ["disc"]
    assert evaluator.results["ignored_pixels"] == int((labels == 255).sum())


def test_absent_classes_are_named_once(register, tmp_path, caplog):
    name = register(tmp_path, [np.zeros((2, 2)), np.full((2, 2), 3)])
    run_maps(name, [np.zeros((2, 2), int)] * 2, output_dir=tmp_path / "out")
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == f"{name}: 3 of 5 classes have no ground-truth pixel (b, c, e)"
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["absent_classes"] == ["b", "c", "e"] and results["ignored_pixels"] == 0
    caplog.clear()
    name = register(tmp_path, [np.arange(5)[None]])
    run_maps(name, [np.zeros((1, 5), int)])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_folder_that_cannot_be_written(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2))])
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OSError, match="cannot be written .*choose another folder") as error:
            FreeCPSemSegEvaluator(name, output_dir=folder)
        assert str(folder) in str(error.value)


@pytest.mark.parametrize("mode", ["P", "I;16", "1"])
def test_modes_of_label_maps(tmp_path, mode):
    labels = np.array([[0, 1], [1, 0]])
    if mode == "P":
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette([200, 100, 50, 1, 2, 3])
    else:
        image = Image.fromarray(labels.astype({"I;16": np.uint16, "1": bool}[mode]))
    assert image.mode == mode
    image.save(tmp_path / "labels.png")
    loaded = load_label_map(tmp_path / "labels.png")
    assert loaded.dtype == int and loaded.flags.writeable
    np.testing.assert_array_equal(loaded, labels)
