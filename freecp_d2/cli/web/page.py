"""The page in Gradio: its parts, its queue, and how it is served."""

import asyncio
import base64
import html
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
import skimage.data
from gradio.utils import get_upload_folder
from PIL import Image

from ...data.scenes import CLASSES, draw_scene
from .download import at_size_of, zipped
from .guard import STRANGE, guard
from .inputs import (
    MAX_AREA,
    MAX_BYTES,
    MAX_CLASSES,
    MAX_NAME,
    MAX_PIXELS,
    MAX_SIDE,
    parse_classes,
    read_upload,
    uploaded_file,
)
from .sessions import SESSIONS_LIVE, Answer, SessionStore
from .views import advice, chart, comparison, legend, summary

MAX_WAITING = 32
"""How many requests may wait for the model; more are told to try again."""
UPLOADS_LIVE = 600
"""Seconds until an upload is deleted."""
EXAMPLE_SEEDS = (10, 42, 36, 87, 12)
"""Chosen to show something: look-alikes settled rightly in the first two, wrongly in the last."""
EXAMPLE_PHOTOS = {
    "chelsea": "cat, dog, fox, blanket, wall, grass",
    "coffee": "cup, coffee, saucer, spoon, table, plate, book",
    "rocket": "rocket, tower, smoke, sky, sea, tree, car",
    "astronaut": "person, flag, space shuttle, helmet, curtain, dog",
}
"""Of scikit-image, with words for them; for any CLIP but SceneCLIP."""

HERE = Path(__file__).parent
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    # Text and what is behind it differ by at least 4.5 to 1.
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
)

log = logging.getLogger(__name__)

INTRODUCTION = """# FreeCP: your picture, your words
Drop a picture, type the classes it may show, press **Segment**. FreeCP removes the classes that are
not there and settles which of two look-alikes is.
"""
LIMITS = f"""A picture may have {MAX_BYTES // 2**20} MiB and {MAX_PIXELS // 1_000_000} million
pixels; one larger than {MAX_SIDE} × {MAX_AREA // MAX_SIDE} pixels is shrunk before CLIP sees it.
You may type {MAX_CLASSES} classes of up to {MAX_NAME} characters. One request is worked on at a
time. Pictures are deleted after {UPLOADS_LIVE // 60} minutes, your words when you close the page,
or after {SESSIONS_LIVE // 60} minutes without use; words are never written to disk.
"""
SCENECLIP = """This page runs on SceneCLIP, a small CLIP that was trained on drawn scenes only. It
knows the words of the examples; of photographs it knows nothing.
"""
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
        # Nobody sees it, and while it is made, the queue holds on to what a request failed with.
        self._queue.compute_analytics_summary = lambda analytics: {}  # type: ignore[method-assign]

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
    """The page; its example pictures are drawn into `folder`, and the first is segmented now."""
    cfg = store.predictor.cfg
    freecp, method = cfg.MODEL.FREECP, cfg.MODEL.CLIP.METHOD
    scene_clip = "scene_clip" in cfg.MODEL.CLIP.PRETRAINED
    examples = draw_examples(folder) if scene_clip else write_photos(folder)
    thresholds = freecp.REDUNDANCY_THRESHOLD, freecp.AMBIGUITY_THRESHOLD

    def show(answer: Answer) -> tuple[str, ...]:
        return comparison(answer, method), summary(answer), legend(answer), chart(answer)

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
    ) -> tuple[Any, ...]:
        try:
            answer = store.segment_again(request.session_hash, background, redundancy, ambiguity)
        except ValueError as error:
            raise complaint(str(error)) from None
        return show(answer)

    def download(request: gr.Request) -> dict[str, str]:
        try:
            answer = store.last_answer(request.session_hash)
            if sentence := advice(answer.purified):
                raise ValueError(f"No class stays. {sentence}")
            path = Path(answer.path)
            result = at_size_of(answer.purified, read_upload(path))
        except ValueError as error:
            raise complaint(str(error)) from None
        return {"zip": base64.b64encode(zipped(result, path.name)).decode()}

    # As the queue, in the server's own thread.
    async def begin(request: gr.Request) -> None:
        store.begin(request.session_hash)

    async def forget(request: gr.Request) -> None:
        if request.session_hash:
            page.forget(request.session_hash)

    path, text = examples[0]
    names = parse_classes(text)
    first = show(store.show_example(os.path.realpath(path), names, *thresholds))
    with Page(title="FreeCP", analytics_enabled=False, delete_cache=(60, UPLOADS_LIVE)) as page:
        gr.Markdown(INTRODUCTION + (SCENECLIP if scene_clip else ""))
        with gr.Accordion("Limits and privacy", open=False, elem_id="limits"):
            gr.Markdown(LIMITS)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = gr.Image(
                    path,
                    label="Picture",
                    type="filepath",
                    image_mode=None,
                    sources=["upload", "clipboard"],
                    height=260,
                    elem_id="picture",
                )
                words = gr.Textbox(
                    text,
                    label="Classes, separated by commas or lines",
                    info="Ctrl+Enter segments.",
                    placeholder="sky, road, tree",
                    lines=3,
                    max_lines=8,
                    elem_id="words",
                )
                background = gr.Radio(
                    [("none", False), ("common words", True), ("words chosen for yours", "auto")],
                    value=False,
                    label="Background",
                    info="Pixels that none of the classes explains are background, by these words.",
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
                    elem_classes="threshold",
                )
                ambiguity = gr.Slider(
                    0,
                    1,
                    freecp.AMBIGUITY_THRESHOLD,
                    step=0.01,
                    label="Ambiguity threshold",
                    info="Classes whose maps overlap at least that much compete for their place.",
                    elem_id="ambiguity",
                    elem_classes="threshold",
                )
                gallery = gr.Examples(
                    [list(example) for example in examples],
                    [picture, words],
                    cache_examples=False,
                    visible_columns=[0],
                    label="Drawn scenes, with the words of all of them"
                    if scene_clip
                    else "Photographs, with words that may be in them",
                    elem_id="examples",
                )
            with gr.Column(scale=3, min_width=320, elem_id="results"):
                gr.HTML('<div id="note" role="status"></div>', elem_id="note-box")
                result = gr.HTML(first[0], elem_id="result")
                line = gr.HTML(first[1], elem_id="summary")
                with gr.Row():
                    with gr.Column(scale=2, min_width=260):
                        shares = gr.HTML(first[2], elem_id="legend")
                    with gr.Column(scale=3, min_width=320):
                        scores = gr.HTML(first[3], elem_id="chart")
                take = gr.Button(
                    "Download as ZIP: label map, masks, COCO JSON, overlay", elem_id="download"
                )
                content = gr.JSON(visible=False)

        form: list[Any] = [picture, words]
        knobs: list[Any] = [background, redundancy, ambiguity]
        outputs: list[Any] = [result, line, shares, scores]
        # One event at a time for all sessions: the others wait in the queue and see their place.
        common: dict[str, Any] = {
            "show_progress_on": result,
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "api_visibility": "private",
            "preprocess": False,  # see Page
        }
        for listen in (button.click, gallery.load_input_event.success):
            ran = listen(
                run, [*form, *knobs], outputs, js="(...all) => freecp.asks(...all)", **common
            )
            ran.success(None, js="() => freecp.answered()")
            ran.failure(None, None, outputs, js="() => freecp.failed()")
        redrawn = gr.on(
            [knob.change for knob in knobs],
            again,
            knobs,
            outputs,
            trigger_mode="always_last",
            show_progress="minimal",
            **common,
        )
        redrawn.success(None, js="() => freecp.redrawn()")
        redrawn.failure(None, None, outputs, js="() => freecp.failed()")
        take.click(download, None, content, **common).success(
            None, content, content, js="(content) => freecp.save(content.zip)"
        )
        gr.on(
            [part.change for part in form],
            None,
            form,
            js="(...form) => freecp.changed(...form)",
        )
        page.load(begin, queue=False, api_visibility="private").success(
            None, form, js="(...form) => freecp.loaded(...form)"
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
        theme=THEME,
        css=(HERE / "page.css").read_text(),
        head=f"<script>{(HERE / 'page.js').read_text()}</script>",
    )


def complaint(sentence: str) -> gr.Error:
    """A message on the page, until it is closed. Gradio takes it for HTML."""
    return gr.Error(html.escape(sentence), duration=None, print_exception=False)


def draw_examples(folder: Path) -> list[tuple[str, str]]:
    """Embedded scenes as PNG files, each with the words of all."""
    files = [folder / f"scene_{seed}.png" for seed in EXAMPLE_SEEDS]
    for seed, file in zip(EXAMPLE_SEEDS, files, strict=True):
        Image.fromarray(draw_scene(seed).image).save(file)
    return [(str(file), ", ".join(CLASSES)) for file in files]


def write_photos(folder: Path) -> list[tuple[str, str]]:
    """Photographs as PNG files, each with words of its own."""
    for name in EXAMPLE_PHOTOS:
        Image.fromarray(getattr(skimage.data, name)()).save(folder / f"{name}.png")
    return [(str(folder / f"{name}.png"), words) for name, words in EXAMPLE_PHOTOS.items()]
