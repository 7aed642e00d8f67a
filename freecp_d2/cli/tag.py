"""Say which classes are in images, without masks: one line an image.

    freecp tag --config-file scenes/clearclip \
        --vocabulary "sky,lawn,road,mushroom" --input photo.jpg folder/

prints `photo.jpg: sky 0.41, lawn 0.22`, the classes whose presence score is above a threshold, the
highest first; with --json `{"file_name": "photo.jpg", "tags": {"sky": 0.41, "lawn": 0.22}}`.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import add_debug_option, path_argument
from ..files import require_writable, write_whole
from ..predictor import FreeCPPredictor
from ..presence import CONSISTENCY, PRESENCE_SCORES
from ..stopping import Stop
from .options import add_config_option, add_opts_option
from .register import add_register_option, register_files
from .segment.faults import noted, run_noting
from .segment.inputs import describe_skipped, find_inputs
from .words import add_words_options, background_of, parse_words, words_of


def parse_args(argv: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """The options. `prog`: as in :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(prog=parser.prog)
    add_config_option(parser)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        type=path_argument,
        metavar="FILE",
        help="images, folders of images, patterns like 'a/*.jpg'",
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        metavar="FILE",
        help="write the lines to this file, whole, at the end; by default to the screen",
    )
    add_words_options(parser)
    parser.add_argument(
        "--score",
        choices=PRESENCE_SCORES,
        default=CONSISTENCY,
        help="%(default)s by default; erasing costs a whole segmentation, and more",
    )
    parser.add_argument(
        "--threshold",
        type=_number,
        help="of the score, above which a class is a tag; by default the config's "
        "REDUNDANCY_THRESHOLD for consistency, and 0 for erasing",
    )
    parser.add_argument(
        "--top", type=int, metavar="N", help="so many tags at most, those of the highest scores"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    add_register_option(parser)
    add_debug_option(parser)
    add_opts_option(parser)
    return parse_words(parser, sys.argv[1:] if argv is None else argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; the exit code.

    That is 3 when an image failed and the others are done, and 143 or 130 when SIGTERM or Ctrl-C
    stopped it after the image at hand.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: something is wrong with the input; it says what.
    """
    args = parse_args(argv, prog)
    return run_noting(_tag, args)


def tags_of(
    presence: Mapping[str, float], threshold: float, top: int | None = None
) -> dict[str, float]:
    """The classes above `threshold`, the highest score first, at most `top` of them."""
    above = [(name, score) for name, score in presence.items() if score > threshold]
    return dict(sorted(above, key=lambda tag: -tag[1])[:top])


def _tag(args: argparse.Namespace, faults: list[str], stop: Stop) -> None:
    """Do what the command line says; sentences about what failed are added to `faults`."""
    # Without a handler, warnings go to stderr; Detectron2's would be among the lines.
    register_files(args.register)
    if args.output is not None:
        if args.output.is_dir():
            raise ValueError(f"--output {args.output} is a folder; name a file")
        require_writable(args.output.parent)
    if args.top is not None and args.top < 1:
        raise ValueError(f"--top is {args.top}; it must be at least 1")
    if args.score == "local" and args.threshold is None and args.top is None:
        raise ValueError(
            "--score local has no threshold of its own, since cosines differ from CLIP to CLIP; "
            "give --threshold or --top"
        )
    inputs = find_inputs(args.input, args.output or Path(os.devnull))
    if inputs.videos:
        raise ValueError(f"{inputs.videos[0]} is a video; freecp tag takes images")
    for skipped in describe_skipped(inputs.skipped):
        print(f"{args.prog}: skipped {skipped.split(' ', 1)[1]}", file=sys.stderr)
    vocabulary = None if args.vocabulary is None else words_of(args.vocabulary)
    predictor = FreeCPPredictor(args.config_file, args.opts)
    words = predictor.prepare(vocabulary, background_of(args.background))
    own = {
        CONSISTENCY: predictor.cfg.MODEL.FREECP.REDUNDANCY_THRESHOLD,
        "erasing": 0.0,
        "local": -math.inf,
    }
    threshold = own[args.score] if args.threshold is None else args.threshold
    lines = []
    for image in inputs.images:
        with noted(faults, image, args.debug):
            presence = predictor.presence(image, words, score=args.score)
            tags = tags_of(presence, threshold, args.top)
            lines.append(_line(str(image), tags, args.json))
            if args.output is None:
                print(lines[-1], flush=True)
        if stop.signal:
            break
    if args.output is not None:
        write_whole(args.output, "".join(f"{line}\n" for line in lines).encode())


def _line(file: str, tags: Mapping[str, float], as_json: bool) -> str:
    if as_json:
        return json.dumps({"file_name": file, "tags": {k: round(v, 6) for k, v in tags.items()}})
    return f"{file}: {', '.join(f'{name} {score:.2f}' for name, score in tags.items()) or '-'}"


def _number(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError("NaN")
    return value
