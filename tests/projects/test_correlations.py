"""projects/ActiveLearning/correlations.py: what it says of scores and of wrong pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

FILE = Path(__file__).parents[2] / "projects" / "ActiveLearning" / "correlations.py"


@pytest.fixture(scope="module")
def script(load_script):
    return load_script(FILE)


def test_wrong_pixels_are_those_that_count(script):
    labels, truth = np.array([[0, 1, 2], [2, 2, 9]]), np.array([[0, 2, 2], [1, 9, 9]])
    assert script.wrong_share(labels, truth, None) == 3 / 6
    assert script.wrong_share(labels, truth, 9) == 2 / 4
    assert np.isnan(script.wrong_share(labels, np.full_like(truth, 9), 9))


def test_correlations_leave_out_images_in_which_nothing_counts(script):
    random = np.random.default_rng(1)
    wrong = random.random(40)
    noisy = wrong + 0.3 * random.normal(size=40)
    images = [
        {"largest": a, "all": b, "classes": -b, "entropy": random.random()}
        | {"FreeCP": b, "base method": a}
        for a, b in zip(noisy, wrong, strict=True)
    ]
    images.append(dict.fromkeys(script.SCORES, 1e9) | dict.fromkeys(script.METHODS, np.nan))
    found = script.correlations(images)
    assert found["all"]["FreeCP"] == (pytest.approx(1), pytest.approx(0, abs=1e-9))
    assert found["classes"]["FreeCP"][0] == pytest.approx(-1)
    value, spread = found["largest"]["FreeCP"]
    assert value == pytest.approx(spearmanr(noisy, wrong).statistic) and 0.01 < spread < 0.2


def test_scenes_are_measured(script, tmp_path, capsys):
    options = ["--every", "50", "--opts", "MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
    script.main(["--config-file", "scenes/clearclip", "--output", str(tmp_path), *options])
    content = json.loads((tmp_path / "scenes_val.json").read_text())
    assert len(content["images"]) == 4 and "scenes_val, 4 images" in capsys.readouterr().out
    for image in content["images"]:
        assert 0 < image["FreeCP"] < 1 and 0 < image["base method"] < 1 and image["entropy"] > 0
