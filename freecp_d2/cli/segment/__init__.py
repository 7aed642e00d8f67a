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

from ...background import chooses_background
from ...errors import add_debug_option, path_argument
from ...files import sweep
from ...locks import locked
from ...predictor import FreeCPPredictor
from ...stopping import Stop
from ..options import add_config_option, add_opts_option
from ..register import add_register_option, register_files
from ..words import add_words_options, background_of, parse_words, words_of
from .faults import run_noting


def parse_args(argv: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """The options of Detectron2's demo, and more. `prog`: as in :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(prog=parser.prog)
    add_config_option(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        type=path_argument,
        metavar="FILE",
        help="images, videos, folders of images, patterns like 'a/*.jpg' and 'a/*.mp4'",
    )
    source.add_argument(
        "--video-input",
        type=path_argument,
        metavar="FILE",
        help="a video, whatever its suffix; a flag of Detectron2's demo",
    )
    parser.add_argument("--output", required=True, type=path_argument, metavar="FOLDER")
    add_words_options(parser)
    parser.add_argument(
        "--base", action="store_true", help="show the method without FreeCP beside it"
    )
    parser.add_argument("--masks", action="store_true", help="a mask of every class of every image")
    parser.add_argument(
        "--maps", action="store_true", help="a figure of class activation maps of every image"
    )
    add_register_option(parser)
    add_debug_option(parser)
    add_opts_option(parser)
    return parse_words(parser, sys.argv[1:] if argv is None else argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; the exit code.

    That is 3 when an image or video failed and the others are done, and 143 or 130 when SIGTERM or
    Ctrl-C stopped it after the image at hand.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: something is wrong with the input, or nothing can be written; it says what.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(given, prog)
    return run_noting(_segment, args, given)


def _segment(args: argparse.Namespace, faults: list[str], stop: Stop) -> None:
    """Do what the command line says; sentences about what failed are added to `faults`."""
    from detectron2.utils.logger import setup_logger

    from .images import segment_images
    from .inputs import describe_skipped, inputs_of
    from .video import segment_videos

    # Read when a video is first opened. What OpenCV's ffmpeg says of encoders that are not there,
    # nobody asked.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    setup_logger(name="freecp_d2")
    register_files(args.register)
    inputs = inputs_of(args)
    for skipped in describe_skipped(inputs.skipped):
        print(f"{args.prog}: skipped {skipped.split(' ', 1)[1]}", file=sys.stderr)
    vocabulary = None if args.vocabulary is None else words_of(args.vocabulary)
    background = background_of(args.background)
    predictor = FreeCPPredictor(args.config_file, args.opts)
    if not predictor.purifies and (args.base or args.maps):
        raise ValueError("MODEL.FREECP.ENABLED is False: leave out --base and --maps")
    words = predictor.prepare(vocabulary, background)
    if chooses_background(background):
        print(f"background, {len(words.background)} words: {', '.join(words.background)}")
    with locked(args.output, args.prog):
        sweep(args.output)
        if inputs.images:
            segment_images(predictor, words, inputs, args, faults, stop)
        if inputs.videos and not stop.signal:
            segment_videos(predictor, words, inputs, args, faults, stop)
