"""Lines that check themselves."""

import errno
import json
import os
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2.journal import Journal, checked_line, checked_record, read_journal

RECORDS = [
    {"id": "a", "n": [1, 2.5, None]},
    {"id": "bé\udcff\n", "crc32": "x"},
    {"id": ', "crc32": "'},
]


def filled(path):
    with Journal(path) as journal:
        for record in RECORDS:
            journal.add(record)
    return path.read_bytes()


def test_what_is_added_is_read_in_its_order(tmp_path):
    path = tmp_path / "folder" / "journal.jsonl"
    filled(path)
    with Journal(path) as journal:
        journal.add({"id": "later"})
    assert list(read_journal(path))[1:] == [
        {"id": "bé\udcff\n"} | {"crc32": "x"},
        RECORDS[2],
        {"id": "later"},
    ]
    assert list(read_journal(path))[0] == RECORDS[0]


def test_a_line_is_json_that_others_read():
    line = checked_line({"id": "a", "seconds": 0.25})
    record = json.loads(line)
    crc = record.pop("crc32")
    assert record == {"id": "a", "seconds": 0.25} and line.endswith("\n")
    text = line[: line.index(', "crc32"')]
    assert crc == f"{zlib.crc32(text.encode()):08x}"


def test_after_a_kill_at_any_byte_whole_lines_are_there_and_others_follow(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    content = filled(path)
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        assert list(read_journal(path)) == RECORDS[:whole]
        with Journal(path) as journal:
            journal.add({"id": "next"})
        assert list(read_journal(path)) == [*RECORDS[:whole], {"id": "next"}]
    assert not caplog.records


def test_every_flipped_bit_costs_its_line_only_and_is_said(tmp_path, caplog):
    path = tmp_path / "journal.jsonl"
    content = filled(path)
    lines = content.splitlines(keepends=True)
    first, last = len(lines[0]), len(lines[0]) + len(lines[1]) - 1  # of line 2, without its newline
    for position in range(first, last):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            caplog.clear()
            found = list(read_journal(path))
            assert found == [RECORDS[0], RECORDS[2]]
            assert f"{path}: " in caplog.text and "line 2" in caplog.text


@settings(max_examples=200)
@given(st.binary())
def test_no_bytes_are_an_error(noise):
    assert checked_record(noise) is None and checked_record(noise + b"\n") is None


@pytest.mark.parametrize("written", [0, 7])
def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch, written):
    write = os.write

    def full(descriptor, line):
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, line[:written])

    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add(RECORDS[0])
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError) as error:
            journal.add(RECORDS[1])
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
        monkeypatch.undo()
        journal.add(RECORDS[2])
    assert list(read_journal(path)) == [RECORDS[0], RECORDS[2]]


def test_a_long_half_line_is_cut(tmp_path):
    path = tmp_path / "journal.jsonl"
    filled(path)
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    Journal(path).close()
    assert path.read_bytes().count(b"x") == filled(tmp_path / "other").count(b"x")


def test_the_end_of_the_block_is_on_the_disk_and_closes_the_file(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.add(RECORDS[0])
        assert not synced
    assert len(synced) == 1
    with pytest.raises(OSError):
        journal.add(RECORDS[1])
