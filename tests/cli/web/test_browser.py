"""The page in a real browser, as people and axe-core see it."""

import importlib.util
import os
import re
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from freecp_d2.data.scenes import CLASSES, draw_scene

pytest.importorskip("gradio", reason="web.py needs gradio: pip install 'freecp_d2[web]'")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

SCRIPT = Path(__file__).parents[3] / "projects" / "Demo" / "screenshot.py"
WORDS = ["sky", "lawn", "meadow", "road", "mushroom", "tree", "snow"]
TIMEOUT = 60_000
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
"""What axe-core looks after: all of WCAG 2.2 up to AA, and its own good practice."""


def load_screenshot():
    spec = importlib.util.spec_from_file_location("demo_screenshot", SCRIPT)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


screenshot = load_screenshot()
pytestmark = pytest.mark.skipif(
    screenshot.find_chromium() is None, reason="no chromium: apt install chromium"
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=screenshot.find_chromium(), args=screenshot.CHROMIUM_FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a page; its temporary folder is empty when it has been shut down."""
    folder = tmp_path_factory.mktemp("tmp")
    with screenshot.serve(**{**os.environ, "TMPDIR": str(folder)}) as url:
        yield url
        assert list(folder.rglob("*.png")), "the test looks into the wrong folder"
    assert not list(folder.iterdir())


@pytest.fixture
def open_page(browser, served):
    """Pages of new sessions; they have asked for nothing elsewhere, and no script of theirs failed.

    Args of what it gives: the options of a context of Playwright.
    """
    contexts, elsewhere, failed = [], [], []

    def open_one(**options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("pageerror", lambda error: failed.append(error))
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(served)
        page.wait_for_function("window.freecp?.ready")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert not failed
    assert all(url.startswith((served, "data:", "blob:")) for url in elsewhere)


@pytest.fixture
def page(open_page):
    return open_page()


def save_scene(folder, seed, size=None):
    path = folder / f"scene_{seed}.png"
    image = Image.fromarray(draw_scene(seed).image)
    (image.resize(size) if size else image).save(path)
    return str(path)


def drop(page, path):
    """Put a file where the picture is; it may be refused."""
    if page.locator("#picture button[aria-label='Clear']").count():
        page.locator("#picture button[aria-label='Clear']").click()
    page.locator("#picture input[type=file]").set_input_files(path)


def upload(page, path):
    """Put a picture where the picture is."""
    drop(page, path)
    page.locator("#picture img").wait_for(state="attached")


def words(page):
    return page.locator("#words textarea")


def message(page):
    """The message on the page, which is closed."""
    toast = page.locator("[data-testid=toast-body]").first
    text = toast.inner_text()
    page.locator("[data-testid=toast-close]").first.click()
    toast.wait_for(state="detached")
    return text


def answered(page, total):
    """Wait for an answer of so many classes; how many stay, and whether the picture was encoded."""
    page.locator("#summary", has_text=f"of {total} classes stay").wait_for()
    text = page.locator("#summary").inner_text()
    return int(re.search(r"(\d+) of", text)[1]), "not encoded again" not in text


def set_threshold(page, value):
    number = page.locator("#redundancy input[type=number]")
    number.fill(value)
    number.press("Enter")


def test_a_worked_example_stands_at_load(page):
    kept, encoded = answered(page, len(CLASSES))
    assert 1 < kept < len(CLASSES) and encoded
    assert page.locator("#result img").count() == 2
    assert page.locator("#picture img").get_attribute("src").endswith("scene_10.png")
    assert words(page).input_value() == ", ".join(CLASSES)
    assert not page.locator("#note").is_visible()
    set_threshold(page, "0.5")
    page.locator("#summary", has_text="0 of 41 classes stay").wait_for()
    assert answered(page, 41) == (0, False)
    assert page.locator("#examples img").count() >= 4


def test_limits_are_folded(page):
    assert not page.get_by_text("words are never written to disk").is_visible()
    page.locator("#limits button").click()
    page.get_by_text("words are never written to disk").wait_for()


def test_one_user(page, tmp_path):
    upload(page, save_scene(tmp_path, 87))
    words(page).fill("sky, lawn, meadow\nroad, mushroom, tree, snow")
    page.locator("#segment").click()
    kept, encoded = answered(page, 7)
    assert 1 < kept < 7 and encoded
    shares = page.locator("#legend tbody td:last-child").all_inner_texts()
    assert abs(sum(float(s[:-1]) for s in shares if re.match(r"[\d.]+%", s)) - 100) < 0.5
    page.locator("#chart summary").click()
    chart = page.locator("#chart").inner_text()
    assert all(name in chart for name in WORDS)
    set_threshold(page, "0.3")
    page.locator("#chart caption", has_text="threshold, 0.3").wait_for()
    assert answered(page, 7)[0] < kept


def test_five_users_at_once(open_page, tmp_path):
    vocabularies = [WORDS[:2], WORDS[:3], WORDS[:4], WORDS[:5], WORDS[:6]]
    pages = [open_page() for _ in vocabularies]
    for seed, (page, names) in enumerate(zip(pages, vocabularies, strict=True)):
        upload(page, save_scene(tmp_path, seed))
        words(page).fill(",".join(names))
    for page in pages:
        page.locator("#segment").click()
    for seed, (page, names) in enumerate(zip(pages, vocabularies, strict=True)):
        answered(page, len(names))
        for summary in page.locator("#chart summary").all():
            summary.click()
        table = page.locator("#chart").inner_text()
        assert all(name in table for name in names) and WORDS[len(names)] not in table
        assert f"scene_{seed}.png" in page.locator("#picture img").get_attribute("src")


def test_typed_markup_and_templates_are_text(page):
    odd = ["<b>sky</b>", "{{value}}", "${1 + 1}", "<img src=x onerror=alert(1)>"]
    words(page).fill(", ".join(odd))
    set_threshold(page, "0")
    page.locator("#segment").click()
    answered(page, 4)
    for place in ("#legend", "#chart"):
        for summary in page.locator(f"{place} summary").all():
            summary.click()
        text = page.locator(place).inner_text()
        assert all(name in text for name in odd[:3])


def test_ctrl_enter_runs_and_the_line_moves_by_keyboard(page):
    words(page).fill("sky, sand, sea")
    words(page).press("Control+Enter")
    answered(page, 3)
    line = page.locator("#result input[type=range]")
    page.locator("#ambiguity input[type=range]").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if line.evaluate("e => e === document.activeElement"):
            break
    else:
        pytest.fail("Tab does not reach the line")

    def left():
        return line.evaluate("e => getComputedStyle(e.nextElementSibling).left")

    def clipped():
        return page.locator("#result .over").evaluate("e => getComputedStyle(e).clipPath")

    before = left(), clipped()
    ring = line.evaluate("e => getComputedStyle(e.nextElementSibling).outlineStyle")
    assert ring == "solid" and clipped() == "inset(0px 0px 0px 50%)"
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert float(left()[:-2]) < float(before[0][:-2]) and clipped() == "inset(0px 0px 0px 40%)"
    page.keyboard.press("End")
    assert clipped() == "inset(0px 0px 0px 100%)"
    set_threshold(page, "0.3")  # the line stays where it is
    page.locator("#chart caption", has_text="threshold, 0.3").wait_for()
    page.wait_for_function("document.querySelector('#result input').value === '100'")
    assert clipped() == "inset(0px 0px 0px 100%)"


def test_a_result_of_other_words_or_another_picture_is_marked_as_old(page, tmp_path):
    note, first = page.locator("#note"), words(page).input_value()

    def grey():
        style = "e => getComputedStyle(e).filter"
        return page.locator("#result img").first.evaluate(style) == "grayscale(1)"

    words(page).fill("sky, sea")
    note.wait_for()
    assert "Press Segment" in note.inner_text() and grey()
    words(page).fill(first)
    note.wait_for(state="hidden")
    assert not grey()
    upload(page, save_scene(tmp_path, 2))
    note.wait_for()
    page.locator("#segment").click()
    note.wait_for(state="hidden")
    words(page).fill("sky, sea")
    note.wait_for()
    set_threshold(page, "0.3")  # of the old words still
    page.locator("#chart caption", has_text="threshold, 0.3").wait_for()
    assert note.is_visible() and answered(page, 41)
    page.locator("#examples button").nth(1).click()
    note.wait_for(state="hidden")
    answered(page, 41)


def test_after_an_error_nothing_old_is_left_standing(page, tmp_path):
    def cleared():
        page.locator("#result", has_text="Nothing to show").wait_for()
        shown = [page.locator(f"#{part}").inner_text() for part in ("summary", "legend", "chart")]
        assert not any(shown) and not page.locator("#download").is_visible()
        assert not page.locator("#result img").count() and not page.locator("#note").is_visible()

    large, heavy = tmp_path / "large.png", tmp_path / "heavy.png"
    Image.new("RGB", (8000, 8000)).save(large)
    heavy.write_bytes(Path(save_scene(tmp_path, 1)).read_bytes() + bytes(20 * 2**20))
    upload(page, large)
    page.locator("#segment").click()
    assert "large.png has too many pixels" in message(page)
    cleared()
    drop(page, heavy)
    assert "exceed the maximum allowed size of 20" in message(page)

    upload(page, save_scene(tmp_path, 2))
    words(page).fill("sky, sea")
    page.locator("#segment").click()
    answered(page, 2)
    for odd, sentence in (
        (", ".join(f"word {i}" for i in range(201)), "201 classes are too many"),
        ("sky, sky", "sky"),
        ("", "at least one class"),
    ):
        words(page).fill(odd)
        page.locator("#segment").click()
        assert sentence in message(page)
        cleared()
    set_threshold(page, "0.3")  # what comes back is of the words that were good, and says so
    answered(page, 2)
    page.locator("#note").wait_for()


def test_on_a_phone_the_result_scrolls_into_view(open_page):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = open_page(**phone, reduced_motion="reduce")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("scrollY") == 0
    words(page).fill("sky, sand, sea")
    page.locator("#segment").click()
    answered(page, 3)
    page.wait_for_function("document.querySelector('#result').getBoundingClientRect().top < 500")
    assert page.locator("#result").bounding_box()["y"] >= 0
    page.evaluate("scrollTo(0, 0)")
    set_threshold(page, "0.3")
    page.locator("#chart caption", has_text="threshold, 0.3").wait_for()
    assert page.locator("#redundancy").bounding_box()["y"] > 0  # one goes on moving the threshold


def test_the_download_is_of_the_uploads_size(page, tmp_path):
    upload(page, save_scene(tmp_path, 87, (2000, 1500)))
    words(page).fill("sky, lawn, snow")
    page.locator("#segment").click()
    answered(page, 3)
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "freecp.zip"
    archive = zipfile.ZipFile(download.value.path())
    assert {"label_map.png", "segmentation.json", "overlay.jpg"} < set(archive.namelist())
    for name in archive.namelist():
        if not name.endswith(".json"):
            assert Image.open(archive.open(name)).size == (2000, 1500)
    set_threshold(page, "0.5")
    page.locator("#summary", has_text="0 of 3 classes stay").wait_for()
    page.locator("#download").click()
    assert "No class stays" in message(page)
    assert page.locator("#result img").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1440])
def test_axe_finds_nothing(open_page, scheme, width):
    name = "axe_playwright_python.sync_playwright"
    axe = pytest.importorskip(name, reason="pip install axe-playwright-python").Axe()
    page = open_page(viewport={"width": width, "height": 900}, color_scheme=scheme)

    def check(state):
        options = {"runOnly": RULES, "resultTypes": ["violations", "passes"]}
        response = axe.run(page, options=options).response
        broken = [
            (rule["id"], node["html"][:200], node["failureSummary"])
            for rule in response["violations"]
            for node in rule["nodes"]
        ]
        assert not broken, (state, broken)
        return [
            n["html"] for r in response["passes"] if r["id"] == "color-contrast" for n in r["nodes"]
        ]

    legible = check("at load")
    for hint in (
        "Ctrl+Enter segments.",
        "Classes whose consistency",
        "Words encoded in",
        "more are",
    ):
        assert any(hint in html for html in legible), hint  # its contrast was measured
    page.locator("#limits button").click()
    for summary in page.locator("#results summary").all():
        summary.click()
    page.wait_for_timeout(500)  # until it has unfolded
    check("unfolded")
    words(page).fill("sky, sky")
    page.locator("#note").wait_for()
    check("old")
    page.locator("#segment").click()
    page.locator("#result", has_text="Nothing to show").wait_for()
    page.wait_for_timeout(500)  # until the message has faded in
    check("after an error")
