"""Processes are started where they pay, and import no more than they need."""

import os
import sys
from time import sleep

import pytest

from freecp_d2.data.prepare import parallel
from freecp_d2.data.prepare.parallel import each, worthwhile


def loaded(number: int) -> tuple[int, int, set[str]]:
    """Runs in a worker, which imports this module, and so freecp_d2.data.prepare, anew."""
    modules = {"torch", "detectron2", "freecp_d2.data.prepare.sources"}
    return number, os.getpid(), modules & set(sys.modules)


def slept(seconds: float) -> int:
    sleep(seconds)
    return os.getpid()


def test_workers_import_neither_torch_nor_detectron2(monkeypatch):
    monkeypatch.setattr(parallel, "TRIAL_SECONDS", 0)
    monkeypatch.setattr(parallel, "WORKER_SECONDS", -1)
    results = list(each(loaded, range(40), 2, "test"))
    assert [number for number, *_ in results] == list(range(40))
    assert os.getpid() not in {process for _, process, _ in results}
    assert {frozenset(names) for *_, names in results} == {
        frozenset({"freecp_d2.data.prepare.sources"})
    }
    assert "FREECP_D2_PREPARE_WORKER" not in os.environ


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_what_takes_no_time_stays_in_this_process(workers):
    assert set(each(slept, [0.0] * 500, workers, "test")) == {os.getpid()}


def test_one_worker_is_this_process(monkeypatch):
    monkeypatch.setattr(parallel, "TRIAL_SECONDS", 0)
    monkeypatch.setattr(parallel, "WORKER_SECONDS", -1)
    assert set(each(slept, [0.0] * 50, 1, "test")) == {os.getpid()}


def test_what_takes_long_is_begun_here_and_ended_in_processes(monkeypatch):
    monkeypatch.setattr(parallel, "TRIAL_SECONDS", 0.05)
    monkeypatch.setattr(parallel, "WORKER_SECONDS", 0.05)
    processes = list(each(slept, [0.02] * 50, 2, "test"))
    first, last = processes[0], processes[-1]
    assert first == os.getpid() != last and len(processes) == 50


def test_how_many_processes_save_time():
    assert worthwhile(16, 5000, 0.0001) == 1  # half a second
    assert worthwhile(16, 164, 0.01) == 1  # a second and a half
    assert worthwhile(2, 164, 0.15) == 2  # half a minute
    assert worthwhile(16, 5000, 0.01) == 5  # the fifth saves 2.5 s of 50, a sixth 1.7
    assert worthwhile(16, 5000, 10) == 16
    assert worthwhile(16, 17, 10) == 2  # two chunks
    assert worthwhile(1, 5000, 10) == 1
