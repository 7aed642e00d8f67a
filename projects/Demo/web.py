"""A web page: drop a picture, type classes, see a base method without and with FreeCP.

    python projects/Demo/web.py --config-file scenes/clearclip

Then open http://127.0.0.1:7860. The page is served to this machine alone unless --host says
otherwise. Uploads lie in a temporary folder, are deleted after some minutes, and all of it when the
page is shut down (Ctrl-C).
"""

import argparse
import atexit
import html
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

# Before torch is loaded; see train_net.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before gradio is: all its files lie in a folder that goes at the end, and it reports to nobody.
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="freecp_web_")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import cv2
import gradio as gr
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from freecp_d2 import FreeCPPredictor, Segmentation
from freecp_d2.data.mapper import read_image
from freecp_d2.data.scenes import CLASSES, draw_scene
from freecp_d2.predictor import EncodedImage

FOLDER = os.environ["GRADIO_TEMP_DIR"]
atexit.register(shutil.rmtree, FOLDER)

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
MAX_SIDE = 1024
"""Larger pictures are shrunk to this long side before anything else."""
MIN_SHOWN = 640
"""Smaller pictures are shown by a whole number of times larger, at least this long."""
MAX_CLASSES = 200
MAX_NAME = 80
CACHE_BYTES = 2 * 2**30
"""What the encoded pictures of all sessions may occupy. The longest unused go first."""
UPLOADS_LIVE = 600
"""Seconds until an upload is deleted."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
EXAMPLE_SEEDS = (10, 42, 36, 87, 12)
"""Chosen to show something: look-alikes settled rightly in the first two, wrongly in the last."""
KEPT, REDUNDANT, AMBIGUOUS = "#2a9d8f", "#9aa0a6", "#e76f51"
INK = "#123456"
"""Colour of a chart's text and lines; becomes the page's text colour, light or dark."""
CHART_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "freecp"} | dict.fromkeys(
    ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], INK
)

log = logging.getLogger("freecp_d2.web")


# ------------------------------------------------------------------------------------- the model


@dataclass
class Sitting:
    """A session's picture: CLIP's part of it, and the words that were last asked for.

    Attributes:
        path: of the upload. It holds the hash of the file's bytes.
        encoded: what FreeCP sees; None where it is to be encoded first.
        names, background: what was last asked for.
        base: the base method's answer to that.
    """

    path: str
    encoded: EncodedImage | None = None
    names: list[str] | None = None
    background: bool = False
    base: Segmentation | None = None


@dataclass
class Answer:
    """What the page shows of one request.

    Attributes:
        base, purified: the base method alone, and with FreeCP.
        redundancy_threshold: that `purified` was made with.
        encode_seconds: of encoding the picture and of the base method, which encodes it in its own
            way; None where neither was done again.
        segment_seconds: of FreeCP without that, and of new words.
    """

    base: Segmentation
    purified: Segmentation
    redundancy_threshold: float
    encode_seconds: float | None
    segment_seconds: float


class Studio:
    """One model for all sessions, one request at a time. Each session sees its own picture only.

    Attributes:
        sittings: session -> its picture, the longest unused first.

    Args:
        cache_bytes: how much the encoded pictures may occupy. The last one is kept in any case.
    """

    def __init__(self, predictor: FreeCPPredictor, cache_bytes: int = CACHE_BYTES):
        self.predictor = predictor
        self.cache_bytes = cache_bytes
        self.sittings: OrderedDict[str, Sitting] = OrderedDict()
        self._lock = threading.Lock()

    def run(
        self, session: str, path: str, names: list[str], background: bool, *thresholds: float
    ) -> Answer:
        """Segment a picture. CLIP encodes it unless it is the one that the session has.

        Args:
            thresholds: of redundancy and of ambiguity.

        Raises:
            ValueError: the picture or the words cannot be used; the message says why.
        """
        with self._lock:
            sitting = self.sittings.get(session)
            if sitting is None or sitting.path != path:
                sitting = Sitting(path)
            return self._segment(session, sitting, names, background, *thresholds)

    def again(self, session: str, background: bool, *thresholds: float) -> Answer | None:
        """Segment a session's picture with the same words; None where it has none.

        Raises:
            ValueError: the picture had to make room for others, and its file is deleted.
        """
        with self._lock:
            sitting = self.sittings.get(session)
            if sitting is None or sitting.names is None:
                return None
            return self._segment(session, sitting, sitting.names, background, *thresholds)

    def forget(self, session: str) -> None:
        """Drop what is kept of a session."""
        self.sittings.pop(session, None)

    def _segment(
        self,
        session: str,
        sitting: Sitting,
        names: list[str],
        background: bool,
        redundancy: float,
        ambiguity: float,
    ) -> Answer:
        encode_seconds = 0.0
        if sitting.encoded is None:
            image = load_picture(Path(sitting.path))
            start = time.perf_counter()
            sitting.encoded = self.predictor.encode(image)
            encode_seconds += time.perf_counter() - start
        self.sittings[session] = sitting
        self.sittings.move_to_end(session)

        words: dict[str, Any] = {"vocabulary": names, "background": background}
        start = time.perf_counter()
        purified = self.predictor.segment(
            sitting.encoded,
            redundancy_threshold=redundancy,
            ambiguity_threshold=ambiguity,
            **words,
        )
        segment_seconds = time.perf_counter() - start
        base = sitting.base
        if base is None or (sitting.names, sitting.background) != (names, background):
            start = time.perf_counter()
            base = self.predictor.base(sitting.encoded.image, **words)
            encode_seconds += time.perf_counter() - start
        sitting.names, sitting.background, sitting.base = names, background, base
        self._make_room()
        log.info("encoding took %.2f s, the rest %.2f s", encode_seconds, segment_seconds)
        return Answer(base, purified, redundancy, encode_seconds or None, segment_seconds)

    def _make_room(self) -> None:
        """Of the longest unused sessions, keep no more than the path and the words."""
        *others, _ = self.sittings.values()
        total = sum(map(nbytes, self.sittings.values()))
        for sitting in others:
            if total > self.cache_bytes:
                total -= nbytes(sitting)
                sitting.encoded = sitting.base = None


def nbytes(value: Any) -> int:
    """Bytes of the tensors and arrays that dataclasses, dicts and sequences of them hold."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return value.nbytes
    if is_dataclass(value):
        return sum(nbytes(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return sum(map(nbytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(nbytes, value))
    return 0


def load_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB with no side over MAX_SIDE. Its size is checked before it is decoded.

    Raises:
        ValueError: no such file, no image, of too many bytes or pixels.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(
                f"{path.name} has {size / 2**20:.1f} MiB; this page takes at most "
                f"{MAX_BYTES // 2**20}. Make it smaller and drop it again."
            )
        with Image.open(path, formats=FORMATS) as file:
            width, height = file.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError
        image = read_image(path)
    except FileNotFoundError:
        raise ValueError("The picture was deleted in the meantime; drop it again.") from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path.name} is no picture that this page can read; it takes {', '.join(FORMATS)}."
        ) from None
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path.name} has too many pixels; this page takes at most "
            f"{MAX_PIXELS // 1_000_000} million. Make it smaller and drop it again."
        ) from None
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from None
    scale = MAX_SIDE / max(image.shape[:2])
    if scale < 1:
        size = [max(round(n * scale), 1) for n in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image


def parse_classes(text: str) -> list[str]:
    """Class names, separated by commas or line ends.

    Raises:
        ValueError: none, more than MAX_CLASSES, or one of more than MAX_NAME characters.
    """
    names = [name.strip() for line in text.splitlines() for name in line.split(",")]
    names = [name for name in names if name]
    if not names:
        raise ValueError("Type at least one class, for example: sky, road, tree.")
    if len(names) > MAX_CLASSES:
        raise ValueError(
            f"{len(names)} classes are too many; this page takes at most {MAX_CLASSES}."
        )
    for name in names:
        if len(name) > MAX_NAME:
            raise ValueError(f"{shorten(name)!r} has {len(name)} characters; at most {MAX_NAME}.")
    return names


# ---------------------------------------------------------------------------------- what is shown


def summary(answer: Answer) -> str:
    """One line of HTML: how many classes stayed, and how long it took."""
    removed = answer.purified.removed
    redundant = sum(entry.stage == "redundancy" for entry in removed)
    total = np.isfinite(answer.purified.consistency).sum()
    encoded = (
        "picture not encoded again"
        if answer.encode_seconds is None
        else f"picture encoded in {answer.encode_seconds:.2f} s"
    )
    return (
        f"<b>{total - len(removed)} of {total} classes stay</b>: {redundant} removed as redundant, "
        f"{len(removed) - redundant} as look-alikes · {encoded}, "
        f"segmented in {answer.segment_seconds:.2f} s"
    )


def picture_of(segmentation: Segmentation) -> Image.Image:
    """The drawing, enlarged before it is drawn where its class names would be too small to read."""
    height, width = segmentation.label_map.shape
    scale = -(-MIN_SHOWN // max(height, width))
    size = width * scale, height * scale
    larger = replace(
        segmentation,
        image=cv2.resize(segmentation.image, size, interpolation=cv2.INTER_CUBIC),
        label_map=segmentation.label_map.repeat(scale, axis=0).repeat(scale, axis=1),
    )
    return Image.fromarray(larger.draw())


def legend(answer: Answer) -> str:
    """A table of swatch, class and its shares of the picture, base method and FreeCP."""
    base, purified = answer.base, answer.purified
    rows, absent = [], []
    for i in np.argsort(-purified.shares, kind="stable"):
        name = html.escape(purified.class_names[i])
        if base.shares[i] == purified.shares[i] == 0:
            absent.append(name)
            continue
        color = "#{:02x}{:02x}{:02x}".format(*purified.colors[i].tolist())
        shares = "".join(
            f"<td>{share:.1%}</td>" if share else "<td>–</td>"
            for share in (base.shares[i], purified.shares[i])
        )
        swatch = f'<span class="swatch" style="background:{color}"></span>'
        rows.append(f"<tr><td>{swatch}</td><th>{name}</th>{shares}</tr>")
    nowhere = f"<p>Nowhere: {', '.join(absent)}</p>" if absent else ""
    return (
        '<div class="legend"><table><thead><tr><td></td><th>class</th><td>base</td><td>FreeCP</td>'
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>{nowhere}</div>"
    )


@matplotlib.rc_context(CHART_STYLE)
def chart(answer: Answer) -> str:
    """Every class's consistency as a bar, its fate beside it, and the threshold: SVG."""
    asked = np.isfinite(answer.purified.consistency)  # without the background
    names = np.array(answer.purified.class_names, dtype=object)[asked]
    scores = answer.purified.consistency[asked]
    removed = {entry.name: entry for entry in answer.purified.removed}
    order = np.argsort(scores, kind="stable")
    figure = Figure(figsize=(5, 0.19 * len(names) + 0.8), layout="constrained")
    axes = figure.subplots()
    for y, i in enumerate(order):
        entry = removed.get(names[i])
        color, fate = KEPT, ""
        if entry is not None and entry.stage == "redundancy":
            color, fate = REDUNDANT, "redundant"
        elif entry is not None:
            color, fate = AMBIGUOUS, f"lost to {shorten(entry.beaten_by or 'its look-alikes')}"
        axes.barh(y, scores[i], height=0.7, color=color)
        axes.annotate(
            f"{scores[i]:.3f} {fate}",
            (scores[i], y),
            (3, 0),
            textcoords="offset points",
            va="center",
            size=8,
            parse_math=False,
        )
    labels = axes.set_yticks(range(len(names)), [shorten(names[i]) for i in order], size=8)
    for label in labels:
        label.label1.set_parse_math(False)
    axes.axvline(
        answer.redundancy_threshold, color=INK, alpha=0.5, linewidth=1, linestyle="--", zorder=0
    )
    axes.set_xlabel(
        f"consistency; dashed: the redundancy threshold, {answer.redundancy_threshold:g}", size=8
    )
    axes.set_xlim(0)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.spines[["top", "right"]].set_visible(False)
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    key = "".join(
        f'<span class="swatch" style="background:{color}"></span>{label} '
        for color, label in ((KEPT, "stays"), (REDUNDANT, "redundant"), (AMBIGUOUS, "look-alike"))
    )
    return (
        f'<div class="chart"><p>{key}</p>{svg[svg.index("<svg") :].replace(INK, "currentColor")}'
        "</div>"
    )


def shorten(name: str, length: int = 26) -> str:
    """A long name's beginning."""
    return name if len(name) <= length else name[: length - 1] + "…"


# --------------------------------------------------------------------------------------- the page

CSS = """
.swatch { display: inline-block; width: .9em; height: .9em; margin: 0 .35em; border-radius: 2px;
          border: 1px solid rgba(128, 128, 128, .6); vertical-align: -.1em }
.legend, .chart { max-height: 40rem; overflow: auto }
.legend table { width: 100%; border-collapse: collapse }
.legend th { text-align: left; font-weight: normal; overflow-wrap: anywhere; width: 100% }
.legend :is(table, thead, tr, td, th) { border: none !important }
.legend :is(td, th) { padding: .1em .3em }
.legend td { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
.legend thead { opacity: .7 }
.legend p { opacity: .7; overflow-wrap: anywhere; margin-top: .5em }
.chart svg { width: 100%; height: auto }
.sides { display: flex; justify-content: space-between; opacity: .8; margin-bottom: .6em }
"""
INTRODUCTION = f"""# FreeCP: your picture, your words
Drop a picture, type the classes it may show, press **Segment**. FreeCP removes the classes that are
not there and settles which of two look-alikes is. At most {MAX_BYTES // 2**20} MiB,
{MAX_PIXELS // 1_000_000} million pixels and {MAX_CLASSES} classes; pictures with a side over
{MAX_SIDE} pixels are shrunk. Uploads are deleted after {UPLOADS_LIVE // 60} minutes.
"""
SCENECLIP = """This page runs on SceneCLIP, a small CLIP that was trained on drawn scenes only. It
knows the words of the examples below; of photographs it knows nothing.
"""
SIDES = '<div class="sides"><span>◀ {method} alone</span><span>{method} + FreeCP ▶</span></div>'
"""Under the slider."""


def build_page(studio: Studio, folder: Path) -> gr.Blocks:
    """The page; its example pictures are drawn into `folder`."""
    cfg = studio.predictor.cfg
    freecp, method = cfg.MODEL.FREECP, cfg.MODEL.CLIP.METHOD
    scene_clip = "SceneCLIP" in cfg.MODEL.CLIP.PRETRAINED
    sides = SIDES.format(method=html.escape(method))

    def show(answer: Answer) -> tuple[Any, ...]:
        pictures = picture_of(answer.base), picture_of(answer.purified)
        return pictures, sides + summary(answer), legend(answer), chart(answer)

    def run(
        upload: dict | None,
        text: str,
        background: bool,
        redundancy: float,
        ambiguity: float,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        if not upload:
            raise complaint("Drop a picture first, or click an example.")
        try:
            names = parse_classes(text)
            answer = studio.run(
                request.session_hash, upload["path"], names, background, redundancy, ambiguity
            )
        except ValueError as error:
            raise complaint(str(error)) from None
        return show(answer)

    def again(
        background: bool, redundancy: float, ambiguity: float, request: gr.Request
    ) -> tuple[Any, ...] | dict:
        try:
            answer = studio.again(request.session_hash, background, redundancy, ambiguity)
        except ValueError as error:
            raise complaint(str(error)) from None
        return gr.skip() if answer is None else show(answer)

    def forget(request: gr.Request) -> None:
        studio.forget(request.session_hash)

    with gr.Blocks(
        title="FreeCP", analytics_enabled=False, delete_cache=(60, UPLOADS_LIVE)
    ) as page:
        gr.Markdown(INTRODUCTION + (SCENECLIP if scene_clip else ""))
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=260,
                    elem_id="picture",
                )
                words = gr.Textbox(
                    label="Classes, separated by commas or lines",
                    placeholder="sky, road, tree",
                    lines=3,
                    max_lines=8,
                    elem_id="words",
                )
                background = gr.Checkbox(
                    label="Background",
                    info="Pixels that none of the classes explains are background.",
                    elem_id="background",
                )
                button = gr.Button("Segment", variant="primary", elem_id="segment")
                redundancy = gr.Slider(
                    0,
                    0.5,
                    freecp.REDUNDANCY_THRESHOLD,
                    step=0.005,
                    label="Redundancy threshold",
                    info="Classes whose consistency is not above it are removed.",
                    elem_id="redundancy",
                )
                ambiguity = gr.Slider(
                    0,
                    1,
                    freecp.AMBIGUITY_THRESHOLD,
                    step=0.01,
                    label="Ambiguity threshold",
                    info="Classes whose maps overlap at least that much compete for their place.",
                    elem_id="ambiguity",
                )
                examples = gr.Examples(
                    [[str(file), ", ".join(CLASSES)] for file in draw_examples(folder)],
                    [picture, words],
                    cache_examples=False,
                    visible_columns=[0],
                    label="Drawn scenes, with the words of all of them",
                    elem_id="examples",
                )
            with gr.Column(scale=3, min_width=320):
                slider = gr.ImageSlider(
                    label="Drag the line",
                    type="pil",
                    interactive=False,
                    format="png",
                    elem_id="result",
                )
                line = gr.HTML(sides, elem_id="summary")
                with gr.Row():
                    with gr.Column(scale=2, min_width=260):
                        shares = gr.HTML(elem_id="legend")
                    with gr.Column(scale=3, min_width=320):
                        scores = gr.HTML(elem_id="chart")

        knobs = [background, redundancy, ambiguity]
        outputs = [slider, line, shares, scores]
        # One event at a time for all sessions: the others wait in the queue and see their place.
        common: dict[str, Any] = {
            "outputs": outputs,
            "show_progress_on": slider,
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
        }
        for listen in (button.click, examples.load_input_event.success):
            # Not preprocessed: Gradio would open the upload before its size is checked.
            listen(run, [picture, words, *knobs], preprocess=False, **common)
        gr.on(
            [knob.change for knob in knobs],
            again,
            knobs,
            trigger_mode="always_last",
            show_progress="minimal",
            **common,
        )
        page.unload(forget)
    return page.queue(max_size=64)


def complaint(sentence: str) -> gr.Error:
    """A message on the page, until it is closed. Gradio takes it for HTML."""
    return gr.Error(html.escape(sentence), duration=None, print_exception=False)


def draw_examples(folder: Path) -> list[Path]:
    """Embedded scenes as PNG files."""
    files = [folder / f"scene_{seed}.png" for seed in EXAMPLE_SEEDS]
    for seed, file in zip(EXAMPLE_SEEDS, files, strict=True):
        Image.fromarray(draw_scene(seed).image).save(file)
    return files


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
    parser.add_argument("--port", type=int, default=7860, help="(default: %(default)s)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides"
    )
    return parser.parse_args()


def main() -> None:
    """Serve until a signal to stop, and leave no file behind."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    for other in ("httpx", "freecp_d2.clip.text"):  # the latter would log what people type
        logging.getLogger(other).setLevel(logging.ERROR)
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: stop.set())
    tempfile.tempdir = FOLDER
    # The words that people type are text features in a cache: that too goes at the end.
    opts = ["MODEL.CLIP.TEXT_CACHE", os.path.join(FOLDER, "text_features"), *args.opts]
    try:
        studio = Studio(FreeCPPredictor(args.config_file, opts))
    except (OSError, ValueError) as error:
        sys.exit(f"web.py: {error}")
    page = build_page(studio, Path(FOLDER))
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            footer_links=[],
            max_file_size=MAX_BYTES,
            ssr_mode=False,
            enable_monitoring=False,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=CSS,
        )
    except OSError:
        sys.exit(
            f"web.py: cannot serve {args.host}:{args.port}: another program has that port, or this "
            "machine has no such address; choose others with --port and --host"
        )
    print(f"Open http://{args.host}:{args.port} (Ctrl-C stops it)", flush=True)
    stop.wait()
    page.close(verbose=False)


if __name__ == "__main__":
    main()
