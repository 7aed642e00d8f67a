"""Labelling is killed at random moments, and started again: nothing is lost, nothing is mixed.

FREECP_CRASHES says how many times in all crash tests; `make crash` kills more often.
"""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from freecp_d2 import get_config
from freecp_d2.data.scenes.scene import draw_scene
from freecp_d2.data.vocabulary import Vocabulary
from freecp_d2.labelling import Job, LocalStore, Outputs, read_items
from freecp_d2.labelling.merge import all_records
from freecp_d2.locks import FolderInUseError

KILLS = max(int(os.environ.get("FREECP_CRASHES", "20")) * 7 // 20, 1)
IMAGES = 30
WORDS = Vocabulary.from_names(["sky", "lawn", "road", "sand", "snow"])
# Each process begins as a copy of one that has loaded torch.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["freecp_d2.labelling.launch"])


def _label(job: Job) -> None:
    from freecp_d2.labelling.launch import label

    try:
        code = label(job, "freecp label")
    except FolderInUseError as error:
        Path(f"{job.output}.refused").write_text(str(error))
        code = 1
    os._exit(code)


def start(job: Job):
    process = PROCESSES.Process(target=_label, args=(job,))
    process.start()
    return process


def end(job: Job) -> int:
    process = start(job)
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Scenes of which one in twenty is broken."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        if number % 20 == 7:
            (folder / f"{number:02d}.png").write_bytes(b"no image")
        else:
            scene = Image.fromarray(draw_scene(1000 + number).image)
            scene.resize((72, 56)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def job_in(photos):
    """The job whose labels lie in a folder."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.OUTPUT", "label_map"]
    cfg = get_config("scenes/clearclip", [*opts, "INPUT.MIN_SIZE_TEST", "0"])
    outputs = Outputs(scores=True, coco=True)
    return lambda folder: Job(cfg, str(photos), str(folder), WORDS, outputs, tars=10)


def contents(folder: Path) -> dict[str, object]:
    """What a run leaves, without times, and without what it works with."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_dir() or name.startswith("manifest/") or name == ".lock":
            continue
        if name == "manifest.jsonl":
            records = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [
                {key: value for key, value in record.items() if key not in ("seconds", "time")}
                for record in records
            ]
        elif not name.startswith("tars/"):  # which hold seconds
            found[name] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, job_in):
    """Outputs, and the seconds of a run."""
    for name in ("first", "second"):  # the first starts the process that loads torch
        folder, began = tmp_path_factory.mktemp(name), time.monotonic()
        assert end(job_in(folder)) == 3
    return contents(folder), time.monotonic() - began


def test_an_undisturbed_run_is_whole(undisturbed, photos):
    outputs, _ = undisturbed
    broken = {"07", "27"}
    for item in read_items(photos):
        assert (f"labels/{item.id}.png" in outputs) == (item.id not in broken)
    assert [r["id"] for r in outputs["manifest.jsonl"]] == [f"{i:02d}" for i in range(IMAGES)]
    assert {r["id"] for r in outputs["manifest.jsonl"] if "error" in r} == broken
    assert not [name for name in outputs if ".part" in name]


def test_killed_at_random_and_started_again_it_is_the_same_to_the_bit(
    tmp_path, undisturbed, job_in
):
    outputs, seconds = undisturbed
    moments = random.Random(14)
    killed = ended = 0
    while killed < KILLS:
        folder = tmp_path / f"{ended}"
        process = start(job_in(folder))
        process.join(moments.uniform(0.05, 1.1) * seconds)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
            continue
        assert process.exitcode == 3
        assert contents(folder) == outputs
        ended += 1
    folder = tmp_path / f"{ended}"
    assert end(job_in(folder)) == 3
    assert contents(folder) == outputs
    records = [r["id"] for r in all_records(LocalStore(folder)) if "error" not in r]
    assert len({*records}) == IMAGES - 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_image_at_hand(tmp_path, undisturbed, job_in, number, code):
    outputs, _ = undisturbed
    process = start(job_in(tmp_path))
    journal = tmp_path / "manifest" / "0000-of-0001.jsonl"
    while not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.005)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    assert not (tmp_path / "manifest.jsonl").exists()
    done = [record["id"] for record in all_records(LocalStore(tmp_path))]
    assert 0 < len(done) < IMAGES
    labels = {file.stem for file in (tmp_path / "labels").iterdir()}
    assert labels == {*done} - {"07", "27"}
    assert end(job_in(tmp_path)) == 3
    assert contents(tmp_path) == outputs


def test_two_runs_on_one_folder(tmp_path, undisturbed, job_in):
    outputs, _ = undisturbed
    folder = tmp_path / "labels"
    processes = [start(job_in(folder)) for _ in range(2)]
    for process in processes:
        process.join()
    assert sorted(process.exitcode for process in processes) == [1, 3]
    holder = next(process.pid for process in processes if process.exitcode == 3)
    refusal = (tmp_path / "labels.refused").read_text()
    assert f"{folder}: in use by freecp label, process {holder} on" in refusal
    assert contents(folder) == outputs
