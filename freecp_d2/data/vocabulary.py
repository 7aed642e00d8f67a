"""Which classes are asked for, and by which names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Class names in words.

    Attributes:
        classes: one tuple of names a class; the position is the contiguous id, or one less than it
            where a background is scored. The first name is the class's own.
        background: names of what is background. With any, the background is scored: it is the
            first channel of the output, in front of the classes.
    """

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] = ()
