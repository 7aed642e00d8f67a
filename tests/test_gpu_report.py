"""`make gpu-report`, on the CPU: nothing that was measured is lost, and what is missing is said."""

import importlib
import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from open_clip.transformer import LayerNormFp32
from PIL import Image

from freecp_d2 import cuda_graphs

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")


@pytest.fixture
def gpu_report():
    return importlib.import_module("gpu_report")


@pytest.fixture
def gpu_parts():
    return importlib.import_module("gpu_parts")


@pytest.fixture
def gpu_summary():
    return importlib.import_module("gpu_summary")


@pytest.fixture
def task(gpu_report, tmp_path):
    return gpu_report.Task("cpu", True, tmp_path / "notes.json", 100)


def spread(median: float) -> dict:
    return {"median": median, "q1": median, "q3": median}


def speed_case(
    precision: str, images: int, head: float, gain: float, rate: float, graphs: bool = False
) -> dict:
    rates = ("bare", "dense", "without_crops", "freecp", "transcription")
    return {
        "precision": precision,
        "images": images,
        "cuda_graphs": graphs,
        "images_per_s": {name: spread(rate) for name in rates},
        "head_over_bare": spread(head),
        "images_per_s_over_transcription": spread(gain),
        "label_agreement_with_transcription": 0.999,
    }


def test_everything_small_on_the_cpu(tmp_path):
    """The command as it is, in processes of its own."""
    script = ROOT / "tests" / "benchmarks" / "gpu_report.py"
    command = [sys.executable, script, "--device", "cpu", "--quick", "--output", tmp_path]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    picture, path = sorted(tmp_path.iterdir(), key=lambda file: file.suffix, reverse=True)
    assert path.name.startswith("cpu-") and path.suffix == ".json" and picture.suffix == ".png"
    report = json.loads(path.read_text())
    parts = report["parts"]
    assert list(parts) == ["tests", "vectors", "operators", "speed", "launches", "memory"]
    assert set(report["missing"]) == {"launches", "memory"}  # of a GPU alone
    for part in parts.values():
        assert 0 <= part["seconds"] <= part["limit_s"] and "error" not in part
    for name in ("tests", "vectors"):
        assert parts[name]["passed"] > 5 and not parts[name]["failures"]
    differences = parts["vectors"]["differences"]
    assert {"patches, cosine", "attention", "consistency", "refined maps, mean"} <= set(differences)
    for found in differences.values():
        assert set(found) == {"fp32", "fp16", "bf16"}
        assert all(0 <= d["worst"] <= d["allowed"] and d["tests"] for d in found.values())
    assert differences["patches, cosine"]["bf16"]["worst"] > 1e-4
    cases = parts["operators"]["cases"]
    assert (cases[0]["windows"], cases[0]["grid"], cases[0]["classes"]) == (6, 6, 16)
    assert len(cases) == 3 and "refine, bmm" in cases[0]["operators"]
    speeds = parts["speed"]["cases"]
    found = [(c["precision"], c["images"], c["windows"]) for c in speeds]
    assert found == [("fp32", 1, 6), ("bf16", 3, 18)]
    for case in speeds:
        rates = {name: rate["median"] for name, rate in case["images_per_s"].items()}
        assert rates["freecp"] > rates["transcription"] > 0
        assert case["head_over_bare"]["median"] > 0 and case["rounds"] == 3
        assert case["label_agreement_with_transcription"] > 0.999
    assert speeds[0]["crops"] > 0
    assert "| refine, bmm " in output and "Missing: memory, on a CPU tests/benchmarks" in output
    with Image.open(picture) as image:
        assert image.width > 1000 and len(image.convert("RGB").getcolors(2**24)) > 50


def test_a_part_that_fails_in_the_middle_keeps_what_it_has(
    gpu_report, gpu_parts, task, monkeypatch
):
    measured, calls = gpu_parts.measure_operators, []

    def fails(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if len(calls) == 3:
            raise RuntimeError("an illegal memory access was encountered")
        return measured(*arguments, **options)

    monkeypatch.setattr(gpu_parts, "measure_operators", fails)
    assert gpu_report.measure("operators", task) == 1
    notes = json.loads(task.notes.read_text())
    assert notes["error"] == "RuntimeError: an illegal memory access was encountered"
    assert [case.get("error") for case in notes["cases"]] == [None, "out of memory"]
    assert notes["cases"][1]["classes"] == 16 and notes["cases"][1]["side"] == 192
    assert notes["cases"][0]["operators"]["refine"]["ms"] > 0


def test_a_part_that_fails_stops_no_other(gpu_report, monkeypatch, tmp_path, capsys):
    path, seen = tmp_path / "gpu-made-up.json", []

    def part(name: str, task) -> dict:
        if path.exists():  # whole after every part, and says what is to come
            report = json.loads(path.read_text())
            seen.append((len(report["parts"]), report["missing"].get(name)))
            assert path.with_suffix(".png").exists()
        if name == "speed":
            raise OSError("no space left")
        if name == "memory":
            return {"cases": [], "error": "stopped at its limit of 80 s"}
        if name == "launches":
            return {"cases": [{}, {"error": "out of memory"}]}
        return {"shortened": True} if name == "operators" else {}

    for name in gpu_report.PARTS:
        monkeypatch.setitem(gpu_report.MEASURE, name, lambda task, name=name: part(name, task))
    report = {"machine": {"device": "made up", "torch": "2"}, "quick": True, "parts": {}}
    gpu_report.make_report(report, list(gpu_report.PARTS), "cuda", True, path)
    assert seen == [(count, "not run yet") for count in range(1, 6)]
    assert json.loads(path.read_text()) == report
    assert report["missing"] == {
        "operators": "shortened: some cases are left out for want of time",
        "speed": "ended early: OSError: no space left",
        "launches": "1 of 2 cases: out of memory",
        "memory": "ended early: stopped at its limit of 80 s",
    }
    assert "operators: at most 110 s\n" in capsys.readouterr().err


def test_parts_are_measured_anew_and_others_stay(gpu_report, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_report, "name_of", lambda device: "gpu-made-up")
    for name in gpu_report.PARTS:
        monkeypatch.setitem(gpu_report.MEASURE, name, lambda task, name=name: {"first": name})
    command = ["--device", "cpu", "--quick", "--output", str(tmp_path)]
    assert gpu_report.main(command) == 0
    monkeypatch.setitem(gpu_report.MEASURE, "memory", lambda task: {"error": "again"})
    assert gpu_report.main([*command, "--parts", "memory"]) == 1
    parts = json.loads((tmp_path / "gpu-made-up.json").read_text())["parts"]
    assert parts["memory"]["error"] == "again" and parts["tests"]["first"] == "tests"


def test_a_picture_that_fails_costs_no_part(gpu_report, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_report, "draw", lambda report, path: 1 / 0)
    for name in gpu_report.PARTS:
        monkeypatch.setitem(gpu_report.MEASURE, name, lambda task: {})
    report = {"machine": {"device": "made up", "torch": "2"}, "quick": True, "parts": {}}
    gpu_report.make_report(report, ["speed", "memory"], "cuda", True, tmp_path / "gpu.json")
    assert list(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == ["speed", "memory"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_time_is_kept_for_later_parts(gpu_report):
    parts = list(gpu_report.PARTS)
    least = {name: part.least for name, part in gpu_report.PARTS.items()}
    assert all(least[name] <= part.seconds for name, part in gpu_report.PARTS.items())
    left, limits = gpu_report.TOTAL, []
    for index in range(len(parts)):  # each takes all that it may
        limits.append(gpu_report.limits_of(parts[index:], left))
        assert limits[-1] >= least[parts[index]]
        left -= limits[-1]
    assert left >= 0 and limits[0] == gpu_report.PARTS["tests"].seconds
    assert gpu_report.TOTAL <= 520  # 9 minutes, with what comes before and after
    assert gpu_report.limits_of(["launches", "memory"], 60) == 60 - least["memory"]


def test_rounds_fit_into_the_time(gpu_parts):
    clock = gpu_parts.Clock(10)
    assert clock.rounds(0.1, 0.5, 7) == 7
    assert clock.rounds(1, 0.55, 7) == 5
    assert clock.rounds(100, 0.5, 7) == 3


def test_a_process_that_hangs_is_stopped_with_its_children(gpu_report, tmp_path):
    script = f"""
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(print("interrupted")))
subprocess.Popen([sys.executable, "-c", '''
import pathlib, time
while True:
    pathlib.Path({str(tmp_path / "alive")!r}).write_text(str(time.time()))
    time.sleep(0.05)
'''])
print("begun", flush=True)
time.sleep(100)
"""
    log = tmp_path / "log"
    error = gpu_report.run_process([sys.executable, "-c", script], log, 3)
    assert error == "stopped at its limit of 3 s" and log.read_text() == "begun\ninterrupted\n"
    before = (tmp_path / "alive").read_text()
    time.sleep(0.5)
    assert (tmp_path / "alive").read_text() == before
    assert gpu_report.run_process([sys.executable, "-c", "raise SystemExit(3)"], log, 60) == (
        "exit code 3"
    )
    assert gpu_report.run_process([sys.executable, "-c", ""], log, 60) == ""


def test_tests_that_hang_leave_their_results(gpu_report, gpu_summary, task, tmp_path):
    """Also where nothing interrupts them, as in a kernel that never ends."""
    file = tmp_path / "test_slow.py"
    file.write_text(
        "import signal, time\n"
        "def test_first(record_property):\n"
        "    record_property('attention', "
        '\'{"device": "cuda", "precision": "fp16", "worst": NaN, "allowed": 0.1}\')\n'
        "    assert 1 == 2, 'one is not two'\n"
        "def test_second():\n    pass\n"
        "def test_third():\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    time.sleep(1000)\n"
    )
    found = gpu_report.run_pytest(replace(task, limit=35), [str(file), "--noconftest"])
    assert found["error"] == "stopped at its limit of 20 s"
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 0)
    (failure,), (hung,) = found["failures"], found["unfinished"]
    assert failure["test"].endswith("test_first") and "one is not two" in failure["message"]
    assert math.isnan(found["differences"]["attention"]["fp16"]["worst"])
    report = {"machine": {"device": "made up", "torch": "2"}, "missing": {}}
    text = gpu_summary.markdown(report | {"parts": {"tests": found}})
    assert hung.endswith("test_third") and f"- {hung}: not finished\n" in text + "\n"


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_a_test_that_cannot_be_set_up_has_failed(gpu_report, task, tmp_path, workers):
    file = tmp_path / "test_set_up.py"
    file.write_text(
        "import pytest\n"
        "@pytest.fixture\ndef broken():\n    raise RuntimeError('an illegal memory access')\n"
        "def test_first(broken):\n    pass\n"
        "def test_second():\n    pytest.skip('no such GPU')\n"
        "def test_third():\n    pass\n"
    )
    found = gpu_report.run_pytest(task, [str(file), "--noconftest", *workers])
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"][0]["message"] == "RuntimeError: an illegal memory access"
    assert found["unfinished"] == [] and "error" not in found
    nothing = gpu_report.run_pytest(task, [str(tmp_path / "nothing"), "--noconftest"])
    assert nothing["error"] == "exit code 4" and nothing["passed"] == 0


def test_the_worst_that_tests_found(gpu_report):
    def note(name: str, worst: float, outcome: str = "passed") -> str:
        value = {"device": "cuda", "precision": "fp16", "worst": worst, "allowed": 0.5}
        properties = [("map", json.dumps(value))]
        found = {"test": name, "outcome": outcome, "seconds": len(name), "message": ""}
        return json.dumps({**found, "properties": properties})

    notes = [note("b", 0.25), note("cc", 0.375), note("d", 0.125, "skipped")]
    with_nan = [*notes, note("e", math.nan), note("f", 0.4)]
    for worst, several in ((0.375, notes), (math.nan, with_nan)):
        found = gpu_report.read_outcomes(several)
        difference = found["differences"]["map"]["fp16"]
        assert difference["worst"] == pytest.approx(worst, nan_ok=True)
        assert difference["tests"] == len(several) and difference["allowed"] == 0.5
        assert list(found["slowest_s"])[0] == "cc"


def test_without_a_gpu_it_says_so(gpu_report, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_report.main([]) == 1
    assert capsys.readouterr().err == "make gpu-report: torch finds no CUDA GPU\n"


def test_it_runs_the_tests_of_make_test_gpu(gpu_report):
    makefile = (ROOT / "Makefile").read_text()
    assert f"-m pytest {' '.join((*gpu_report.GPU_TESTS, gpu_report.VECTORS))}\n" in makefile


def test_files_are_named_by_the_device(gpu_report, monkeypatch):
    names = "NVIDIA H100 80GB HBM3", "Quadro RTX/6000 (x)"
    monkeypatch.setattr(gpu_report, "machine", lambda _: {"device": names[0]})
    assert gpu_report.name_of(torch.device("cuda")) == "gpu-nvidia-h100-80gb-hbm3"
    monkeypatch.setattr(gpu_report, "machine", lambda _: {"device": names[1]})
    assert gpu_report.name_of(torch.device("cuda", 0)) == "gpu-quadro-rtx-6000-x"


def test_calls_of_the_driver_are_counted(gpu_parts):
    counts = {"cudaLaunchKernel": 7, "cuLaunchKernelEx": 5, "cudaLaunchKernelExC": 2}
    counts |= {"cudaMemcpyAsync": 3, "cudaMemsetAsync": 1, "cudaGraphLaunch": 1, "aten::add": 9}
    counts |= {"cudaStreamSynchronize": 2, "cudaEventSynchronize": 1, "cudaMemcpy": 1}
    counts |= {"cudaDeviceSynchronize": 1, "cudaEventRecord": 4}
    found = gpu_parts.count_calls(counts)
    assert (found["launches"], found["waits"]) == (19, 4)
    assert "aten::add" not in found["calls"] and found["calls"]["cudaEventRecord"] == 4


@torch.no_grad()
def test_the_replay_gives_the_same_answers_and_asks_once(gpu_parts, monkeypatch):
    encoder = gpu_parts.Replay(gpu_parts.DIMENSION, torch.device("cpu"))
    costs = []
    encoder.dense_cost = encoder.cls_cost = lambda images: costs.append(images.shape)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    first, crops = encoder(images), encoder.encode_cls(images[:, :, :64, :64])
    expected = gpu_parts.SceneEncoder(gpu_parts.DIMENSION)(images)
    assert torch.equal(first.patches, expected.patches)
    monkeypatch.setattr(gpu_parts.SceneEncoder, "forward", None)
    encoder.again()
    assert encoder(images) is first and encoder.encode_cls(images[:, :, :64, :64]) is crops
    assert len(costs) == 4
    encoder.again()
    with pytest.raises(RuntimeError, match=r"question 0 was .* before"):
        encoder(images[:1])


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_bare_forward_takes_float32_images(gpu_parts, precision):
    model = gpu_parts.pace_model(True, 96, torch.device("cpu"), precision)
    images = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    embeddings = gpu_parts.bare_forward(model, images)
    assert str(embeddings.dtype).endswith(
        {"fp32": "32", "fp16": "t16", "bf16": "bfloat16"}[precision]
    )
    assert embeddings.isfinite().all()
    # CUDA normalises no halves by float32 weights.
    assert isinstance(model.visual.ln_post, LayerNormFp32) == (precision != "fp32")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The functions of torch.cuda that measure, which have nothing to do on a CPU."""
    total = type("Properties", (), {"total_memory": 80e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: total)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    for name, value in (("max_memory_allocated", 1e9), ("max_memory_reserved", 2e9)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)


@torch.no_grad()
def test_memory_of_every_class_that_stays(gpu_parts, as_on_a_gpu, monkeypatch):
    sizes = importlib.import_module("inputs").QUICK
    monkeypatch.setattr(gpu_parts, "MEMORY", ((1, 4), (2, 16), (3, 16)))
    peak, results = gpu_parts.peak, []

    def kept(model, given, device):
        if len(results) == 1:
            results.append("nothing")
            raise torch.OutOfMemoryError("CUDA out of memory")
        results.extend(result["kept"] for result in model(given))
        return peak(model, given, device)

    monkeypatch.setattr(gpu_parts, "peak", kept)
    *_, known = gpu_parts.memory(sizes, True, torch.device("cpu"), gpu_parts.Clock(100))
    assert results[0].all() and len(results[0]) == 16 and all(k.all() for k in results[2:])
    assert known["card_bytes"] == 80e9 and known["classes"] == 16
    found = [(c["images"], c.get("reserved_bytes"), c.get("error")) for c in known["cases"]]
    assert found == [(1, 2e9, None), (2, None, "out of memory"), (3, 2e9, None)]
    *_, known = gpu_parts.memory(sizes, True, torch.device("cpu"), gpu_parts.Clock(0))
    assert len(known["cases"]) == 1 and known["shortened"]


def test_graphs_are_measured_last_and_on_a_gpu_alone(gpu_parts):
    settings = gpu_parts.settings_of(False, torch.device("cuda", 0))
    found = [(s.precision, s.images, s.windows_at_once, s.cuda_graphs) for s in settings]
    assert found == [
        *(("fp16", 1, 16, False), ("fp16", 16, 96, False)),
        *(("bf16", 1, 16, False), ("bf16", 16, 96, False)),
        *(("fp16", 1, 16, True), ("fp16", 16, 96, True)),
    ]
    assert not any(s.cuda_graphs for s in gpu_parts.settings_of(True, torch.device("cpu")))


@torch.no_grad()
def test_graphs_of_encoder_and_head_are_timed(gpu_parts, monkeypatch):
    """With a capture that notes its function and runs it anew."""
    captured = []
    gpu_parts.cached_model.cache_clear()

    def capture(function, args):
        captured.append(function)
        static = [value.clone() if isinstance(value, torch.Tensor) else value for value in args]
        inputs = [value for value in static if isinstance(value, torch.Tensor)]
        return cuda_graphs.Captured(lambda: None, inputs, function(*static))

    monkeypatch.setattr(cuda_graphs, "capture", capture)
    sizes = importlib.import_module("inputs").QUICK
    setting = gpu_parts.Setting("fp32", 1, 16, True)
    found = gpu_parts._speed(sizes, True, torch.device("cpu"), setting, gpu_parts.Clock(0), 1)
    assert found["images_per_s"]["freecp"]["median"] > 0 and found["rounds"] == 3
    assert found["label_agreement_with_transcription"] > 0.999
    # The blocks of ViT-B/16's stand-in; steps 2 to 5 of the model and of the head alone.
    assert len(captured) == 3


@torch.no_grad()
def test_launches_are_profiled_with_and_without_the_encoder(gpu_parts, as_on_a_gpu, monkeypatch):
    counts = []

    def count_calls(events):
        counts.append(events)
        return {"launches": events["aten::add"], "waits": 0}

    monkeypatch.setattr(gpu_parts, "count_calls", count_calls)
    clock = gpu_parts.Clock(100)
    *_, known = gpu_parts.launches(
        importlib.import_module("inputs").QUICK, True, torch.device("cpu"), clock
    )
    assert [case["images"] for case in known["cases"]] == [1]
    for case in known["cases"]:
        assert case["all"]["launches"] > case["outside_of_the_encoder"]["launches"]
    assert ["aten::convolution" in found for found in counts] == [False, True]


def test_aims_are_reached_or_missed(gpu_summary):
    cases = [speed_case("fp16", 1, 0.5, 2, 50), speed_case("fp16", 16, 0.15, 9.9, 500)]
    report = {"machine": {"device": "NVIDIA H100 PCIe"}, "parts": {"speed": {"cases": cases}}}
    assert [aim["reached"] for aim in gpu_summary.aims(report)] == [True, False, True]
    report["machine"]["device"] = "NVIDIA L4"
    assert [aim["reached"] for aim in gpu_summary.aims(report)] == [True, False, None]
    assert [aim["measured"]["median"] for aim in gpu_summary.aims(report)] == [0.15, 9.9, 500]
    cases.append(speed_case("fp16", 16, 0.2, 11, 499, graphs=True))
    assert [aim["measured"]["median"] for aim in gpu_summary.aims(report)] == [0.15, 9.9, 500]
    cases[-1] = speed_case("fp16", 16, 0.2, 11, 501, graphs=True)
    assert [aim["reached"] for aim in gpu_summary.aims(report)] == [False, True, None]
    assert gpu_summary.aims(report)[0]["by"] == "fp16, 16, graphs"
    cases[1:] = [{"precision": "fp16", "images": 16, "error": "out of memory"}]
    assert all(aim["measured"] is None for aim in gpu_summary.aims(report))


def test_advice_is_the_largest_that_fits(gpu_summary):
    def case(images: int, at_once: int, gb: float) -> dict:
        return {"images": images, "windows_at_once": at_once, "reserved_bytes": gb * 1e9}

    cases = [case(1, 16, 6.2), case(16, 48, 13.4), case(16, 96, 20.5)]
    cases.append({"images": 32, "windows_at_once": 96, "error": "out of memory"})
    rows = {row.pop("card_gb"): tuple(row.values()) for row in gpu_summary.advice(cases)}
    # 0.9 of the card less 1 GiB: 6.13, 13.3, 20.5, 34.9 and 70.9 GB.
    assert rows[8] == () and rows[16] == (1, 16, 6.2)
    assert rows[24] == rows[40] == rows[80] == (16, 96, 20.5)


def test_a_whole_report_is_drawn_and_printed(gpu_summary, tmp_path):
    report = {
        "machine": {"device": "NVIDIA H100", "torch": "2"},
        "quick": False,
        "missing": {"operators": "ended early: stopped"},
        "parts": {
            "speed": {"cases": [speed_case("fp16", 16, 0.1, 12, 600)]},
            "memory": {
                "cases": [{"images": 1, "windows_at_once": 16, "reserved_bytes": 3e9}]
                + [{"images": 16, "windows_at_once": 96, "error": "out of memory"}]
            },
            "launches": {
                "cases": [
                    {
                        "precision": "fp16",
                        "images": 1,
                        "windows_at_once": 16,
                        "cuda_graphs": True,
                        "outside_of_the_encoder": {"launches": 162, "waits": 3},
                        "all": {"launches": 400, "waits": 4},
                    }
                ]
            },
        },
    }
    text = gpu_summary.markdown(report)
    assert text.count("reached") == 3 and "Missing: operators, ended early: stopped" in text
    assert "| fp16, 1, graphs     |                               162 |       3 |" in text
    assert "out of memory" in text and "|         80 |        1 |                16 |" in text
    gpu_summary.draw(report, tmp_path / "a.png")
    report["parts"].pop("memory")
    gpu_summary.draw(report, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
