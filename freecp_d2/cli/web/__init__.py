"""A web page: drop a picture, type classes, see a base method without and with FreeCP.

The page is served to this machine alone unless --host says otherwise. Uploads lie in a temporary
folder, are deleted after some minutes, and all of it when the page is shut down (Ctrl-C). The words
that people type stay in memory, until their session ends.
"""

import argparse
import atexit
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub.constants

from ...errors import add_debug_option, one_sentence
from ...files import scratch_folder
from ..register import add_register_option, register_files


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog, description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config-file",
        default="scenes/clearclip",
        metavar="FILE",
        help="a YAML file, or the name of one under configs/ (default: %(default)s)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to serve; 0.0.0.0 lets everyone in who reaches this machine "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that the page is reached under, such as that of a proxy before it; others "
        "than this machine's addresses and name are refused (may be given several times)",
    )
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    add_register_option(parser)
    add_debug_option(parser)
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides"
    )
    args = parser.parse_args(argv)
    args.prog = parser.prog
    return args


def private_gradio() -> Path:
    """Before gradio is imported: it reports to nobody, and its files lie in a folder of their own.

    Returns:
        The folder, which is deleted when this process ends, or when the next page starts.
    """
    stack = ExitStack()
    atexit.register(stack.close)
    temporary = Path(tempfile.gettempdir())
    folder = stack.enter_context(scratch_folder(temporary, "freecp_web")) / "files"
    folder.mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # open_clip has loaded it by now
    return folder


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Serve until a signal to stop, and leave no file behind.

    Args:
        prog: what the command is called; by default the name of the script.

    Raises:
        SystemExit: the command line, the config or the address cannot be used, or gradio is
            missing; it says why.
    """
    args = parse_args(argv, prog)
    if find_spec("gradio") is None:
        sys.exit(f"{args.prog}: the page needs gradio: pip install 'freecp_d2[web]'")
    with one_sentence(args.prog, args.debug):
        folder = private_gradio()
    tempfile.tempdir = str(folder)

    from ...predictor import FreeCPPredictor
    from .page import build_page, serve
    from .sessions import SessionStore

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    # The latter two would log what people type.
    for other in ("httpx", "freecp_d2.clip.text", "freecp_d2.inputs"):
        logging.getLogger(other).setLevel(logging.ERROR)
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: stop.set())
    # The words that people type are not kept on disk.
    opts = [*args.opts, "MODEL.CLIP.TEXT_CACHE", ""]
    with one_sentence(args.prog, args.debug):
        register_files(args.register)
        store = SessionStore(FreeCPPredictor(args.config_file, opts))
        page = build_page(store, folder)
    try:
        serve(page, args.host, args.port, args.allow_host)
    except OSError:
        sys.exit(
            f"{args.prog}: cannot serve {args.host}:{args.port}: another program has that port, or "
            "this machine has no such address; choose others with --port and --host"
        )
    print(f"Open http://{args.host}:{args.port} (Ctrl-C stops it)", flush=True)
    stop.wait()
    page.close(verbose=False)
