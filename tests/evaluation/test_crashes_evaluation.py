"""An evaluation is killed at random moments and resumed: not a bit of its results changes.

FREECP_CRASHES says how many times in all crash tests; `make crash` kills more often.
"""

import json
import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from freecp_d2.data.scenes.scene import draw_scene

KILLS = max(int(os.environ.get("FREECP_CRASHES", "20")) * 8 // 20, 1)
IMAGES = 16
# Each process begins as a copy of one that has loaded torch.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["freecp_d2.cli.evaluate", "freecp_d2.labelling.launch"])
REGISTER = """
from pathlib import Path
from detectron2.data import DatasetCatalog, MetadataCatalog
from freecp_d2.data.scenes.classes import CLASSES

folder = Path(__file__).parent
records = [
    {
        "file_name": str(image),
        "sem_seg_file_name": str(folder / "labels" / image.name),
        "image_id": int(image.stem),
    }
    for image in sorted((folder / "images").iterdir())
]
DatasetCatalog.register("few_scenes", lambda: records)
MetadataCatalog.get("few_scenes").set(
    stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
)
"""


def _evaluate(argv: list[str]) -> None:
    from freecp_d2.cli.evaluate import main

    try:
        code = main(argv, "freecp evaluate")
    except SystemExit as end:
        Path(f"{argv[-1]}.said").write_text(str(end.code))
        code = end.code if isinstance(end.code, int) else 1
    os._exit(code)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Small scenes, and a file that registers them."""
    folder = tmp_path_factory.mktemp("data")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(IMAGES):
        scene = draw_scene(2000 + number)
        name = f"{number:03d}.png"
        Image.fromarray(scene.image).resize((72, 56)).save(folder / "images" / name)
        Image.fromarray(scene.labels).resize((72, 56), 0).save(folder / "labels" / name)
    (folder / "register.py").write_text(REGISTER)
    return folder


@pytest.fixture(scope="module")
def start(data):
    """start(folder, ...) begins to evaluate there, in a process."""

    def start(folder: Path, *options: str):
        argv = ["--config-file", "scenes/clearclip", "--register", str(data / "register.py")]
        argv += ["--coco-predictions", *options, "MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
        argv += ["DATASETS.TEST", "('few_scenes',)", "INPUT.MIN_SIZE_TEST", "0"]
        argv += ["DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(folder)]
        process = PROCESSES.Process(target=_evaluate, args=(argv,))
        process.start()
        return process

    return start


def contents(folder: Path) -> dict[str, object]:
    """The results, without seconds and the folder's name."""
    results = json.loads((folder / "results.json").read_text())
    results.pop("seconds_per_image")
    results["config"].pop("OUTPUT_DIR")
    report = (folder / "report.html").read_text()
    report = re.sub(r"(?s)<table id=\"seconds\">.*?</table>", "", report)
    report = report.replace(str(folder), "")
    return {
        "results.json": results,
        "report.html": re.sub(r"\d+(\.\d+)? ms", "ms", report),
        "per_class.csv": (folder / "per_class.csv").read_bytes(),
        "predictions": (folder / "sem_seg_predictions.json").read_bytes(),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, start):
    """Results, and the seconds of a run."""
    for name in ("first", "second"):  # the first starts the process that loads torch
        folder, began = tmp_path_factory.mktemp(name) / "out", time.monotonic()
        process = start(folder)
        process.join()
        assert process.exitcode == 0
    return contents(folder), time.monotonic() - began


def test_killed_at_random_and_resumed_it_is_the_same_to_the_bit(tmp_path, undisturbed, start):
    expected, seconds = undisturbed
    moments = random.Random(14)
    killed = ended = 0
    while killed < KILLS:
        folder = tmp_path / f"{ended}"
        process = start(folder, "--resume")
        process.join(moments.uniform(0.05, 1.1) * seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
            continue
        assert process.exitcode == 0
        assert contents(folder) == expected
        ended += 1
    folder = tmp_path / f"{ended}"
    process = start(folder, "--resume")
    process.join()
    assert process.exitcode == 0
    assert contents(folder) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_image_at_hand(tmp_path, undisturbed, start, number, code):
    expected, _ = undisturbed
    folder = tmp_path / "out"
    process = start(folder)
    journal = folder / "records" / "0000.jsonl"
    while not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    assert not (folder / "results.json").exists()
    assert 0 < journal.read_bytes().count(b"\n") < IMAGES
    process = start(folder, "--resume")
    process.join()
    assert process.exitcode == 0 and contents(folder) == expected


def test_two_runs_in_one_folder(tmp_path, undisturbed, start):
    expected, _ = undisturbed
    folder = tmp_path / "out"
    processes = [start(folder) for _ in range(2)]
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [0, 1]
    holder = next(process.pid for process in processes if process.exitcode == 0)
    said = (tmp_path / "out.said").read_text()
    assert f"{folder}: in use by freecp evaluate, process {holder} on" in said
    assert contents(folder) == expected


def test_broken_images_are_left_out_and_named(tmp_path, data, undisturbed, start):
    image, label = data / "images" / "003.png", data / "labels" / "008.png"
    whole = {file: file.read_bytes() for file in (image, label)}
    folder = tmp_path / "out"
    try:
        for file in whole:
            file.write_bytes(b"broken")
        process = start(folder)
        process.join()
    finally:
        for file, content in whole.items():
            file.write_bytes(content)
    assert process.exitcode == 3
    results = json.loads((folder / "results.json").read_text())
    assert results["images"] == IMAGES - 2
    assert {Path(f).name for f in results["failed"]} == {"003.png", "008.png"}
    process = start(folder, "--resume")
    process.join()
    assert process.exitcode == 0 and contents(folder) == undisturbed[0]


def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path, undisturbed, start):
    expected, _ = undisturbed
    folder = tmp_path / "out"
    start(folder).join()
    process = start(folder, "--resume", "MODEL.CLIP.METHOD", "sclip")
    process.join()
    assert process.exitcode == 1
    assert "another configuration (MODEL.CLIP.METHOD)" in (tmp_path / "out.said").read_text()
    assert contents(folder) == expected
