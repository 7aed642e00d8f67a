"""What background words, relations, decorrelation and filtered synonyms do on a data set.

    python projects/Words/measure.py --config-file scenes/clearclip --classes 10 \
        --relations projects/Words/relations_scenes.json --output output/words

CLIP sees every image once. Of each table the figures are mIoU in percent, with FreeCP and of the
base method alone, and what they differ from the table's first row by, with the spread: over the
subsets of classes or the seeds of drawn words where there are several, otherwise the standard
deviation of that difference over images drawn with replacement.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import Tensor

from freecp_d2 import FreeCP, load_config
from freecp_d2.background import choose_background, dissimilar
from freecp_d2.cli.options import add_config_option, add_opts_option
from freecp_d2.cli.register import add_register_option, register_files
from freecp_d2.clip.text import template_sentences
from freecp_d2.config import configured_descriptions
from freecp_d2.data import Vocabulary, dataset_vocabulary, normalized_name
from freecp_d2.data.lexicon import lexicon
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.encoding import EncodedImages
from freecp_d2.extensions import NO_EXTENSIONS, Extensions
from freecp_d2.inputs import with_background
from freecp_d2.relations import load_relations
from freecp_d2.segmenter import build_model
from freecp_d2.words import Words

GAMMAS = 0.0, 0.25, 0.5, 1.0
SYNONYM_THRESHOLDS = 0.0, 0.1, 0.3
TABLES = "background", "relations", "decorrelation", "names"
RESAMPLED = 200
"""How often images are drawn with replacement."""

Sample = tuple[EncodedImages, EncodedImages, np.ndarray]
"""What CLIP sees of an image, with FreeCP and for the base method, and its label map."""


class Bench:
    """A model and a data set that it has seen.

    Args:
        model: of a config.
        samples: of the data set.
        vocabulary: its classes.
        ignore: the label of pixels that do not count.
    """

    def __init__(self, model: FreeCP, samples: list[Sample], vocabulary: Vocabulary, ignore: int):
        self.model, self.samples = model, samples
        self.vocabulary, self.ignore = vocabulary, ignore
        self.descriptions: dict = {}

    def words(self, vocabulary: Vocabulary) -> Words:
        """Its words, by the model as it is set now."""
        return self.model.encode_words(vocabulary, self.descriptions)

    def confusions(self, words: Words, of_label: np.ndarray, base: bool) -> np.ndarray:
        """(images, K, K) pixels of a label (row) that are given a label (column).

        Args:
            of_label: (256,) the label that a label of the data set becomes; negative: ignored.
            base: the base method alone.
        """
        count = int(of_label.max()) + 1
        shift = count - len(words.vocabulary.classes) if not words.num_background else 0
        confusions = []
        for purifying, alone, truth in self.samples:
            run = self.model.segment_base if base else self.model.segment
            encoded = alone if base else purifying
            labels = run(encoded, words, output="label_map")[0]["label_map"].cpu().numpy() + shift
            wanted = of_label[truth]
            pairs = count * wanted[wanted >= 0] + labels[wanted >= 0]
            confusions.append(np.bincount(pairs, minlength=count**2).reshape(count, count))
        return np.stack(confusions)


def collect(cfg, model: FreeCP, every: int) -> Iterator[Sample]:
    """Every n-th sample of the first data set of DATASETS.TEST."""
    mapper = InferenceMapper(cfg)
    for entry in DatasetCatalog.get(cfg.DATASETS.TEST[0])[::every]:
        image = [mapper(dict(entry))]
        truth = np.array(Image.open(entry["sem_seg_file_name"]))
        yield model.encode(image), model.encode(image, base=True), truth


def miou(confusions: np.ndarray) -> float:
    """In percent, of the sum of (images, K, K), over the classes in the label maps."""
    total = confusions.sum(axis=0).astype(float)
    present = total.sum(axis=1) > 0
    union = total.sum(axis=0) + total.sum(axis=1) - total.diagonal()
    return float(100 * (total.diagonal()[present] / union[present]).mean())


def resampled(confusions: np.ndarray, first: np.ndarray) -> float:
    """The standard deviation of the difference of two mIoU over images with replacement."""
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(first), (RESAMPLED, len(first)))
    return float(np.std([miou(confusions[draw]) - miou(first[draw]) for draw in draws]))


Runs = dict[str, list[np.ndarray]]
"""Row of a table -> the confusions of its subsets or seeds."""


def table(title: str, runs: dict[str, Runs]) -> str:
    """Markdown; `runs`: "FreeCP" or "alone" -> the rows."""
    lines = [f"## {title}", "", "| | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for row in next(iter(runs.values())):
        cells = []
        for rows in runs.values():
            values = np.array([miou(confusions) for confusions in rows[row]])
            first = next(iter(rows.values()))
            reference = np.resize([miou(confusions) for confusions in first], len(values))
            if len(values) > 1:
                spread = float(np.std(values - reference, ddof=1))
            else:
                spread = resampled(rows[row][0], first[0])
            cells.append(f"{values.mean():.1f} ({(values - reference).mean():+.1f} ± {spread:.1f})")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure_background(bench: Bench, classes: int, subsets: int, draws: int) -> dict[str, Runs]:
    """`classes` drawn classes are asked for; what is of the others is background."""
    model, names = bench.model, bench.vocabulary.classes
    runs: dict[str, Runs] = {"FreeCP": {}, "alone": {}}
    for seed in range(subsets):
        asked = np.sort(np.random.default_rng(seed).permutation(len(names))[:classes])
        of_label = np.zeros(256, dtype=int)
        of_label[asked] = 1 + np.arange(classes)
        of_label[bench.ignore] = -1
        vocabulary = Vocabulary(tuple(names[index] for index in asked))
        hidden = tuple(name[0] for name in names if name not in vocabulary.classes)
        by_chance = [
            choose_background(
                model.text_encoder,
                vocabulary,
                replace(model.extensions.background, how="random", seed=10 * seed + draw),
            )
            for draw in range(draws)
        ]
        rows = {
            "none": [vocabulary],
            "the 26 of step 0": [with_background(vocabulary, True)],
            "auto": [model.with_background(vocabulary, "auto")],
            "random": by_chance,
            "the classes that are hidden": [replace(vocabulary, background=hidden)],
        }
        for kind, table_rows in runs.items():
            for row, vocabularies in rows.items():
                each = [
                    bench.confusions(bench.words(v), of_label, kind == "alone")
                    for v in vocabularies
                ]
                # One figure a subset: seeds of random words are averaged as whole data sets.
                table_rows.setdefault(row, []).append(np.concatenate(each))
    return runs


def measure_all_classes(
    bench: Bench, settings: dict[str, Callable[[], list[Vocabulary]]], kinds: tuple[str, ...]
) -> dict[str, Runs]:
    """All classes are asked for; a setting changes the model and gives vocabularies."""
    of_label = np.full(256, -1)
    count = len(bench.vocabulary.classes)
    of_label[:count] = np.arange(count)
    of_label[bench.ignore] = -1
    runs: dict[str, Runs] = {kind: {} for kind in kinds}
    for row, change in settings.items():
        for vocabulary in change():
            words = bench.words(vocabulary)
            for kind, rows in runs.items():
                confusions = bench.confusions(words, of_label, kind == "alone")
                rows.setdefault(row, []).append(confusions)
    return runs


def measure_decorrelation(bench: Bench) -> dict[str, Runs]:
    """All classes, by gamma."""

    def change(gamma: float) -> list[Vocabulary]:
        bench.model.extensions = Extensions(decorrelation=gamma)
        return [bench.vocabulary]

    settings = {f"gamma {gamma:g}": lambda g=gamma: change(g) for gamma in GAMMAS}
    runs = measure_all_classes(bench, settings, ("FreeCP", "alone"))
    bench.model.extensions = NO_EXTENSIONS
    return runs


def with_odd_names(model: FreeCP, vocabulary: Vocabulary, count: int, seed: int) -> Vocabulary:
    """The vocabulary, whose classes have `count` more names each by chance, like no class."""
    names = [name for names in vocabulary.classes for name in names]
    words = lexicon("coco_stuff", "ade20k")
    encode = model.text_encoder.encode
    features: list[Tensor] = [encode(template_sentences(texts)) for texts in (words, names)]
    left = dissimilar(*features, 0.9).tolist()
    order = np.random.default_rng(seed).permutation(left)
    size = len(vocabulary.classes)
    odd = [tuple(words[i] for i in order[k::size][:count]) for k in range(size)]
    classes = zip(vocabulary.classes, odd, strict=True)
    return replace(vocabulary, classes=tuple(own + more for own, more in classes))


def measure_synonyms(bench: Bench, seeds: int) -> dict[str, Runs]:
    """Every class has two more names that do not mean it."""
    odd = [with_odd_names(bench.model, bench.vocabulary, 2, seed) for seed in range(seeds)]

    def change(threshold: float, vocabularies: list[Vocabulary]) -> list[Vocabulary]:
        bench.model.head.synonym_threshold = threshold
        return vocabularies

    settings = {
        f"two odd names more, threshold {t:g}": lambda t=t: change(t, odd)
        for t in SYNONYM_THRESHOLDS
    }
    settings["without them"] = lambda: change(0.0, [bench.vocabulary] * seeds)
    return measure_all_classes(bench, settings, ("FreeCP",))


def measure_relations(bench: Bench, path: Path, seeds: int) -> dict[str, Runs]:
    """All classes, with the pairs of a file, and with as many by chance."""
    given = load_relations(path)
    names = [normalized_name(names[0]) for names in bench.vocabulary.classes]
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    drawn = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(pairs))[: len(given) // 2]
        drawn.append({p for i in order for p in (pairs[i], pairs[i][::-1])})

    def change(relations) -> list[Vocabulary]:
        bench.model.extensions = Extensions(relations=frozenset(relations))
        return [bench.vocabulary]

    settings = {"none": lambda: change(()), f"{len(given) // 2} pairs": lambda: change(given)}
    for seed, relations in enumerate(drawn):
        settings[f"as many by chance, {seed}"] = lambda r=relations: change(r)
    runs = measure_all_classes(bench, settings, ("FreeCP",))
    change(())
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_config_option(parser)
    parser.add_argument("--classes", type=int, default=10, help="asked for, of the background's")
    parser.add_argument("--seeds", type=int, default=5, help="of subsets and of drawn words")
    parser.add_argument("--relations", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3, help="of random words for a subset")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take each N-th image")
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES, help="which")
    add_register_option(parser)
    add_opts_option(parser)
    args = parser.parse_args()
    register_files(args.register)
    cfg = load_config(args.config_file, args.opts)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
    vocabulary = dataset_vocabulary(metadata)
    if vocabulary.background:
        parser.error(f"{metadata.name} scores a background; take a data set without one")
    model = build_model(cfg)
    samples = list(collect(cfg, model, args.every))
    print(f"{len(samples)} images", flush=True)
    bench = Bench(model, samples, vocabulary, metadata.ignore_label)
    bench.descriptions = dict(configured_descriptions(cfg))
    args.output.mkdir(parents=True, exist_ok=True)
    measures = {
        "background": lambda: measure_background(bench, args.classes, args.seeds, args.draws),
        "relations": lambda: measure_relations(bench, args.relations, args.seeds),
        "decorrelation": lambda: measure_decorrelation(bench),
        "names": lambda: measure_synonyms(bench, args.seeds),
    }
    for name in args.tables:
        text = table(name, measures[name]())
        print(text, flush=True)
        (args.output / f"{name}.md").write_text(text)


if __name__ == "__main__":
    with torch.no_grad():
        main()
