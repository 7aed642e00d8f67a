"""Is a vocabulary robust: other names, distractors, and the classes that are there alone.

    freecp robustness --config-file scenes/clearclip --output output/robustness

Every image goes through CLIP once, and is labelled with one vocabulary after the other, by the base
method and by FreeCP on it: the data set's names, plain names and synonyms; the data set's names
beside distractors, near and random; and an oracle, which knows which classes are in the image
(docs/robustness.md). The folder gets robustness.json, robustness.md and robustness.png.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import add_debug_option, one_sentence, path_argument
from .options import add_config_option, add_opts_option
from .register import add_register_option, register_files

log = logging.getLogger(__name__)
RESULTS = ("robustness.json", "robustness.md", "robustness.png")


def parse_args(argv: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """The options. `prog`: as in :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(prog=parser.prog)
    add_config_option(parser)
    parser.add_argument("--output", required=True, type=path_argument, metavar="FOLDER")
    parser.add_argument(
        "--dataset", metavar="NAME", help="in Detectron2's catalogs; by default the config's"
    )
    parser.add_argument(
        "--classes",
        metavar="WORDS",
        help="only these of the data set, separated by commas; pixels of others do not count",
    )
    parser.add_argument(
        "--synonyms",
        metavar="FILE",
        help="a vocabulary of all classes of the data set, in their order: of each the plain name, "
        "then its synonyms; the eight benchmarks and scenes_val have one",
    )
    parser.add_argument(
        "--lexicon",
        default="coco_stuff,ade20k,lvis",
        metavar="WORDS",
        help="where distractors come from: these, or a file with one a line (%(default)s)",
    )
    parser.add_argument(
        "--distractors", default="50,200,1000", metavar="COUNTS", help="how many (%(default)s)"
    )
    parser.add_argument(
        "--max-similarity",
        type=float,
        default=0.9,
        metavar="COSINE",
        help="a word that is so near to a class is a synonym and no distractor (%(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="how many random draws (%(default)s)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with what lies in the output folder"
    )
    add_register_option(parser)
    add_debug_option(parser)
    add_opts_option(parser)
    args = parser.parse_args(argv)
    counts = [text.strip() for text in args.distractors.split(",")]
    if not all(text.isdecimal() and int(text) for text in counts):
        parser.error(f"--distractors {args.distractors!r}: give numbers above 0, such as 50,200")
    args.distractors = [int(text) for text in counts]
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least one random draw")
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; the exit code.

    0: all is well; 3: images have failed, and the figures are of the others; 130, 143: a signal
    stopped it, and the command that goes on is said.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: something is wrong with the input, or cannot be written; it says what.
    """
    args = parse_args(argv, prog)
    given = list(sys.argv[1:] if argv is None else argv)
    with one_sentence(args.prog, args.debug):
        return _run(args, given if args.resume else ["--resume", *given])


def _run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    from detectron2.utils.logger import setup_logger

    from ..files import require_writable
    from ..locks import locked
    from ..stopping import stopping

    setup_logger(name="freecp_d2")
    register_files(args.register)
    require_writable(args.output)
    with locked(args.output, args.prog), stopping() as stop:
        code = _measure(args, stop)
        if stop.signal is not None:
            print(stop.sentence(args.prog, argv), file=sys.stderr)
        return code


def _measure(args: argparse.Namespace, stop: Any) -> int:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from ..config import configured_descriptions, configured_vocabulary, load_config
    from ..data.mapper import InferenceMapper
    from ..evaluation.dataset import load_dataset, require_registered
    from ..evaluation.facts import facts_of, hash_of_words, label_settings
    from ..evaluation.records import RECORDS, Records
    from ..progress import progress
    from ..robustness.bench import Bench
    from ..robustness.figures import summed
    from ..segmenter import build_model

    dataset = ["DATASETS.TEST", str((args.dataset,))] if args.dataset else []
    cfg = load_config(args.config_file, [*args.opts, *dataset])
    if len(cfg.DATASETS.TEST) != 1:
        raise ValueError(
            f"DATASETS.TEST has {len(cfg.DATASETS.TEST)} data sets; name one by --dataset"
        )
    if not cfg.MODEL.FREECP.ENABLED:
        raise ValueError(
            "MODEL.FREECP.ENABLED is False; take a config with FreeCP, it is compared with its "
            "base method"
        )
    (name,) = cfg.DATASETS.TEST
    require_registered(name)
    mapper = InferenceMapper(cfg)
    images = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    sem_seg_dataset = load_dataset(name)
    model = build_model(cfg)
    if model.extensions.adapter is not None:
        raise ValueError(
            f"MODEL.FREECP.ADAPTER is {cfg.MODEL.FREECP.ADAPTER!r}: an oracle would begin anew in "
            "every image, and every setting after --resume; leave it empty"
        )
    all_classes = model.with_background(configured_vocabulary(cfg))
    sem_seg_dataset.check_vocabulary(all_classes)
    chosen = _chosen(args.classes, all_classes, metadata.stuff_classes)
    official = _only(all_classes, chosen)
    synonyms = _synonyms(args.synonyms, name)
    if synonyms and len(synonyms.classes) != len(all_classes.classes):
        raise ValueError(
            f"the synonyms are of {len(synonyms.classes)} classes, and the data set has "
            f"{len(all_classes.classes)}; give one entry a class, in the data set's order"
        )
    settings, pool = _settings(args, model, official, synonyms and _only(synonyms, chosen))
    first = int(bool(official.background))
    ids = [*range(first), *(first + index for index in chosen)]
    bench = Bench(
        model,
        settings,
        configured_descriptions(cfg),
        ids,
        len(all_classes.class_names),
        metadata.get("ignore_label"),
    )
    records = Records(args.output / RECORDS)
    facts = facts_of(cfg, model)
    depends_on = {
        "data set": name,
        "ids": ids,
        **label_settings(facts),
        "words": [[setting.name, hash_of_words(setting.vocabulary)] for setting in settings],
    }
    done = _done(args, records, depends_on)
    failed = {}
    with records.journal(0) as journal:
        todo = [image for image in images if image["file_name"] not in done]
        for image in progress(todo, total=len(todo), desc=name, unit="image"):
            try:
                record = {"settings": bench.of_image(mapper(image), _truth(image))}
            except (OSError, ValueError) as error:
                failed[image["file_name"]] = " ".join(str(error).split())
                log.error("%s", failed[image["file_name"]])
                continue
            journal.add({"file_name": image["file_name"], **record})
            if stop.signal is not None:
                return stop.exit_code
    files = {image["file_name"] for image in images}
    evaluated = [record for record in records.evaluated() if record["file_name"] in files]
    if not evaluated:
        raise ValueError(f"{name}: none of its {len(images)} images could be read; see above")
    rows = summed(evaluated, settings, len(ids), bool(first))
    about = {
        "dataset": name,
        "images": len(evaluated),
        "failed": failed,
        "classes": list(official.class_names),
        "lexicon": args.lexicon,
        "max_similarity": args.max_similarity,
        "pool": pool,
        "facts": facts,
    }
    _write(args.output, about, rows, settings)
    return 3 if failed else 0


def _done(args: argparse.Namespace, records: Any, depends_on: Mapping[str, Any]) -> set[str]:
    """The files of the images that need not be looked at again."""
    from ..evaluation.facts import differing_keys

    former = records.settings() if args.resume else None
    if former is None:
        for name in RESULTS:
            (args.output / name).unlink(missing_ok=True)
        records.begin(depends_on)
        return set()
    if changed := differing_keys(former, depends_on):
        raise ValueError(
            f"{args.output} holds what was measured otherwise ({', '.join(changed)}); leave out "
            "--resume to begin anew, or choose another --output"
        )
    return {record["file_name"] for record in records.evaluated()}


def _truth(image: Mapping[str, Any]) -> Any:
    from ..data.mapper import ground_truth

    truth = ground_truth(image["sem_seg_file_name"])
    if "sem_seg" not in truth:
        raise ValueError(truth["sem_seg_fault"])
    return truth["sem_seg"]


def _chosen(text: str | None, vocabulary: Any, names: Sequence[str]) -> list[int]:
    """Indices of --classes among those of the vocabulary, in its order; all without it.

    Args:
        names: the data set's own, which mean the same classes.
    """
    if text is None:
        return list(range(len(vocabulary.classes)))
    from ..data import normalized_name

    index: dict[str, int] = {}
    for of_all in (vocabulary.class_names, names):
        for position, name in enumerate(of_all[int(bool(vocabulary.background)) :]):
            index.setdefault(normalized_name(name), position)
    chosen = []
    for name in text.split(","):
        if normalized_name(name.strip()) not in index:
            raise ValueError(
                f"--classes: the data set has no class {name.strip()!r}; it has "
                f"{', '.join(names[:5])} and others"
            )
        chosen.append(index[normalized_name(name.strip())])
    return sorted(set(chosen))


def _only(vocabulary: Any, chosen: Sequence[int]) -> Any:
    from dataclasses import replace

    return replace(vocabulary, classes=tuple(vocabulary.classes[index] for index in chosen))


def _synonyms(file: str | None, dataset: str) -> Any:
    """The vocabulary of --synonyms, or that of the data set; None where there is neither."""
    from ..data import load_vocabulary
    from ..data.benchmarks import BENCHMARKS, vocabulary_of
    from ..data.scenes import SYNONYMS_FILE

    if file is not None:
        return load_vocabulary(file)
    if dataset == "scenes_val":
        return load_vocabulary(SYNONYMS_FILE)
    for benchmark in BENCHMARKS.values():
        if benchmark.dataset == dataset:
            return vocabulary_of(benchmark, "curated")
    log.warning("%s has no synonyms; name a file by --synonyms to try other names", dataset)
    return None


def _settings(
    args: argparse.Namespace, model: Any, official: Any, synonyms: Any
) -> tuple[list[Any], list[str]]:
    """All settings, and the words that distractors are taken from, the nearest first."""
    from ..clip.text import template_sentences
    from ..robustness.settings import (
        Setting,
        distractor_pool,
        distractor_settings,
        name_settings,
        without_names,
    )

    settings = name_settings(official, synonyms)
    settings.append(Setting("oracle", official))
    words = without_names(_lexicon(args.lexicon), [official, *([synonyms] if synonyms else [])])
    targets = [name for names in official.classes for name in names]
    pool = distractor_pool(
        words,
        model.text_encoder.encode(template_sentences(words)),
        model.text_encoder.encode(template_sentences(targets)),
        args.max_similarity,
    )
    if not pool:
        raise ValueError(
            f"no word of the {len(words)} of --lexicon has a cosine below --max-similarity "
            f"{args.max_similarity} to all classes; raise it, or name another lexicon"
        )
    log.info("%d of %d words are no synonyms of a class", len(pool), len(words))
    if most := [count for count in args.distractors if count > len(pool)]:
        log.warning(
            "there are %d distractors in place of %s: no more words of --lexicon have a cosine "
            "below --max-similarity %s to all classes",
            *(len(pool), " and ".join(map(str, most)), args.max_similarity),
        )
    return settings + distractor_settings(official, pool, args.distractors, args.seeds), pool


def _lexicon(text: str) -> Sequence[str]:
    """--lexicon: the words of its sources, or of a file."""
    from ..data import load_vocabulary
    from ..data.lexicon import lexicon
    from ..inputs import names_a_file

    if names_a_file(text):
        return [names[0] for names in load_vocabulary(text).classes]
    return lexicon(*(source.strip() for source in text.split(",")))


def _write(
    folder: Path,
    about: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    settings: Sequence[Any],
) -> None:
    from ..evaluation.results import without_nan, write_results
    from ..files import write_whole
    from ..robustness.figures import grouped, table, verdict, verdicts
    from ..robustness.picture import write_picture

    groups = grouped(rows)
    found = verdicts(groups)
    words = {
        setting.name: [names[0] for names in setting.vocabulary.classes[-setting.distractors :]]
        for setting in settings
        if setting.distractors
    }
    results = {
        **about,
        "settings": rows,
        "summary": groups,
        "verdicts": found,
        "verdict": verdict(found),
        "distractors": words,
    }
    write_results(without_nan(results), folder / "robustness.json")
    text = table(groups)
    write_whole(folder / "robustness.md", f"{text}\n".encode())
    write_picture(groups, folder / "robustness.png")
    print(f"\n{text}\n\nFigures, table and picture: {folder}")
