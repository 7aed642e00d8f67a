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

from freecp_d2.cli.evaluate import Trainer
from freecp_d2.config import load_config
from freecp_d2.data import Vocabulary
from freecp_d2.data.mapper import ground_truth
from freecp_d2.evaluation import FreeCPSemSegEvaluator, load_label_map
from freecp_d2.evaluation.sem_seg import ImageFault

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


def test_a_class_without_category_id_is_named(register, tmp_path):
    ids = {i: i for i in range(4)}
    name = register(tmp_path, [np.zeros((1, 1))], stuff_dataset_id_to_contiguous_id=ids)
    with pytest.raises(ValueError, match="no id of 'e'"):
        FreeCPSemSegEvaluator(name, output_dir=tmp_path / "out", coco_predictions=True)


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


def test_missing_ground_truth_is_found_before_inference(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2))] * 3)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 3") as error:
        FreeCPSemSegEvaluator(name)
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
    with pytest.raises(ValueError, match=said) as error:
        run_maps(name, [np.zeros((2, 2), int)])
    assert str(tmp_path / "0.png") in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", [None, corrupt, another_size, no_class])
def test_a_ground_truth_that_was_read_before_is_not_read_again(register, tmp_path, spoil):
    """As by the workers of `build_test_loader`; what is wrong with it is said in the same words."""
    truth = np.array([[0, 1], [2, IGNORE]])
    name = register(tmp_path, [truth])
    if spoil is not None:
        spoil(tmp_path / "0.png")
    (record,) = DatasetCatalog.get(name)
    output = {"label_map": torch.tensor([[0, 1], [1, 1]])}
    said = []
    for inputs in (record, record | ground_truth(record["sem_seg_file_name"])):
        evaluator = FreeCPSemSegEvaluator(name)
        evaluator.reset()
        if spoil is None:
            evaluator.process([inputs], [output])
            said.append(evaluator.evaluate())
        else:
            with pytest.raises(ImageFault) as caught:
                evaluator.process([inputs], [output])
            said.append(str(caught.value))
        (tmp_path / "0.png").write_bytes(b"")
    assert repr(said[0]) == repr(said[1])  # NaN is not itself


def test_the_loader_of_an_evaluation_reads_the_ground_truth():
    loader = Trainer.build_test_loader(load_config("scenes/clearclip"), "scenes_val")
    record = DatasetCatalog.get("scenes_val")[0]
    image = next(iter(loader))[0]
    assert image["file_name"] == record["file_name"] and image["sem_seg"].dtype == torch.uint8
    expected = load_label_map(record["sem_seg_file_name"])
    np.testing.assert_array_equal(image["sem_seg"].numpy(), expected)


def test_a_benchmarks_map_of_another_size_points_to_verify(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    voc = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    (voc / "ImageSets/Segmentation/val.txt").write_text("1\n")
    Image.new("L", (2, 2)).save(voc / "JPEGImages/1.jpg")
    Image.new("L", (2, 3)).save(voc / "SegmentationClass/1.png")
    name = "voc_2012_val_21_sem_seg"
    (record,) = DatasetCatalog.get(name)
    evaluator = FreeCPSemSegEvaluator(name)
    evaluator.reset()
    with pytest.raises(ValueError, match="has size.*freecp_d2.data.prepare voc21 --verify"):
        evaluator.process([record], [{"label_map": torch.zeros(2, 2, dtype=torch.long)}])


@pytest.mark.parametrize(
    "output",
    [
        {"sem_seg": torch.zeros(7, 2, 2)},
        {"label_map": torch.full((2, 2), 6)},
        {"label_map": torch.full((2, 2), 6), "scores": torch.zeros(7)},
        {"label_map": torch.zeros(2, 2, dtype=torch.long), "kept": torch.ones(7, dtype=torch.bool)},
    ],
)
def test_another_number_of_classes(register, tmp_path, output):
    name = register(tmp_path, [np.zeros((2, 2))])
    evaluator = FreeCPSemSegEvaluator(name)
    with pytest.raises(ValueError, match=f"{name}.* 7 classes.* 5; .*MODEL.FREECP.VOCABULARY"):
        run(evaluator, name, [output])


@pytest.mark.parametrize("channels", [3, 4, 6])
@pytest.mark.parametrize("kind", ["sem_seg", "label_map"])
def test_fewer_classes_are_seen_by_their_scores(register, tmp_path, kind, channels):
    """Labels within the data set's do not show that the model knows other classes."""
    name = register(tmp_path, [np.zeros((2, 2))])
    output = {"sem_seg": torch.zeros(channels, 2, 2)}
    if kind == "label_map":
        output = {"label_map": torch.zeros(2, 2, dtype=torch.long), "scores": torch.ones(channels)}
    output["kept"] = torch.ones(channels, dtype=torch.bool)
    evaluator = FreeCPSemSegEvaluator(name)
    with pytest.raises(ValueError, match=f"{name}.* {channels} classes.* 5; .*FREECP.VOCABULARY"):
        run(evaluator, name, [output])


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("count", range(3, 7))
def test_a_vocabulary_of_another_size(register, tmp_path, count, background):
    name = register(tmp_path, [np.zeros((2, 2))])
    vocabulary = Vocabulary(
        tuple((f"class {i}", f"thing {i}") for i in range(count)), ("wall", "A") * background
    )
    evaluator = FreeCPSemSegEvaluator(name)
    if count + background == len(CLASSES):
        evaluator.check_vocabulary(vocabulary)
        return
    with pytest.raises(ValueError, match=f"{count + background} classes.*class 0.*VOCABULARY") as e:
        evaluator.check_vocabulary(vocabulary)
    assert name in str(e.value) and "has 5 (a, b, c, d, e)" in str(e.value)


@pytest.mark.parametrize("first", ["a", "Background", "__background__", "void"])
def test_a_background_that_the_data_set_has_not_is_refused(register, tmp_path, first):
    """Each label would be one too high, and the evaluation end well."""
    name = register(tmp_path, [np.zeros((2, 2))])
    metadata = MetadataCatalog.get(name)
    classes = [first, *metadata.stuff_classes[1:]]
    metadata.__dict__["stuff_classes"] = classes
    evaluator = FreeCPSemSegEvaluator(name)
    words = Vocabulary(tuple((c,) for c in classes[1:]), ("wall", "sky"))
    if first in ("a", "void"):
        with pytest.raises(
            ValueError, match=f"{name}: the vocabulary has a back.*{first!r}; check"
        ):
            evaluator.check_vocabulary(words)
        words = Vocabulary(words.classes, ("wall", first.upper()))
    evaluator.check_vocabulary(words)


@pytest.mark.parametrize("images", [1, 3])
def test_a_base_of_other_images_is_refused(register, tmp_path, images):
    truths = [np.zeros((2, 2))] * 2
    name = register(tmp_path, truths)
    run_maps(name, [np.zeros((2, 2), int)] * 2, output_dir=tmp_path / "base")
    file = tmp_path / "base" / "results.json"
    FreeCPSemSegEvaluator(name, compare_with=file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"images": images}))
    with pytest.raises(ValueError, match=f"results on {images} images, and {name} has 2; eval"):
        FreeCPSemSegEvaluator(name, compare_with=file)


def test_without_an_ignore_label_every_pixel_counts(register, tmp_path, caplog):
    truth = np.array([[0, 1], [2, 4]])
    with caplog.at_level("INFO"):
        name = register(tmp_path, [truth], ignore_label=None)
        result = run_maps(name, [np.array([[0, 1], [2, 3]])], output_dir=tmp_path / "out")
    assert "every pixel counts" in caplog.text
    assert result["mIoU"] == pytest.approx(100 * 3 / 5)
    name = register(tmp_path, [np.array([[0, IGNORE]])], ignore_label=None)
    with pytest.raises(ValueError, match="id 255 .*ignore_label, which is not set"):
        run_maps(name, [np.zeros((1, 2), int)])


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


def test_a_class_twice_is_warned_of(register, tmp_path, caplog):
    name = register(tmp_path, [np.arange(5)[None]], stuff_classes=["a", "b", "a", "c", "a"])
    FreeCPSemSegEvaluator(name)
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
        FreeCPSemSegEvaluator(name)
    assert name in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_data_set(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2))])
    with pytest.raises(ValueError, match=f"no data set '{name}x'; did you mean .*{name}"):
        FreeCPSemSegEvaluator(f"{name}x")
    assert f"{name}x" not in MetadataCatalog.list()


def test_an_image_of_another_data_set(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2))])
    evaluator = FreeCPSemSegEvaluator(name)
    evaluator.reset()
    with pytest.raises(ValueError, match=f"other.jpg: not an image of {name}"):
        evaluator.process([{"file_name": "other.jpg"}], [{"sem_seg": torch.zeros(5, 2, 2)}])


def test_a_folder_that_cannot_be_written(register, tmp_path):
    name = register(tmp_path, [np.zeros((2, 2))])
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OSError, match="cannot be written .*choose another OUTPUT_DIR") as error:
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
