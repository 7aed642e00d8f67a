"""A web page: drop a picture, type classes, see a base method without and with FreeCP.

    python projects/Demo/web.py --config-file scenes/clearclip

Then open http://127.0.0.1:7860. The page is served to this machine alone unless --host says
otherwise. Uploads lie in a temporary folder, are deleted after some minutes, and all of it when the
page is shut down (Ctrl-C). The words that people type stay in memory, until their session ends.
"""

import argparse
import asyncio
import atexit
import html
import ipaddress
import logging
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import unicodedata
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Before torch is loaded; see train_net.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before gradio is: all its files lie in a folder that goes at the end, and it reports to nobody.
os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(tempfile.mkdtemp(prefix="freecp_web_"))
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import cv2
import gradio as gr
import matplotlib
import numpy as np
import torch
from gradio.utils import get_upload_folder
from matplotlib.figure import Figure
from PIL import Image
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from freecp_d2 import FreeCPPredictor, Segmentation
from freecp_d2.data import Vocabulary
from freecp_d2.data.mapper import read_image
from freecp_d2.data.scenes import CLASSES, draw_scene
from freecp_d2.predictor import EncodedImage

FOLDER = os.environ["GRADIO_TEMP_DIR"]
atexit.register(shutil.rmtree, FOLDER)

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 40_000_000
MAX_SIDE = 1024
MAX_AREA = 768 * 768
"""Larger pictures are shrunk to this long side and so many pixels before anything else: those, with
MAX_CLASSES, decide how much memory a request takes."""
MIN_SHOWN = 640
"""Smaller pictures are shown by a whole number of times larger, at least this long."""
MAX_CLASSES = 200
"""Also of classes and background names together."""
MAX_NAME = 80
MAX_WAITING = 32
"""How many requests may wait for the model; more are told to try again."""
MAX_BODY = 2**20
"""Bytes of a request that is no upload."""
CACHE_BYTES = 2 * 2**30
"""What the encoded pictures of all sessions may occupy. The longest unused go first."""
UPLOADS_LIVE = 600
"""Seconds until an upload is deleted."""
SESSIONS_LIVE = 1800
"""Seconds without use until a session's picture and words are forgotten, its page open or not."""
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
        words: all vocabularies that the session has asked for.
    """

    path: str
    encoded: EncodedImage | None = None
    names: list[str] | None = None
    background: bool | list[str] = False
    base: Segmentation | None = None
    words: set[Vocabulary] = field(default_factory=set)


@dataclass(eq=False)
class Visit:
    """A request that waits for the model or has it.

    Attributes:
        session: None where it has none.
        keep: whether its sitting may be kept: not without a session, nor once that is forgotten.
        words: all vocabularies that it has asked for.
    """

    session: str | None
    keep: bool
    words: set[Vocabulary] = field(default_factory=set)


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
        self._expired: deque[str] = deque(maxlen=1000)
        self._visits: list[Visit] = []
        self._unused: set[Vocabulary] = set()
        self._lock = threading.Lock()  # of all the above, for moments
        self._turn = threading.Lock()  # of the model, as long as it works

    def run(
        self,
        session: str | None,
        path: str,
        names: list[str],
        background: bool | list[str],
        *thresholds: float,
    ) -> Answer:
        """Segment a picture. CLIP encodes it unless it is the one that the session has.

        Args:
            session: None or empty: nothing of this is kept.
            background: whether there is one, by the predictor's own names for it, or these names.
            thresholds: of redundancy and of ambiguity.

        Raises:
            ValueError: the picture, the words or a threshold cannot be used; the message says why.
        """
        check_words(names, background)
        check_thresholds(*thresholds)
        with self._visit(session) as visit:
            sitting = self._sitting(session)
            if sitting is None or sitting.path != path:
                words = visit.words if sitting is None else sitting.words
                sitting = Sitting(path, words=words)
            return self._segment(visit, sitting, names, background, *thresholds)

    def again(
        self, session: str | None, background: bool | list[str], *thresholds: float
    ) -> Answer | None:
        """Segment a session's picture with the same words; None where it has none.

        Raises:
            ValueError: the background or a threshold cannot be used, the picture had to make room
                for others and its file is deleted, or the session was forgotten as unused.
        """
        check_thresholds(*thresholds)
        with self._visit(session) as visit:
            sitting = self._sitting(session)
            if sitting is None or sitting.names is None:
                if session in self._expired:
                    raise ValueError(
                        f"Your picture and words were deleted after {SESSIONS_LIVE // 60} minutes "
                        "without use; press Segment."
                    )
                return None
            check_words(sitting.names, background)
            return self._segment(visit, sitting, sitting.names, background, *thresholds)

    def forget(self, session: str | None, *, unused: bool = False) -> None:
        """Drop what is kept of a session, and of a request of it that runs or waits, when it ends.

        It does not wait for the model.

        Args:
            unused: it may come back, and is then told so.
        """
        with self._lock:
            for visit in self._visits:
                visit.keep &= visit.session != session
            sitting = self.sittings.pop(session or "", None)
            if sitting is not None:
                self._unused |= sitting.words
            if session in self._expired:
                self._expired.remove(session)
            if unused and session:
                self._expired.append(session)
        self._drop_features()

    def _sitting(self, session: str | None) -> Sitting | None:
        with self._lock:
            return self.sittings.get(session or "")

    @contextmanager
    def _visit(self, session: str | None) -> Iterator[Visit]:
        """The model for this request alone; waits for it."""
        visit = Visit(session, keep=bool(session))
        with self._lock:
            self._visits.append(visit)
        try:
            with self._turn:
                yield visit
        finally:
            with self._lock:
                self._visits.remove(visit)
                self._unused |= visit.words
            self._drop_features()

    def _drop_features(self) -> None:
        """Drop the text features of words of nobody who is here, unless the model works.

        Whoever has the model calls this after it, so that nothing stays.
        """
        while self._unused and self._turn.acquire(blocking=False):
            try:
                with self._lock:
                    kept = [sitting.words for sitting in self.sittings.values()]
                    unused = self._unused.difference(*kept)
                    self._unused.clear()
                self.predictor.forget(unused)
            finally:
                self._turn.release()

    def _segment(
        self,
        visit: Visit,
        sitting: Sitting,
        names: list[str],
        background: bool | list[str],
        redundancy: float,
        ambiguity: float,
    ) -> Answer:
        encode_seconds = 0.0
        if sitting.encoded is None:
            image = load_picture(Path(sitting.path))
            start = time.perf_counter()
            sitting.encoded = self.predictor.encode(image)
            encode_seconds += time.perf_counter() - start
        with self._lock:
            if visit.keep and visit.session:
                self.sittings[visit.session] = sitting
                self.sittings.move_to_end(visit.session)

        start = time.perf_counter()
        words = self.predictor.prepare(names, background)
        with self._lock:
            visit.words.add(words)
            sitting.words.add(words)
        purified = self.predictor.segment(
            sitting.encoded,
            words,
            redundancy_threshold=redundancy,
            ambiguity_threshold=ambiguity,
        )
        segment_seconds = time.perf_counter() - start
        base = sitting.base
        if base is None or (sitting.names, sitting.background) != (names, background):
            start = time.perf_counter()
            base = self.predictor.base(sitting.encoded.image, words)
            encode_seconds += time.perf_counter() - start
        sitting.names, sitting.background, sitting.base = names, background, base
        self._make_room()
        log.info("encoding took %.2f s, the rest %.2f s", encode_seconds, segment_seconds)
        return Answer(base, purified, redundancy, encode_seconds or None, segment_seconds)

    def _make_room(self) -> None:
        """Of the longest unused sessions, keep no more than the path and the words."""
        with self._lock:
            others = list(self.sittings.values())[:-1]
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


def uploaded_file(upload: object) -> str:
    """The path of a request's picture, resolved: a file in the folder of uploads, or none there.

    It may not be a link out of it. What lies elsewhere is not looked at.

    Args:
        upload: what the request holds in the picture's place: {"path": path} of an upload.

    Raises:
        ValueError: there is no picture, or it is none of the uploads: the same sentence whether or
            not there is such a file.
    """
    if upload is None or upload == {}:
        raise ValueError("Drop a picture first, or click an example.")
    path = upload.get("path") if isinstance(upload, dict) else None
    folder = os.path.realpath(get_upload_folder())
    with suppress(OSError, ValueError):  # names that no file system takes
        if isinstance(path, str) and Path(os.path.abspath(path)).is_relative_to(folder):
            resolved = os.path.realpath(os.path.abspath(path))
            if Path(resolved).is_relative_to(folder):
                try:
                    status = os.stat(resolved)
                except FileNotFoundError:
                    return resolved  # deleted in the meantime
                if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                    return resolved
    raise ValueError("Only pictures that were dropped on this page can be used; drop it again.")


def load_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB within MAX_SIDE and MAX_AREA. Its size is checked before it is decoded.

    Raises:
        ValueError: no such file, no image, of too many bytes or pixels.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a FIFO or device, which may never end
            raise Image.UnidentifiedImageError
        size = status.st_size
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
    height, width = image.shape[:2]
    scale = min(MAX_SIDE / max(height, width), (MAX_AREA / (height * width)) ** 0.5)
    if scale < 1:
        size = [max(int(n * scale), 1) for n in (width, height)]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image


def parse_classes(text: object) -> list[str]:
    """Class names, separated by commas or line ends.

    Raises:
        ValueError: no text, or words that :func:`check_words` refuses.
    """
    if not isinstance(text, str):
        raise ValueError("The classes must be text, separated by commas or lines.")
    names = [" ".join(name.split()) for line in text.splitlines() for name in line.split(",")]
    names = [name for name in names if name]
    check_words(names, False)
    return names


def check_words(names: Sequence[str], background: object) -> None:
    """Whether the page takes these words.

    Args:
        background: True, False, or a list of names.

    Raises:
        ValueError: no class, more than MAX_CLASSES with the background's names, one of more than
            MAX_NAME characters or with characters that are no text; or no background as above.
    """
    if not names:
        raise ValueError("Type at least one class, for example: sky, road, tree.")
    more = [] if isinstance(background, bool) else background
    if not isinstance(more, list) or not all(isinstance(name, str) for name in more):
        raise ValueError("The background must be true, false or a list of names.")
    if len(names) + len(more) > MAX_CLASSES:
        what = f"{len(names)} classes" + (f" and {len(more)} background names" if more else "")
        raise ValueError(f"{what} are too many; this page takes at most {MAX_CLASSES}.")
    for name in [*names, *more]:
        if len(name) > MAX_NAME:
            raise ValueError(f"{shorten(name)!r} has {len(name)} characters; at most {MAX_NAME}.")
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
            raise ValueError(f"{name!a} has characters that are no text; take them out.")


def check_thresholds(redundancy: object, ambiguity: object) -> None:
    """Whether both are thresholds.

    Raises:
        ValueError: one is no number from 0 to 1.
    """
    for name, value in (("redundancy", redundancy), ("ambiguity", ambiguity)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= 1:  # type: ignore[operator]
            raise ValueError(f"The {name} threshold must be a number from 0 to 1.")


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
{MAX_PIXELS // 1_000_000} million pixels and {MAX_CLASSES} classes; pictures larger than
{MAX_SIDE} × {MAX_AREA // MAX_SIDE} pixels are shrunk. Pictures are deleted after
{UPLOADS_LIVE // 60} minutes, your words when you close the page.
"""
SCENECLIP = """This page runs on SceneCLIP, a small CLIP that was trained on drawn scenes only. It
knows the words of the examples below; of photographs it knows nothing.
"""
SIDES = '<div class="sides"><span>◀ {method} alone</span><span>{method} + FreeCP ▶</span></div>'
"""Under the slider."""


BUSY = "This page is busy with the requests of others; try again in a minute."
STRANGE = "This page does not send such a request; reload it and try again."


class Page(gr.Blocks):
    """Gradio's page, which hands requests on as they came and keeps nothing of them.

    Otherwise Gradio opens and copies the files that a request names, keeps what was typed until
    10000 sessions have followed, and answers a malformed request with a traceback.
    """

    studio: Studio
    _seen: dict[str, float]

    def open_to(self, studio: Studio) -> None:
        """Start the queue, for requests that `studio` answers."""
        self.studio, self._seen = studio, {}
        # Direct calls would pass by the queue.
        self.queue(max_size=MAX_WAITING, api_open=False)
        push = self._queue.push

        async def push_one(body: Any, request: Any, username: str | None) -> Any:
            if len(self._queue) >= MAX_WAITING:
                return False, BUSY, "queue_full"
            if not body.session_hash:  # an empty one stops Gradio's queue
                body.session_hash = None
            return await push(body, request, username)

        self._queue.push = push_one  # type: ignore[method-assign]

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Gradio's only for the examples: a number, which of them."""
        if len(inputs) != len(block_fn.inputs):
            raise complaint(STRANGE)
        if not block_fn.preprocess:
            return inputs
        if not all(type(value) is int for value in inputs):
            raise complaint(STRANGE)
        try:
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Exception:
            raise complaint(STRANGE) from None

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Gradio's; what is not foreseen becomes a sentence, and the traceback is in the log."""
        session, request = kwargs.get("session_hash"), kwargs.get("request")
        if isinstance(request, list):
            raise complaint(STRANGE)
        if session:
            self._seen[session] = time.monotonic()
        if session == kwargs.get("event_id"):  # Gradio's stand-in where a request has no session
            request.session_hash = None
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception:
            log.exception("a request failed")
            raise complaint("This request failed; the page's log says why.") from None
        finally:
            self.state_holder.session_data.pop(session, None)
            kwargs["inputs"].clear()  # the queue keeps the last request that it had
            for copy in ("_body", "_json"):
                vars(request.request).pop(copy, None)

    def forget(self, session: str, *, unused: bool = False) -> None:
        """Drop what was typed in a session, and answers that nobody has fetched."""
        self.studio.forget(session, unused=unused)
        self._seen.pop(session, None)
        self.state_holder.session_data.pop(session, None)
        messages = self._queue.pending_messages_per_session.get(session)
        while messages is not None and not messages.empty():
            messages.get_nowait()

    def forget_unused(self, seconds: float = SESSIONS_LIVE) -> None:
        """:meth:`forget` the sessions that have asked for nothing in so many seconds."""
        now = time.monotonic()
        for session in [name for name, seen in self._seen.items() if now - seen >= seconds]:
            self.forget(session, unused=True)

    @asynccontextmanager
    async def tidied(self, app: Any) -> AsyncIterator[None]:
        """While the page is served: :meth:`forget_unused`, every minute."""

        async def tidy() -> None:
            while True:
                await asyncio.sleep(60)
                self.forget_unused()

        task = asyncio.create_task(tidy())
        yield
        task.cancel()


class Guard:
    """What stands before Gradio: requests that no page of ours sends do not reach it.

    A web page elsewhere may have its own name lead to this machine (DNS rebinding), or send forms
    to it; either way the browser says which name or page it is. And nothing needs large requests
    but uploads.

    Args:
        names: the names and addresses that the page is served under; IPv6 in brackets.
        addresses: whether it is served under whatever address this machine has, too.
    """

    def __init__(self, app: Any, names: Collection[str], addresses: bool):
        self.app, self.names, self.addresses = app, names, addresses

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        hosts, origin = headers.getlist("host"), headers.get("origin")
        upload = scope["path"].rstrip("/").endswith("/upload")
        limit = MAX_BYTES + MAX_BODY if upload else MAX_BODY
        started, length = False, 0

        async def refuse(status: int, sentence: str) -> None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await JSONResponse({"detail": sentence}, status)(scope, receive, send)

        async def receive_some() -> Any:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > limit:
                raise OverflowError
            return message

        async def send_some(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return await refuse(403, "This page is not served under that name; see --allow-host.")
        if origin is not None and not self._is_same(origin, hosts[0]):
            return await refuse(403, "Another site's page may not use this one.")
        if int(headers.get("content-length", "0")) > limit:
            return await refuse(413, f"This request is too large; at most {limit} bytes.")
        try:
            await self.app(scope, receive_some, send_some)
        except Exception as error:
            if started:
                raise
            log.warning("%s %s: %r", scope.get("method"), scope["path"][:80], error)
            await refuse(413 if length > limit else 400, STRANGE)

    def _is_ours(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(:\d*)?", host.lower())
        if match is None:
            return False
        return match[1] in self.names or (self.addresses and is_address(match[1]))

    def _is_same(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` is ours: at the same place, or behind a proxy of our name."""
        try:
            place = urlsplit(origin).netloc.lower()
        except ValueError:
            return False
        return place == host.lower() or (self._is_ours(place) and not is_local(place))


def is_address(name: str) -> bool:
    """Whether a host is an IP address; those of version 6 are in brackets."""
    with suppress(ValueError):
        ipaddress.ip_address(name.strip("[]"))
        return True
    return False


def is_local(host: str) -> bool:
    """Whether a host, with or without a port, is this machine for itself alone."""
    name = host if is_address(host) else host.rpartition(":")[0] or host
    if not is_address(name):
        return name == "localhost"
    return ipaddress.ip_address(name.strip("[]")).is_loopback


def guard(host: str, names: Sequence[str] = ()) -> Middleware:
    """The :class:`Guard` of a page that is served at the address `host`.

    At a loopback address it is served under that address and as localhost, 127.0.0.1 and [::1];
    elsewhere under any address and the machine's name, too: addresses cannot be rebound.

    Args:
        names: under which it is served besides, as that of a proxy.
    """
    own = {host, *names, "localhost", "127.0.0.1", "[::1]"}
    addresses = not is_local(host)
    if addresses:
        own |= {socket.gethostname(), f"{socket.gethostname()}.local"}
    return Middleware(Guard, names={name.lower() for name in own}, addresses=addresses)


def build_page(studio: Studio, folder: Path) -> Page:
    """The page; its example pictures are drawn into `folder`."""
    cfg = studio.predictor.cfg
    freecp, method = cfg.MODEL.FREECP, cfg.MODEL.CLIP.METHOD
    scene_clip = "scene_clip" in cfg.MODEL.CLIP.PRETRAINED
    sides = SIDES.format(method=html.escape(method))

    def show(answer: Answer) -> tuple[Any, ...]:
        pictures = picture_of(answer.base), picture_of(answer.purified)
        return pictures, sides + summary(answer), legend(answer), chart(answer)

    # What a request holds may be anything: Page does not look at it.
    def run(
        upload: Any,
        text: Any,
        background: Any,
        redundancy: Any,
        ambiguity: Any,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        try:
            path, names = uploaded_file(upload), parse_classes(text)
            answer = studio.run(
                request.session_hash, path, names, background, redundancy, ambiguity
            )
        except ValueError as error:
            raise complaint(str(error)) from None
        return show(answer)

    def again(
        background: Any, redundancy: Any, ambiguity: Any, request: gr.Request
    ) -> tuple[Any, ...] | dict:
        try:
            answer = studio.again(request.session_hash, background, redundancy, ambiguity)
        except ValueError as error:
            raise complaint(str(error)) from None
        return gr.skip() if answer is None else show(answer)

    async def forget(request: gr.Request) -> None:  # as the queue, in the server's own thread
        if request.session_hash:
            page.forget(request.session_hash)

    with Page(title="FreeCP", analytics_enabled=False, delete_cache=(60, UPLOADS_LIVE)) as page:
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
            "preprocess": False,  # see Page
        }
        for listen in (button.click, examples.load_input_event.success):
            listen(run, [picture, words, *knobs], **common)
        gr.on(
            [knob.change for knob in knobs],
            again,
            knobs,
            trigger_mode="always_last",
            show_progress="minimal",
            **common,
        )
        page.unload(forget)
    page.open_to(studio)
    return page


def serve(page: Page, host: str, port: int, names: Sequence[str] = ()) -> None:
    """Serve in another thread, until the page is closed.

    Args:
        names: see :func:`guard`.

    Raises:
        OSError: the port is taken, or the machine has no such address.
    """
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        share=False,
        quiet=True,
        footer_links=[],
        run_history=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=4 * MAX_WAITING,
        ssr_mode=False,
        enable_monitoring=False,
        app_kwargs={"middleware": [guard(host, names)], "lifespan": page.tidied},
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
    )


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
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that the page is reached under, such as that of a proxy before it; others "
        "than this machine's addresses and name are refused (may be given several times)",
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
    # The words that people type are not kept on disk.
    opts = [*args.opts, "MODEL.CLIP.TEXT_CACHE", ""]
    try:
        studio = Studio(FreeCPPredictor(args.config_file, opts))
    except (OSError, ValueError) as error:
        sys.exit(f"web.py: {error}")
    page = build_page(studio, Path(FOLDER))
    try:
        serve(page, args.host, args.port, args.allow_host)
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
