"""Label any number of images: an idempotent core, and runners for one machine or many.

Every image is labelled by itself, its label map is written whole, and a line of a journal says that
it is done; so that a run may be killed at any moment and started again, by any number of workers.
"""

from .catalog import register_labels
from .core import Labelled, Labeller, Loaded, Outputs
from .items import Item, read_items, shard_of
from .job import Job
from .store import LocalStore, Store, open_store

__all__ = [
    "Item",
    "Job",
    "Labelled",
    "Labeller",
    "Loaded",
    "LocalStore",
    "Outputs",
    "Store",
    "open_store",
    "read_items",
    "register_labels",
    "shard_of",
]
