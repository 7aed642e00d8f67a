"""web.py: the model behind the page, and the page in a real browser."""

import html
import importlib.util
import json
import os
import re
import shutil
import socket
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from freecp_d2 import FreeCPPredictor
from freecp_d2.data.scenes import draw_scene

pytest.importorskip("gradio", reason="web.py needs gradio: pip install 'freecp_d2[web]'")
httpx = pytest.importorskip("httpx")  # which gradio brings
DEMO = Path(__file__).parents[2] / "projects" / "Demo"
WORDS = ["sky", "lawn", "meadow", "road", "mushroom", "tree", "snow"]
TIMEOUT = 60_000
NOT_UPLOADED = "Only pictures that were dropped on this page can be used; drop it again."


def load(name):
    spec = importlib.util.spec_from_file_location(f"demo_{name}", DEMO / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


web, screenshot = load("web"), load("screenshot")


@pytest.fixture(scope="module")
def predictor():
    return FreeCPPredictor("scenes/clearclip", ["MODEL.CLIP.TEXT_CACHE", ""])


@pytest.fixture
def encoder_calls(predictor):
    """A list with one entry for every batch of windows that CLIP has encoded since."""
    calls = []
    handle = predictor._model.encoder.register_forward_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def save_scene(folder, seed):
    path = folder / f"scene_{seed}.png"
    Image.fromarray(draw_scene(seed).image).save(path)
    return str(path)


def test_thresholds_change_the_answer_without_encoding(predictor, encoder_calls, tmp_path):
    studio, path = web.Studio(predictor), save_scene(tmp_path, 87)
    first = studio.run("a", path, WORDS, False, 0.05, 0.9)
    assert encoder_calls
    encoder_calls.clear()
    strict = studio.again("a", False, 0.3, 0.9)
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
    studio, path = web.Studio(predictor), save_scene(tmp_path, 87)
    studio.run("a", path, WORDS, False, 0.05, 0.9)
    answer = studio.run("a", path, WORDS[:3], False, 0.05, 0.9)
    assert answer.purified.class_names == tuple(WORDS[:3]) and len(encoded) == 1
    Path(path).unlink()
    assert studio.again("a", True, 0.05, 0.9).purified.class_names[0] == "background"
    assert len(encoded) == 1


def test_sessions_see_their_own_picture_and_memory_is_bounded(predictor, tmp_path):
    paths = {name: save_scene(tmp_path, seed) for name, seed in zip("abc", (1, 2, 3), strict=True)}
    studio = web.Studio(predictor, cache_bytes=1)
    with ThreadPoolExecutor(3) as pool:
        futures = {s: pool.submit(studio.run, s, p, WORDS, False, 0, 1) for s, p in paths.items()}
    for name, seed in zip("abc", (1, 2, 3), strict=True):
        assert (futures[name].result().purified.image == draw_scene(seed).image).all()
    kept = [name for name, sitting in studio.sittings.items() if sitting.encoded is not None]
    assert kept == list(studio.sittings)[-1:] and len(kept) == 1

    evicted = next(name for name in "abc" if name not in kept)
    answer = studio.again(evicted, False, 0, 1)  # encoded anew, from its file
    assert (answer.purified.label_map == futures[evicted].result().purified.label_map).all()
    Path(paths[kept[0]]).unlink()
    with pytest.raises(ValueError, match="deleted"):
        studio.again(kept[0], False, 0, 1)
    assert studio.again("nobody", False, 0, 1) is None
    studio.forget(evicted)
    assert evicted not in studio.sittings


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
        file.truncate(web.MAX_BYTES + 1)
    monkeypatch.setattr(web, "read_image", lambda path: pytest.fail("it was decoded"))
    for path, words in (
        (large, "too many pixels"),
        (bomb, "too many pixels"),
        (broken, "no picture"),
        (tiff, "no picture"),
        (heavy, "20.0 MiB"),
        (tmp_path / "gone.png", "deleted"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            web.load_picture(path)
        assert str(tmp_path) not in str(error.value)
    monkeypatch.undo()

    half = save("half.png", (64, 64))
    half.write_bytes(half.read_bytes()[:80])
    with pytest.raises(ValueError, match=r"^half.png: not a readable image"):
        web.load_picture(half)
    assert web.load_picture(save("long.jpg", (3000, 2))).shape == (1, web.MAX_SIDE, 3)


def test_classes_are_separated_by_commas_and_lines():
    assert web.parse_classes(" sky, road,\n\ntree ,, traffic light\r\n") == [
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
            web.parse_classes(text)


def test_names_are_text_and_never_markup(predictor):
    names = ["<b>sky</b>", "$x_2$ & ${1}", "road", "w" * 80]
    encoded = predictor.encode(np.zeros((64, 64, 3), np.uint8))
    segmentation = predictor.segment(encoded, names, redundancy_threshold=0.0)
    answer = web.Answer(predictor.base(encoded.image, names), segmentation, 0.0, None, 0.0)
    for shown in (web.legend(answer), web.chart(answer)):
        assert "<b>" not in shown and "&lt;b&gt;sky" in shown and "$x_2$ &amp; ${1}" in shown
    assert web.INK not in web.chart(answer) and "currentColor" in web.chart(answer)
    width, height = web.picture_of(answer.base).size
    assert min(width, height) >= web.MIN_SHOWN


# ------------------------------------------------------------------------------------ by raw HTTP


class Client:
    """Asks a served page without a browser: whatever one likes to send."""

    def __init__(self, url, session=None):
        self.http = httpx.Client(base_url=url, timeout=120)
        self.session = session
        listed = self.http.get("/config").json()["dependencies"]
        self.run = next(d["id"] for d in listed if len(d["inputs"]) == 5)
        self.again = next(d["id"] for d in listed if len(d["inputs"]) == 3)
        self.example = next(d["id"] for d in listed if len(d["inputs"]) == 1)

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
    page = web.build_page(web.Studio(predictor), Path(web.FOLDER))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    web.serve(page, "127.0.0.1", port, ["demo.example"])
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
    assert not answered and sentence and sentence[0].isupper() and sentence.endswith("."), reply
    return html.unescape(sentence)


def test_uploads_and_examples_are_segmented_by_raw_requests(client, tmp_path):
    path = client.upload(save_scene(tmp_path, 87))
    answered, (pictures, line, legend, chart) = client.segment(path, "sky, lawn, meadow")
    assert answered and len(pictures) == 2 and "of 3 classes stay" in line
    assert "meadow" in legend and "<svg" in chart
    answered, values = client.ask(client.again, False, 0.5, 0.9)
    assert answered and "not encoded again" in values[1]
    answered, (picture, words) = client.ask(client.example, 0)
    example = picture["value"]
    assert answered and "mushroom" in words["value"]
    assert client.ask(client.run, example, "sky, lawn", True, 0.05, 0.9)[0]


def test_only_uploads_are_opened(client, site, tmp_path, monkeypatch, no_traceback):
    folder = Path(web.FOLDER)
    outside = save_scene(tmp_path, 42)
    upload = client.upload(save_scene(tmp_path, 1))
    (tmp_path / "linked").mkdir()
    (folder / "folder_out").symlink_to(tmp_path)
    (folder / "link.png").symlink_to(outside)
    (folder / "dangling.png").symlink_to(tmp_path / "nothing.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    os.link(outside, folder / "hard.png")
    os.mkfifo(folder / "fifo.png")
    os.mkfifo(tmp_path / "fifo.png")
    sibling = Path(f"{folder}_more")
    sibling.mkdir()
    shutil.copy(outside, sibling / "scene.png")
    up = "/".join([".."] * 12)
    opened = []
    monkeypatch.setattr(web, "read_image", opened.append)
    try:
        paths = [
            outside,
            str(tmp_path / "nothing.png"),
            f"{folder}/{up}{outside}",
            f"{folder}/x/{up}{outside}",
            f"{Path(upload).parent}/{up}{tmp_path}/nothing.png",
            f"{folder}/../{sibling.name}/scene.png",
            str(sibling / "scene.png"),
            os.path.relpath(outside),
            f"{folder}/link.png",
            f"{folder}/folder_out/{Path(outside).name}",
            f"{folder}/folder_out/nothing.png",
            f"{folder}/dangling.png",
            f"{folder}/loop.png",
            f"{folder}/hard.png",
            f"{folder}/fifo.png",
            str(tmp_path / "fifo.png"),
            "/dev/zero",
            "/dev/stdin",
            "/proc/self/environ",
            "/etc/passwd",
            "~/picture.png",
            str(folder),
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
            f"{folder}/\ud800.png",
            "x" * 5000,
            f"{folder}/{'x' * 300}.png",
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
            (folder / name).unlink()
    monkeypatch.undo()
    assert client.segment(upload)[0]  # and so it is after all that


# ---------------------------------------------------------------------------------- in the browser

in_browser = pytest.mark.skipif(
    screenshot.find_chromium() is None, reason="no chromium: apt install chromium"
)


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=screenshot.find_chromium(), args=screenshot.CHROMIUM_FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture
def served(tmp_path):
    """The address of a page; its temporary folder is empty when it has been shut down."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    with screenshot.serve(**{**os.environ, "TMPDIR": str(folder)}) as url:
        yield url
        assert list(folder.rglob("*.png")), "the test looks into the wrong folder"
    assert not list(folder.iterdir())


def open_page(browser, url):
    """A page of a new session, and the addresses that it asks for elsewhere."""
    page = browser.new_context().new_page()
    page.set_default_timeout(TIMEOUT)
    elsewhere = []
    page.on(
        "request",
        lambda r: None if r.url.startswith((url, "data:", "blob:")) else elsewhere.append(r.url),
    )
    page.goto(url)
    page.locator("#segment").wait_for()
    return page, elsewhere


def upload(page, path):
    """Put a file where the picture is."""
    if page.locator("#picture button[aria-label='Clear']").count():
        page.locator("#picture button[aria-label='Clear']").click()
    page.locator("#picture input[type=file]").set_input_files(path)


def upload_scene(page, folder, seed):
    upload(page, save_scene(folder, seed))
    page.locator("#picture img").wait_for()


def message(page):
    """The message on the page, which is closed."""
    toast = page.locator("[data-testid=toast-body]").first
    text = toast.inner_text()
    page.locator("[data-testid=toast-close]").first.click()
    toast.wait_for(state="detached")
    return text


def answer(page):
    """How many classes stay, of how many; and whether the picture was encoded for this."""
    text = page.locator("#summary").inner_text()
    kept, total = re.search(r"(\d+) of (\d+) classes stay", text).groups()
    return int(kept), int(total), "not encoded again" not in text


@in_browser
def test_one_user_in_a_browser(browser, served, tmp_path):
    page, elsewhere = open_page(browser, served)
    assert page.locator("#examples img").count() >= 4
    upload_scene(page, tmp_path, 87)
    page.locator("#words textarea").fill("sky, lawn, meadow\nroad, mushroom, tree, snow")
    page.locator("#segment").click()
    page.locator("#chart .chart").wait_for()
    kept, total, encoded = answer(page)
    assert 1 < kept < total == 7 and encoded
    assert page.locator("#result img").count() >= 2
    shares = page.locator("#legend tbody tr td:last-child").all_inner_texts()
    assert abs(sum(float(s[:-1]) for s in shares if s.endswith("%")) - 100) < 0.5
    chart = page.locator("#chart .chart").inner_text()
    assert all(name in chart for name in WORDS) and "redundant" in chart

    number = page.locator("#redundancy input[type=number]")
    number.fill("0.5")
    number.press("Enter")
    page.locator("#summary", has_text="0 of 7 classes stay").wait_for()
    assert answer(page) == (0, 7, False)

    large, heavy = tmp_path / "large.png", tmp_path / "heavy.png"
    Image.new("RGB", (8000, 8000)).save(large)
    heavy.write_bytes(Path(save_scene(tmp_path, 1)).read_bytes() + bytes(web.MAX_BYTES))
    upload(page, large)
    page.locator("#picture img").wait_for(state="attached")
    page.locator("#segment").click()
    assert "large.png has too many pixels" in message(page)
    upload(page, heavy)
    assert "exceed the maximum allowed size of 20" in message(page)

    upload_scene(page, tmp_path, 2)
    page.locator("#words textarea").fill(", ".join(f"word {i}" for i in range(201)))
    page.locator("#segment").click()
    assert "201 classes are too many" in message(page)
    page.locator("#words textarea").fill("sky, sky")
    page.locator("#segment").click()
    assert "sky" in message(page)
    assert answer(page) == (0, 7, False)  # what was there stays
    assert not elsewhere


@in_browser
def test_five_users_at_once(browser, served, tmp_path):
    vocabularies = [WORDS[:2], WORDS[:3], WORDS[:4], WORDS[:5], WORDS[:6]]
    pages = [open_page(browser, served)[0] for _ in vocabularies]
    for seed, (page, words) in enumerate(zip(pages, vocabularies, strict=True)):
        upload_scene(page, tmp_path, seed)
        page.locator("#words textarea").fill(",".join(words))
    for page in pages:
        page.locator("#segment").click()
    for seed, (page, words) in enumerate(zip(pages, vocabularies, strict=True)):
        page.locator("#chart .chart").wait_for()
        assert answer(page)[1] == len(words)
        table = page.locator("#legend").inner_text()
        assert all(name in table for name in words) and WORDS[len(words)] not in table
        shown = page.locator("#picture img").get_attribute("src")
        assert f"scene_{seed}.png" in shown
