"""The web page: the model behind it, and its doors, by raw HTTP."""

import asyncio
import base64
import gc
import html
import http.client
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from freecp_d2 import FreeCPPredictor
from freecp_d2.cli import web
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import draw_scene
from freecp_d2.inputs import with_background

FOLDER = web.private_gradio()
gradio = pytest.importorskip("gradio", reason="web.py needs gradio: pip install 'freecp_d2[web]'")
httpx = pytest.importorskip("httpx")  # which gradio brings

import freecp_d2.background  # noqa: E402
import freecp_d2.cli.web.page  # noqa: E402  (after private_gradio)
from freecp_d2.cli.web.sessions import SessionStore  # noqa: E402

WORDS = ["sky", "lawn", "meadow", "road", "mushroom", "tree", "snow"]
NOT_UPLOADED = "Only pictures that were dropped on this page can be used; drop it again."


@pytest.fixture(scope="module")
def predictor():
    return FreeCPPredictor("scenes/clearclip", ["MODEL.CLIP.TEXT_CACHE", ""])


@pytest.fixture
def encoder_calls(predictor):
    """A list with one entry for every batch of windows that CLIP has encoded since."""
    calls = []
    handle = predictor._segmenter.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def save_scene(folder, seed):
    path = folder / f"scene_{seed}.png"
    Image.fromarray(draw_scene(seed).image).save(path)
    return str(path)


def test_thresholds_change_the_answer_without_encoding(predictor, encoder_calls, tmp_path):
    store, path = SessionStore(predictor), save_scene(tmp_path, 87)
    first = store.segment("a", path, WORDS, False, 0.05, 0.9)
    assert encoder_calls
    encoder_calls.clear()
    strict = store.segment_again("a", False, 0.3, 0.9)
    assert not encoder_calls and strict.encode_seconds is None
    assert len(strict.purified.removed) > len(first.purified.removed)
    redundant = {e.name for e in strict.purified.removed if e.stage == "redundancy"}
    values = zip(WORDS, strict.purified.consistency, strict=True)
    assert redundant == {name for name, value in values if value <= 0.3}

    fresh = FreeCPPredictor(predictor.cfg, ["MODEL.FREECP.REDUNDANCY_THRESHOLD", "0.3"])
    image = draw_scene(87).image
    assert (strict.purified.label_map == fresh(image, WORDS).label_map).all()
    assert (strict.base.label_map == fresh.base(image, WORDS).label_map).all()


def test_other_words_or_the_same_picture_are_not_encoded_for_freecp_again(
    predictor, tmp_path, monkeypatch
):
    encoded = []
    encode = predictor.encode
    monkeypatch.setattr(predictor, "encode", lambda image: encoded.append(1) or encode(image))
    store, path = SessionStore(predictor), save_scene(tmp_path, 87)
    store.segment("a", path, WORDS, False, 0.05, 0.9)
    answer = store.segment("a", path, WORDS[:3], False, 0.05, 0.9)
    assert answer.purified.class_names == tuple(WORDS[:3]) and len(encoded) == 1
    Path(path).unlink()
    assert store.segment_again("a", True, 0.05, 0.9).purified.class_names[0] == "background"
    assert len(encoded) == 1


def test_sessions_see_their_own_picture_and_memory_is_bounded(predictor, tmp_path):
    paths = {name: save_scene(tmp_path, seed) for name, seed in zip("abc", (1, 2, 3), strict=True)}
    store = SessionStore(predictor, cache_bytes=1)
    with ThreadPoolExecutor(3) as pool:
        futures = {
            s: pool.submit(store.segment, s, p, WORDS, False, 0, 1) for s, p in paths.items()
        }
    for name, seed in zip("abc", (1, 2, 3), strict=True):
        assert (futures[name].result().purified.image == draw_scene(seed).image).all()
    kept = [name for name, session in store.sessions.items() if session.encoded is not None]
    assert kept == list(store.sessions)[-1:] and len(kept) == 1

    evicted = next(name for name in "abc" if name not in kept)
    answer = store.segment_again(evicted, False, 0, 1)  # encoded anew, from its file
    assert (answer.purified.label_map == futures[evicted].result().purified.label_map).all()
    Path(paths[kept[0]]).unlink()
    with pytest.raises(ValueError, match="deleted"):
        store.segment_again(kept[0], False, 0, 1)
    with pytest.raises(ValueError, match="no result of yours"):
        store.segment_again("nobody", False, 0, 1)
    store.forget(evicted)
    assert evicted not in store.sessions


def test_new_sessions_begin_with_the_example(predictor, encoder_calls, tmp_path):
    store, path = SessionStore(predictor), save_scene(tmp_path, 87)
    store.begin("early")
    assert not store.sessions
    example = store.show_example(path, WORDS, 0.05, 0.9)
    for name in ("a", "b", "", None):
        store.begin(name)
    assert list(store.sessions) == ["a", "b"]
    encoder_calls.clear()
    strict = store.segment_again("a", False, 0.3, 0.9)
    assert not encoder_calls and len(strict.purified.removed) > len(example.purified.removed)
    assert (store.last_answer("b").purified.label_map == example.purified.label_map).all()

    other = save_scene(tmp_path, 2)
    answer = store.segment("b", other, WORDS[:2], False, 0.05, 0.9)
    store.begin("b")  # which has something of its own by now
    assert store.last_answer("b").path == answer.path == other
    assert store.last_answer("a").path == path


def test_the_examples_words_and_features_outlive_its_sessions(predictor, tmp_path):
    store = SessionStore(predictor, cache_bytes=1)
    store.show_example(save_scene(tmp_path, 87), ["sky", "examplebird"], 0.05, 0.9)

    def known(word):
        return any(word in words.queries for words in predictor._segmenter.words._kept)

    for name in ("a", "b"):
        store.begin(name)
    store.segment("a", save_scene(tmp_path, 2), ["sky", "passerby"], False, 0.05, 0.9)
    assert store.sessions["b"].encoded is not None  # it costs nothing, so no room is to be made
    store.segment("a", store.sessions["b"].path, ["sky", "passerby"], False, 0.05, 0.9)
    store.segment("b", save_scene(tmp_path, 3), ["sky"], False, 0.05, 0.9)
    assert store.sessions["a"].base is None  # that of other words costs
    for name in ("a", "b"):
        store.forget(name)
    assert known("examplebird") and not known("passerby")
    store.begin("c")
    assert store.segment_again("c", False, 0.05, 0.9).encode_seconds is None


def test_the_time_of_the_words_is_not_that_of_the_picture(predictor, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(web.sessions.time, "perf_counter", lambda: clock[0])

    def slow(method, seconds):
        def run(*args, **options):
            clock[0] += seconds
            return method(*args, **options)

        return run

    for name, seconds in (("prepare", 100), ("encode", 10), ("segment", 1)):
        monkeypatch.setattr(predictor, name, slow(getattr(predictor, name), seconds))
    answer = SessionStore(predictor).segment("a", save_scene(tmp_path, 1), WORDS, False, 0.05, 0.9)
    times = answer.text_seconds, answer.encode_seconds, answer.segment_seconds
    assert times == (100, 10, 1)


def test_pictures_are_checked_before_they_are_decoded(tmp_path, monkeypatch):
    def save(name, size, **options):
        Image.new("RGB", size).save(tmp_path / name, **options)
        return tmp_path / name

    large = save("large.png", (8000, 8000))
    bomb = save("bomb.png", (20000, 10000))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG and no more")
    tiff = save("picture.tiff", (8, 8))
    heavy = tmp_path / "heavy.png"
    with heavy.open("wb") as file:
        file.truncate(web.inputs.MAX_BYTES + 1)
    monkeypatch.setattr(web.inputs, "read_image", lambda path: pytest.fail("it was decoded"))
    for path, words in (
        (large, "too many pixels"),
        (bomb, "too many pixels"),
        (broken, "no picture"),
        (tiff, "no picture"),
        (heavy, "20.0 MiB"),
        (tmp_path / "gone.png", "deleted"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            web.inputs.load_picture(path)
        assert str(tmp_path) not in str(error.value)
    monkeypatch.undo()

    half = save("half.png", (64, 64))
    half.write_bytes(half.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"^half.png: not a readable image"):
        web.inputs.load_picture(half)
    side, area = web.inputs.MAX_SIDE, web.inputs.MAX_AREA
    assert web.inputs.load_picture(save("long.jpg", (3000, 2))).shape == (1, side, 3)
    height, width, _ = web.inputs.load_picture(save("square.jpg", (1500, 1200))).shape
    assert 0.99 * area < height * width <= area and height < width < side
    assert web.inputs.load_picture(save("small.jpg", (1024, 576))).shape == (576, 1024, 3)


def test_classes_are_separated_by_commas_and_lines():
    assert web.inputs.parse_classes(" sky, road,\n\ntree ,, traffic light\r\n") == [
        "sky",
        "road",
        "tree",
        "traffic light",
    ]
    for text, words in (
        (" ,\n", "at least one"),
        (",".join(map(str, range(201))), "201 classes are too many"),
        ("sky," + "x" * 81, "81 characters"),
    ):
        with pytest.raises(ValueError, match=words):
            web.inputs.parse_classes(text)


def test_names_are_text_and_never_markup(predictor):
    names = ["<b>sky</b>", "$x_2$ & ${1}", "road", "w" * 80]
    encoded = predictor.encode(np.zeros((64, 64, 3), np.uint8))
    segmentation = predictor.segment(encoded, names, redundancy_threshold=0.0)
    base = predictor.base(encoded.image, names)
    answer = web.sessions.Answer("", base, segmentation, 0.0, None, 0.0, 0.0)
    for shown in (web.views.legend(answer), web.views.chart(answer)):
        assert "<b>" not in shown and "&lt;b&gt;sky" in shown and "$x_2$ &amp; ${1}" in shown
    assert "<b>" not in web.views.comparison(answer, "clearclip")
    width, height = web.views.picture_of(answer.base).size
    assert min(width, height) >= web.views.MIN_SHOWN


LARGEST_REQUEST = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
import freecp_d2.words
from freecp_d2 import FreeCPPredictor
from freecp_d2.cli.web import download, inputs, page, sessions, views

freecp_d2.words.template_sentences = lambda names: [[name] for name in names]  # for speed
noise = np.random.default_rng(0).integers(0, 256, (1250, 2000, 3), np.uint8)
Image.fromarray(noise).resize((8000, 5000)).save(sys.argv[1], quality=70)
opts = ["MODEL.CLIP.TEXT_CACHE", "", "MODEL.FREECP.STRIDE", "224", "MODEL.DEVICE", "cpu"]
store = sessions.SessionStore(FreeCPPredictor("scenes/clearclip", opts))
names = [f"thing {i}" for i in range(inputs.MAX_CLASSES)]
answer = store.segment("a", sys.argv[1], names, True, 0, 1)
pictures = views.comparison(answer, "clearclip")
upload = inputs.read_upload(Path(sys.argv[1]))
assert download.zipped(download.at_size_of(answer.purified, upload), "noise.jpg")
assert len(answer.purified.removed) < 100, "few classes were to be merged"
# Not getrusage's: that has seen the process of the tests, too.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) / 2**20)
"""


def test_the_largest_request_stays_under_three_gigabytes(tmp_path):
    command = [sys.executable, "-c", LARGEST_REQUEST, str(tmp_path / "noise.jpg")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert 1 < float(ended.stdout.split()[-1]) < 3


IMPORTS = """
import os, sys
import freecp_d2.cli.web
assert "gradio" not in sys.modules
from freecp_d2.cli.web import page
print([name for name in os.environ if name.startswith(("GRADIO", "HF_"))])
"""


def test_imports_change_neither_the_environment_nor_the_disk(tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRADIO", "HF_"))}
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        env={**environment, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "[]" and not list(tmp_path.iterdir())


def test_nothing_is_reported_to_gradio_or_hugging_face():
    assert not gradio.analytics.analytics_enabled()
    assert huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY is True


def test_a_missing_gradio_is_said(monkeypatch):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^freecp web: .*pip install 'freecp_d2\[web\]'$"):
        web.main([], "freecp web")


# ------------------------------------------------------------------------------------ by raw HTTP


class Client:
    """Asks a served page without a browser: whatever one likes to send."""

    def __init__(self, url, session=None):
        self.http = httpx.Client(base_url=url, timeout=120)
        self.session = session
        listed = self.http.get("/config").json()["dependencies"]
        ids = {d["api_name"]: d["id"] for d in reversed(listed)}
        self.run, self.again, self.begin = ids["run"], ids["again"], ids["begin"]
        self.example, self.download = ids["load_example"], ids["download"]

    def upload(self, path, name="scene.png"):
        reply = self.http.post(
            "/gradio_api/upload", files={"files": (name, Path(path).read_bytes())}
        )
        (path,) = reply.json()
        return path

    def join(self, function, data, session, **more):
        body = {"fn_index": function, "data": data, "session_hash": session, **more}
        return self.http.post(
            "/gradio_api/queue/join",
            content=json.dumps(body),  # with NaN, which httpx refuses
            headers={"content-type": "application/json"},
        )

    def ask(self, function, *data, **more):
        """Whether it was answered, and the answer or the sentence."""
        session = self.session or uuid.uuid4().hex
        reply = self.join(function, data, session, **more)
        assert reply.status_code == 200, reply.text
        return self.answer(session)

    def answer(self, session):
        """What :meth:`join` is answered. The whole stream is read: who leaves early has left."""
        reply = None
        address = "/gradio_api/queue/data"
        with self.http.stream("GET", address, params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    output = message["output"]
                    reply = message["success"], output.get("data") or output.get("error")
        assert reply is not None
        return reply

    def segment(self, path, words="sky, lawn", background=False, thresholds=(0.05, 0.9)):
        return self.ask(self.run, {"path": path}, words, background, *thresholds)


@pytest.fixture(scope="module")
def site(predictor):
    """The address of a page, and the page."""
    page = web.page.build_page(SessionStore(predictor), FOLDER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    web.page.serve(page, "127.0.0.1", port, ["demo.example"])
    yield f"http://127.0.0.1:{port}", page
    page.close(verbose=False)


@pytest.fixture
def client(site):
    return Client(site[0], uuid.uuid4().hex)


@pytest.fixture
def no_traceback(capfd, caplog):
    """Nothing was printed but sentences."""
    yield
    captured = capfd.readouterr()
    assert "Traceback" not in captured.out + captured.err
    assert not [record for record in caplog.records if record.exc_info]


def sentence_of(reply):
    """The complaint of an answer that is none."""
    answered, sentence = reply
    assert not answered and len(sentence.split()) > 3 and "request failed" not in sentence, reply
    return html.unescape(sentence)


def test_uploads_and_examples_are_segmented_by_raw_requests(client, tmp_path):
    path = client.upload(save_scene(tmp_path, 87))
    answered, (result, line, legend, chart) = client.segment(path, "sky, lawn, meadow")
    assert answered and result.count("<img") == 2 and "of 3 classes stay" in line
    assert "meadow" in legend and "meadow" in chart
    answered, values = client.ask(client.again, False, 0.5, 0.9)
    assert answered and "not encoded again" in values[1]
    answered, (picture, words) = client.ask(client.example, 0)
    example = picture["value"]
    assert answered and "mushroom" in words["value"]
    assert client.ask(client.run, example, "sky, lawn", True, 0.05, 0.9)[0]


def test_a_worked_example_is_there_before_anything_is_asked(client, site, encoder_calls):
    config = client.http.get("/config").json()
    shown = {c["props"].get("elem_id"): c["props"].get("value") for c in config["components"]}
    assert shown["result"].count("<img") == 2 and "of 41 classes stay" in shown["summary"]
    assert "lighthouse" in shown["words"] and shown["picture"]["path"].endswith("scene_10.png")
    body = {"fn_index": client.begin, "data": [], "session_hash": client.session}
    assert client.http.post("/gradio_api/run/predict", json=body).status_code == 200
    encoder_calls.clear()
    answered, values = client.ask(client.again, False, 0.5, 0.9)
    assert answered and "0 of 41 classes stay" in values[1] and not encoder_calls
    reply = client.ask(client.run, shown["picture"], shown["words"], False, 0.05, 0.9)
    assert reply[0] and "not encoded again" in reply[1][1] and not encoder_calls


def test_the_download_is_a_zip_of_the_uploads_size_and_leaves_no_file(client, tmp_path):
    scene = Image.open(save_scene(tmp_path, 87)).resize((1500, 1300))
    scene.save(tmp_path / "large.png")
    path = client.upload(tmp_path / "large.png", "photo.png")
    assert client.segment(path, "sky, lawn, zipberry", thresholds=(0.0, 1.0))[0]
    before = sorted(FOLDER.rglob("*"))
    answered, (content,) = client.ask(client.download)
    assert answered and sorted(FOLDER.rglob("*")) == before
    archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(content["zip"])))
    assert Image.open(archive.open("label_map.png")).size == (1500, 1300)
    coco = json.loads(archive.read("segmentation.json"))
    assert [c["name"] for c in coco["categories"]] == ["sky", "lawn", "zipberry"]
    assert coco["images"][0]["file_name"] == "photo.png"

    client.ask(client.again, False, 1.0, 0.9)
    assert "No class stays" in sentence_of(client.ask(client.download))
    client.ask(client.again, False, 0.0, 1.0)
    Path(path).unlink()
    assert "deleted" in sentence_of(client.ask(client.download))


def test_photographs_are_the_examples_of_other_clips(tmp_path):
    examples = web.page.write_photos(tmp_path)
    assert len(examples) >= 4
    for path, words in examples:
        assert Path(path).parent == tmp_path and web.inputs.load_picture(Path(path)).ndim == 3
        assert 4 <= len(web.inputs.parse_classes(words)) <= 10


def test_only_uploads_are_opened(client, site, tmp_path, monkeypatch, no_traceback):
    outside = save_scene(tmp_path, 42)
    upload = client.upload(save_scene(tmp_path, 1))
    (tmp_path / "linked").mkdir()
    (FOLDER / "folder_out").symlink_to(tmp_path)
    (FOLDER / "link.png").symlink_to(outside)
    (FOLDER / "dangling.png").symlink_to(tmp_path / "nothing.png")
    (FOLDER / "loop.png").symlink_to(FOLDER / "loop.png")
    os.link(outside, FOLDER / "hard.png")
    os.mkfifo(FOLDER / "fifo.png")
    os.mkfifo(tmp_path / "fifo.png")
    sibling = Path(f"{FOLDER}_more")
    sibling.mkdir()
    shutil.copy(outside, sibling / "scene.png")
    up = "/".join([".."] * 12)
    opened = []
    monkeypatch.setattr(web.inputs, "read_image", opened.append)
    try:
        paths = [
            outside,
            str(tmp_path / "nothing.png"),
            f"{FOLDER}/{up}{outside}",
            f"{FOLDER}/x/{up}{outside}",
            f"{Path(upload).parent}/{up}{tmp_path}/nothing.png",
            f"{FOLDER}/../{sibling.name}/scene.png",
            str(sibling / "scene.png"),
            os.path.relpath(outside),
            f"{FOLDER}/link.png",
            f"{FOLDER}/folder_out/{Path(outside).name}",
            f"{FOLDER}/folder_out/nothing.png",
            f"{FOLDER}/dangling.png",
            f"{FOLDER}/loop.png",
            f"{FOLDER}/hard.png",
            f"{FOLDER}/fifo.png",
            str(tmp_path / "fifo.png"),
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/environ",
            "/etc/passwd",
            "~/picture.png",
            str(FOLDER),
            str(Path(upload).parent),
            "",
            "/",
            f"file://{outside}",
            f"file://{upload}",
            f"http://127.0.0.1:1{outside}",
            f"https://example.org/{up}{outside}",
            f"{client.http.base_url}gradio_api/file={upload}",
            "data:image/png;base64,iVBORw0KGgo=",
            f"{outside}\0.png",
            f"{upload}\0",
            "\ud800.png",
            f"{FOLDER}/\ud800.png",
            "x" * 5000,
            f"{FOLDER}/{'x' * 300}.png",
        ]
        uploads = [{"path": path} for path in paths]
        uploads += [{**one, "meta": {"_type": "gradio.FileData"}} for one in uploads]
        address = f"{client.http.base_url}gradio_api/file={upload}"
        uploads += [
            {"path": outside, "url": address, "orig_name": "scene.png", "size": 1},
            {"path": outside, "url": f"/gradio_api/file={outside}", "is_stream": True},
            {"url": address},
            {"path": None, "url": f"file://{outside}"},
            *({"path": odd} for odd in (None, 3, True, [upload], {"path": upload})),
            *([upload], [{"path": upload}], upload, outside, 7, -0.5, True, False, [], "", "x"),
        ]
        said = {sentence_of(client.ask(client.run, one, "sky", False, 0, 1)) for one in uploads}
        assert said == {NOT_UPLOADED} and not opened
        for nothing in (None, {}):
            reply = client.ask(client.run, nothing, "sky", False, 0, 1)
            assert "Drop a picture first" in sentence_of(reply)
    finally:
        shutil.rmtree(sibling)
        for name in ("folder_out", "link.png", "dangling.png", "loop.png", "hard.png", "fifo.png"):
            (FOLDER / name).unlink()
    monkeypatch.undo()
    assert client.segment(upload)[0]  # and so it is after all that


def test_gradios_own_door_opens_no_link_either(client, tmp_path):
    outside = Path(save_scene(tmp_path, 42))
    (FOLDER / "out.png").symlink_to(outside)
    os.mkfifo(FOLDER / "pipe.png")
    try:
        for path in (outside, FOLDER / "out.png", FOLDER / "pipe.png", "/dev/zero", "/etc/passwd"):
            reply = client.http.get(f"/gradio_api/file={path}")
            assert reply.status_code in (400, 403, 404) and len(reply.content) < 500
    finally:
        (FOLDER / "out.png").unlink()
        (FOLDER / "pipe.png").unlink()


HUGE = 10**400
ODD_WORDS = [
    None,
    3,
    True,
    [],
    ["sky", "lawn"],
    {"sky": 1},
    [["sky"]],
    "",
    " ,\n",
    "sky\0,a",
    "\ud800",
]
ODD_WORDS += [",".join(f"w{i}" for i in range(201)), "x" * 81, "sky, sky", "x" * 500_000]
ODD_BACKGROUNDS = [
    None,
    0,
    1,
    0.5,
    "yes",
    "",
    {"a": 1},
    [1],
    [None],
    [["a"]],
    ["sky", 2],
    ["x" * 81],
]
ODD_BACKGROUNDS += [[f"thing {i}" for i in range(400)], [f"thing {i}" for i in range(199)]]
ODD_BACKGROUNDS += [["a", "a"], [""], ["\0"]]
ODD_THRESHOLDS = [float("nan"), float("inf"), -float("inf"), -5, -1e-9, 1.5, HUGE, -HUGE]
ODD_THRESHOLDS += ["0.5", "", None, True, False, [0.5], {"a": 0.5}, "nan"]


@pytest.mark.parametrize("name", ["words", "background", "redundancy", "ambiguity"])
def test_odd_values_get_a_sentence(client, site, tmp_path, no_traceback, name):
    path = client.upload(save_scene(tmp_path, 1))
    good = {"words": "sky, lawn", "background": False, "redundancy": 0.05, "ambiguity": 0.9}
    assert client.ask(client.run, {"path": path}, *good.values())[0]
    odd_values = {"words": ODD_WORDS, "background": ODD_BACKGROUNDS}.get(name, ODD_THRESHOLDS)
    for odd in odd_values:
        values = {**good, name: odd}
        sentence = sentence_of(client.ask(client.run, {"path": path}, *values.values()))
        assert len(sentence) < 400
        if name in ("redundancy", "ambiguity"):
            assert sentence == f"The {name} threshold must be a number from 0 to 1."
        if name != "words":
            values.pop("words")
            assert sentence_of(client.ask(client.again, *values.values())) == sentence
    assert client.ask(client.again, False, 0.05, 0.9)[0]  # what was there stays


def test_requests_that_gradio_would_stumble_over_get_a_sentence(client, no_traceback, tmp_path):
    path = client.upload(save_scene(tmp_path, 1))
    data = [{"path": path}, "sky", False, 0.05, 0.9]
    for strange in ([], data[:4], [*data, 1]):
        assert "reload" in sentence_of(client.ask(client.run, *strange))
    for strange in (
        "x",
        None,
        -100,
        1e9,
        [0],
        {"path": path, "meta": {"_type": "gradio.FileData"}},
    ):
        assert "reload" in sentence_of(client.ask(client.example, strange))
    assert "reload" in sentence_of(client.ask(client.run, *data, batched=True))
    for body in (
        {"fn_index": 999, "data": data},
        {"fn_index": None, "data": data},
        {"fn_index": "run", "data": data},
        {"data": data},
        {"fn_index": client.run, "data": {"path": path}},
        {"fn_index": client.run},
        [],
        3,
    ):
        if isinstance(body, dict):
            body["session_hash"] = client.session
        for door in ("queue/join", "run/predict", "api/predict", "call/run", "call/v2/run"):
            reply = client.http.post(f"/gradio_api/{door}", json=body)
            if reply.status_code != 200:  # as the listener "run", which has a queue
                assert 400 <= reply.status_code < 500 and reply.json()["detail"]
            assert reply.status_code != 200 or "event_id" in reply.json() and door == "call/run"
    deep = "[" * 100_000 + "]" * 100_000
    reply = client.http.post(
        "/gradio_api/queue/join", content=deep, headers={"content-type": "application/json"}
    )
    assert 400 <= reply.status_code < 500 and reply.json()["detail"]
    assert client.ask(client.run, *data)[0]


def test_the_background_may_be_names_within_the_limits(client, tmp_path):
    path = client.upload(save_scene(tmp_path, 1))
    answered, (_, _, legend, _) = client.segment(path, background=["wall", "ceiling"])
    assert answered and "background" in legend
    assert client.ask(client.again, ["wall"], 0.05, 0.9)[0]


def test_the_background_may_be_chosen_and_is_shown(client, predictor, tmp_path, monkeypatch):
    lexicon = ("sea", "roof", "cat", "lamp", "rock")
    monkeypatch.setattr(freecp_d2.background, "lexicon", lambda *sources: lexicon)
    path = client.upload(save_scene(tmp_path, 1))
    answered, (_, _, legend, _) = client.segment(path, background="auto")
    words = predictor.prepare(["sky", "lawn"], "auto").background
    assert answered and f"Background: {len(words)} words" in legend and ", ".join(words) in legend
    assert client.ask(client.again, "auto", 0.05, 0.9)[0]
    _, (_, _, legend, _) = client.segment(path)
    assert "Background:" not in legend
    names = ", ".join(f"w{i}" for i in range(web.inputs.MAX_CLASSES - web.inputs.AUTOMATIC + 1))
    sentence = sentence_of(client.segment(path, names, background="auto"))
    assert "137 classes and 64 background names are too many" in sentence


def test_requests_without_a_session_share_nothing(site, tmp_path):
    url, page = site
    alice, bob = Client(url), Client(url)
    path = alice.upload(save_scene(tmp_path, 7))
    data = [{"path": path}, "sky, zebracorn", False, 0.05, 0.9]
    before = set(page.store.sessions)

    def call(client, function, data, **more):
        """By the doors that give an id to ask with."""
        body = {"data": data, "fn_index": function, **more}
        names = {d["id"]: d["api_name"] for d in client.http.get("/config").json()["dependencies"]}
        door = "queue/join" if more else f"call/{names[function]}"
        event = client.http.post(f"/gradio_api/{door}", json=body).json()["event_id"]
        return client.http.get(f"/gradio_api/call/{names[function]}/{event}").text

    for more in ({}, {"session_hash": ""}):
        assert "zebracorn" in call(alice, alice.run, data, **more)
        text = call(bob, bob.again, [True, 0.05, 0.9], **more)
        text += call(bob, bob.download, [], **more)
        assert text.count("event: error") == 2 and "zebracorn" not in text
        assert "classes stay" not in text and "zip" not in text
    for client, function, values in ((alice, alice.run, data), (bob, bob.again, [1, 0.05, 0.9])):
        for session in ({}, {"session_hash": None}, {"session_hash": ""}):
            for door in ("run/predict", "api/predict"):
                body = {"fn_index": function, "data": values, **session}
                reply = client.http.post(f"/gradio_api/{door}", json=body)
                assert reply.status_code == 404 and "queue" in reply.json()["detail"]
    reply = alice.join(alice.run, data, None)
    assert reply.status_code == 400 and reply.json()["detail"]
    assert set(page.store.sessions) == before
    assert all(
        "zebracorn" not in words.queries for words in page.store.predictor._segmenter.words._kept
    )

    alice.session, bob.session = uuid.uuid4().hex, uuid.uuid4().hex
    assert alice.segment(path, "sky, zebracorn")[0]
    for asked in ((bob.again, True, 0.05, 0.9), (bob.download,)):
        assert sentence_of(bob.ask(*asked)) == "There is no result of yours; press Segment."


def test_sixty_calls_at_once_stop_nobody(site, client, tmp_path, monkeypatch):
    url, page = site
    monkeypatch.setattr(web.page, "comparison", lambda answer, method: "")
    path = client.upload(save_scene(tmp_path, 1))
    data = [{"path": path}, "sky", False, 0.05, 0.9]
    sessions = [uuid.uuid4().hex for _ in range(60)]
    with ThreadPoolExecutor(60) as pool:
        with page.store._turn:  # the model is at work
            body = {"fn_index": client.run, "data": data}
            direct = [
                pool.submit(client.http.post, "/gradio_api/run/predict", json=body)
                for _ in range(60)
            ]
            assert {reply.result().status_code for reply in direct} == {404}
            joined = list(pool.map(lambda s: client.join(client.run, data, s), sessions))
            assert client.http.get("/").status_code == 200
        codes = [reply.status_code for reply in joined]
        assert set(codes) == {200, 503}
        # One may have left the queue for the model before the others came.
        assert codes.count(200) in (web.page.MAX_WAITING, web.page.MAX_WAITING + 1)
        busy = {reply.json()["detail"] for reply in joined if reply.status_code == 503}
        assert busy == {web.page.BUSY}
        taken = [s for s, code in zip(sessions, codes, strict=True) if code == 200]
        assert all(answered for answered, _ in pool.map(client.answer, taken))
    assert client.segment(path)[0]


def wait_until(true):
    for _ in range(200):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("it did not come true")


def test_words_go_with_their_session(site, tmp_path):
    url, page = site
    predictor = page.store.predictor
    alice, bob = Client(url, uuid.uuid4().hex), Client(url, uuid.uuid4().hex)
    path = alice.upload(save_scene(tmp_path, 3))

    def known(word):
        return any(word in words.queries for words in predictor._segmenter.words._kept)

    with alice.http.stream("GET", f"/gradio_api/heartbeat/{alice.session}"):
        other = Client(url, alice.session)
        assert other.segment(path, "sky, quuxberry")[0]
        assert other.segment(path, "sky, quuxberry, secretberry", background=True)[0]
        assert bob.segment(path, "sky, quuxberry")[0]
        assert known("quuxberry") and known("secretberry")
        assert alice.session in page.store.sessions
    wait_until(lambda: alice.session not in page.store.sessions)
    wait_until(lambda: not known("secretberry"))
    assert known("quuxberry")  # bob's words, too
    assert bob.ask(bob.again, False, 0.05, 0.9)[0]

    page.forget_unused(10)
    assert bob.session in page.store.sessions
    page.forget_unused(0)
    wait_until(lambda: not known("quuxberry"))
    assert bob.session not in page.store.sessions
    sentence = sentence_of(bob.ask(bob.again, False, 0.05, 0.9))
    assert sentence.startswith("Your picture and words were deleted after 30 minutes")
    assert bob.segment(path, "sky")[0] and bob.ask(bob.again, False, 0.05, 0.9)[0]
    page.forget(bob.session)

    for file in FOLDER.rglob("*"):
        assert not file.is_file() or b"secretberry" not in file.read_bytes()
    assert not list(FOLDER.rglob("*.safetensors"))


def test_words_stay_nowhere_in_memory(site, tmp_path, caplog):
    caplog.set_level(logging.ERROR, "freecp_d2.clip.text")  # as main() does
    url, page = site
    word = uuid.uuid4().hex

    def visit():
        client = Client(url, uuid.uuid4().hex)
        path = client.upload(save_scene(tmp_path, 3))
        assert client.segment(path, f"sky, {word} tree", background=True)[0]
        assert client.ask(client.again, [f"{word} wall"], 0.0, 0.9)[0]
        assert client.ask(client.download)[0]
        assert not client.segment(path, f"{word}, {word}")[0]
        with client.http.stream("GET", f"/gradio_api/heartbeat/{client.session}"):
            pass
        wait_until(lambda: client.session not in page._seen)

    def is_gone():
        gc.collect()
        referents = gc.get_referents(*gc.get_objects())
        return not any(type(one) is str and word in one and one is not word for one in referents)

    visit()
    # Not at once: Gradio's queue has answered before it is done with a request.
    wait_until(is_gone)


def test_the_page_keeps_words_in_memory_alone(monkeypatch, caplog):
    made = []
    for name in ("httpx", "freecp_d2.clip.text", "freecp_d2.inputs"):
        caplog.set_level(logging.WARNING, name)  # until the end of the test, whatever main sets

    def stop(config, opts):
        made.append(FreeCPPredictor(config, opts).cfg.MODEL.CLIP.TEXT_CACHE)
        raise OSError("enough")

    monkeypatch.setattr(freecp_d2.predictor, "FreeCPPredictor", stop)
    monkeypatch.setattr(web, "private_gradio", lambda: FOLDER)
    monkeypatch.setattr(web.signal, "signal", lambda *_: None)
    monkeypatch.setattr(web.tempfile, "tempdir", None)
    monkeypatch.setattr(sys, "argv", ["web.py", "--opts", "MODEL.CLIP.TEXT_CACHE", "elsewhere"])
    with pytest.raises(SystemExit, match="enough"):
        web.main()
    assert made == [""]
    with_background(Vocabulary((("secretberry",),)), False)  # one class, of which it would warn
    assert "secretberry" not in caplog.text


def test_forgetting_a_session_holds_for_its_requests_that_run_or_wait(
    predictor, tmp_path, monkeypatch
):
    store, path = SessionStore(predictor), save_scene(tmp_path, 2)
    encode, started, go = predictor.encode, threading.Event(), threading.Event()

    def slow(image):
        started.set()
        assert go.wait(60)
        return encode(image)

    monkeypatch.setattr(predictor, "encode", slow)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(store.segment, "a", path, ["sky", "runningberry"], False, 0.05, 0.9)
        assert started.wait(60)
        waiting = pool.submit(store.segment, "a", path, ["sky", "waitingberry"], True, 0.05, 0.9)
        other = pool.submit(store.segment, "b", path, ["sky", "otherberry"], False, 0.05, 0.9)
        wait_until(lambda: len(store._requests) == 3)
        start = time.monotonic()
        store.forget("a")
        assert time.monotonic() - start < 5 and not go.is_set()  # it waits for nobody
        go.set()
        assert running.result().purified.class_names == ("sky", "runningberry")
        assert waiting.result() and other.result()
    assert list(store.sessions) == ["b"]
    known = {name for words in predictor._segmenter.words._kept for name in words.queries}
    assert "otherberry" in known and not known & {"runningberry", "waitingberry"}
    with pytest.raises(ValueError, match="no result of yours"):
        store.segment_again("a", False, 0.05, 0.9)
    assert not store._requests and not store._unused

    monkeypatch.setattr(predictor, "encode", lambda image: store.forget("c") or encode(image))
    assert store.segment("c", path, ["sky"], False, 0.05, 0.9)
    assert "c" not in store.sessions
    assert store.segment("c", path, ["sky"], False, 0.05, 0.9)
    for nobody in (None, ""):
        assert store.segment(nobody, path, ["sky"], False, 0.05, 0.9)
        with pytest.raises(ValueError, match="no result of yours"):
            store.segment_again(nobody, False, 0.05, 0.9)
    assert list(store.sessions) == ["b"]


def request(url, host, method="GET", path="/config", **headers):
    """The status of a request of any Host, or of none."""
    name, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(name, int(port), timeout=60)
    connection.putrequest(method, path, skip_host=True)
    for value in [host] if isinstance(host, str) else host:
        connection.putheader("Host", value)
    for key, value in headers.items():
        connection.putheader(key, value)
    connection.endheaders()
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    if reply.status == 403:
        assert json.loads(text)["detail"].endswith(".") and "components" not in text
    return reply.status


def test_foreign_hosts_and_origins_are_refused(site):
    url, _ = site
    port = url.rpartition(":")[2]
    for host in ("localhost", "127.0.0.1", f"127.0.0.1:{port}", "LOCALHOST:80", "[::1]:7860"):
        assert request(url, host) == 200
    assert request(url, "demo.example") == request(url, "demo.example:8080") == 200
    for host in (
        *("evil.example", f"evil.example:{port}", "localhost.evil.example", "evil.localhost"),
        *("127.0.0.1.evil.example", "127.0.0.1@evil.example", "evil.example@127.0.0.1"),
        *("evil.example:localhost", "192.168.1.7", "10.0.0.1:7860", "[fe80::1]", "0.0.0.0"),
        *("", " ", "[", "[::1", ":", ":7860", "localhost,evil.example", "demo.example.evil"),
    ):
        for path in ("/", "/config", "/gradio_api/queue/join", "/gradio_api/heartbeat/x"):
            assert request(url, host, path=path) == 403, host
    assert request(url, ["localhost", "evil.example"]) in (400, 403)
    assert request(url, []) in (400, 403)
    assert request(url, "evil.example", "POST", "/gradio_api/upload") == 403

    here = f"127.0.0.1:{port}"
    assert request(url, here, Origin=f"http://{here}") == 200
    assert request(url, "demo.example", Origin="https://demo.example") == 200
    assert request(url, here, Origin="https://demo.example") == 200  # a proxy that hides its name
    for origin in (
        *("http://evil.example", "null", "", "http://127.0.0.1:1", "http://localhost:3000"),
        *("http://[", f"http://{here}.evil.example", "file://"),
    ):
        assert request(url, here, Origin=origin) == 403, origin


def test_foreign_websockets_are_closed():
    async def ask(host):
        sent, served = [], []

        async def app(scope, receive, send):
            served.append(scope)

        async def send(message):
            sent.append(message["type"])

        scope = {"type": "websocket", "path": "/", "headers": [(b"host", host)]}
        await web.guard.Guard(app, {"localhost"}, False)(scope, None, send)
        return sent, len(served)

    assert asyncio.run(ask(b"evil.example")) == (["websocket.close"], 0)
    assert asyncio.run(ask(b"localhost:7860")) == ([], 1)


def test_elsewhere_than_at_loopback_addresses_and_the_machines_name_are_served():
    def served(host, name, *names):
        middleware = web.guard.guard(host, names)
        return web.guard.Guard(None, **middleware.kwargs)._is_ours(name)

    for host in ("0.0.0.0", "192.168.1.7"):
        for name in ("192.168.1.7:7860", "10.1.2.3", "[fe80::1]:80", "localhost", host):
            assert served(host, name)
        assert served(host, f"{socket.gethostname()}:7860")
        assert not served(host, "evil.example") and not served(host, "1.2.3.4.evil.example")
        assert served(host, "Proxy.example:443", "proxy.example")
    for host in ("127.0.0.1", "localhost", "[::1]", "::1", "127.0.0.2"):
        assert served(host, "localhost:1") and not served(host, "192.168.1.7")
        assert not served(host, socket.gethostname() + ".example")
    assert served("127.0.0.2", "127.0.0.2:80")


def test_large_requests_are_refused(client):
    large = "sky," * 300_000
    for session in (None, "x"):
        reply = client.join(client.run, [None, large, False, 0.05, 0.9], session)
        assert reply.status_code == 413 and "too large" in reply.json()["detail"]

    def piecewise(size):
        for _ in range(size // 2**16):
            yield bytes(2**16)

    kind = {"content-type": "application/json"}
    reply = client.http.post("/gradio_api/queue/join", content=piecewise(2**22), headers=kind)
    assert 400 <= reply.status_code < 500
    files = [("files", (f"{i}.png", bytes(web.inputs.MAX_BYTES // 4))) for i in range(8)]
    assert client.http.post("/gradio_api/upload", files=files).status_code == 413


def test_gradio_keeps_no_history(client, site):
    assert client.http.get("/config").json()["run_history"] is False
    for door in ("runs", "runs/", "run-history/buckets", "run-history/records"):
        assert client.http.get(f"/gradio_api/{door}").status_code == 404
    assert client.http.post("/gradio_api/run-history/connect", json={}).status_code in (404, 405)
    for door in ("monitoring", "monitoring/summary", "monitoring/x"):
        assert client.http.get(f"/{door}").status_code == 403
    assert client.http.get(f"/gradio_api/deep_link?session_hash={client.session}").json() == ""
    assert not site[1].state_holder.session_data.get(client.session)
