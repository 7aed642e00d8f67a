"""--vocabulary and --background, which several commands have."""

import argparse
from collections.abc import Sequence

from ..background import chooses_background
from ..inputs import names_a_file


def add_words_options(parser: argparse.ArgumentParser) -> None:
    """Add both options."""
    parser.add_argument(
        "--vocabulary",
        metavar="WORDS",
        help="class names, separated by commas; or a file, one class a line, its names separated "
        "by commas, or JSON; by default the config's classes",
    )
    parser.add_argument(
        "--background",
        nargs="?",
        const=True,
        default=False,
        metavar="WORDS",
        help="what is none of the classes is background: by 26 common names, by these, or, where "
        "it is auto, by names that CLIP chooses for the classes",
    )


def parse_words(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """`parser.parse_args`, with a better word about lists of names without quotes."""
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unrecognized(argv, unknown))
    return args


def words_of(text: str) -> str | list[str]:
    """--vocabulary as the predictor takes it: the path of a file, or the names between commas."""
    return text if names_a_file(text) else _names("--vocabulary", text)


def _names(flag: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    if "" in names:
        kept = ", ".join(filter(None, names))
        raise ValueError(
            f"{flag} {text!r}: there is no name beside a comma; leave the comma out, or put quotes "
            f'around the whole list, as in {flag} "{kept or "drum"}, trifle"'
        )
    return names


def background_of(text: str | bool) -> bool | str | list[str]:
    """--background as the predictor takes it.

    Raises:
        ValueError: it names nothing.
    """
    if isinstance(text, bool) or chooses_background(text):
        return text
    if names := _names("--background", text):
        return names
    raise ValueError(f"--background {text!r} names nothing; name something, or leave {text!r} out")


def _unrecognized(given: Sequence[str], unknown: Sequence[str]) -> str:
    """What to say of arguments that argparse has no place for: words without quotes, perhaps."""
    sentence = f"unrecognized arguments: {' '.join(unknown)}"
    start = given.index(unknown[0])
    flags = [i for i, argument in enumerate(given[:start]) if argument.startswith("--")]
    if unknown[0].startswith("-") or not flags:
        return sentence
    flag, _, first = given[flags[-1]].partition("=")
    if len(flag) < 3 or not any(name.startswith(flag) for name in ("--vocabulary", "--background")):
        return sentence
    words = [first] if first else []
    for argument in given[flags[-1] + 1 :]:
        if argument.startswith("--"):
            break
        words.append(argument)
    return f'{sentence}; put quotes around the whole list: {flag} "{" ".join(words)}"'
