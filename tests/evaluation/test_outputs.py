"""What is read of a model's output for an image."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from freecp_d2.evaluation.dataset import load_dataset
from freecp_d2.evaluation.outputs import label_map_of, record_of
from freecp_d2.separability import Patches


def record(name: str, output: dict) -> dict:
    """Of the only image of a data set."""
    dataset = load_dataset(name)
    (image,) = DatasetCatalog.get(name)
    return record_of(image, output, label_map_of(output, dataset), dataset, None)


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
    with pytest.raises(ValueError, match=f"{name}.* 7 classes.* 5; .*MODEL.FREECP.VOCABULARY"):
        record(name, output)


@pytest.mark.parametrize("channels", [3, 4, 6])
@pytest.mark.parametrize("kind", ["sem_seg", "label_map"])
def test_fewer_classes_are_seen_by_their_scores(register, tmp_path, kind, channels):
    """Labels within the data set's do not show that the model knows other classes."""
    name = register(tmp_path, [np.zeros((2, 2))])
    output = {"sem_seg": torch.zeros(channels, 2, 2)}
    if kind == "label_map":
        output = {"label_map": torch.zeros(2, 2, dtype=torch.long), "scores": torch.ones(channels)}
    output["kept"] = torch.ones(channels, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"{name}.* {channels} classes.* 5; .*FREECP.VOCABULARY"):
        record(name, output)


@pytest.mark.parametrize("num_classes", [5, 847])
@pytest.mark.parametrize("ignore_label", [None, 2, 65535])
def test_silhouettes_leave_out_the_ignored_pixels(register, tmp_path, num_classes, ignore_label):
    """Also where there is no ignore_label, and more classes than the uint8 of a label map holds."""
    truth = np.array([[0, 1], [2, 2]])
    names = [f"class {index}" for index in range(num_classes)]
    name = register(tmp_path, [truth], stuff_classes=names, ignore_label=ignore_label)
    rows, columns = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.25, 0.75, 0.25, 0.75]])
    patches = Patches(torch.eye(4), rows, columns, torch.zeros(4, dtype=torch.long))
    output = {"label_map": torch.from_numpy(truth), "patches": patches}
    ids, _, counts = record(name, output)["details"]["silhouettes"]["truth"]
    expected = {0: 1, 1: 1} if ignore_label == 2 else {0: 1, 1: 1, 2: 2}
    assert dict(zip(ids, counts, strict=True)) == expected
