"""Stores and listings against a server of S3 on this machine, and fsspec's memory."""

import json
import os
import pickle
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import closing
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from freecp_d2.index import Index
from freecp_d2.labelling import Item, Labeller, LocalStore, Outputs, read_items, remote
from freecp_d2.labelling.merge import all_records
from freecp_d2.labelling.remote import RemoteStore, entries_below
from freecp_d2.labelling.store import open_store, read_input
from freecp_d2.labelling.worker import journal_of, waiting, work
from freecp_d2.locks import FolderInUseError
from freecp_d2.stopping import Stop


@pytest.fixture(params=["s3", "memory"])
def url(request: pytest.FixtureRequest) -> str:
    """A new folder."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/out"
    return f"memory:///{uuid.uuid4().hex}/out"


def spied(monkeypatch: pytest.MonkeyPatch, target: object, name: str) -> list[tuple]:
    """The arguments of all calls of a method from now on."""
    calls: list[tuple] = []
    method = getattr(target, name)

    def call(*args, **options):
        calls.append(args)
        return method(*args, **options)

    monkeypatch.setattr(target, name, call)
    return calls


def test_files(url, tmp_path):
    store = open_store(url + "/")
    assert isinstance(store, RemoteStore) and store.url == url
    with pytest.raises(FileNotFoundError, match=f"{url}/labels/a.png"):
        store.read("labels/a.png")
    assert not store.exists("labels/a.png")
    store.write("labels/a.png", b"one")
    store.write("labels/a.png", b"two")
    (tmp_path / "file").write_bytes(b"three")
    store.upload("labels/b/c.png", tmp_path / "file")
    for other in (store, RemoteStore(url), pickle.loads(pickle.dumps(store))):
        assert other.exists("labels/a.png") and other.exists("labels/b/c.png")
        assert not other.exists("labels/c.png")
        assert other.read("labels/a.png") == b"two" and other.read("labels/b/c.png") == b"three"
    for _ in range(2):
        store.clear("labels")
        assert not store.exists("labels/b/c.png")


def test_many_questions_are_one_listing(url, monkeypatch):
    monkeypatch.setattr(remote, "ASKED", 5)
    store = RemoteStore(url)
    for number in range(0, 40, 2):
        store.write(f"labels/{number}.png", b"")
    asked = spied(monkeypatch, store.fs, "exists")
    listed = spied(monkeypatch, remote, "_objects_below")
    assert [store.exists(f"labels/{n}.png") for n in range(40)] == [n % 2 == 0 for n in range(40)]
    assert len(listed) == 1 and len(asked) == 5 + 18  # those that are not in the listing
    store.write("labels/1.png", b"")
    assert store.exists("labels/1.png") and not store.exists("scores/0.png")


def test_journals(url):
    store = RemoteStore(url)
    records = {name: [{"id": f"{name}{n}"} for n in range(9)] for name in ("a", "b")}
    assert store.journals("manifest") == [] and store.written("manifest") == 0
    for name, content in records.items():
        for part in (content[:4], content[4:]):
            journal = store.journal(f"manifest/{name}.jsonl")
            for number, record in enumerate(part):
                journal.add(record)
                if number == 1:
                    journal.sync()
            journal.close()
    store = RemoteStore(url)
    assert store.journals("manifest") == ["manifest/a.jsonl", "manifest/b.jsonl"]
    for name, content in records.items():
        assert list(store.records(f"manifest/{name}.jsonl")) == content
    assert store.written("manifest") == 18


def test_a_kill_loses_the_chunk_at_hand(url, monkeypatch):
    monkeypatch.setattr(remote, "CHUNK_RECORDS", 4)
    store = RemoteStore(url)
    journal = store.journal("manifest/a.jsonl")
    for number in range(10):
        journal.add({"id": number})
    assert [r["id"] for r in store.records("manifest/a.jsonl")] == list(range(8))
    monkeypatch.setattr(remote, "CHUNK_SECONDS", 0)
    journal.add({"id": 10})  # the chunk is old
    assert [r["id"] for r in store.records("manifest/a.jsonl")] == list(range(11))


def test_two_writers_of_a_journal(url):
    store = RemoteStore(url)
    journals = [store.journal("manifest/a.jsonl") for _ in range(2)]
    for journal in journals:
        journal.add({"id": 1})
    journals[0].sync()
    with pytest.raises(FileExistsError, match="manifest/a.jsonl"):
        journals[1].sync()


def test_damaged_lines(url, caplog):
    store = RemoteStore(url)
    journal = store.journal("manifest/a.jsonl")
    for number in range(3):
        journal.add({"id": number})
    journal.close()
    (chunk,) = store.fs.ls(f"{store.root}/manifest/a.jsonl", detail=False)
    content = store.fs.cat_file(chunk)
    store.fs.pipe_file(chunk, content.replace(b'"id": 1', b'"id": 7')[:-9])
    assert [r["id"] for r in store.records("manifest/a.jsonl")] == [0]
    assert f"{url}/manifest/a.jsonl: 2 of its lines are damaged" in caplog.text


def test_lock(url):
    store, other = RemoteStore(url), RemoteStore(url)
    with store.locked("freecp label"):
        with pytest.raises(FolderInUseError) as error, other.locked("freecp label"):
            pass
        assert f"{url}: in use by freecp label, process {os.getpid()} on " in str(error.value)
        assert store.exists(".lock")
    assert not store.exists(".lock")
    with other.locked("freecp label"):
        pass


def test_lock_is_renewed(url, monkeypatch):
    monkeypatch.setattr(remote, "BEAT_SECONDS", 0.02)
    store = RemoteStore(url)
    with store.locked("freecp label"):
        first = json.loads(store.read(".lock"))["time"]
        deadline = time.monotonic() + 20
        while json.loads(store.read(".lock"))["time"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads(store.read(".lock"))["time"] > first


@pytest.mark.parametrize(
    ("host", "age", "free"),
    [("elsewhere", 0, False), ("elsewhere", 1000, True), (None, 0, True)],
)
def test_lock_of_a_killed_run(url, host, age, free):
    """Of a process of this machine that ended, of one elsewhere that is silent, and of another."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = {"what": "freecp label", "process": ended.pid, "since": "2026", "token": "theirs"}
    host = host or os.uname().nodename
    store = RemoteStore(url)
    store.write(".lock", json.dumps(holder | {"host": host, "time": time.time() - age}).encode())
    if free:
        with store.locked("freecp label"):
            assert json.loads(store.read(".lock"))["process"] == os.getpid()
    else:
        with pytest.raises(FolderInUseError, match=f"process {ended.pid} on elsewhere"):
            with store.locked("freecp label"):
                pass
        assert json.loads(store.read(".lock"))["token"] == "theirs"


def test_a_lock_that_was_lost_is_left(url):
    store = RemoteStore(url)
    with store.locked("freecp label"):
        theirs = json.loads(store.read(".lock")) | {"token": "theirs"}
        store.write(".lock", json.dumps(theirs).encode())
    assert json.loads(store.read(".lock")) == theirs


NAMES = [
    *("a.jpg", "b.jpg", "b/c.png", "b/d.txt", "b/h/i.JPG", "é ü.jpg", "x1.jpg", "x[1].jpg"),
    *("b/.e.jpg", ".f/g.jpg", "out/labels/l.png"),
]


@pytest.fixture
def tree(url: str, tmp_path: Path) -> tuple[Path, str]:
    """The same files in a folder of this machine and in the store."""
    fs, root = fsspec.url_to_fs(url)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2, 3), len(name), np.uint8)).save(tmp_path / name, "PNG")
        fs.pipe_file(f"{root}/{name}", (tmp_path / name).read_bytes())
    return tmp_path, url


def test_images_of_a_store_are_those_of_a_folder(tree, monkeypatch):
    folder, url = tree
    fs, _ = fsspec.url_to_fs(url, use_listings_cache=False)
    if hasattr(fs, "call_s3"):  # several pages
        method = fs.call_s3
        monkeypatch.setattr(fs, "call_s3", lambda *args, **o: method(*args, MaxKeys=2, **o))
    here = {item.id: item for item in read_items(folder, folder / "out")}
    there = {item.id: item for item in read_items(url, f"{url}/out")}
    assert here.keys() == there.keys() and len(here) == 7
    assert [item.id for item in read_items(f"{url}/b", url)] == ["c", "h/i"]
    for id, item in there.items():
        assert item.file_name.startswith(url) and item.stamp
        assert read_input(item.file_name) == read_input(here[id].file_name)


def test_patterns(tree):
    _, url = tree
    assert [e.file_name for e in entries_below(f"{url}/b/**/*.JPG", "")] == [f"{url}/b/h/i.JPG"]
    names = sorted(e.file_name for e in entries_below(f"{url}/*.jpg", ""))
    assert names == [f"{url}/{n}.jpg" for n in ("a", "b", "x1", "x[1]", "é ü")]


def test_stamps(url):
    store = RemoteStore(url)
    stamps = []
    for content in (b"one", b"one", b"two"):
        store.write("a.jpg", content)
        (entry,) = entries_below(url, "")
        stamps.append(entry.stamp)
    assert stamps[1] != stamps[2]
    if url.startswith("s3"):
        assert stamps[0] == stamps[1]  # the same bytes


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s3://no-such-bucket/out", "s3://no-such-bucket/out/a: The specified bucket does not"),
        ("nosuch://bucket/out", "nosuch://bucket/out: Protocol not known: nosuch"),
        ("file:///tmp/out", "file:///tmp/out: a folder of this machine; name it by its path"),
    ],
)
def test_wrong_urls(s3, url, sentence):
    with pytest.raises((OSError, ValueError)) as error:
        open_store(url).write("a", b"")
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    "error", [RuntimeError("403, message='Forbidden'"), ImportError("no s3fs")]
)
def test_an_image_that_a_store_refuses_is_the_images_fault(monkeypatch, tmp_path, segment, error):
    """Not all file systems raise an OSError: HTTP's and Google's have their own."""

    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(fsspec, "url_to_fs", refuse)
    labeller = Labeller(segment, LocalStore(tmp_path), "settings", Outputs())
    loaded = labeller.read(Item("a", "https://photos/a.jpg"))
    assert loaded.error == f"https://photos/a.jpg: {error}"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"^gs://bucket/out: .*gcsfs"):
        open_store("gs://bucket/out")


def test_no_server(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    cache = fsspec.get_filesystem_class("s3")._cache
    monkeypatch.setattr(fsspec.get_filesystem_class("s3"), "_cache", {})
    with pytest.raises(OSError, match="^s3://bucket/out/a: .*127.0.0.1:9"):
        RemoteStore("s3://bucket/out").read("a")
    assert cache


def test_requests_an_image(s3, tmp_path, write_images, segment, monkeypatch):
    """As docs/labelling_at_scale.md has them."""
    write_images(tmp_path, 40)
    fs, bucket = fsspec.url_to_fs(s3, use_listings_cache=False)
    for file in tmp_path.iterdir():
        fs.pipe_file(f"{bucket}/photos/{file.name}", file.read_bytes())
    requests: Counter[str] = Counter()
    method = type(fs)._call_s3

    async def call(self, name, *args, **options):
        requests[name] += 1
        return await method(self, name, *args, **options)

    monkeypatch.setattr(type(fs), "_call_s3", call)
    listed = spied(monkeypatch, remote, "_objects_below")
    monkeypatch.setattr(remote, "ASKED", 10)
    monkeypatch.setattr(remote, "CHUNK_RECORDS", 8)

    def run() -> Counter[str]:
        requests.clear()
        listed.clear()
        store = RemoteStore(f"{s3}/out")
        labeller = Labeller(segment, store, "settings", Outputs())
        index = Index(all_records(store))
        items = read_items(f"{s3}/photos", store.url)
        with closing(store.journal(journal_of(0, 1))) as journal:
            work(labeller, waiting(labeller, items, index, 0, 1), journal, Stop())
        return requests + Counter(listings=len(listed))

    # Images are listed twice; journals for the index, to append, and each that is read.
    assert run() == {"get_object": 40, "put_object": 40 + 40 / 8, "listings": 2 + 2}
    # One listing of all labels in place of a question each.
    assert run() == {"get_object": 40 / 8, "head_object": 10, "listings": 2 + 3 + 1}
