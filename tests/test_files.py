"""Files that appear complete or not at all."""

import errno
import multiprocessing
import os
import re
import signal
import stat
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from freecp_d2.files import scratch_folder, sweep, whole_file, whole_folder, write_whole

ROOT = Path(__file__).parents[1]
SIZE = 300_000


def _write(path: Path, byte: int, times: int) -> None:
    for _ in range(times):
        write_whole(path, bytes([byte]) * SIZE)


def test_the_file_and_its_folders_are_made_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "b" / "c.json"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["c.json"]


@pytest.mark.parametrize("name", ["n" * 255, f"A sentence. {'n' * 243}", "é" * 127, "a.", ".b"])
def test_every_name_the_file_system_knows_can_be_written(tmp_path, name):
    write_whole(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_that_of_any_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "f", b"x")
        with whole_file(tmp_path / "weights") as part:
            save_file({"a": torch.zeros(2)}, part)  # which gives its files 0600
    finally:
        os.umask(before)
    for name in ("f", "weights"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_an_error_leaves_what_was_there_and_no_temporary_file(tmp_path):
    path = tmp_path / "f.mp4"
    write_whole(path, b"old")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        assert part.parent == tmp_path and part.suffix == ".mp4" and part.name.startswith(".")
        part.write_bytes(b"half")
        raise RuntimeError
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "folder", b"x")
    assert sorted(os.listdir(tmp_path)) == ["f.mp4", "folder"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "start", [threading.Thread, multiprocessing.get_context("fork").Process], ids=str
)
def test_several_writers_of_one_file_at_once(tmp_path, start):
    """A reader sees one of the contents, whole, at any time; in the end nothing else is there."""
    path = tmp_path / "f"
    write_whole(path, bytes([0]) * SIZE)
    writers = [start(target=_write, args=(path, byte, 25)) for byte in range(1, 5)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        content = path.read_bytes()
        assert len(content) == SIZE and len(set(content)) == 1
        seen.add(content[0])
    for writer in writers:
        writer.join()
        assert getattr(writer, "exitcode", 0) == 0
    assert len(seen) > 1
    assert os.listdir(tmp_path) == ["f"]
    assert path.read_bytes()[0] in range(1, 5)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file/f", "file"),
        ("n" * 256, "n" * 256),
        ("folder", "folder"),
        ("full", "full"),
    ],
)
def test_errors_name_what_was_to_be_written(tmp_path, monkeypatch, name, said):
    """And not the temporary file."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name == "full":
        monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as error:
        write_whole(tmp_path / name, b"x")
    assert error.value.filename == str(tmp_path / said) and error.value.filename2 is None
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_an_error_of_something_else_is_as_it_was(tmp_path):
    with pytest.raises(FileNotFoundError) as error, whole_file(tmp_path / "f"):
        (tmp_path / "other").read_bytes()
    assert Path(error.value.filename) == tmp_path / "other"


def test_parts_of_an_hour_ago_are_swept_and_nothing_else(tmp_path):
    old, new = (tmp_path / "a" / f".{digit * 32}.part.png" for digit in "ab")
    folder = tmp_path / f".{'c' * 32}.part"
    others = [tmp_path / ".x.part", tmp_path / ".partition", tmp_path / f"{'a' * 32}.part"]
    folder.mkdir()
    (tmp_path / "a").mkdir()
    for path in (old, new, *others):
        path.touch()
    for path in (old, folder, *others):
        os.utime(path, (0, time.time() - 3700))
    os.utime(new, (0, time.time() - 3500))
    sweep(tmp_path)
    assert not old.exists() and new.exists() and folder.exists()
    assert all(path.exists() for path in others)
    sweep(tmp_path / "nothing")


def _work(parent: Path, started) -> None:
    with scratch_folder(parent, "work") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").touch()
        started.put(folder)
        time.sleep(60)


def test_scratch_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.SimpleQueue()
    processes = [context.Process(target=_work, args=(tmp_path, started)) for _ in range(2)]
    folders = []
    for process in processes:
        process.start()
        folders.append(started.get())
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / ".lock").touch()
    (tmp_path / "work_link").symlink_to("link")
    (tmp_path / "work_other").mkdir()
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[0].join()
    try:
        with scratch_folder(tmp_path, "work") as folder:
            assert folder.parent == tmp_path and folder.is_dir()
            assert not folders[0].exists() and (folders[1] / "inside" / "file").exists()
    finally:
        processes[1].kill()
        processes[1].join()
    assert not folder.exists()
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["link", "work_link", "work_other", folders[1].name]
    )
    with pytest.raises(RuntimeError), scratch_folder(tmp_path, "other") as folder:
        raise RuntimeError
    assert not folder.exists()


def test_file_and_folder_are_synced_and_the_file_before_its_name_changes(tmp_path, monkeypatch):
    steps = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def record_replace(*paths):
        steps.append("replace")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    write_whole(tmp_path / "f", b"x")
    assert steps == ["file", "replace", "folder"]


def test_no_other_code_replaces_files():
    sources = [*(ROOT / "freecp_d2").rglob("*.py"), *(ROOT / "projects").rglob("*.py")]
    assert len(sources) > 40
    pattern = re.compile(r"\bos\.(replace|rename)\(|\bpart\.replace\(|shutil\.move|NamedTemporary")
    others = [path.name for path in sources if pattern.search(path.read_text(encoding="utf-8"))]
    assert others == ["files.py"]


def test_a_whole_folder_is_there_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "above" / "folder"
    with pytest.raises(RuntimeError), whole_folder(path) as part:
        (part / "file").write_text("half")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with whole_folder(path) as part:
        (part / "file").write_text("late")
        with whole_folder(path) as other:
            (other / "file").write_text("first")
        assert (path / "file").read_text() == "first"
    assert [file.read_text() for file in path.iterdir()] == ["first"]
    assert list(path.parent.iterdir()) == [path]
