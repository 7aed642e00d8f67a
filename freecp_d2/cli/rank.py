"""Rank images by which of them to annotate first.

    freecp rank --config-file scenes/clearclip --vocabulary "sky,lawn,road,dog" \
        --input photos/ --output output/ranked

It writes ranking.csv, the most wanted first: image, score, and the two classes that most often
disagree; first.jpg, the first of them beside where the disagreement is; and maps/, a PNG an image,
8 bits, 255 where the disagreement is 6. A run that was interrupted goes on where it stopped, and a
folder that is ranked is ranked anew by another --score in a moment.
"""

import argparse
import csv
import hashlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..config import config_path, load_config
from ..errors import add_debug_option, path_argument
from ..files import sweep, whole_file, write_whole
from ..fonts import draw_text
from ..inputs import as_pixels
from ..locks import locked
from ..ranking import MOST, SCORES, disagreement, greedy_order, template_halves
from ..segmentation import write_png
from ..segmenter import Segmenter, build_model
from ..stopping import Stop
from .options import add_config_option, add_opts_option
from .register import add_register_option, register_files
from .segment.bar import windows_on
from .segment.faults import noted, run_noting
from .segment.inputs import describe_skipped, find_inputs
from .segment.jobs import Job, Progress, name_results
from .words import add_words_options, background_of, parse_words, words_of

SHEET = "first.jpg"
CELL = 240, 180
"""Width and height that a picture of first.jpg has at most."""
COLUMNS = 3


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options. `prog`: as in :func:`main`."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(prog=parser.prog)
    add = parser.add_argument
    add_config_option(parser)
    add(
        "--input",
        nargs="+",
        required=True,
        type=path_argument,
        metavar="FILE",
        help="images, folders of images, patterns like 'a/*.jpg'",
    )
    add("--output", required=True, type=path_argument, metavar="FOLDER")
    add_words_options(parser)
    add(
        "--score",
        choices=SCORES,
        default=SCORES[0],
        help="of an image: the mean of the largest tenth of its patches' disagreement (default), "
        "of all, of the means of its classes; or the base method's entropy",
    )
    add(
        "--cover",
        action="store_true",
        help="an image counts for less when those before it have its classes",
    )
    add("--pictures", type=int, default=24, metavar="N", help="in first.jpg; 0: none; default 24")
    add_register_option(parser)
    add_debug_option(parser)
    add_opts_option(parser)
    args = parse_words(parser, sys.argv[1:] if argv is None else argv)
    if args.pictures < 0:
        parser.error(f"--pictures {args.pictures}: give a number of images, or 0 for none")
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; the exit code.

    That is 3 when an image failed and the others are ranked, and 143 or 130 when SIGTERM or Ctrl-C
    stopped it after the image at hand; ranking.csv is written when all images are looked at.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: something is wrong with the input, or nothing can be written; it says what.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(given, prog)
    return run_noting(_rank, args, given)


def _rank(args: argparse.Namespace, faults: list[str], stop: Stop) -> None:
    """Do what the command line says; sentences about what failed are added to `faults`."""
    from detectron2.utils.logger import setup_logger

    setup_logger(name="freecp_d2")
    register_files(args.register)
    inputs = find_inputs(args.input, args.output)
    if inputs.videos:
        raise ValueError(f"{inputs.videos[0]}: a video; give its frames as images")
    if (args.output / SHEET).resolve() in [image.resolve() for image in inputs.images]:
        raise ValueError(
            f"{args.output / SHEET}: an image of the input where the contact sheet would be "
            "written; choose another --output"
        )
    for skipped in describe_skipped(inputs.skipped):
        print(f"{args.prog}: skipped {skipped.split(' ', 1)[1]}", file=sys.stderr)
    cfg = load_config(config_path(args.config_file), args.opts)
    if not cfg.MODEL.FREECP.ENABLED:
        raise ValueError(
            "MODEL.FREECP.ENABLED is False, but images are ranked by where FreeCP and its base "
            "method disagree; take the config of FreeCP, which runs both"
        )
    if cfg.MODEL.FREECP.ADAPTER:
        raise ValueError(
            f"MODEL.FREECP.ADAPTER is {cfg.MODEL.FREECP.ADAPTER!r}, and images are ranked by words "
            "and windows as they are; leave it empty"
        )
    vocabulary = None if args.vocabulary is None else words_of(args.vocabulary)
    background = background_of(args.background)
    segmenter = Segmenter(build_model(cfg), cfg)
    words = segmenter.words_of(vocabulary, background)
    names = [names[0] for names in words.vocabulary.classes]
    names = ["background"] * words.first_class + names
    settings = {
        "--config-file and --opts": hashlib.sha256(cfg.dump().encode()).hexdigest(),
        "--vocabulary": [list(names) for names in words.vocabulary.classes],
        "--background": list(words.vocabulary.background),
    }
    with locked(args.output, args.prog), Progress(args.output, settings) as progress:
        sweep(args.output)
        jobs = name_results(inputs.images, inputs.root, progress.records)
        waiting = [job for job in jobs if not progress.is_done(job)]
        if len(waiting) < len(jobs):
            print(f"{len(jobs) - len(waiting)} of {len(jobs)} images are looked at already")
        halves = template_halves(segmenter.model, words) if waiting else None
        done = {job.name for job in jobs} - {job.name for job in waiting}
        for job in (bar := tqdm(waiting, unit="image")):
            with noted(faults, job.source, args.debug):
                stamp = job.stamp()
                _, _, windows = segmenter.encode([job.source], False, windows_on(bar))
                assert halves is not None
                found = disagreement(segmenter.model, windows, halves)
                path = args.output / "maps" / f"{job.name}.png"
                levels = (found.map * (255 / MOST)).round().numpy().astype(np.uint8)
                write_png(path, Image.fromarray(levels))
                progress.add(
                    {
                        "name": job.name,
                        "file_name": job.file_name,
                        "source": stamp,
                        "files": [path.relative_to(args.output).as_posix()],
                        "scores": found.scores,
                        "pair": found.pair,
                        "channels": found.channels,
                    }
                )
                done.add(job.name)
            if stop.signal:
                return
        ranked = ranked_records(
            [(job, progress.records[job.name]) for job in jobs if job.name in done],
            args.score,
            args.cover,
        )
        write_ranking(args.output / "ranking.csv", [r for _, r in ranked], args.score, names)
        first, sheet = ranked[: args.pictures], args.output / SHEET
        sheet.unlink(missing_ok=True)  # of a former ranking
        if first:
            exif = segmenter.mapper.exif_orientation
            pictures = [as_pixels(job.source, exif) for job, _ in first]
            maps = [np.asarray(Image.open(args.output / r["files"][0])) for _, r in first]
            titles = [
                f"{place}. {record['scores'][args.score]:.2f} {_pair(record, names, ' / ')}"
                for place, (_, record) in enumerate(first, start=1)
            ]
            with whole_file(sheet) as part:
                contact_sheet(pictures, maps, titles).save(part, quality=90)
    print(f"{len(ranked)} of {len(jobs)} images: {args.output / 'ranking.csv'}")


def ranked_records(
    images: Sequence[tuple[Job, dict[str, Any]]], score: str, cover: bool
) -> list[tuple[Job, dict[str, Any]]]:
    """Images and their records, the most wanted first; of equal ones as they were.

    Args:
        score: one of SCORES.
        cover: as :func:`freecp_d2.ranking.greedy_order` chooses them.
    """
    scores = [record["scores"][score] for _, record in images]
    if cover:
        order = greedy_order(scores, [record["channels"] for _, record in images])
    else:
        order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return [images[i] for i in order]


def write_ranking(
    path: Path, records: Sequence[dict[str, Any]], score: str, names: Sequence[str]
) -> None:
    """A line an image: file name, score, and the two classes that most often disagree."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["image", score, "class", "other_class"])
    for record in records:
        pair = [names[channel] for channel in record["pair"] or ()] or ["", ""]
        lines.writerow([record["file_name"], f"{record['scores'][score]:.6f}", *pair])
    write_whole(path, text.getvalue().encode())


def _pair(record: dict[str, Any], names: Sequence[str], between: str) -> str:
    return between.join(names[channel] for channel in record["pair"] or ())


def contact_sheet(
    pictures: Sequence[np.ndarray], maps: Sequence[np.ndarray], titles: Sequence[str]
) -> Image.Image:
    """Pictures under their titles, each beside its map, whose brightest colour is MOST.

    Args:
        pictures: (H, W, 3) uint8 RGB.
        maps: (h, w) uint8, 255 where the disagreement is MOST.
    """
    width, height = CELL
    line, gap = 20, 8
    cell = 2 * width + 2 * gap, height + line + gap
    columns = min(COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + gap, rows * cell[1] + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, levels, title) in enumerate(zip(pictures, maps, titles, strict=True)):
        left, top = gap + place % columns * cell[0], gap + place // columns * cell[1]
        draw_text(pen, (left, top), title, 13, "black")
        scale = min(width / picture.shape[1], height / picture.shape[0])
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        heat = cv2.applyColorMap(cv2.resize(levels, size), cv2.COLORMAP_INFERNO)[:, :, ::-1]
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        for index, shown in enumerate((small, heat)):
            sheet.paste(Image.fromarray(shown), (left + index * width, top + line))
    return sheet
