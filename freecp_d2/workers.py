"""Processes that work for another."""

import multiprocessing
import os
import signal
import threading


def begin_worker() -> None:
    """The first that a process of multiprocessing does: it ends with its parent, however that ends.

    Ctrl-C, which a terminal sends to all of its processes, is left to the parent.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()
