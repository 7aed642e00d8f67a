"""Processes that work for another end with it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARENT = """
import multiprocessing, os, sys, time
from freecp_d2.workers import begin_worker

def pid(_):
    time.sleep(0.2)
    return os.getpid()

if __name__ == "__main__":
    with multiprocessing.get_context({start!r}).Pool(2, begin_worker) as pool:
        print(*set(pool.map(pid, range(4), chunksize=1)), flush=True)
        time.sleep(60)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("start", ["spawn", "fork"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_workers_end_with_their_parent_however_it_ends(tmp_path, start, number):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(start=start))
    environment = os.environ | {"FREECP_D2_PREPARE_WORKER": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert workers and all(map(alive, workers))
        os.kill(workers[0], signal.SIGINT)  # as a terminal does
        time.sleep(0.1)
        assert all(map(alive, workers))
        parent.send_signal(number)
    end = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))
