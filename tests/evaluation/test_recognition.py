"""Presence as multi-label recognition, and separability, in results.json, CSV and report."""

import csv
import io
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from freecp_d2.evaluation import FreeCPSemSegEvaluator
from freecp_d2.evaluation.recognition import (
    average_precision,
    best_threshold,
    dependency_results,
    mean_f1,
    presence_results,
    separability_results,
)
from freecp_d2.evaluation.results import without_nan
from freecp_d2.separability import Patches

CLASSES = ("a", "b", "c", "d", "e")


def precision_by_loops(truth: list[bool], scores: list[float]) -> float:
    """The sum over thresholds of precision times the recall gained there."""
    total, found = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        above = [t for t, s in zip(truth, scores, strict=True) if s >= threshold]
        recall = sum(above) / sum(truth)
        total += sum(above) / len(above) * (recall - found)
        found = recall
    return total


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=1, max_size=25))
def test_average_precision_is_that_of_a_loop(pairs):
    truth, scores = [t for t, _ in pairs], [s / 7 for _, s in pairs]
    value = average_precision(np.array(truth), np.array(scores))
    if any(truth):
        assert value == pytest.approx(precision_by_loops(truth, scores))
        shuffled = random.Random(0).sample(pairs, len(pairs))
        again = average_precision(*(np.array(side) for side in zip(*shuffled, strict=True)))
        assert again == pytest.approx(value)
    else:
        assert np.isnan(value)


def test_mean_f1_is_that_of_a_loop_over_the_classes_that_are_somewhere():
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((30, 6)) < 0.3, rng.random((30, 6)) < 0.4
    truth[:, 2] = False
    figures = []
    for k in (0, 1, 3, 4, 5):
        right = sum(t and p for t, p in zip(truth[:, k], predicted[:, k], strict=True))
        wrong = sum(p and not t for t, p in zip(truth[:, k], predicted[:, k], strict=True))
        missed = sum(t and not p for t, p in zip(truth[:, k], predicted[:, k], strict=True))
        figures.append(2 * right / (2 * right + wrong + missed))
    assert mean_f1(truth, predicted) == pytest.approx(np.mean(figures))
    assert np.isnan(mean_f1(truth[:, 2:3], predicted[:, 2:3]))


def test_the_best_threshold_is_best():
    rng = np.random.default_rng(1)
    truth = rng.random((20, 4)) < 0.4
    scores = truth * 0.5 + rng.random((20, 4))
    figure, threshold = best_threshold(truth, scores)
    assert figure == mean_f1(truth, scores > threshold)
    assert figure >= max(mean_f1(truth, scores > t) for t in np.linspace(0, 1.5, 50)) - 0.02
    assert best_threshold(truth, truth.astype(float))[0] == 1


def test_presence_leaves_the_background_out():
    details = [
        {"present": [0, 1], "presence": {"local": [0.9, 0.1]}},
        {"present": [0, 2], "presence": {"local": [0.2, 0.3]}},
        {"present": [0, 1], "presence": {"local": [0.1, 0.2]}},
    ]
    figures, precisions = presence_results(details, 3, {"local": 0.15})
    assert np.isnan(precisions["local"][0])
    assert precisions["local"][1:] == pytest.approx([100 * (1 / 2 + 2 / 6), 100])
    assert figures["local"]["mAP"] == pytest.approx(100 * (5 / 6 + 1) / 2)
    assert figures["local"]["mF1"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert figures["local"]["best mF1"] > figures["local"]["mF1"]
    figures, _ = presence_results(details, 3, {})
    assert figures["local"]["threshold"] is None and np.isnan(figures["local"]["mF1"])


def test_dependencies_are_means_over_the_images_that_have_both():
    details = [
        {"dependency": [[1, 3], [[0.5, 0.1], [-0.2, 0.4]]]},
        {"dependency": [[1], [[0.0]]]},
        {"dependency": [[], []]},
    ]
    pairs = dependency_results(details, CLASSES)
    assert [tuple(pair.values()) for pair in pairs] == [
        ("b", "b", 0.25, 2),
        ("b", "d", 0.1, 1),
        ("d", "b", -0.2, 1),
        ("d", "d", 0.4, 1),
    ]


def test_separability_is_a_mean_of_images_and_of_the_patches_of_classes():
    rng = np.random.default_rng(0)
    details = []
    for _ in range(12):
        counts = rng.integers(1, 9, 2)
        sums = (rng.random(2) * counts).tolist()
        of_image = [[0, 2], sums, counts.tolist()]
        details.append(
            {
                "IoU": float(rng.random()),
                "silhouettes": {"truth": of_image, "before": [[], [], []], "after": of_image},
            }
        )
    details.append(
        {"IoU": None, "silhouettes": {k: [[], [], []] for k in details[0]["silhouettes"]}}
    )
    figures, means = separability_results(details, 3)
    kept = details[:-1]
    of_images = [
        sum(d["silhouettes"]["truth"][1]) / sum(d["silhouettes"]["truth"][2]) for d in kept
    ]
    assert figures["truth"]["silhouette"] == pytest.approx(np.mean(of_images))
    assert figures["truth"]["images"] == 12 and figures["before"]["images"] == 0
    expected = spearmanr(of_images, [d["IoU"] for d in kept]).statistic
    assert figures["truth"]["spearman"] == pytest.approx(expected)
    assert np.isnan([figures["before"][key] for key in ("silhouette", "spearman", "pearson")]).all()
    for place, index in ((0, 0), (1, 2)):
        total = sum(d["silhouettes"]["truth"][1][place] for d in kept)
        patches = sum(d["silhouettes"]["truth"][2][place] for d in kept)
        assert means["truth"][index] == pytest.approx(total / patches)
    assert np.isnan(means["truth"][1])


def outputs(truths: list[np.ndarray], with_details: bool) -> list[dict]:
    """Predictions that are right but for a column, with what a model gives beside them."""
    torch.manual_seed(0)
    rows = []
    side = (torch.arange(8) + 0.5) / 8
    for truth in truths:
        labels = torch.from_numpy(truth).clamp(max=4)
        labels[:, 0] = 0
        output: dict = {"label_map": labels}
        if with_details:
            output |= {
                "presence": {"consistency": torch.rand(5), "erasing": torch.rand(5) - 0.5},
                "dependency": (torch.tensor([1, 4]), torch.rand(2, 2)),
                "patches": Patches(
                    F.normalize(torch.randn(64, 6), dim=1),
                    side.repeat_interleave(8),
                    side.repeat(8),
                    torch.randint(0, 5, (64,)),
                ),
            }
        rows.append(output)
    return rows


@pytest.fixture(scope="module")
def truths():
    rng = np.random.default_rng(0)
    maps = [rng.choice(rng.choice(4, 2, replace=False), (16, 16)) for _ in range(6)]
    maps[0][3:5] = 255
    return maps


FACTS = {
    "config": {
        "MODEL": {"FREECP": {"REDUNDANCY_THRESHOLD": 0.4}},
        "TEST": {"PRESENCE": ["consistency", "erasing"], "SEPARABILITY": True},
    }
}


def evaluate(name, folder, outputs, start=0, stop=None, facts=FACTS, resume=False):
    evaluator = FreeCPSemSegEvaluator(
        name, output_dir=folder, facts=facts, segment=lambda x: torch.zeros(16, 16, dtype=int)
    )
    evaluator.resume() if resume else evaluator.reset()
    records = DatasetCatalog.get(name)
    for record, output in list(zip(records, outputs, strict=True))[start:stop]:
        evaluator.process([record], [output])
    return evaluator


def test_results_csv_and_report_say_it(register, truths, tmp_path, parse):
    name = register(tmp_path, truths)
    given = outputs(truths, True)
    evaluator = evaluate(name, tmp_path / "on", given)
    flat = evaluator.evaluate()
    results = json.loads((tmp_path / "on" / "results.json").read_text())
    present = [[k for k in range(5) if (truth == k).any()] for truth in truths]
    details = [
        {
            "present": ids,
            "presence": {
                key: [round(v, 7) for v in values.tolist()]
                for key, values in output["presence"].items()
            },
        }
        for ids, output in zip(present, given, strict=True)
    ]
    figures, precisions = presence_results(details, 5, {"consistency": 0.4, "erasing": 0.0})
    assert results["presence"] == without_nan(figures)
    assert flat["presence"]["erasing/mAP"] == figures["erasing"]["mAP"]
    assert (
        flat["separability"]["after/silhouette"] == results["separability"]["after"]["silhouette"]
    )
    assert [pair["images"] for pair in results["dependency"]] == [6] * 4
    rows = list(csv.DictReader(io.StringIO((tmp_path / "on" / "per_class.csv").read_text())))
    for row, entry, precision in zip(
        rows, results["classes"], precisions["consistency"], strict=True
    ):
        assert row["AP consistency"] == ("" if np.isnan(precision) else str(precision))
        assert entry["silhouette after"] == (
            float(row["silhouette after"]) if row["silhouette after"] else None
        )
    page = parse((tmp_path / "on" / "report.html").read_text())
    assert [row[0] for row in page.tables["presence"][1:]] == ["consistency", "erasing"]
    assert page.tables["presence"][1][1] == f"{figures['consistency']['mAP']:.1f}"
    assert [row[0] for row in page.tables["separability"][1:]] == ["truth", "before", "after"]
    assert page.tables["recognised"][1][1] == f"{precisions['consistency'][0]:.1f}"
    assert "Presence and separability" in page.headings
    ((_, picture),) = [image for image in page.images if image[0] == "what depends on what"]
    assert picture.startswith("data:image/png;base64,")


def test_without_it_nothing_is_there(register, truths, tmp_path):
    name = register(tmp_path, truths)
    evaluate(name, tmp_path / "off", outputs(truths, False), facts={}).evaluate()
    on = outputs(truths, True)
    evaluate(name, tmp_path / "on", on, facts={}).evaluate()
    off, on = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("off", "on"))
    assert on.keys() - off.keys() == {"presence", "dependency", "separability"}
    for key, value in off.items():
        if key != "classes":
            assert value == on[key], key
    for entry, more in zip(off["classes"], on["classes"], strict=True):
        assert more | entry == more
        assert list(entry) == ["id", "name", "IoU", "ACC", "pixels", "predicted_pixels"]
    text = (tmp_path / "off" / "report.html").read_text()
    for word in ("resence", "eparability", "what depends on what"):
        assert word not in text
    settings = json.loads((tmp_path / "off" / "records" / "settings.json").read_text())
    assert settings == {"data set": name, "ignore_label": 255, "--coco-predictions": False}


def test_resumed_and_other_orders_give_the_same(register, truths, tmp_path):
    name = register(tmp_path, truths)
    given = outputs(truths, True)
    evaluate(name, tmp_path / "whole", given).evaluate()
    evaluate(name, tmp_path / "halves", given, start=3).flush()
    evaluate(name, tmp_path / "halves", given, stop=3, resume=True).evaluate()
    whole, halves = (
        json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "halves")
    )
    assert whole == halves
    other = {"config": {**FACTS["config"], "TEST": {"PRESENCE": [], "SEPARABILITY": True}}}
    with pytest.raises(ValueError, match=r"another configuration \(TEST.PRESENCE\)"):
        evaluate(name, tmp_path / "whole", given, facts=other, resume=True)
