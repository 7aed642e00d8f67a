"""Segment images and videos of one's own into classes that are named in words.

    freecp segment --config-file scenes/clearclip \
        --vocabulary "sky,lawn,road,mushroom" --input photo.jpg folder/ --output output/photos

Of photo.jpg it writes labels/photo.png (indexed by class, with a palette; 16 bits with 255 classes
or more), overlays/photo.png and, on demand, masks/photo/<class>.png and maps/photo.png; of all
images one segmentation.json in COCO's format; of clip.mp4 it writes overlays/clip.mp4. A run that
was interrupted goes on where it stopped.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ...inputs import names_a_file
from ...predictor import FreeCPPredictor


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


def parse_args(argv: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """The options of Detectron2's demo, and more. `prog`: as in :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(prog=parser.prog)
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a YAML file, or the name of one that the library ships, such as scenes/clearclip",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        metavar="FILE",
        help="images, videos, folders of images, patterns like 'a/*.jpg' and 'a/*.mp4'",
    )
    source.add_argument(
        "--video-input",
        type=Path,
        metavar="FILE",
        help="a video, whatever its suffix; a flag of Detectron2's demo",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
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
        help="what is none of the classes is background, by 26 common names or by these",
    )
    parser.add_argument(
        "--base", action="store_true", help="show the method without FreeCP beside it"
    )
    parser.add_argument("--masks", action="store_true", help="a mask of every class of every image")
    parser.add_argument(
        "--maps", action="store_true", help="a figure of class activation maps of every image"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="last: KEY VALUE ... of the config"
    )
    given = list(sys.argv[1:] if argv is None else argv)
    args, unknown = parser.parse_known_args(given)
    if unknown:
        parser.error(_unrecognized(given, unknown))
    return args


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


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; the exit code, 1 when an image or anything else failed.

    Args:
        prog: what the command is called; by default the name of the script.
    """
    args = parse_args(argv, prog)
    from detectron2.utils.logger import setup_logger

    from ..errors import memory_ran_out
    from .faults import sentence
    from .images import segment_images
    from .inputs import describe_skipped, inputs_of
    from .video import segment_videos

    # Read when a video is first opened. What OpenCV's ffmpeg says of encoders that are not there,
    # nobody asked.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    setup_logger(name="freecp_d2")
    faults = []
    try:
        inputs = inputs_of(args)
        for skipped in describe_skipped(inputs.skipped):
            print(f"{args.prog}: skipped {skipped.split(' ', 1)[1]}", file=sys.stderr)
        vocabulary = None if args.vocabulary is None else words_of(args.vocabulary)
        background = args.background
        if isinstance(background, str):
            background = _names("--background", background)
        predictor = FreeCPPredictor(args.config_file, args.opts)
        if not predictor.purifies and (args.base or args.maps):
            raise ValueError("MODEL.FREECP.ENABLED is False: leave out --base and --maps")
        words = predictor.prepare(vocabulary, background)
        if inputs.images:
            faults += segment_images(predictor, words, inputs, args)
        if inputs.videos:
            faults += segment_videos(predictor, words, inputs, args)
    except (OSError, ValueError) as error:
        faults.append(" ".join(str(error).split()))
    except Exception as error:
        if not memory_ran_out(error):
            raise
        faults.append(sentence(Path(args.config_file), error))
    for fault in faults:
        print(f"{args.prog}: {fault}", file=sys.stderr)
    return 1 if faults else 0
