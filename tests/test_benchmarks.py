"""The benchmark's yardstick against the published vectors, and a quick run of the benchmark."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture(scope="module")
def transcription(load_script):
    return load_script(BENCHMARKS / "transcription.py")


def thresholds(case: dict) -> tuple[float, float, int]:
    return case["redundancy_threshold"], case["ambiguity_threshold"], case["num_background"]


@pytest.mark.parametrize("name", ["maskclip", "sclip", "clearclip", "gem", "clearclip_background"])
def test_the_transcription_purifies_as_published(
    name, transcription, encoder, inputs, vectors, cases
):
    clip, image, expected = encoder(name), inputs["image"], vectors(name)
    case = cases[name]
    dense = clip(image)
    if case["method"] != "gem":
        dense = transcription.dense_features(clip.model, case["method"], image)
    found = transcription.purify(
        image, dense, inputs["text"], inputs["descriptions"], clip, *thresholds(case)
    )
    background = case["num_background"]
    torch.testing.assert_close(found.probabilities, expected["probabilities"][0], atol=1e-5, rtol=0)
    refined = expected["refined"][0, background:]
    torch.testing.assert_close(found.refined, refined, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.consistency, expected["consistency"], atol=1e-5, rtol=0)
    assert found.kept_redundancy.nonzero()[:, 0].tolist() == expected["kept_redundancy"].tolist()
    assert found.kept.nonzero()[:, 0].tolist() == expected["kept"].tolist()


@pytest.mark.parametrize("name", ["sliding", "sliding_background"])
def test_the_transcription_segments_as_published(
    name, transcription, encoder, inputs, vectors, cases
):
    case, expected = cases[name], vectors(name)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (transcription.MEAN, transcription.STD))
    clip, image = encoder(name), inputs["large_image"][0] * std + mean
    arguments = (image, inputs["text"], inputs["descriptions"], clip, *thresholds(case))
    scores, labels = transcription.segment(
        *arguments, case["window"], case["stride"], case["output_size"]
    )
    assert (labels == expected["labels"][0]).float().mean() >= 0.999
    torch.testing.assert_close(scores[:, ::4, ::4], expected["sem_seg"], atol=1e-4, rtol=0)


@pytest.fixture
def operators(monkeypatch):
    """ops.py"""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("ops")


@torch.no_grad()
def test_operators_are_timed_beside_the_same_in_plain_pytorch(operators):
    sizes, names = operators.QUICK, operators.class_names(5)
    encoder = operators.SceneEncoder(operators.DIMENSION)
    inputs = operators.Inputs(encoder, operators.image_windows(sizes), names)
    cases = operators.cases_of(inputs, 5)
    names = {"sinkhorn_affinity", "box_mask", "refine", "soft_iou", "mean_attention", "pamr"}
    assert set(cases) == names | {"refine, bmm"}  # in Triton's interpreter
    assert cases["refine, bmm"].run.args[-1] is operators.product_by_bmm
    for case in cases.values():
        torch.testing.assert_close(case.run(), case.plain(), atol=1e-5, rtol=1e-5)
    # 6 windows of 6x6 patches and the CLS token, 5 classes; pamr on one of them, 96x96.
    record = 4 * 6 * 37 * 37
    assert cases["mean_attention"].run().nbytes == record
    assert cases["mean_attention"].size == 2 * 4 * 6 * 37 * 12 * 64 + 2 * record
    assert cases["mean_attention"].flop == 2 * 6 * 12 * 37 * 37 * 64
    assert cases["pamr"].run().shape == (1, 5, 96, 96)
    assert cases["pamr"].size == 4 * (3 + 2 * 5) * 96 * 96 and cases["pamr"].flop == 0
    case = operators.measure_operators(inputs, 5, sizes, quick=True, plain=True)
    assert (case["windows"], case["grid"], case["classes"]) == (6, 6, 5)
    for operator in case["operators"].values():
        low, high = operator["quartiles_ms"]
        assert 0 < low <= operator["ms"] <= high and operator["plain_ms"] > 0
        assert operator["peak_bytes"] is None and operator["bandwidth_fraction"] > 0
    for name in ("refine", "refine, bmm", "mean_attention"):
        assert case["operators"][name]["matrix_fraction"] > 0
    table = operators.markdown({"machine": {"device": "a CPU"}, "cases": [case]})
    assert table.startswith("Operators on a CPU, timed by interleaved rounds on the CPU\n")
    assert all(f"| {name} " in table for name in cases)


def test_on_a_gpu_do_bench_is_the_timer(operators, monkeypatch):
    def do_bench(call, quantiles):
        assert call() == "called"
        return [10 * quantile for quantile in quantiles]

    monkeypatch.setattr(operators.triton.testing, "do_bench", do_bench)
    timed = operators.times({"refine": lambda: "called"}, 3, torch.device("cuda"))
    assert timed == {"refine": {"median": 5, "q1": 2.5, "q3": 7.5}}


def test_every_base_method_is_timed_beside_clearclip(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    costs = importlib.import_module("base_methods")
    memory = costs.extra_bytes
    monkeypatch.setattr(costs, "extra_bytes", lambda encoder, _: 2**20 * len(encoder.method))
    threads = torch.get_num_threads()
    report = costs.measure(costs.base_method_names(), side=96, count=1, rounds=2, quick=True)
    torch.set_num_threads(threads)
    methods = report["methods"]
    assert methods.keys() == {*costs.base_method_names()}
    for method, cost in methods.items():
        ratio = cost["over_yardstick"]
        assert 0 < ratio["q1"] <= ratio["median"] <= ratio["q3"]
        assert cost["seconds_per_window"]["median"] > 0
        assert cost["bytes_over_yardstick"] == len(method) / len("clearclip")
    assert methods["clearclip"]["over_yardstick"] == {"median": 1, "q1": 1, "q3": 1}
    table = costs.markdown(report)
    assert all(f"| {method} " in table for method in methods)
    assert "1.00 (1.00 to 1.00)" in table
    extra = memory(lambda x: x.repeat(8), torch.ones(2**22))
    assert 2**27 * 0.9 < extra < 2**27 * 1.5


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What a quick run writes and prints."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--quick", "--output", str(folder)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.png"]
    return json.loads((folder / "bench.json").read_text()), folder / "bench.png", output


def spreads(value):
    """Every {median, q1, q3} anywhere in a report."""
    if isinstance(value, dict):
        if "q1" in value:
            yield value
        else:
            for inner in value.values():
                yield from spreads(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from spreads(inner)


def test_a_quick_run_measures_everything(quick):
    report, _, _ = quick
    assert report["machine"]["precision"] == "fp32" and report["machine"]["threads"] >= 1
    assert all(isinstance(feature, str) for feature in report["machine"]["features"])
    head, image = report["head"], report["image"]
    assert [(c["grid"], c["windows"]) for c in head["cases"][::4]] == [(6, 6), (8, 1), (12, 1)]
    assert [c["classes"] for c in head["cases"]] == 3 * [4, 12, 16, 44]
    assert len(head["profile"]) == len(head["cases"])
    times = [s for part in (head, image, report["evaluator"]) for s in spreads(part)]
    assert len(times) > 100
    for time in times:
        assert time["q1"] <= time["median"] <= time["q3"] < float("inf")
    for case in head["cases"]:
        assert case["windows"] <= case["kept"] <= case["kept_redundancy"]
        assert case["steps_2_6_over_bare"]["median"] > 0
        assert ("over_transcription" in case) == (case["grid"] == 6)
    assert image["windows"] == 6 and image["size"] == [128, 160]
    assert image["over_bare"]["median"] > 0
    assert all(o["ms"] > 0 for o in report["operators"]["operators"].values())
    assert report["operators"]["timer"].startswith("interleaved")
    assert [case["classes"] for case in report["evaluator"]] == [171, 19]
    assert all(case["ms"]["q1"] > 0 for case in report["evaluator"])


def test_a_quick_run_finds_the_labels_of_the_transcription(quick):
    image = quick[0]["image"]
    assert image["label_agreement_with_transcription"] >= 0.999
    assert image["crops"]["fp32"] == image["crops"]["transcription"]


def test_a_quick_run_takes_every_encoder(quick):
    encoders = quick[0]["image"]["encoders"]
    names = {"fp32", "bf16", "fp32, compiled", "bf16, compiled", "onnxruntime, fp32"}
    assert names | {"OpenVINO, fp32", "OpenVINO, bf16"} <= encoders.keys()
    for name, case in encoders.items():
        assert case["ms"]["median"] > 0
        assert abs(case["one_minus_cosine"]) < (1e-2 if "bf16" in name else 1e-5), name
        if "compiled" in name or name.startswith(("OpenVINO", "onnxruntime")):
            assert case["first_call_seconds"] > 2 * case["ms"]["median"] / 1000, name
            assert case["first_call_bytes"] > 0, name


def test_a_part_is_measured_anew_and_others_stay(quick, tmp_path):
    report, _, _ = quick
    command = [sys.executable, str(BENCHMARKS / "bench.py"), "--quick", "--output", str(tmp_path)]

    def with_parts(part):
        subprocess.run([*command, "--parts", part], check=True, stdout=subprocess.PIPE)
        return json.loads((tmp_path / "bench.json").read_text())

    assert with_parts("evaluator")["evaluator"]  # where nothing was measured before
    (tmp_path / "bench.json").write_text(json.dumps(report))
    again = with_parts("operators")
    assert again["operators"]["operators"] != report["operators"]["operators"]
    assert again["memory"] == report["memory"] and again["image"] == report["image"]


def test_a_quick_run_sees_the_transcription_s_large_tensor(quick):
    memory = quick[0]["memory"]
    if "not_measured" in memory:
        pytest.skip(memory["not_measured"])
    assert memory["cnn_tensor_bytes"] == 4 * 16 * 576**2
    assert memory["transcription"]["extra_bytes"] >= memory["cnn_tensor_bytes"]
    assert 0 < memory["over_transcription"] < 0.5
    assert memory["head"]["kept"] == memory["transcription"]["kept"]


def test_a_quick_run_prints_every_figure_and_draws(quick):
    report, picture, output = quick
    assert len(report["figures"]) == 20
    for row in report["figures"]:
        assert f"| {row['figure']} " in output
        if isinstance(row["reached"], bool):
            bound, target = row["to_reach"].rsplit(" ", 1)
            value = row["measured"]["median"]
            held = value <= float(target) if bound == "at most" else value >= float(target)
            assert held == row["reached"]
    assert ("not measured" in output) == ("bf16_matmul" not in report["image"]["encoders"])
    with Image.open(picture) as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(2**24)) > 50


def test_refinements_are_timed_on_the_classes_that_stay_and_on_all_queries(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("refinement")
    file = tmp_path / "bench.json"
    module.main(["--quick", "--rounds", "2", "--scenes", "1", "--json", str(file)])
    (case,) = json.loads(file.read_text())["cases"]
    (kept,) = case["classes_that_stay"]
    assert 0 < kept < 20 and len(case["runs"]) == 6
    for name, run in case["runs"].items():
        assert run["maps"] == (kept if "stay" in name else 20)
        assert run["seconds"]["median"] > 0 and run["extra_bytes"] > 0
    assert case["runs"]["pamr, all queries"]["over_yardstick"]["median"] == 1
    output = capsys.readouterr().out
    assert f"classes that stay of 20: {kept}" in output and output.count("\n| 96 x 120") == 6
