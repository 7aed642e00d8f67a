"""Which images a report shows."""

import numpy as np
import pytest
import torch

from freecp_d2.evaluation.dataset import load_dataset
from freecp_d2.evaluation.examples import Extremes, examples_of

SCORES = {"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.9, "e": 0.1, "f": 0.7, "g": 0.9}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_best_and_the_worst_do_not_depend_on_the_ranks(ranks):
    """Of equal ones the first by name."""
    total = Extremes(2, 5)
    for rank in range(ranks):
        of_rank = Extremes(2, 5)
        for file in sorted(SCORES, reverse=True)[rank::ranks]:
            of_rank.add(file, SCORES[file], None)
        total += of_rank
    assert [entry[:2] for entry in total.best] == [(-0.9, "b"), (-0.9, "d")]
    assert [entry[:2] for entry in total.worst] == [(0.1, "c"), (0.1, "e")]


def test_none_are_kept_where_none_are_shown():
    kept = Extremes(0, 3)
    kept.add("a.png", 0.5, None)
    kept += kept
    assert kept.best == kept.worst == []


@pytest.mark.parametrize("num_classes", [5, 256, 257, 847])
def test_label_maps_come_back_or_are_segmented_again(register, tmp_path, num_classes):
    truth = np.array([[0, 1], [1, 1]])
    names = [f"class {index}" for index in range(num_classes)]
    name = register(tmp_path, [truth] * 2, stuff_classes=names)
    dataset = load_dataset(name)
    kept, again = dataset.truth_files
    labels = torch.tensor([[0, num_classes - 1], [1, 2]])
    extremes = Extremes(1, num_classes)
    extremes.add(kept, 0.75, labels)
    extremes.add(again, 0.25, None)
    asked = []

    def segment(image):
        asked.append(image["file_name"])
        return labels.flip(0)

    base = torch.from_numpy(truth)
    (best,), (worst,) = examples_of(extremes, dataset, segment, lambda image: base)
    assert asked == [again]
    assert (best.file_name, best.score, best.base_score) == (kept, 75, 100)
    assert (worst.file_name, worst.score, worst.base_score) == (again, 25, 100)
    np.testing.assert_array_equal(best.predicted, labels.numpy())
    np.testing.assert_array_equal(worst.predicted, labels.flip(0).numpy())
    for example in (best, worst):
        np.testing.assert_array_equal(example.truth, truth)
        np.testing.assert_array_equal(example.base, truth)
