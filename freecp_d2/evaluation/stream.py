"""The stream of images that an adapter learns from, so that an evaluation can go on."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..adapters import Adapter, load_state, save_state

STATE = "adapter.safetensors"
"""Among the records of an evaluation: the adapter's state, and the images that it has seen."""
log = logging.getLogger(__name__)


class Stream:
    """What an adapter has seen in an evaluation; its state lies on disk after every batch.

    Attributes:
        images: files, in the order in which they were seen.

    Args:
        adapter: its state becomes empty.
        path: of the state.
    """

    def __init__(self, adapter: Adapter, path: Path):
        adapter.state = {}
        self.images: list[str] = []
        self._adapter = adapter
        self._path = path

    def resume(self, done: Iterable[str], look_at: Callable[[str], Any]) -> None:
        """Go on after the images that are evaluated.

        Args:
            done: their files, in the order of the data set.
            look_at: segments the image of a file; for the last ones, whose record came to the disk
                and whose state did not.

        Raises:
            OSError, ValueError: as :func:`.load_state`.
        """
        if self._path.exists():
            self.images = load_state(self._adapter, self._path)
        seen = set(self.images)
        missing = [file for file in done if file not in seen]
        if missing:
            log.info("the adapter looks again at %d images of before", len(missing))
        for file in missing:
            look_at(file)
        self.add(missing)

    def add(self, images: Sequence[str]) -> None:
        """Images were segmented and their records written.

        Raises:
            OSError: the state cannot be written.
        """
        if images:
            self.images += images
            save_state(self._adapter, self._path, self.images)

    def facts(self) -> dict[str, Any]:
        """For results.json: `stream`, how many images there were and the SHA-256 of their order."""
        order = hashlib.sha256(json.dumps([Path(file).name for file in self.images]).encode())
        return {"stream": {"images": len(self.images), "order": order.hexdigest()}}
