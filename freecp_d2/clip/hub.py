"""Files of the Hugging Face hub: which are on this machine, and whether the hub answers."""

import os
from collections.abc import Iterable
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from huggingface_hub import get_hf_file_metadata, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

PATIENCE: float = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", 3))
"""Seconds that the hub has for an answer; huggingface_hub's own environment variable."""


def cached_file(repository: str, names: Iterable[str]) -> Path | None:
    """The first of these files that was downloaded before, without a look at the network."""
    for name in names:
        path = try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path)
    return None


def why_unreachable(url: str) -> str | None:
    """In words, why nothing answers at the URL of a file of the hub; None where something does.

    huggingface_hub itself waits and tries six times before it says so, for each file anew.
    """
    answers: SimpleQueue[str | None] = SimpleQueue()

    def ask() -> None:
        try:
            get_hf_file_metadata(url, timeout=PATIENCE)
        except HfHubHTTPError:  # an answer, too
            answers.put(None)
        except Exception as error:  # of whichever HTTP library huggingface_hub uses
            answers.put(str(error).split("\n")[0] or type(error).__name__)
        else:
            answers.put(None)

    # A thread, since no timeout ends a name server's silence, nor adds up over several addresses.
    Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=PATIENCE)
    except Empty:
        return f"no answer within {PATIENCE:g} seconds"
