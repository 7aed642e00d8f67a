"""One run a folder."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from freecp_d2.locks import LOCK, FolderInUseError, locked


def _hold(folder: Path, pipe: Connection) -> None:
    with locked(folder, "freecp label"):
        if os.fork() == 0:  # as DataLoader's workers are started
            time.sleep(60)
            os._exit(0)
        pipe.send("held")
        pipe.recv()


@pytest.fixture
def holder(tmp_path):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_hold, args=(tmp_path, there))
    process.start()
    assert here.recv() == "held"
    yield process, here
    process.kill()
    process.join()


def test_another_process_is_named(tmp_path, holder):
    process, _ = holder
    with pytest.raises(FolderInUseError) as error, locked(tmp_path, "another"):
        pass
    sentence = str(error.value)
    assert sentence.startswith(f"{tmp_path}: in use by freecp label, process {process.pid} on ")
    assert isinstance(error.value, OSError) and "\n" not in sentence


def test_who_is_refused_leaves_no_file_open(tmp_path, holder):
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(FolderInUseError), locked(tmp_path, "another"):
            pass
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_where_files_cannot_be_locked_that_is_said(tmp_path, monkeypatch, caplog):
    def fail(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    number = errno.ENOLCK
    with locked(tmp_path, "first"):
        assert "locks no files" in caplog.text and str(tmp_path) in caplog.text
    number = errno.EIO
    with pytest.raises(OSError) as error, locked(tmp_path, "second"):
        pass
    assert error.value.errno == errno.EIO


@pytest.mark.parametrize("how", ["end", "kill"])
def test_the_lock_ends_with_its_process(tmp_path, holder, how):
    process, pipe = holder
    if how == "end":
        pipe.send("end")
    else:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    with locked(tmp_path, "another"):  # though a child of it lives on
        pass


def test_threads_are_refused_too_and_the_lock_stays(tmp_path):
    refused = []

    def second() -> None:
        try:
            with locked(tmp_path / "folder", "second"):
                pass
        except FolderInUseError as error:
            refused.append(str(error))

    with locked(tmp_path / "folder", "first"):
        for _ in range(2):
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
    assert len(refused) == 2 and all("in use by first" in sentence for sentence in refused)
    second()
    assert len(refused) == 2


def test_a_refused_thread_lets_no_other_process_in(tmp_path):
    take = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with locked(tmp_path, "first"):
        with pytest.raises(FolderInUseError), locked(tmp_path, "second"):
            pass
        command = [sys.executable, "-c", take, tmp_path / LOCK]
        other = subprocess.run(command, capture_output=True, text=True)
    assert "BlockingIOError" in other.stderr


def test_an_error_ends_the_lock(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path, "first"):
        raise RuntimeError
    with locked(tmp_path, "second"):
        pass
