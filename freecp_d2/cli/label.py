"""Label any number of images, on one machine or many: pseudo-labels for training.

    freecp label --config-file scenes/clearclip --vocabulary "sky,lawn,road" \
        --input photos/ --output output/labels

Of photos/a/1.jpg it writes labels/a/1.png, class ids of 8 bits (255: ignored), or of 16 with 255
classes or more (65535: ignored); of all images manifest.jsonl, a line each, and sem_seg.json, which
freecp_d2.labelling.register_labels registers in Detectron2. A run that ended, however it did, goes
on where it stopped when it is started again.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..background import chooses_background
from ..config import config_path, configured_vocabulary, load_config
from ..distributed import job_token, require_one_job
from ..errors import add_debug_option, one_sentence
from ..evaluation.dataset import require_registered
from ..inputs import as_vocabulary, with_background
from ..labelling import Job, Outputs
from ..labelling.launch import label
from .launch import launch_by, say_how_to_go_on
from .options import add_config_option, add_opts_option
from .register import add_register_option, register_files
from .words import add_words_options, background_of, parse_words, words_of


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options. `prog`: as in :func:`main`."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(prog=parser.prog)
    add = parser.add_argument
    add_config_option(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        metavar="INPUT",
        help="a folder; a pattern such as 'photos/**/*.jpg'; a .txt of one path a line; a .jsonl "
        "of objects with file_name and optionally id and image_id; or such a URL as s3://bucket/x",
    )
    source.add_argument("--dataset", metavar="NAME", help="a data set of Detectron2's catalogs")
    add("--output", required=True, metavar="FOLDER", help="of the labels; or a URL")
    add_words_options(parser)
    add(
        "--min-confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="pixels whose best class has a lower score are ignored; 0 to 1, default 0",
    )
    add("--scores", action="store_true", help="also the best class's score at each pixel, a PNG")
    add("--coco", action="store_true", help="also segmentation.json, COCO's RLE segments")
    add("--tars", type=int, default=0, metavar="N", help="also WebDataset's tars of N images each")
    add_register_option(parser)
    add("--num-gpus", type=int, default=1, help="processes a machine; without GPUs, on the CPU")
    add("--num-machines", type=int, default=1, help="machines, which must all see --output")
    add("--machine-rank", type=int, default=0, help="which of them this one is, from 0")
    add("--dist-url", default="auto", help="of several machines: tcp://<the first's address>:port")
    add(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="by Ray Data: on this machine, or on the cluster of this address",
    )
    add("--actors", type=int, metavar="N", help="of Ray; default: one a GPU share, or one a core")
    add("--gpu-share", type=float, metavar="X", help="of a GPU for each actor of Ray; default 1")
    add_debug_option(parser)
    add_opts_option(parser)
    args = parse_words(parser, sys.argv[1:] if argv is None else argv)
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("several machines need --dist-url tcp://<the first's address>:<port>")
    if args.ray is None and (args.actors, args.gpu_share) != (None, None):
        parser.error("--actors and --gpu-share are of --ray; add it, or take --num-gpus")
    if args.ray is not None and (args.num_gpus, args.num_machines) != (1, 1):
        parser.error("--ray knows no --num-gpus and --num-machines; take --actors")
    args.job = job_token(args)
    return args


def job_of(args: argparse.Namespace) -> Job:
    """What the options ask for.

    Raises:
        FileNotFoundError, ValueError: they do not fit.
    """
    register_files(args.register)
    opts = [*args.opts, "MODEL.FREECP.OUTPUT", "label_map"]
    if args.dataset is not None:
        require_registered(args.dataset)
        opts += ["DATASETS.TEST", (args.dataset,)]
    background = background_of(args.background)
    if background is not False:
        chosen = chooses_background(background)
        opts += ["MODEL.FREECP.BACKGROUND", background if chosen else ""]
    cfg: CfgNode = load_config(config_path(args.config_file), opts)
    if args.vocabulary is None:
        vocabulary = configured_vocabulary(cfg)
    else:
        vocabulary = as_vocabulary(words_of(args.vocabulary))
    source: Any = args.input if args.dataset is None else DatasetCatalog.get(args.dataset)
    if args.tars < 0:
        raise ValueError(f"--tars {args.tars}: give the number of images in each")
    outputs = Outputs(args.min_confidence, args.scores, args.coco)
    if not cfg.MODEL.FREECP.BACKGROUND:  # else the model chooses
        vocabulary = with_background(vocabulary, background)
    return Job(cfg, source, args.output, vocabulary, outputs, args.tars)


def run(args: argparse.Namespace) -> int:
    """What each rank runs: :func:`freecp_d2.labelling.launch.label`; the exit code."""
    setup_logger(distributed_rank=comm.get_rank(), name="freecp_d2")
    with one_sentence(args.prog, args.debug):
        require_one_job(args.job, max(args.num_machines * args.num_gpus, 1))
        return label(job_of(args), args.prog)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line, on as many ranks as it says; the exit code.

    0: all images are labelled; 3: some could not be, and are named; 130, 143: a signal stopped it,
    and the command that goes on is said.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: something is wrong with the input, or cannot be written; it says what.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(given, prog)
    if args.ray is None:
        code = launch_by(args, run)
    else:
        from ..labelling.ray import label_by_ray

        setup_logger(name="freecp_d2")
        with one_sentence(args.prog, args.debug):
            address = args.ray or None
            code = label_by_ray(job_of(args), address, args.actors, args.gpu_share, args.prog)
    say_how_to_go_on(args, code, given)
    return code
