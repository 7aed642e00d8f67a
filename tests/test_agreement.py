"""tests/agreement.py sees what a test compares with a recorded tensor, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
DATA = TESTS / "data" / "base_methods"


@pytest.fixture
def agreement(load_script):
    return load_script(TESTS / "agreement.py")


@pytest.fixture
def recorder(agreement):
    return agreement.Recorder()


def test_differences_and_labels_are_noted(recorder, agreement):
    case = recorder.load(DATA / "sclip" / "plain.safetensors")
    features = recorder.load(DATA / "clearclip" / "features_sclip_reduced.safetensors")
    close = {"atol": 1e-4, "rtol": 0}
    recorder.compare(features["patch_features"] + 3e-5, features["patch_features"], **close)
    recorder.compare(case["probabilities"][0] - 2e-5, case["probabilities"][0], **close)
    with recorder:
        labels = case["labels"][0].clone()
        labels[0, :2] += 1
        share = (labels == case["labels"][0]).float().mean()
    found = recorder.methods["sclip"]  # ClearCLIP's code was told to be SCLIP
    assert found.features == pytest.approx(3e-5, rel=0.01)
    assert found.others == pytest.approx(2e-5, rel=0.01)
    assert found.labels == pytest.approx(share.item()) and found.labels < 1
    assert len(found.vectors) == 3 and recorder.methods.keys() == {"sclip"}
    assert "| sclip " in agreement.table(recorder.methods)


def test_archives_of_numpy_are_noted(recorder, agreement):
    with np.load(DATA / "sfp" / "features.npz") as arrays:
        expected = torch.from_numpy(recorder.get(arrays, "patch_features"))
    recorder.compare(expected + 1e-5, expected, atol=1e-4, rtol=0)
    found = recorder.methods["sfp"]
    assert found.features == pytest.approx(1e-5, rel=0.01)
    assert found.others is None and found.labels is None
    cells = agreement.table(recorder.methods).splitlines()[-1].split("|")[2:-1]
    assert [cell.strip() for cell in cells] == ["1", "1.0e-05", "-", "-"]


def test_what_is_no_comparison_with_a_vector_is_not_noted(recorder):
    images = recorder.load(DATA / "inputs.safetensors")
    case = recorder.load(DATA / "sclip" / "plain.safetensors")["probabilities"]
    image = next(iter(images.values()))
    recorder.compare(image, image, atol=1e-5, rtol=0)
    recorder.compare(torch.ones(3), torch.ones(3), atol=1e-5, rtol=0)
    recorder.compare(case + 0.001, case, atol=1e-2, rtol=0)
    assert recorder.methods == {}
    with pytest.raises(AssertionError):
        recorder.compare(case + 0.1, case, atol=1e-2, rtol=0)
