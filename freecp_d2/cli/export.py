"""Write FreeCP for another runtime: PyTorch's own programs, ONNX, OpenVINO.

    freecp export --config-file scenes/clearclip --vocabulary "sky,lawn,road,dog" \
        --format onnx --output output/exported

The folder holds three programs (the encoder of windows, the encoder of crops, the head), the
features of the words, and description.json with all else that is needed to run them
(docs/export.md). projects/Export/run_onnx.py does, with onnxruntime, NumPy, SciPy and OpenCV.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import add_debug_option, one_sentence, path_argument
from .options import add_config_option, add_opts_option
from .register import add_register_option, register_files
from .words import add_words_options, background_of, parse_words, words_of

PLAIN = [
    *("MODEL.CLIP.PRECISION", "fp32", "MODEL.CLIP.ENGINE", "torch"),
    *("MODEL.CLIP.COMPILE", "False", "MODEL.FREECP.COMPILE", "False"),
]
"""How a model is run, of which an export knows nothing."""


def parse_args(argv: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """The options. `prog`: as in :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(prog=parser.prog)
    add_config_option(parser)
    parser.add_argument("--format", required=True, choices=("torch", "onnx", "openvino"))
    parser.add_argument("--output", required=True, type=path_argument, metavar="FOLDER")
    add_words_options(parser)
    add_register_option(parser)
    add_debug_option(parser)
    add_opts_option(parser)
    return parse_words(parser, sys.argv[1:] if argv is None else argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; the exit code.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: something is wrong with the input, cannot be exported or written; it says what.
    """
    args = parse_args(argv, prog)
    with one_sentence(args.prog, args.debug):
        _export(args)
    return 0


def _export(args: argparse.Namespace) -> None:
    from detectron2.utils.logger import setup_logger

    from ..config import finished_config, load_config
    from ..export import check_exportable, export
    from ..files import replace_folder, scratch_folder
    from ..segmenter import Segmenter, build_model

    setup_logger(name="freecp_d2")
    register_files(args.register)
    require_free(args.output)
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    if said := check_exportable(cfg):
        print(said)
    vocabulary = None if args.vocabulary is None else words_of(args.vocabulary)
    cfg = finished_config(cfg, PLAIN)
    segmenter = Segmenter(build_model(cfg), cfg)
    words = segmenter.words_of(vocabulary, background_of(args.background))
    output = args.output.absolute()  # "." itself cannot be renamed
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output.parent, "freecp_export") as scratch:
        folder = scratch / "new"
        agreement = export(segmenter.model, cfg, words, args.format, folder)
        require_free(output)
        replace_folder(output, folder, scratch / "former")
    for name, worst in agreement.differences.items():
        print(f"{name}: differs from torch by at most {worst:.1e}")
    print(f"label map of a drawn image: {100 * agreement.equal:.2f} % of pixels are equal")
    print(f"{args.output}: {', '.join(sorted(file.name for file in output.iterdir()))}")


def require_free(folder: Path) -> None:
    """That a folder can be made, or holds an earlier export and nothing else.

    Raises:
        ValueError: it holds something else.
        NotADirectoryError: it is a file.
    """
    from ..export.description import files_of_export

    if folder.exists():
        others = sorted({file.name for file in folder.iterdir()} - files_of_export(folder))
        if others:
            raise ValueError(
                f"{folder} holds {others[0]}, which is of no export; choose another --output"
            )
