"""Ranks that start together end together, whatever ends one of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from freecp_d2.heartbeat import address
from freecp_d2.ranks import launch

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

from detectron2.utils import comm
from freecp_d2 import heartbeat
from freecp_d2.ranks import RankError, launch
from freecp_d2.stopping import stopping

folder, task = Path(sys.argv[1]), sys.argv[2]


def work(task):
    rank = comm.get_rank()
    heartbeat.SILENCE = 6.0
    with stopping() as stop:
        (folder / f"{rank}.pid").write_text(str(os.getpid()))
        ranks = comm.all_gather(rank)
        assert ranks == list(range(comm.get_world_size()))
        if task.isdecimal():
            return int(task)
        if task == "refuse":
            sys.exit("job: no good")
        if task == "raise" and rank == 1:
            raise TypeError("a fault of the code")
        if task == "gather" and rank == 0:
            comm.gather(rank)  # waits for those who never come
        while not stop.signal:
            time.sleep(0.05)
        (folder / f"{rank}.stopped").touch()
        comm.synchronize()
        return stop.exit_code


if __name__ == "__main__":
    keys = ("ranks", "machines", "machine")
    numbers = dict(zip(keys, map(int, sys.argv[3:6])))
    try:
        code = launch(work, (task,), **numbers, url=sys.argv[6])
    except RankError as error:
        sys.exit(f"job: {error}")
    sys.exit(code)
"""

PATIENCE = 200
"""Seconds; on an idle machine a rank starts in five."""


class Run:
    """Machines that run SCRIPT, each a process on this one."""

    def __init__(self, folder: Path, task: str, ranks: int, machines: int = 1):
        self.folder = folder
        self.ranks = ranks * machines
        script = folder / "job.py"
        script.write_text(SCRIPT)
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            url = f"tcp://127.0.0.1:{server.getsockname()[1]}" if machines > 1 else "auto"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.machines = [
            subprocess.Popen(
                [sys.executable, script, folder, task, *map(str, (ranks, machines, machine)), url],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                process_group=0,
            )
            for machine in range(machines)
        ]

    def pids(self) -> list[int]:
        """Of the ranks, when all work."""
        files = [self.folder / f"{rank}.pid" for rank in range(self.ranks)]
        deadline = time.monotonic() + PATIENCE
        while not all(file.exists() and file.read_text() for file in files):
            assert time.monotonic() < deadline
            assert all(machine.poll() is None for machine in self.machines)
            time.sleep(0.05)
        time.sleep(1)
        return [int(file.read_text()) for file in files]

    def ends(self) -> list[tuple[int, str]]:
        """Exit code and what was said last, of each machine; no rank is left."""
        ends = []
        for machine in self.machines:
            _, err = machine.communicate(timeout=PATIENCE)
            ends.append(
                (
                    machine.returncode,
                    (err.split("\n") if not err.strip() else err.strip().splitlines())[-1],
                )
            )
        pids = [int(file.read_text()) for file in self.folder.glob("*.pid")]
        deadline = time.monotonic() + PATIENCE
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline, "a rank is left"
            time.sleep(0.05)
        return ends


def test_the_code_of_the_ranks(tmp_path):
    assert Run(tmp_path, "3", 2).ends() == [(3, "")]


def test_what_all_ranks_say_is_said_once(tmp_path):
    run = Run(tmp_path, "refuse", 2)
    (machine,) = run.machines
    out, err = machine.communicate(timeout=PATIENCE)
    assert (machine.returncode, out, err) == (1, "", "job: no good\n")


def test_a_fault_of_the_code_keeps_its_traceback(tmp_path):
    ((code, said),) = Run(tmp_path, "raise", 2).ends()
    assert code == 1 and said == "TypeError: a fault of the code"


@pytest.mark.parametrize("task", ["wait", "gather"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_killed(tmp_path, task, rank):
    run = Run(tmp_path, task, 2)
    pid = run.pids()[rank]
    os.kill(pid, signal.SIGKILL)
    ((code, said),) = run.ends()
    assert code == 1
    assert said.startswith(f"job: rank {rank} (process {pid} on ") and "ended by SIGKILL" in said


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_hangs(tmp_path, rank):
    run = Run(tmp_path, "gather", 2)
    os.kill(run.pids()[rank], signal.SIGSTOP)
    ((code, said),) = run.ends()
    assert code == 1 and f"rank {rank}" in said and "no sign of life" in said


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_of_another_machine_is_killed(tmp_path, rank):
    run = Run(tmp_path, "gather", 2, 2)
    pid = run.pids()[rank]
    os.kill(pid, signal.SIGKILL)
    ends = run.ends()
    here, there = ends if rank < 2 else ends[::-1]
    assert here[0] == there[0] == 1
    assert f"rank {rank} (process {pid} on " in here[1] and "ended by SIGKILL" in here[1]
    if rank:
        assert there[1] == here[1]
    else:  # its store went with it
        assert "rank 0, on the first machine, has ended" in there[1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to", ["parent", "all", "one rank", "one machine"])
def test_a_signal_stops_all(tmp_path, number, code, to):
    machines = 2 if to == "one machine" else 1
    run = Run(tmp_path, "wait", 2 // machines, machines)
    pids = run.pids()
    if to == "one rank":
        os.kill(pids[1], number)
    elif to == "all":  # as a terminal does
        os.killpg(run.machines[0].pid, number)
    else:
        os.kill(run.machines[0].pid, number)
    assert [end for end, _ in run.ends()] == [code] * machines
    assert len(list(tmp_path.glob("*.stopped"))) == 2


def test_the_parent_is_killed(tmp_path):
    run = Run(tmp_path, "wait", 2)
    run.pids()
    run.machines[0].kill()
    run.ends()
    assert len(list(tmp_path.glob("*.stopped"))) == 2


@pytest.mark.parametrize("url", ["file:///tmp/x", "tcp://host", "tcp://:1", "env://"])
def test_addresses(url):
    assert address("tcp://10.0.0.1:23") == ("10.0.0.1", 23)
    with pytest.raises(ValueError, match="--dist-url"):
        address(url)


@pytest.mark.parametrize("machine", [-1, 2])
def test_a_machine_that_is_none_of_them(machine):
    """As where they were counted from 1."""
    with pytest.raises(ValueError, match=f"--machine-rank {machine}: .* 2 machines, counted from"):
        launch(print, (), ranks=1, machines=2, machine=machine, url="tcp://127.0.0.1:1")
