"""The page in Gradio: its parts, its queue, and how it is served."""

import asyncio
import html
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from ...data.scenes import CLASSES, draw_scene
from .guard import STRANGE, guard
from .inputs import (
    MAX_AREA,
    MAX_BYTES,
    MAX_CLASSES,
    MAX_PIXELS,
    MAX_SIDE,
    parse_classes,
    uploaded_file,
)
from .sessions import SESSIONS_LIVE, Answer, SessionStore
from .views import chart, legend, picture_of, summary

MAX_WAITING = 32
"""How many requests may wait for the model; more are told to try again."""
UPLOADS_LIVE = 600
"""Seconds until an upload is deleted."""
EXAMPLE_SEEDS = (10, 42, 36, 87, 12)
"""Chosen to show something: look-alikes settled rightly in the first two, wrongly in the last."""

log = logging.getLogger(__name__)

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


class Page(gr.Blocks):
    """Gradio's page, which hands requests on as they came and keeps nothing of them.

    Otherwise Gradio opens and copies the files that a request names, keeps what was typed until
    10000 sessions have followed, and answers a malformed request with a traceback.
    """

    store: SessionStore
    _seen: dict[str, float]

    def open_to(self, store: SessionStore) -> None:
        """Start the queue, for requests that `store` answers."""
        self.store, self._seen = store, {}
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
        session_id: Any = kwargs.get("session_hash")
        request: Any = kwargs.get("request")
        if isinstance(request, list):
            raise complaint(STRANGE)
        if session_id:
            self._seen[session_id] = time.monotonic()
        if session_id == kwargs.get("event_id"):  # Gradio's stand-in where a request has no session
            request.session_hash = None
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error:
            raise
        except Exception:
            log.exception("a request failed")
            raise complaint("This request failed; the page's log says why.") from None
        finally:
            self.state_holder.session_data.pop(session_id, None)
            kwargs["inputs"].clear()  # the queue keeps the last request that it had
            for copy in ("_body", "_json"):
                vars(request.request).pop(copy, None)

    def forget(self, session_id: str, *, unused: bool = False) -> None:
        """Drop what was typed in a session, and answers that nobody has fetched."""
        self.store.forget(session_id, unused=unused)
        self.state_holder.session_data.pop(session_id, None)
        messages = self._queue.pending_messages_per_session.get(session_id)
        while messages is not None and not messages.empty():
            messages.get_nowait()
        self._seen.pop(session_id, None)

    def forget_unused(self, seconds: float = SESSIONS_LIVE) -> None:
        """:meth:`forget` the sessions that have asked for nothing in so many seconds."""
        now = time.monotonic()
        for session_id in [name for name, seen in self._seen.items() if now - seen >= seconds]:
            self.forget(session_id, unused=True)

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


def build_page(store: SessionStore, folder: Path) -> Page:
    """The page; its example pictures are drawn into `folder`."""
    cfg = store.predictor.cfg
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
            path, names = uploaded_file(upload, get_upload_folder()), parse_classes(text)
            answer = store.segment(
                request.session_hash, path, names, background, redundancy, ambiguity
            )
        except ValueError as error:
            raise complaint(str(error)) from None
        return show(answer)

    def again(
        background: Any, redundancy: Any, ambiguity: Any, request: gr.Request
    ) -> tuple[Any, ...] | dict:
        try:
            answer = store.segment_again(request.session_hash, background, redundancy, ambiguity)
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

        knobs: list[Any] = [background, redundancy, ambiguity]
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
    page.open_to(store)
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
