"""A worker's share: read ahead, written behind, stopped anywhere."""

import signal
from contextlib import closing

import pytest

from freecp_d2.index import Index
from freecp_d2.labelling import read_items, shard_of
from freecp_d2.labelling.merge import all_records
from freecp_d2.labelling.worker import AHEAD, journal_of, waiting, work
from freecp_d2.stopping import Stop


@pytest.fixture
def run(photos, labeller, store):
    """Label the images of a worker; the ids that are done."""

    def run(worker=0, workers=1, stop=None, done=lambda: None) -> list[str]:
        index = Index(all_records(store))
        images = waiting(labeller, read_items(photos), index, worker, workers)
        with closing(store.journal(journal_of(worker, workers))) as journal:
            work(labeller, images, journal, stop or Stop(), done)
        return [record["id"] for record in all_records(store) if "error" not in record]

    return run


IDS = [f"{i:03d}" for i in range(12)]


def test_records_are_in_the_order_of_the_input(run, store):
    assert run() == IDS
    assert store.journals("manifest") == ["manifest/0000-of-0001.jsonl"]
    for id in IDS:
        assert store.exists(f"labels/{id}.png")


def test_workers_share_the_images(run):
    for worker in range(3):
        run(worker, 3)
    done = run(0, 1)  # as one it has nothing left
    assert sorted(done) == IDS
    assert done != IDS  # each worker's journal has its own
    firsts = [id for id in IDS if shard_of(id, 3) == 0]
    assert done[: len(firsts)] == firsts


def test_a_stop_finishes_what_is_at_hand_and_the_rest_follows(run, store):
    stop = Stop()
    count = 0

    def after_the_third() -> None:
        nonlocal count
        count += 1
        if count == 3:
            stop.signal = signal.SIGTERM

    done = run(stop=stop, done=after_the_third)
    assert 3 <= len(done) <= 3 + 1 + AHEAD and done == IDS[: len(done)]
    assert run() == IDS  # and no image has two records


def test_what_cannot_be_written_ends_the_run(run, store, monkeypatch):
    write = store.write

    def full(name, content):
        if name == "labels/004.png":
            raise OSError(28, "No space left on device", name)
        write(name, content)

    monkeypatch.setattr(store, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run()
    done = [record["id"] for record in all_records(store)]
    assert "004" not in done and IDS[:4] == done[:4]
    monkeypatch.undo()
    assert sorted(run()) == IDS


def test_failures_are_tried_again(photos, run, labeller, store):
    image = (photos / "005.png").read_bytes()
    (photos / "005.png").write_bytes(b"no")
    assert run() == [id for id in IDS if id != "005"]
    (photos / "005.png").write_bytes(image)
    assert run() == [*(id for id in IDS if id != "005"), "005"]


def test_a_changed_image_is_done_again_and_a_lost_label_too(photos, run, store):
    run()
    (photos / "002.png").write_bytes((photos / "003.png").read_bytes())
    (store.folder / "labels" / "007.png").unlink()
    assert run() == [*IDS, "002", "007"]
    assert store.read("labels/002.png") == store.read("labels/003.png")
    assert run() == [*IDS, "002", "007"]


def test_a_thousand_images_of_which_one_in_twenty_is_broken(photos, run, write_images, store):
    write_images(photos, 1000, broken=20)
    stop = Stop()
    count = 0

    def in_the_middle() -> None:
        nonlocal count
        count += 1
        if count == 300:
            stop.signal = signal.SIGINT

    assert 250 < len(run(0, 2, stop=stop, done=in_the_middle)) < 350
    run(1, 2)
    done = run(0, 2)
    expected = [f"{i:03d}" for i in range(1000) if i % 20 != 19]
    assert sorted(done) == expected and len({*done}) == len(done)
    errors = {record["id"] for record in all_records(store) if "error" in record}
    assert errors == {f"{i:03d}" for i in range(1000)} - {*expected}
    labels = {file.stem for file in (store.folder / "labels").iterdir()}
    assert labels == {*expected}
