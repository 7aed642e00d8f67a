"""Which images a run labels, and by which ids."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2.labelling import read_items, shard_of


def touch(folder: Path, *names: str) -> None:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())


def ids(source, output="") -> list[str]:
    return [item.id for item in read_items(source, output)]


def test_a_folder(tmp_path):
    touch(tmp_path, "b.jpg", "a/2.PNG", "a/1.jpg", "notes.txt", ".hidden.jpg", ".git/x.png")
    touch(tmp_path, "out/labels/b.png")
    items = list(read_items(tmp_path, tmp_path / "out"))
    assert [item.id for item in items] == ["a/1", "a/2", "b"]
    assert [item.file_name for item in items] == [
        str(tmp_path / name) for name in ("a/1.jpg", "a/2.PNG", "b.jpg")
    ]
    status = (tmp_path / "b.jpg").stat()
    assert items[2].stamp == f"{status.st_size}-{status.st_mtime_ns}"


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    touch(tmp_path, "in/a.jpg", "in/b/c.jpg")
    monkeypatch.chdir(tmp_path)
    items = list(read_items("in"))
    assert [(i.id, i.file_name) for i in items] == [
        ("a", str(tmp_path / "in/a.jpg")),
        ("b/c", str(tmp_path / "in/b/c.jpg")),
    ]


def test_one_folder_below_is_no_part_of_ids(tmp_path):
    touch(tmp_path, "x/y/1.jpg", "x/y/2.jpg")
    assert ids(tmp_path) == ["1", "2"]


def test_names_that_differ_in_their_suffix_keep_it(tmp_path):
    touch(tmp_path, "a.jpg", "a.png", "b.jpg", "c/a.jpg")
    assert ids(tmp_path) == ["a_jpg", "a_png", "b", "c/a"]
    touch(tmp_path, "a_png.jpg")
    found = ids(tmp_path)
    assert len({*found}) == 5 and "a_png" in found  # of a_png.jpg


def test_a_pattern(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/2.png", "b/3.jpg", "b/c/4.jpg", "b/5.txt")
    assert ids(f"{tmp_path}/**/*.jpg") == ["a/1", "b/3", "b/c/4"]
    assert ids(f"{tmp_path}/b/*") == ["3"]
    assert ids(f"{tmp_path}/**/*.jpg", tmp_path / "b/c") == ["a/1", "b/3"]  # the output, again


def test_an_input_in_the_folder_of_the_output(tmp_path):
    touch(tmp_path, "photos/1.jpg", "photos/2.jpg", "labels/photos/1.png", "scores/1.png")
    for source in ("", "photos", "photos/*.jpg", "**/*.*g"):
        assert ids(f"{tmp_path}/{source}", tmp_path) == ["1", "2"]


def test_a_list(tmp_path):
    touch(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "list.txt").write_text(f"a/1.jpg\n\n{tmp_path}/b/2.jpg\r\na/1.jpg\n")
    items = list(read_items(tmp_path / "list.txt"))
    assert [item.id for item in items] == ["a/1", "b/2"]  # one is listed twice
    assert items[0].file_name == f"{tmp_path}/a/1.jpg"


def test_a_list_of_windows_and_of_paths_upwards(tmp_path):
    touch(tmp_path, "lists/1.jpg", "photos/2.jpg")
    (tmp_path / "lists/list.txt").write_text("1.jpg\n../photos/2.jpg\n", encoding="utf-8-sig")
    items = list(read_items(tmp_path / "lists/list.txt"))
    assert [item.id for item in items] == ["lists/1", "photos/2"]
    assert items[1].file_name == f"{tmp_path}/photos/2.jpg"


def test_a_list_of_objects(tmp_path):
    lines = [
        {"file_name": "x/1.jpg", "id": "train/one", "image_id": 7},
        {"file_name": "s3://bucket/2.jpg", "id": "train/two.v2", "image_id": 9},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items = list(read_items(str(tmp_path / "list.jsonl")))
    assert [(i.id, i.file_name, i.image_id) for i in items] == [
        ("train/one", f"{tmp_path}/x/1.jpg", 7),
        ("train/two.v2", "s3://bucket/2.jpg", 9),
    ]


def test_detectron2s_dicts(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg")
    records = [
        {"file_name": str(tmp_path / f"{i}.jpg"), "image_id": i, "height": 3} for i in (2, 1)
    ]
    assert [(i.id, i.image_id) for i in read_items(records)] == [("2", 2), ("1", 1)]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["{"], "line 1: not an object"),
        (["[" * 100_000], "line 1: not an object"),
        (['{"file_name": 3}'], "line 1: not an object"),
        (['{"file_name": "a.jpg", "id": "../a"}'], "line 1: id '../a' names no output"),
        (['{"file_name": "a.jpg", "id": "/a"}'], "names no output"),
        (['{"file_name": "a.jpg", "id": ""}'], "names no output"),
        (['{"file_name": "a.jpg", "id": 3}'], "names no output"),
        (['{"file_name": "a.jpg", "image_id": []}'], "image_id is []"),
        (
            ['{"file_name": "a.jpg", "id": "x"}', '{"file_name": "b.jpg"}'],
            "line 2: id and image_id",
        ),
        (
            ['{"file_name": "a.jpg", "id": "x"}', '{"file_name": "b.jpg", "id": "x"}'],
            "another image has its id",
        ),
        ([""], "no images"),
    ],
)
def test_what_is_no_list(tmp_path, lines, sentence):
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError) as error:
        list(read_items(tmp_path / "list.jsonl"))
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["nowhere", "nowhere.txt", "photo.jpg", ""])
def test_what_is_not_there(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "photo.jpg")
    with pytest.raises((FileNotFoundError, ValueError), match="--input"):
        list(read_items(source))


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        list(read_items(tmp_path))


NAMES = st.text("ab_.", min_size=1, max_size=3).filter(lambda name: not name.startswith("."))


@settings(max_examples=60, deadline=None)
@given(
    st.sets(
        st.tuples(st.lists(NAMES, max_size=2), NAMES, st.sampled_from(["jpg", "png"])).map(
            lambda t: "/".join([*t[0], f"{t[1]}.{t[2]}"])
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_image_has_an_id_of_its_own(names):
    records = [{"file_name": f"/data/{name}"} for name in sorted(names)]
    items = list(read_items(records))
    assert [item.file_name for item in items] == [record["file_name"] for record in records]
    assert len({item.id for item in items}) == len(records)
    assert all(os.path.normpath(item.id) == item.id and item.id[0] != "/" for item in items)


def test_shards_are_a_function_of_id_and_count_alone():
    names = [f"train/{i:06d}" for i in range(6000)]
    assert [shard_of(name, 7) for name in ("a", "train/000001", "é\udcff")] == [2, 3, 3]
    for count in (1, 2, 3, 16):
        sizes = Counter(shard_of(name, count) for name in names)
        assert {*sizes} == {*range(count)}
        assert max(sizes.values()) - min(sizes.values()) < 6 * (6000 / count) ** 0.5
