"""Label maps as COCO's JSON of segments, written while the evaluation runs."""

import json
from pathlib import Path
from typing import TextIO

import numpy as np

from ..coco import encode_mask
from ..files import whole_file


class CocoWriter:
    """Predictions in COCO's format; each rank writes to a part of its own, which are then joined.

    Args:
        path: the JSON file to be written. All ranks must see its folder.
        job: the same on all ranks, and another of any other job that writes there.
        rank: of this process.
        category_ids: class id -> the data set's category id.
    """

    def __init__(self, path: Path, job: str, rank: int, category_ids: dict[int, int]):
        self.path = path
        self.job = job
        self.category_ids = category_ids
        self._file: TextIO = self._part(rank).open("w", encoding="utf-8")

    def add(self, image: dict, labels: np.ndarray) -> None:
        """Write a label map (H, W).

        Args:
            image: Detectron2's dict; `file_name`, and `image_id` where there is one, are kept.
        """
        keys = {key: image[key] for key in ("image_id", "file_name") if key in image}
        for label in np.unique(labels).tolist():
            rle = encode_mask(labels == label)
            segment = {**keys, "category_id": self.category_ids[label], "segmentation": rle}
            self._file.write(json.dumps(segment) + "\n")

    def close(self) -> None:
        """Finish this rank's part."""
        self._file.close()

    def join(self, ranks: int) -> None:
        """Join the parts of all ranks, in the order of the ranks, to one JSON list.

        Raises:
            FileNotFoundError: the part of a rank is not there.
        """
        parts = [self._part(rank) for rank in range(ranks)]
        with whole_file(self.path) as whole, whole.open("w", encoding="utf-8") as file:
            separator = "["
            for part in parts:
                if not part.exists():
                    raise FileNotFoundError(
                        f"{part} is not there; COCO predictions need an OUTPUT_DIR that all "
                        "machines share"
                    )
                with part.open(encoding="utf-8") as lines:
                    for line in lines:
                        file.write(f"{separator}\n{line.rstrip()}")
                        separator = ","
            file.write("[]\n" if separator == "[" else "\n]\n")
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.{self.job}.{rank}.part")
