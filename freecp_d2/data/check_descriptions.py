"""Check class descriptions: `python -m freecp_d2.data.check_descriptions [FILE]`.

FILE is a JSON as MODEL.FREECP.DESCRIPTIONS takes it, this package's own by default. Every name of
the eight benchmarks' vocabularies must have sentences, ten or more, no two alike, each of four
words or more and short enough for CLIP. Faults are printed one a line; the exit status is then 1.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

from open_clip.tokenizer import SimpleTokenizer
from tqdm import tqdm

from .benchmarks import BENCHMARKS, DESCRIPTIONS_FILE, KINDS, PROTOCOL_WORDS, vocabulary_of
from .vocabulary import describe, load_descriptions, normalized_name

CONTEXT_LENGTH = 77
MIN_SENTENCES = 10
MIN_WORDS = 4


def benchmark_names() -> dict[str, list[str]]:
    """Every name of every class of the eight benchmarks -> the vocabularies that have it.

    Of the base methods' own protocols only names that are in no other vocabulary are added.
    Background names are left out: the ambiguity stage, which reads descriptions, leaves the
    background alone.
    """
    return _names_of(list(PROTOCOL_WORDS)) | _names_of(KINDS)


def _names_of(kinds: Sequence[str]) -> dict[str, list[str]]:
    where = defaultdict(list)
    for benchmark in filter(lambda b: b.in_paper, BENCHMARKS.values()):
        for kind in kinds:
            for names in vocabulary_of(benchmark, kind).classes:
                for name in names:
                    where[name].append(f"{kind}/{benchmark.name}")
    return dict(where)


def faults_of(descriptions: Mapping[str, Sequence[str]]) -> list[str]:
    """What is wrong with descriptions that :func:`load_descriptions` gave, a line each."""
    faults = [
        f"{name!r} of {', '.join(where)} has no descriptions"
        for name, where in benchmark_names().items()
        if not describe(descriptions, name)
    ]
    described = {id(sentences): (name, sentences) for name, sentences in descriptions.items()}
    tokenizer = SimpleTokenizer()
    seen: dict[str, str] = {}
    for name, sentences in tqdm(described.values(), desc="checking", unit="class", disable=None):
        if len(sentences) < MIN_SENTENCES:
            faults.append(f"{name!r} has {len(sentences)} sentences, fewer than {MIN_SENTENCES}")
        for sentence in sentences:
            key = normalized_name(sentence)
            if key in seen:
                faults.append(f"{name!r} repeats a sentence of {seen[key]!r}: {sentence!r}")
            seen[key] = name
            if len(sentence.split()) < MIN_WORDS:
                faults.append(f"{name!r} has a sentence of under {MIN_WORDS} words: {sentence!r}")
            tokens = len(tokenizer.encode(sentence)) + 2
            if tokens > CONTEXT_LENGTH:
                faults.append(
                    f"{name!r} has a sentence of {tokens} tokens, more than {CONTEXT_LENGTH}: "
                    f"{sentence!r}"
                )
    return faults


def main(argv: Sequence[str] | None = None) -> int:
    """Print the faults of a file, or how much is in it; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", default=DESCRIPTIONS_FILE, help="%(default)s")
    file = parser.parse_args(argv).file
    try:
        descriptions = load_descriptions(file)
    except (OSError, ValueError) as error:
        print(error)
        return 1
    faults = faults_of(descriptions)
    if faults:
        print(*faults, sep="\n")
        return 1
    distinct = {id(sentences): sentences for sentences in descriptions.values()}
    print(
        f"{file}: {sum(map(len, distinct.values()))} sentences about {len(distinct)} classes, and "
        f"{len(descriptions) - len(distinct)} aliases; all {len(benchmark_names())} names of the "
        "eight benchmarks are described"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
