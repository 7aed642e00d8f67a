"""The latest record of every image, on the disk of this machine rather than in memory."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class Index:
    """Records by their `id`; of several the one with the latest `time`.

    SQLite keeps them in a temporary file that ends with the process, so that memory does not grow
    with their number. One thread at a time.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()):
        self._database = sqlite3.connect("", check_same_thread=False)  # a temporary file
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;"
            "CREATE TABLE records (id BLOB PRIMARY KEY, time REAL, failed INTEGER, record TEXT)"
            " WITHOUT ROWID"
        )
        self._database.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " time = excluded.time, failed = excluded.failed, record = excluded.record"
            " WHERE excluded.time >= records.time",
            (
                (_bytes(record["id"]), record["time"], "error" in record, json.dumps(record))
                for record in records
            ),
        )
        self._database.commit()

    def get(self, id: str) -> dict[str, Any] | None:
        """The record of an image, None where there is none."""
        row = self._database.execute("SELECT record FROM records WHERE id = ?", (_bytes(id),))
        found = row.fetchone()
        return found and json.loads(found[0])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """All records, by id."""
        for (record,) in self._database.execute("SELECT record FROM records ORDER BY id"):
            yield json.loads(record)

    def count(self, failed: bool) -> int:
        """How many records are of an image that could not be labelled, or of one that was."""
        query = "SELECT COUNT(*) FROM records WHERE failed = ?"
        return self._database.execute(query, (failed,)).fetchone()[0]


def _bytes(id: str) -> bytes:
    """In the order of its code points; file names may be no UTF-8."""
    return id.encode(errors="surrogateescape")
