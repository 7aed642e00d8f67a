"""Which classes are asked for, and by which names."""

import ast
import csv
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.data.catalog import Metadata
from ftfy.fixes import fix_surrogates

from ..files import PACKAGED, local_path

_PLACEHOLDER = "invalid_class_id"  # what files with numbers call an id that is no class
_NUMBERED = re.compile(r"(\d+)\s*:\s*(.*)")
_YAML = re.compile(r"---$|%YAML|-(\s|$)|[A-Za-z_][\w .-]*:(\s|$)")
_PATH = re.compile(
    r"(\.\.?|~|[A-Za-z]:|[/\\]\w+)[/\\]\w\w|\w+://|.*\w\.[A-Za-z]\w{1,4}$", re.DOTALL
)
_SEMICOLON = re.compile(r';(?=(?:[^"]*"[^"]*")*[^"]*$)')  # outside quotes
_OTHER_FORMATS = (".py", ".toml", ".xml", ".yaml", ".yml")
_HOW_TO_WRITE = "write one class a line, its names separated by commas, or JSON in a .json file"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """Class names in words.

    Names are shown as they are given; CLIP reads them as :func:`in_words` does.

    Attributes:
        classes: one tuple of names a class; the position is the contiguous id, or one less than it
            where a background is scored. The first name is the class's own.
        background: names of what is background. With any, the background is scored: it is the
            first channel of the output, in front of the classes. A class's name may be among them,
            as "bed" is on COCO-Object (METHOD.md step 0).
        repeats: several classes may have one name, as in the data sets LVIS and ADE20K-847. They
            ask CLIP the same and halve each other's probability; of equal scores the first class
            gets the pixel, so that a class with no other name is never labelled.

    Raises:
        ValueError: no class, a class without names, an empty name (or one of underscores only), a
            name that one class or the background has twice, or two classes without `repeats`, be
            it in another case; or a single name that looks like the path of a file.
    """

    classes: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] = ()
    repeats: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        entries = ((f"class {i}", names) for i, names in enumerate(self.classes, start=1))
        _check_classes(entries, self.repeats)
        _check_background(self.background)
        if len(self.classes) == len(self.classes[0]) == 1 and _PATH.match(self.classes[0][0]):
            raise ValueError(
                f"{self.classes[0][0]!r} looks like the path of a file and not like a class; check "
                "that the file is there, or give a second class"
            )

    @classmethod
    def from_names(cls, names: Iterable[str]) -> "Vocabulary":
        """One class a name, without background.

        Raises:
            ValueError: as the class.
        """
        return cls(tuple((name,) for name in names))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The first name of each channel of the output; "background" first where it is scored."""
        return (*["background"] * bool(self.background), *(names[0] for names in self.classes))

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

    `path` may begin with :data:`freecp_d2.files.PACKAGED`: "freecp_d2://benchmarks/curated/voc20.json".

    `.json`: a list whose entries are a name or a list of names, one a class; or such a list as
    "classes" and a list of names as "background" of an object.

    Any other suffix: one class a line, its names separated by commas; blank lines do not count. A
    name with commas, or one that would be read in another way, stands in quotes:
    "desk, wooden". Files of other projects are read as they mean it, and a warning says how:

    - The first of several lines holds the background's names where its first name is "background",
      or where it has three or more, all of the 26 background names of METHOD.md step 0. Quotes
      around its first name make it a class, and JSON leaves nothing to guess.
    - Where the first line has a number, as in "0:person,child", every line has one; they rise, and
      what counts is their order. "invalid_class_id" is no class. Such files have a name several
      times: in one line it counts once, and several classes may have it (`Vocabulary.repeats`).
    - A single line with semicolons: they separate the classes, "cat, kitten; dog".

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is malformed, holds no valid vocabulary, or is YAML or of another format; the
            line or entry is named, counted from 1.
    """
    path = local_path(path)
    text = _read(path, "MODEL.FREECP.VOCABULARY")
    try:
        if path.suffix.lower() == ".json":
            return vocabulary_of_json(_parse_json(text))
        if path.suffix.lower() in _OTHER_FORMATS:
            raise ValueError(f"files of {path.suffix} are not read; {_HOW_TO_WRITE}")
        vocabulary, how = _of_lines(text)
    except ValueError as error:
        raise ValueError(f"vocabulary {path}: {error}") from None
    if how:
        logger.warning("vocabulary %s: %s", path, "; ".join(how))
    return vocabulary


def load_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Class -> sentences about it, of a file (MODEL.FREECP.DESCRIPTIONS), UTF-8.

    `.json`: an object. An entry's value is a list of sentences, or a string: the name of another
    entry, whose very list it then gets. `.py`: one dict literal of such entries, with or without a
    name, as the published descriptions are; it is parsed and never run. As in Python, the last of
    several entries of one name counts, which a warning says, and names may differ in spaces alone;
    sentences without text are left out. `path` may begin with :data:`freecp_d2.files.PACKAGED`.

    A class with an empty list has no descriptions: it takes its template features, and
    :func:`freecp_d2.clip.text.description_features` warns. The two halves of a surrogate pair,
    which escapes like "\\ud83d" leave, become one character, and a half alone becomes U+FFFD, as
    CLIP's tokenizer has it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no such entries or something else beside them, two names of a JSON file
            differ in nothing that :func:`normalized_name` keeps, or a string names no entry with a
            list; the class or line is named.
    """
    path = local_path(path)
    text = _read(path, "MODEL.FREECP.DESCRIPTIONS")
    try:
        if path.suffix.lower() == ".py":
            return _descriptions_of(_as_written(_parse_literal(text), path), distinct=False)
        return _descriptions_of(_parse_json(text))
    except ValueError as error:
        raise ValueError(f"descriptions {path}: {error}") from None


def read_json(path: str | Path, key: str) -> Any:
    """What a JSON file holds, no object of which has a key twice.

    Args:
        path: UTF-8; it may begin with :data:`freecp_d2.files.PACKAGED`.
        key: of the config, for messages.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such JSON.
    """
    path = local_path(path)
    text = _read(path, key)
    try:
        return _parse_json(text)
    except ValueError as error:
        raise ValueError(f"{key} {path}: {error}") from None


def in_words(name: str) -> str:
    """`name` as CLIP reads it: underscores are spaces, "traffic_light" is "traffic light"."""
    return " ".join(name.replace("_", " ").split())


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
    without it the `stuff_classes`, one name each. `stuff_classes` may have a name several times,
    as LVIS and ADE20K-847 do (`Vocabulary.repeats`); a warning names it.

    Raises:
        ValueError: neither is there, or it is no valid vocabulary; the data set is named.
    """
    vocabulary = metadata.get("vocabulary")
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    repeats = vocabulary is None
    if repeats:
        vocabulary = metadata.get("stuff_classes")
    if vocabulary is None:
        raise ValueError(
            f"data set {metadata.name!r} has no stuff_classes and no vocabulary in its metadata; "
            "register it with them, or set MODEL.FREECP.VOCABULARY"
        )
    try:
        words = vocabulary_of_json(vocabulary, repeats)
    except ValueError as error:
        raise ValueError(f"data set {metadata.name!r}: {error}") from None
    for how in _repeated(words):
        logger.warning("data set %r: %s", metadata.name, how)
    return words


def _as_written(pairs: Sequence[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """The dict that Python would make of these entries, without blank sentences."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = [name for name in entries if names.count(name) > 1]
        logger.warning(
            "descriptions %s: %s more than once; the last entry of each counts", path, _some(twice)
        )
    return {
        name: [s for s in entry if not isinstance(s, str) or s.strip()]
        if isinstance(entry, list | tuple)
        else entry
        for name, entry in entries.items()
    }


def _descriptions_of(content: Any, distinct: bool = True) -> dict[str, list[str]]:
    if not isinstance(content, dict) or not content:
        raise ValueError("it must be an object, class -> list of sentences, of one class or more")
    seen: dict[str, str] = {}
    for name, entry in content.items():
        other = seen.setdefault(normalized_name(name), name)
        if other != name and distinct:
            raise ValueError(f"{name!r} and {other!r} are the same name; keep one of them")
        if isinstance(entry, str):
            if not isinstance(content.get(entry), list | tuple):
                raise ValueError(
                    f"{name!r} refers to {entry!r}, which has no sentences of its own; name an "
                    "entry that has a list"
                )
        elif not isinstance(entry, list | tuple):
            raise ValueError(f"{name!r} must have a list of sentences, or another entry's name")
        elif not all(isinstance(s, str) and s.strip() for s in entry):
            raise ValueError(f"{name!r} has a sentence that is empty or no text; remove it")
    sentences = {
        name: [fix_surrogates(sentence) for sentence in entry]
        for name, entry in content.items()
        if not isinstance(entry, str)
    }
    return {
        fix_surrogates(name): sentences[entry if isinstance(entry, str) else name]
        for name, entry in content.items()
    }


def _of_lines(text: str) -> tuple[Vocabulary, list[str]]:
    """A vocabulary, and how the lines were read where that is no matter of course."""
    lines = [(i, line.strip()) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    _refuse_other_formats(lines)
    how = []
    numbered = bool(lines) and _NUMBERED.match(lines[0][1]) is not None
    if numbered:
        lines = _without_numbers(lines)
        how.append(
            "the numbers before the names are no part of them, they give the order of "
            f"{len(lines)} classes"
        )
    classes = [line.rstrip(";") for _, line in lines]
    where = [f"line {number}" for number, _ in lines]
    if len(lines) == 1 and len(_SEMICOLON.split(classes[0])) > 1:
        classes = [names for names in _SEMICOLON.split(classes[0]) if names.strip()]
        where = [f"class {number}" for number in range(1, len(classes) + 1)]
        how.append(f"the semicolons of its line separate {len(classes)} classes")
    entries = [(w, _names_of(w, names)) for w, names in zip(where, classes, strict=True)]
    if numbered:
        entries = [(w, tuple(dict.fromkeys(names))) for w, names in entries]
    background: tuple[str, ...] = ()
    if len(entries) > 1:
        first, names = entries[0]
        if _are_background(names) and not classes[0].startswith('"'):
            background = entries.pop(0)[1]
            how.append(
                f"{first} has the names of the background ({_some(background)}), which is scored; "
                "if they are a class's, put the first of them in quotes"
            )
        elif len(lines) > 1 and len(names) > 2 and all(len(n) == 1 for _, n in entries[1:]):
            how.append(
                f"{first} is one class of {len(names)} names ({_some(names)}); if they are the "
                'background\'s, put "background" before them'
            )
    elif len(entries) == 1 and len(entries[0][1]) > 1:
        how.append(
            f"its one line is one class of {len(entries[0][1])} names; if they are classes, write "
            "one a line or semicolons between them"
        )
    _check_classes(entries, repeats=numbered)
    vocabulary = Vocabulary(tuple(names for _, names in entries), background, numbered)
    return vocabulary, how + _repeated(vocabulary)


def _refuse_other_formats(lines: Sequence[tuple[int, str]]) -> None:
    if lines and (lines[0][1][0] + lines[-1][1][-1]) in ("[]", "{}"):
        raise ValueError("it looks like JSON; call it .json, or write one class a line")
    for number, line in lines:
        if _YAML.match(line):
            raise ValueError(
                f"line {number} looks like YAML ({line!r}); {_HOW_TO_WRITE}, or put a name that "
                "begins so in quotes"
            )
        if len(lines) > 1 and len(_SEMICOLON.split(line.rstrip(";"))) > 1:
            raise ValueError(
                f"line {number} has a semicolon; write one class a line, its names separated by "
                "commas, or all classes in one line with semicolons between them"
            )


def _without_numbers(lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lines of classes, without the "0:" before their names."""
    classes = []
    last = -1
    for number, line in lines:
        match = _NUMBERED.match(line)
        if match is None:
            raise ValueError(
                f"line {number} has no number before its names, as line {lines[0][0]} has; number "
                "every line or none, and put a name that begins so in quotes"
            )
        if int(match[1]) <= last:
            raise ValueError(
                f"line {number} has the number {match[1]} after {last}; sort the lines by number"
            )
        last = int(match[1])
        if match[2] != _PLACEHOLDER:
            classes.append((number, match[2]))
    return classes


def _names_of(where: str, text: str) -> tuple[str, ...]:
    """Names between commas, each as it is or in quotes, as in CSV."""
    text = re.sub(r'"\s+,', '",', text.strip())
    try:
        (names,) = csv.reader([text], skipinitialspace=True, strict=True)
    except csv.Error:
        raise ValueError(
            f"{where} has a name that begins with a quote and does not end with one; put the whole "
            "name in quotes, and a quote in it twice"
        ) from None
    return tuple(name.strip() for name in names) or ("",)


def _are_background(names: Sequence[str]) -> bool:
    """Whether a first line's names are the background's; see :func:`load_vocabulary`."""
    if in_words(names[0]).casefold() == "background":
        return True
    known = load_vocabulary(f"{PACKAGED}benchmarks/published/voc21.json").background
    return len(names) > 2 and {name.casefold() for name in names} <= set(known)


def _repeated(vocabulary: Vocabulary) -> list[str]:
    """A sentence on the names that several classes have, if there are any."""
    numbers: dict[str, list[str]] = {}
    for number, names in enumerate(vocabulary.classes, start=1):
        for words in dict.fromkeys(map(in_words, names)):
            numbers.setdefault(words, []).append(str(number))
    repeated = [
        f"{words!r} (classes {', '.join(classes)})"
        for words, classes in numbers.items()
        if len(classes) > 1
    ]
    if not repeated:
        return []
    return [
        f"several classes have one name: {_some(repeated)}; they ask CLIP the same, and the first "
        "of them gets the pixels"
    ]


def _some(names: Sequence[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")


def vocabulary_of_json(content: Any, repeats: bool = False) -> Vocabulary:
    """The vocabulary of what :func:`load_vocabulary` takes from a JSON file.

    Args:
        repeats: several classes may have one name.

    Raises:
        ValueError: it holds no valid vocabulary; the entry is named, counted from 1.
    """
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
    for number, entry in enumerate(content, start=1):
        where = f"entry {number}"
        entries.append((where, _names(where, [entry] if isinstance(entry, str) else entry)))
    _check_classes(entries, repeats)
    classes = tuple(names for _, names in entries)
    return Vocabulary(classes, _names("the background", background), repeats)


def _names(where: str, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} must be a list of names, not {names!r}")
    return tuple(fix_surrogates(name).strip() for name in names)


def _check_classes(entries: Iterable[tuple[str, Sequence[str]]], repeats: bool) -> None:
    """`entries`: where a class is, for messages, and its names."""
    seen: dict[str, tuple[str, str]] = {}
    for where, names in entries:
        if not names:
            raise ValueError(f"{where} has no names; give it one")
        for name in names:
            if not in_words(name):
                raise ValueError(f"{where} has an empty name; remove it")
            if _as_clip_reads(name) in seen and not repeats:
                other, there = seen[_as_clip_reads(name)]
                as_other = "" if other == name else f" (to CLIP the same as {other!r})"
                raise ValueError(
                    f"{where} has the name {name!r}{as_other} of {there}; keep one of them"
                )
            seen[_as_clip_reads(name)] = name, where
    if not seen:
        raise ValueError("the vocabulary is empty; give it a class")


def _as_clip_reads(name: str) -> str:
    """The same for names that CLIP's tokenizer, which ignores case, takes for one."""
    return in_words(name).lower()


def _check_background(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if not in_words(name):
            raise ValueError("the background has an empty name; remove it")
        if _as_clip_reads(name) in seen:
            raise ValueError(f"the background has the name {name!r} twice; keep one of them")
        seen.add(_as_clip_reads(name))


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
    except RecursionError:
        raise ValueError("it is nested too deeply; give a list of names a class") from None


def _parse_literal(text: str) -> list[tuple[str, Any]]:
    """The entries of the one dict literal of a Python module, of which nothing is run."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is not Python ({error}); correct it") from None
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]  # its docstring
    literals = []
    for statement in body:
        literal = getattr(statement, "value", None)
        is_value = isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr)
        if not is_value or not isinstance(literal, ast.Dict):
            raise ValueError(
                f"line {statement.lineno} is no dict literal; leave one dict, class -> list of "
                "sentences, and nothing else in the file"
            )
        literals.append(literal)
    if len(literals) != 1:
        raise ValueError(f"it has {len(literals)} dict literals; leave one in the file")
    (literal,) = literals
    keys = [key.value for key in literal.keys if isinstance(key, ast.Constant)]
    names = [key for key in keys if isinstance(key, str)]
    if len(names) < len(literal.keys):
        raise ValueError("its dict has a key that is no plain text; write class names in quotes")
    try:
        entries = [ast.literal_eval(value) for value in literal.values]
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"its dict is no literal ({error}); write plain text in quotes, nothing computed"
        ) from None
    return list(zip(names, entries, strict=True))


def _unique_keys(pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice; keep one of them")
    return keys
