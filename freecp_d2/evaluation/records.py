"""What an evaluation keeps of each image on disk, so that it goes on after whatever ended it.

All counts are integers, and figures are sums over images: it does not matter which rank, or which
of several runs, an image was evaluated in.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_whole
from ..index import Index
from ..journal import Journal, read_journal

RECORDS = "records"
"""The folder, in that of the results, with a journal a rank."""
SETTINGS = "settings.json"
"""In that folder: what the records depend on."""


def image_record(
    file: str,
    confusion: np.ndarray,
    ignored: int,
    kept: Mapping[str, np.ndarray],
    losses: Iterable[tuple[int, int]],
) -> dict[str, Any]:
    """An image as JSON has it, but for `seconds`: stage of the model -> time.

    Args:
        file: the image's.
        confusion: (K, K), see :func:`.metrics.confusion_matrix`; cells of 0 are left out.
        ignored: how many pixels do not count.
        kept: stage -> (C,) bool, the classes that stayed after it; C is K, or K - 1 where a
            background is scored.
        losses: (loser, winner) class ids of the ambiguity stage; each pair counts once.
    """
    rows, columns = confusion.nonzero()
    cells = [rows.tolist(), columns.tolist(), confusion[rows, columns].tolist()]
    record: dict[str, Any] = {"file_name": file, "confusion": cells, "ignored": ignored}
    if kept:
        record["kept"] = {stage: flags.nonzero()[0].tolist() for stage, flags in kept.items()}
        record["purifiable"] = len(next(iter(kept.values())))
        record["losses"] = sorted([a, b] for a, b in {*losses} if a != b)
    return record


def confusion_of(record: Mapping[str, Any], num_classes: int) -> np.ndarray:
    """(K, K) int64 of an :func:`image_record`."""
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    rows, columns, counts = record["confusion"]
    confusion[rows, columns] = counts
    return confusion


class Records:
    """The records of an evaluation in a folder that all ranks see, a journal a rank.

    Args:
        folder: it is made by :meth:`begin`.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Forget all records.

        Raises:
            OSError: they cannot be removed, or `settings` cannot be written.
        """
        (self.folder / SETTINGS).unlink(missing_ok=True)  # first: what is left has none
        if self.folder.exists():
            shutil.rmtree(self.folder)
        write_whole(self.folder / SETTINGS, json.dumps(settings, indent=1).encode())

    def settings(self) -> dict[str, Any] | None:
        """What the records depend on; None where there are none."""
        try:
            return json.loads((self.folder / SETTINGS).read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            return {}

    def journal(self, rank: int) -> Journal:
        """A rank's, open for appending."""
        return Journal(self.folder / f"{rank:04d}.jsonl")

    def evaluated(self) -> Iterator[dict[str, Any]]:
        """Of each image that was evaluated one record."""
        seen: set[str] = set()
        for path in sorted(self.folder.glob("*.jsonl")):
            for record in read_journal(path):
                if "error" not in record and record["file_name"] not in seen:
                    seen.add(record["file_name"])
                    yield record

    def in_order(self, files: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Those of `files` in their order, one in memory at a time."""
        places = {file: place for place, file in enumerate(files)}
        yield from Index(
            record | {"id": f"{places[record['file_name']]:012d}", "time": 0.0}
            for record in self.evaluated()
            if record["file_name"] in places
        )
