"""`freecp prepare` killed at any moment: nothing is half, nothing runs on, the next goes on."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
KILLS = max(int(os.environ.get("FREECP_CRASHES", "20")) // 4, 1)
IMAGES = 120
PREPARE = """
import sys, time
from pathlib import Path
from freecp_d2.data.prepare import parallel
from freecp_d2.data.prepare.__main__ import main

def slowly(path, content):  # so that many a kill comes in the middle
    with path.open("wb") as file:
        file.write(content[:1000])
        file.flush()
        time.sleep(0.01)
        file.write(content[1000:])

Path.write_bytes = slowly
if __name__ == "__main__":
    parallel.TRIAL_SECONDS = 0.1  # some are made in this process, and most in others
    parallel.WORKER_SECONDS = -1
    parallel.CHUNK = 4
    print("begun", flush=True)
    sys.exit(main(["ade20k", "--root", sys.argv[1], "--partial", "--workers", "2"]))
"""


@pytest.fixture(scope="module")
def downloads(tmp_path_factory) -> Path:
    """As they are before the first run."""
    root = tmp_path_factory.mktemp("datasets")
    base = root / "ADEChallengeData2016"
    for folder in ("images/validation", "annotations/validation"):
        (base / folder).mkdir(parents=True)
    random_ids = np.random.default_rng(0)
    for number in range(IMAGES):
        name = f"ADE_val_{number:08d}"
        Image.new("RGB", (8, 8)).save(base / f"images/validation/{name}.jpg")
        labels = random_ids.integers(0, 151, (60, 80), dtype=np.uint8)
        Image.fromarray(labels).save(base / f"annotations/validation/{name}.png")
    return root


def targets(root: Path) -> Path:
    return root / "ADEChallengeData2016" / "annotations_detectron2" / "validation"


def digests(root: Path) -> dict[str, str]:
    files = targets(root).glob("[!.]*.png")
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@contextmanager
def preparing(root: Path) -> Iterator[subprocess.Popen]:
    """A run that has begun, in a group of processes of its own."""
    script = root / "prepare.py"
    script.write_text(PREPARE)
    # Neither torch nor Detectron2 is loaded.
    environment = os.environ | {"FREECP_D2_PREPARE_WORKER": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script, root],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "begun\n"
        yield process


def group(number: int) -> list[str]:
    """The processes of a group that run."""
    running = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, members = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(members) == number and state != "Z":
            running.append(stat.parent.name)
    return running


def require_gone(number: int) -> None:
    end = time.monotonic() + 10
    while group(number) and time.monotonic() < end:
        time.sleep(0.02)
    assert not group(number)


@pytest.fixture(scope="module")
def wanted(downloads: Path) -> dict[str, str]:
    """What a run without a kill makes."""
    with preparing(downloads) as process:
        process.wait()
    assert process.returncode == 0
    made = digests(downloads)
    assert len(made) == IMAGES
    return made


@pytest.fixture
def root(downloads: Path, wanted: object) -> Path:
    """Nothing is made yet."""
    shutil.rmtree(targets(downloads))
    return downloads


def wait_for(root: Path, files: int, process: subprocess.Popen) -> None:
    while len(digests(root)) < files and process.poll() is None:
        time.sleep(0.002)


def test_kills_lose_nothing(root, wanted):
    chance = random.Random(13)
    halfway = 0
    for _ in range(KILLS):
        there = len(digests(root))
        with preparing(root) as process:
            wait_for(root, chance.randint(there, IMAGES - 1), process)
            time.sleep(chance.uniform(0, 0.05))
            process.kill()
        require_gone(process.pid)
        done = digests(root)
        assert done.items() <= wanted.items()
        halfway += 0 < len(done) < IMAGES
        for name in chance.sample(sorted(done), len(done) // 2):  # so that there is work again
            (targets(root) / name).unlink()
    assert halfway
    for part in targets(root).glob(".*"):
        os.utime(part, (0, time.time() - 7200))
    with preparing(root) as process:
        process.wait()
    assert process.returncode == 0
    assert digests(root) == wanted
    assert sorted(os.listdir(targets(root))) == sorted(wanted)


@pytest.mark.parametrize("everyone", [False, True], ids=["parent", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_signals_stop_it_after_the_files_at_hand(root, wanted, number, everyone):
    """Ctrl-C in a terminal, and what stops a service, reach the workers, too."""
    with preparing(root) as process:
        wait_for(root, IMAGES // 4, process)
        (os.killpg if everyone else os.kill)(process.pid, number)
        start = time.monotonic()
        _, said = process.communicate()
        assert time.monotonic() - start < 10
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == (
        f"python -m freecp_d2.data.prepare: stopped by {number.name}; go on with: "
        f"python -m freecp_d2.data.prepare ade20k --root {root} --partial --workers 2"
    )
    assert "Traceback" not in said
    require_gone(process.pid)
    done = digests(root)
    assert 0 < len(done) < IMAGES and done.items() <= wanted.items()
