"""Words of everyday things, to ask CLIP about beside the classes that are wanted.

COCO-Stuff's and ADE20K's are the first names of this package's curated vocabularies. LVIS' are
those of detectron2/data/datasets/lvis_v1_categories.py (Detectron2, Apache License 2.0), read from
the installed detectron2: nothing of LVIS is shipped here.
"""

from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

from .benchmarks.catalog import vocabulary_of
from .benchmarks.layout import BENCHMARKS
from .vocabulary import in_words, normalized_name

SOURCES: tuple[str, ...] = ("coco_stuff", "ade20k", "lvis")
"""What :func:`lexicon` knows."""


def lexicon(*sources: str) -> tuple[str, ...]:
    """The words of the sources, each once, in the order of the sources and of their classes.

    Names that :func:`normalized_name` takes for one ("hot-dog", "hot dog") are one word, as the
    first source writes it. What LVIS says in brackets to tell "bow (weapon)" from another bow is
    left out, so that its 1203 categories are 1198 words.

    Args:
        sources: of :data:`SOURCES`; none: all of them.

    Raises:
        ValueError: a source that is none.
    """
    words: dict[str, str] = {}
    for source in sources or SOURCES:
        for name in _names(source):
            words.setdefault(normalized_name(name), in_words(name))
    return tuple(words.values())


def _names(source: str) -> list[str]:
    if source == "lvis":
        return [str(category["name"]).split("(")[0] for category in LVIS_CATEGORIES]
    if source not in SOURCES:
        raise ValueError(f"there is no lexicon {source!r}; choose from {', '.join(SOURCES)}")
    name = "coco_stuff164k" if source == "coco_stuff" else source
    return [names[0] for names in vocabulary_of(BENCHMARKS[name], "curated").classes]
