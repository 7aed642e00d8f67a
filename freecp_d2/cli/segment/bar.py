"""The bar of a run: images or frames, and the windows of the one at hand."""

from collections.abc import Callable

from tqdm import tqdm

MANY_WINDOWS = 32
"""An image of more says how far it is; others take no longer than a glance."""


def windows_on(bar: tqdm) -> Callable[[int, int], None]:
    """What shows on a bar how many windows of an image are encoded."""

    def show(done: int, total: int) -> None:
        if total > MANY_WINDOWS:
            bar.set_postfix_str(f"{done} of {total} windows" if done < total else "")

    return show
