"""Mean IoU against brute force, against Detectron2's own evaluator, and with bad ground truth."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from freecp_d2.evaluation import MeanIoUEvaluator, load_label_map

NAME = "test_mean_iou"
CLASSES = ["a", "b", "c", "d", "e"]
IGNORE = 255


@pytest.fixture
def register(tmp_path):
    """Write label maps and register them; returns Detectron2's records."""

    def register(maps: list[np.ndarray]) -> list[dict]:
        records = []
        for i, labels in enumerate(maps):
            file = str(tmp_path / f"{i}.png")
            Image.fromarray(labels.astype(np.uint8)).save(file)
            records.append({"file_name": f"image {i}", "sem_seg_file_name": file})
        DatasetCatalog.register(NAME, lambda: records)
        MetadataCatalog.get(NAME).set(
            stuff_classes=CLASSES, ignore_label=IGNORE, evaluator_type="sem_seg"
        )
        return records

    yield register
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME, None)


def scores_of(labels: np.ndarray, channels: int = len(CLASSES)) -> torch.Tensor:
    """(K, H, W) scores whose argmax is `labels`."""
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), channels)
    return one_hot.permute(2, 0, 1).float()


def run(evaluator: SemSegEvaluator, records: list[dict], predictions: list[np.ndarray]) -> dict:
    evaluator.reset()
    for record, labels in zip(records, predictions, strict=True):
        evaluator.process([record], [{"sem_seg": scores_of(labels)}])
    return evaluator.evaluate()["sem_seg"]


def brute_force(truths: list[np.ndarray], predictions: list[np.ndarray]) -> float:
    ious = []
    for k in range(len(CLASSES)):
        intersection = union = 0
        for truth, predicted in zip(truths, predictions, strict=True):
            for t, p in zip(truth.flat, predicted.flat, strict=True):
                if t != IGNORE:
                    intersection += t == k and p == k
                    union += t == k or p == k
        if union:
            ious.append(intersection / union)
    return 100 * sum(ious) / len(ious)


@pytest.mark.parametrize("seed", range(4))
def test_brute_force(register, seed):
    rng = np.random.default_rng(seed)
    sizes = [(9, 7), (5, 12), (1, 1)]
    truths = [rng.choice([0, 1, 2, IGNORE], size) for size in sizes]  # 3 and 4 are never present
    predictions = [rng.integers(0, 4, size) for size in sizes]  # 3 is predicted, 4 is not
    records = register(truths)
    result = run(MeanIoUEvaluator(NAME), records, predictions)
    assert result["mIoU"] == pytest.approx(brute_force(truths, predictions))


def test_a_predicted_but_absent_class_counts_zero(register):
    truth = np.array([[0, 0], [1, 1]])
    records = register([truth])
    result = run(MeanIoUEvaluator(NAME), records, [np.array([[0, 0], [1, 2]])])
    assert result["mIoU"] == pytest.approx(100 * (1 + 0.5 + 0) / 3)
    assert result["mIoU-detectron2"] == pytest.approx(100 * (1 + 0.5) / 2)


def test_ignored_pixels_do_not_count(register):
    records = register([np.array([[0, 0], [IGNORE, IGNORE]])])
    result = run(MeanIoUEvaluator(NAME), records, [np.array([[0, 0], [3, 4]])])
    assert result["mIoU"] == pytest.approx(100)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_everything_ignored_is_not_a_number(register):
    records = register([np.full((2, 2), IGNORE)])
    assert math.isnan(run(MeanIoUEvaluator(NAME), records, [np.zeros((2, 2), int)])["mIoU"])


def test_the_other_figures_are_detectron2s(register, tmp_path):
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 5, (8, 6)) for _ in range(2)]
    predictions = [rng.integers(0, 5, (8, 6)) for _ in range(2)]
    records = register(truths)
    theirs = SemSegEvaluator(NAME, sem_seg_loading_fn=load_label_map)
    theirs = run(theirs, records, predictions)
    boundary = run(MeanIoUEvaluator(NAME, boundary_iou=True), records, predictions)
    assert boundary.pop("mIoU-detectron2") == theirs["mIoU"]
    assert boundary == pytest.approx(theirs)
    plain = run(MeanIoUEvaluator(NAME, output_dir=str(tmp_path / "out")), records, predictions)
    assert not any("Boundary" in key for key in plain)
    assert plain.items() <= {**boundary, "mIoU-detectron2": theirs["mIoU"]}.items()
    saved = torch.load(tmp_path / "out" / "sem_seg_evaluation.pth", weights_only=True)
    assert saved == plain
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "sem_seg_evaluation.pth",
        "sem_seg_predictions.json",
    ]


def test_missing_ground_truth_is_found_before_inference(register, tmp_path):
    register([np.zeros((2, 2))] * 3)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match="2 of 3") as error:
        MeanIoUEvaluator(NAME)
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
    truth = np.zeros((2, 2), int)
    records = register([truth])
    spoil(tmp_path / "0.png")
    with pytest.raises(ValueError, match=said) as error:
        run(MeanIoUEvaluator(NAME), records, [truth])
    assert str(tmp_path / "0.png") in str(error.value) and "\n" not in str(error.value)


def test_another_number_of_classes(register):
    truth = np.zeros((2, 2), int)
    records = register([truth])
    evaluator = MeanIoUEvaluator(NAME)
    evaluator.reset()
    with pytest.raises(ValueError, match=f"{NAME}.* 7 classes.* 5; .*MODEL.FREECP.VOCABULARY"):
        evaluator.process(records, [{"sem_seg": scores_of(truth, 7)}])


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
