"""Labelling by Ray Data: an actor is killed, a run is stopped, and the labels are the same.

Two runs in all start Ray: every process of it loads torch.
"""

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from PIL import Image

from freecp_d2 import get_config
from freecp_d2.data.scenes import draw_scene
from freecp_d2.data.vocabulary import Vocabulary
from freecp_d2.labelling import Job, Store, open_store
from freecp_d2.labelling.launch import label
from freecp_d2.labelling.merge import all_records
from freecp_d2.labelling.ray import label_by_ray

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="no Ray: pip install 'ray[data]'",
)
WORDS = Vocabulary.from_names(["sky", "lawn", "road", "sand", "snow"])
IMAGES = 40


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    """Scenes of which one in ten is broken, large enough that a run can be stopped."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(IMAGES):
        file = folder / f"{number:02d}.png"
        if number % 10 == 7:
            file.write_bytes(b"no image")
        else:
            Image.fromarray(draw_scene(1000 + number).image).save(file)
    opts = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.OUTPUT", "label_map"]
    cfg = get_config("scenes/clearclip", [*opts, "INPUT.MIN_SIZE_TEST", "0"])
    output = tmp_path_factory.mktemp("undisturbed")
    return Job(cfg, str(folder), str(output), WORDS)


@pytest.fixture(scope="module")
def undisturbed(job) -> dict[str, object]:
    """What the other runner leaves."""
    assert label(job, "freecp label") == 3
    return contents(open_store(job.output))


def contents(store: Store) -> dict[str, object]:
    """Labels and merged files, without times."""
    left: dict[str, object] = {}
    lines = store.read("manifest.jsonl").splitlines()
    for record in map(json.loads, lines):
        del record["time"]
        record.pop("seconds", None)
        left[record["id"]] = record
        if "error" not in record:
            name = f"labels/{record['id']}.png"
            left[name] = store.read(name)
    assert len(lines) == IMAGES
    return left | {"sem_seg.json": store.read("sem_seg.json")}


def meanwhile(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Does something once a condition holds."""

    def run() -> None:
        deadline = time.monotonic() + 300
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def records_of(store: Store) -> int:
    return sum(1 for _ in all_records(store))


def actors() -> list[int]:
    """The processes of actors that descend from this one."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[pid] = (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return [pid for pid, name in names.items() if "ray::MapWorker" in name and is_ours(pid)]


@needs_ray
def test_actors_are_killed(job, undisturbed, tmp_path, capsys):
    """In the middle of a call, whose images that are done are not labelled again."""
    job = replace(job, output=str(tmp_path))
    store = open_store(job.output)
    killed: list[int] = []

    def in_a_call() -> bool:
        names = store.journals("manifest")
        return any(sum(1 for _ in store.records(name)) == 2 for name in names)

    def kill() -> None:
        for pid in actors():
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    thread = meanwhile(in_a_call, kill)
    assert label_by_ray(job, None, actors=2) == 3
    thread.join()
    assert killed and contents(store) == undisturbed
    assert f"{IMAGES - 4} of {IMAGES} images are labelled: {tmp_path}" in capsys.readouterr().out
    assert records_of(store) == IMAGES


@needs_ray
def test_stopped_and_taken_up(job, undisturbed, s3):
    """Of images in an object store, into one; the other runner takes it up."""
    files = sorted(Path(job.source).iterdir())
    fs, bucket = fsspec.url_to_fs(s3)
    for file in files:
        fs.pipe_file(f"{bucket}/photos/{file.name}", file.read_bytes())
    job = replace(job, source=f"{s3}/photos", output=f"{s3}/labels")
    store = open_store(job.output)
    thread = meanwhile(lambda: records_of(store) > 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert label_by_ray(job, None, actors=2) == 143
    thread.join()
    before = [record for record in all_records(store) if "error" not in record]
    assert 0 < len(before) < IMAGES - 4
    # What is written is recorded, also in calls that the signal cut short.
    assert len(fs.find(f"{bucket}/labels/labels")) == len(before)
    assert not store.exists("manifest.jsonl") and not store.exists(".lock")
    assert label(job, "freecp label") == 3
    labels = {name: content for name, content in undisturbed.items() if name.endswith(".png")}
    assert labels.items() <= contents(store).items()
    times = Counter(record["id"] for record in all_records(store) if "error" not in record)
    assert len(times) == IMAGES - 4 and set(times.values()) == {1}


def test_without_ray(job, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^--ray: .*; pip install 'ray\[data\]'$"):
        label_by_ray(replace(job, output=str(tmp_path / "output")), None)
    assert not (tmp_path / "output").exists()


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "host:port"])
def test_no_cluster(job, address, tmp_path):
    with pytest.raises(OSError, match=f"^--ray {address}: .*; check the address$"):
        label_by_ray(replace(job, output=str(tmp_path)), address)
