"""Which classes are asked for, and by which names."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.data.catalog import Metadata

PACKAGED: str = "freecp_d2://"
"""A path that begins so is one of this package's files, under freecp_d2/data."""


@dataclass(frozen=True)
class Vocabulary:
    """Class names in words.

    Attributes:
        classes: one tuple of names a class; the position is the contiguous id, or one less than it
            where a background is scored. The first name is the class's own.
        background: names of what is background. With any, the background is scored: it is the
            first channel of the output, in front of the classes. A class's name may be among them,
            as "bed" is on COCO-Object (METHOD.md step 0).

    Raises:
        ValueError: no class, a class without names, an empty name, or a name that two classes or
            one class or the background have twice.
    """

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_classes((f"class {i}", names) for i, names in enumerate(self.classes))
        _check_background(self.background)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "Vocabulary":
        """One class a name, without background.

        Raises:
            ValueError: as the class.
        """
        return cls(tuple((name,) for name in names))

    @property
    def queries(self) -> tuple[str, ...]:
        """The background's names, then every name of every class."""
        return self.background + tuple(name for names in self.classes for name in names)

    @property
    def num_background(self) -> int:
        """How many of the queries are background."""
        return len(self.background)

    @property
    def query_class(self) -> tuple[int, ...]:
        """The class of each query that is not background."""
        return tuple(index for index, names in enumerate(self.classes) for _ in names)


def load_vocabulary(path: str | Path) -> Vocabulary:
    """The vocabulary of a file (MODEL.FREECP.VOCABULARY), UTF-8.

    `path` may begin with :data:`PACKAGED`: "freecp_d2://benchmarks/curated/voc20.json".

    `.json`: a list whose entries are a name or a list of names, one a class; or such a list as
    "classes" and a list of names as "background" of an object. Any other suffix: one class a line,
    its names separated by commas; blank lines do not count.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is malformed or holds no valid vocabulary; the line or entry is named.
    """
    path = _local(path)
    text = _read(path, "MODEL.FREECP.VOCABULARY")
    try:
        return _of_json(_parse_json(text)) if path.suffix == ".json" else _of_lines(text)
    except ValueError as error:
        raise ValueError(f"vocabulary {path}: {error}") from None


def load_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Class -> sentences about it, of a JSON file (MODEL.FREECP.DESCRIPTIONS), UTF-8.

    An entry's value is a list of sentences, or a string: the name of another entry, whose very
    list it then gets. `path` may begin with :data:`PACKAGED`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON object of such entries, two of its names differ in nothing that
            :func:`normalized_name` keeps, or a string names no entry that has sentences; the class
            is named.
    """
    path = _local(path)
    text = _read(path, "MODEL.FREECP.DESCRIPTIONS")
    try:
        return _descriptions_of_json(_parse_json(text))
    except ValueError as error:
        raise ValueError(f"descriptions {path}: {error}") from None


@lru_cache(maxsize=4096)
def normalized_name(name: str) -> str:
    """`name` in lower case, its letters and digits only: "Traffic-light" is "trafficlight"."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def describe(descriptions: Mapping[str, Sequence[str]], name: str) -> Sequence[str] | None:
    """The sentences about `name`: of the entry called exactly so, or else normalised alike.

    Args:
        descriptions: as :func:`load_descriptions` gives them.

    Returns:
        None where there are none.
    """
    if descriptions.get(name):
        return descriptions[name]
    wanted = normalized_name(name)
    for other, sentences in descriptions.items():
        if sentences and normalized_name(other) == wanted:
            return sentences
    return None


def dataset_vocabulary(metadata: Metadata) -> Vocabulary:
    """The vocabulary of a data set in Detectron2's MetadataCatalog.

    `metadata.vocabulary`, a :class:`Vocabulary` or what :func:`load_vocabulary` takes from JSON;
    without it the `stuff_classes`, one name each.

    Raises:
        ValueError: neither is there, or it is no valid vocabulary; the data set is named.
    """
    vocabulary = metadata.get("vocabulary", metadata.get("stuff_classes"))
    if vocabulary is None:
        raise ValueError(
            f"data set {metadata.name!r} has no stuff_classes and no vocabulary in its metadata; "
            "register it with them, or set MODEL.FREECP.VOCABULARY"
        )
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    try:
        return _of_json(vocabulary)
    except ValueError as error:
        raise ValueError(f"data set {metadata.name!r}: {error}") from None


def _local(path: str | Path) -> Path:
    name = str(path)
    if name.startswith(PACKAGED):
        return Path(__file__).parent / name.removeprefix(PACKAGED)
    return Path(path)


def _descriptions_of_json(content: Any) -> dict[str, list[str]]:
    if not isinstance(content, dict) or not content:
        raise ValueError("it must be an object, class -> list of sentences, of one class or more")
    seen: dict[str, str] = {}
    for name, entry in content.items():
        other = seen.setdefault(normalized_name(name), name)
        if other != name:
            raise ValueError(f"{name!r} and {other!r} are the same name; keep one of them")
        if isinstance(entry, str):
            if not isinstance(content.get(entry), list):
                raise ValueError(
                    f"{name!r} refers to {entry!r}, which has no sentences of its own; name an "
                    "entry that has a list"
                )
        elif not isinstance(entry, list) or not entry:
            raise ValueError(
                f"{name!r} must have a list of one sentence or more, or another entry's name"
            )
        elif not all(isinstance(s, str) and s.strip() for s in entry):
            raise ValueError(f"{name!r} has a sentence that is empty or no text; remove it")
    return {
        name: content[entry] if isinstance(entry, str) else entry for name, entry in content.items()
    }


def _of_lines(text: str) -> Vocabulary:
    entries = [
        (f"line {number}", tuple(name.strip() for name in line.split(",")))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    _check_classes(entries)
    return Vocabulary(tuple(names for _, names in entries))


def _of_json(content: Any) -> Vocabulary:
    background: Any = []
    if isinstance(content, dict):
        unknown = content.keys() - {"classes", "background"}
        if "classes" not in content or unknown:
            raise ValueError(
                'an object must have the key "classes" and may have "background", no other; '
                f"it has {', '.join(map(repr, content)) or 'none'}"
            )
        content, background = content["classes"], content.get("background", [])
    if not isinstance(content, list | tuple):
        raise ValueError("the classes must be a list, of a name or a list of names each")
    entries = []
    for index, entry in enumerate(content):
        where = f"entry {index}"
        entries.append((where, _names(where, [entry] if isinstance(entry, str) else entry)))
    _check_classes(entries)
    return Vocabulary(tuple(names for _, names in entries), _names("the background", background))


def _names(where: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} must be a list of names, not {names!r}")
    return tuple(name.strip() for name in names)


def _check_classes(entries: Iterable[tuple[str, Sequence[str]]]) -> None:
    """`entries`: where a class is, for messages, and its names."""
    seen: dict[str, str] = {}
    for where, names in entries:
        if not names:
            raise ValueError(f"{where} has no names; give it one")
        for name in names:
            if not name.strip():
                raise ValueError(f"{where} has an empty name; remove it")
            if name in seen:
                raise ValueError(f"{where} has the name {name!r} of {seen[name]}; keep one of them")
            seen[name] = where
    if not seen:
        raise ValueError("the vocabulary is empty; give it a class")


def _check_background(names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if not name.strip():
            raise ValueError("the background has an empty name; remove it")
        if name in names[:index]:
            raise ValueError(f"the background has the name {name!r} twice; keep one of them")


def _read(path: Path, key: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{key}: there is no file {path}; check the path")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is not UTF-8 ({error}); save it as UTF-8") from None


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error}); correct it") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice; keep one of them")
    return keys
