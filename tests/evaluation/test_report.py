"""The HTML report, opened and parsed; what the pictures in it show."""

import base64
import hashlib
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata
from PIL import Image

from freecp_d2.evaluation import FreeCPSemSegEvaluator, load_label_map, report
from freecp_d2.evaluation.results import load_results

CLASSES = ["road", "<b>cat</b>", "dog & co", "sky"]
COLORS = [[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]]


def evaluate(name: str, folder, predictions, kept=None, **options) -> FreeCPSemSegEvaluator:
    evaluator = FreeCPSemSegEvaluator(name, output_dir=folder, **options)
    evaluator.reset()
    for record, labels in zip(DatasetCatalog.get(name), predictions, strict=True):
        output = {"label_map": torch.from_numpy(labels)}
        if kept is not None:
            flags = torch.tensor([i in kept for i in range(len(CLASSES))])
            output |= {"kept_redundancy": flags, "kept": flags, "ambiguous_losses": [(2, 1)]}
        evaluator.process([record], [output])
    evaluator.evaluate()
    return evaluator


@pytest.fixture(scope="module")
def asked():
    """Images whose base method's label map the report of `folder` has asked for."""
    return []


def facts(enabled: bool) -> dict:
    """What train_net.py would say of a run."""
    config = {
        "INPUT": {"MIN_SIZE_TEST": 448, "EXIF_ORIENTATION": True},
        "MODEL": {"FREECP": {"ENABLED": enabled, "WINDOW": 224}, "RPN": {"NMS_THRESH": 0.7}},
        "OUTPUT_DIR": "freecp" if enabled else "base",
    }
    hashes = {"words": "0123456789abcdef", "descriptions": None}
    return {"method": "sclip", "enabled": enabled, "precision": "fp32", **hashes, "config": config}


@pytest.fixture(scope="module")
def folder(register, tmp_path_factory, asked):
    """Results of a base method and of FreeCP; image i has i wrong pixels of 1024 with FreeCP."""
    folder = tmp_path_factory.mktemp("report")
    truths, predictions = [], []
    for i in range(6):
        truth = np.zeros((32, 32), int)
        truth[16:] = 1
        predicted = truth.copy()
        predicted[0, :i] = 1
        truths.append(truth)
        predictions.append(predicted)
    name = register(folder, truths, stuff_classes=CLASSES, stuff_colors=COLORS)
    worse = [np.where(labels == 1, 2, labels) for labels in predictions]
    by_file = dict(zip((r["file_name"] for r in DatasetCatalog.get(name)), worse, strict=True))

    def segment_base(image):
        asked.append(image["file_name"])
        return torch.from_numpy(by_file[image["file_name"]])

    evaluate(name, folder / "base", worse, facts=facts(False))
    evaluate(
        name,
        folder / "freecp",
        predictions,
        kept={0, 1},
        facts=facts(True),
        compare_with=folder / "base" / "results.json",
        segment_base=segment_base,
        stage_seconds=lambda: {"encode": 0.3},
        pictures=2,
    )
    return folder


@pytest.fixture(scope="module")
def page(folder, parse):
    return parse((folder / "freecp" / "report.html").read_text())


@pytest.fixture(scope="module")
def runs(folder):
    """Of the base method and of FreeCP."""
    return [load_results(folder / run / "results.json") for run in ("base", "freecp")]


def test_the_report_holds_the_figures_and_gains(page, runs):
    base, results = runs
    table = page.tables["metrics"]
    assert table[0] == ["", "sclip", "sclip + FreeCP", "gain"]
    assert [row[0] for row in table[1:]] == list(results["metrics"])
    for name, *cells in table[1:]:
        theirs, ours = base["metrics"][name], results["metrics"][name]
        sign = "+" if ours > theirs else "−"
        assert cells == [f"{theirs:.2f}", f"{ours:.2f}", f"{sign}{abs(ours - theirs):.2f}"]
    rows = page.tables["classes"][1:]
    assert [row[0] for row in rows] == CLASSES
    for row, ours, theirs in zip(rows, results["classes"], base["classes"], strict=True):
        shown = ["–" if x["IoU"] is None else f"{x['IoU']:.1f}" for x in (theirs, ours)]
        assert row[2:4] == shown
    assert rows[0][4] == "0.0" and rows[3][2:] == ["–", "–", "–"]
    assert rows[1][4] == f"+{results['classes'][1]['IoU']:.1f}"
    assert page.tables["purification"][2] == ["ambiguity", "100.0", "100.0", "100.0", "2.0"]
    assert len(page.bars) == 8 and page.bars[3] == f"width:{rows[1][3]}%"


def test_look_alikes_have_totals_of_all_pairs(page, register, tmp_path, parse, monkeypatch):
    rows = page.tables["pairs"]
    assert rows[1:] == [
        ["dog & co", "<b>cat</b>", "6", "6", "0"],
        ["all", "1 pairs", "6", "6", "0"],
    ]
    monkeypatch.setattr(report, "MOST_PAIRS", 1)
    name = register(tmp_path, [np.array([[0, 1]])] * 2)
    evaluator = FreeCPSemSegEvaluator(name, output_dir=tmp_path / "out")
    evaluator.reset()
    every = torch.ones(5, dtype=torch.bool)
    for record, losses in zip(DatasetCatalog.get(name), ([(2, 1), (0, 3)], [(2, 1)]), strict=True):
        output = {"label_map": torch.tensor([[0, 1]]), "kept": every, "ambiguous_losses": losses}
        evaluator.process([record], [output])
    evaluator.evaluate()
    rows = parse((tmp_path / "out" / "report.html").read_text()).tables["pairs"]
    assert rows[1:] == [["c", "b", "2", "2", "0"], ["all", "2 pairs", "3", "2", "1"]]


def test_the_confusions_are_those_of_the_results(page, runs):
    wrong = sum(range(6))
    assert runs[1]["confusions"] == [
        {"truth": "road", "predicted": CLASSES[1], "pixels": wrong, "share": 100 * wrong / 3072}
    ]
    assert page.tables["confusions"][1:] == [["road", CLASSES[1], str(wrong), "0.5"]]


def test_the_settings_of_both_runs(folder, page, parse):
    rows = page.tables["settings"]
    assert rows[0] == ["", "sclip", "sclip + FreeCP"]
    assert rows[1:] == [
        ["precision", "fp32", "fp32"],
        ["words (SHA-256)", "0123456789ab", "0123456789ab"],
        ["descriptions (SHA-256)", "none", "none"],
        ["INPUT.MIN_SIZE_TEST", "448", "448"],
        ["INPUT.EXIF_ORIENTATION", "True", "True"],
        ["MODEL.FREECP.ENABLED", "False", "True"],
        ["MODEL.FREECP.WINDOW", "224", "224"],
    ]
    text = (folder / "freecp" / "report.html").read_text()
    assert re.findall(r'best">(\w+)</td>', text) == ["False", "True"]  # what differs is bold
    folded = text.split("<details>")[1].split("</details>")[0]
    assert "MODEL.RPN.NMS_THRESH: 0.7<br>" in folded and "FREECP" not in folded
    assert "OUTPUT_DIR" not in text
    alone = parse((folder / "base" / "report.html").read_text())
    assert alone.tables["settings"][0] == ["", "sclip"]


def test_the_report_stands_alone(folder, page):
    """Its one script is the sorting, which the policy allows by its hash."""
    text = (folder / "freecp" / "report.html").read_text()
    assert page.urls and all(url.startswith(("data:image/jpeg;base64,", "#")) for url in page.urls)
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy and "default-src 'none'" in page.policy
    assert "<b>cat" not in text
    assert "http" not in text.lower().replace("http-equiv", "")
    for url in page.urls:
        assert url[0] != "#" or f'id="{url[1:]}"' in text


def pixels(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def test_best_and_worst_images_with_their_pictures(page):
    assert page.headings[-3:] == ["Best images", "Worst images", "Settings"]
    shown = [file.split(": mIoU")[0].rpartition("/")[2] for file in page.files]
    assert shown == ["image 0.jpg", "image 1.jpg", "image 5.jpg", "image 4.jpg"]
    assert page.files[0].strip().endswith("mIoU 100.0, base method 33.3")
    names = [name for name, _ in page.images]
    assert names == ["image", "ground truth", "sclip", "sclip + FreeCP"] * 4
    photo, truth, base, _ = (pixels(uri) for _, uri in page.images[:4])
    assert np.abs(photo - 128).max() < 4
    top, bottom = np.s_[2:6, 2:6], np.s_[-6:-2, -6:-2]
    # The palette's red, green and blue.
    assert truth[top].mean((0, 1)).argmax() == 0 and truth[bottom].mean((0, 1)).argmax() == 1
    assert base[top].mean((0, 1)).argmax() == 0 and base[bottom].mean((0, 1)).argmax() == 2


def test_a_legend_below_each_image(page):
    assert len(page.legends) == 4
    assert page.legends[0] == [("road", True), ("<b>cat</b>", True), ("dog & co", False)]


def test_the_base_method_runs_on_the_images_of_the_report_only(folder, asked):
    assert sorted(Path(file).name for file in asked) == [f"image {i}.jpg" for i in (0, 1, 4, 5)]


def test_the_base_method_changes_no_figure(folder, register, tmp_path, runs):
    """The same evaluation without it."""
    truths = [np.repeat([0, 1], 16)[:, None].repeat(32, axis=1)] * 6
    name = register(tmp_path, truths, stuff_classes=CLASSES, stuff_colors=COLORS)
    predictions = [labels.copy() for labels in truths]
    for i, labels in enumerate(predictions):
        labels[0, :i] = 1
    evaluator = evaluate(
        name,
        tmp_path / "out",
        predictions,
        kept={0, 1},
        facts=facts(True),
        stage_seconds=lambda: {"encode": 0.3},
    )
    assert {**evaluator.results, "dataset": ""} == {**runs[1], "dataset": ""}


def test_without_a_base_there_is_one_bar_a_class(folder, parse):
    page = parse((folder / "base" / "report.html").read_text())
    assert len(page.bars) == len(CLASSES)
    assert "purification" not in page.tables and "pairs" not in page.tables
    assert page.tables["metrics"][0] == ["", "sclip"]
    assert [name for name, _ in page.images][:3] == ["image", "ground truth", "sclip"]


def test_an_overlay_mixes_colours_and_outlines_regions():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    palette = rng.integers(0, 200, (3, 3), dtype=np.uint8)
    labels = rng.integers(0, 4, (6, 7)).astype(np.int32)  # 3 is no class
    picture = report.overlay(image, labels, palette)
    for y in range(6):
        for x in range(7):
            left = x and labels[y, x - 1] != labels[y, x]
            above = y and labels[y - 1, x] != labels[y, x]
            if left or above:
                expected = np.full(3, 255.0)
            elif labels[y, x] == 3:
                expected = image[y, x].astype(float)
            else:
                expected = 0.3 * image[y, x] + 0.7 * palette[labels[y, x]]
            assert np.abs(picture[y, x] - expected).max() < 0.51


def test_names_stand_inside_of_their_regions():
    labels = np.full((40, 50), 255)
    labels[:, :20] = 0
    labels[5:9, 22:50] = 1  # 112 pixels of 2000
    labels[39, 49] = 2
    places = report.anchors(labels, 3)
    assert [label for label, _, _ in places] == [0, 1]
    for label, x, y in places:
        row, column = int(y / 100 * 40), int(x / 100 * 50)
        inside = labels[row - 1 : row + 2, column - 1 : column + 2]
        assert (inside == label).all()


def test_names_at_the_edge_are_not_cut_off():
    labels = np.zeros((40, 50), int)
    labels[:, -3:] = 1
    assert report.anchors(labels, 2)[1][:2] == (1, 88)


def test_the_legend_leaves_out_what_is_small_and_not_there():
    truth = np.zeros((20, 20), int)
    truth[0, 0] = 3
    truth[1] = 255
    predicted = np.full((20, 20), 1)
    predicted[0, 0] = 2
    example = report.Example("", truth, predicted, 0.0)
    assert report.legend(example, 4) == ([(1, False), (0, True), (3, True)], 1)
    base = np.full((20, 20), 2)
    base[0] = 0
    with_base = report.Example("", truth, predicted, 0.0, base, 0.0)
    assert report.legend(with_base, 4) == ([(1, False), (2, False), (0, True), (3, True)], 0)


def test_a_data_set_without_colours_gets_distinct_ones():
    names = [str(i) for i in range(171)]
    palette = report.palette_of(Metadata(name="many", stuff_classes=names))
    assert palette.shape == (171, 3) and palette.dtype == np.uint8
    assert len({tuple(color) for color in palette.tolist()}) == 171
    grey, *others = report.palette_of(Metadata(name="few", stuff_classes=["background", "sky"]))
    assert len(set(grey.tolist())) == 1 and others[0].tolist() == palette[0].tolist()


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_fits_and_is_legible(browser, folder, width, scheme):
    """In a browser: nothing sticks out of a phone, no text without contrast, no error."""
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    errors: list[str] = []
    tab.on("console", lambda message: errors.append(message.text))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto((folder / "freecp" / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) < 0.1) == (scheme == "dark")
    colors = tab.evaluate(
        "[...document.querySelectorAll('body, .faint, .better, .worse, a')]"
        ".map(e => getComputedStyle(e).color)"
    )
    band = tab.evaluate(
        "getComputedStyle(document.querySelector('tbody tr:nth-child(even)')).backgroundColor"
    )
    for color in set(colors):
        for behind in (background, band):
            low, high = sorted([luminance(color), luminance(behind)])
            assert (high + 0.05) / (low + 0.05) >= 4.5
    assert tab.locator(".bars").first.is_visible() == (width > 700)
    figures = tab.locator(".row").first.locator("figure")
    boxes = [figures.nth(i).bounding_box() for i in range(4)]
    assert all(box["x"] + box["width"] <= width and box["width"] > 150 for box in boxes)
    tops = [box["y"] for box in boxes]
    assert len(set(tops)) == (1 if width > 700 else 2) and tops[0] == tops[1]
    assert not errors
    tab.close()


def luminance(color: str) -> float:
    """Of WCAG, of "rgb(r, g, b)"."""
    channels = np.array(re.findall(r"\d+", color)[:3], dtype=float) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_a_click_on_a_heading_sorts(browser, folder):
    tab = browser.new_page()
    tab.goto((folder / "freecp" / "report.html").as_uri())
    first = tab.locator("#classes tbody td:first-child")
    heads = tab.locator("#classes th")
    assert first.all_inner_texts() == CLASSES
    heads.nth(4).get_by_role("button").click()
    assert first.all_inner_texts() == [CLASSES[1], CLASSES[0], CLASSES[2], CLASSES[3]]
    assert heads.nth(4).get_attribute("aria-sort") == "descending"
    heads.nth(3).get_by_role("button").click()
    texts = tab.locator("#classes tbody td:nth-child(4)").all_inner_texts()
    assert texts[-2:] == ["–", "–"] and float(texts[0]) >= float(texts[1])
    heads.nth(3).get_by_role("button").click()
    texts = tab.locator("#classes tbody td:nth-child(4)").all_inner_texts()
    assert texts[-2:] == ["–", "–"] and float(texts[0]) <= float(texts[1])
    heads.nth(0).get_by_role("button").click()
    assert first.all_inner_texts() == sorted(CLASSES)
    assert heads.nth(3).get_attribute("aria-sort") is None
    tab.close()


def test_results_of_another_data_set_are_refused(folder, register, tmp_path):
    base = folder / "base" / "results.json"
    other = register(tmp_path, [np.zeros((2, 2))])
    with pytest.raises(ValueError, match=f"not on {other}") as error:
        FreeCPSemSegEvaluator(other, compare_with=base)
    assert str(base) in str(error.value)
    results = json.loads(base.read_text())
    results["dataset"] = other
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="its classes are not those"):
        FreeCPSemSegEvaluator(other, compare_with=tmp_path / "results.json")


NAMES = [
    "$\\frac{$",
    "$x$",
    "\\",
    "\\$",
    "$",
    "$$",
    "a\nb",
    "x" * 500,
    "\udcff",
    "nul\0",
    "<i>{{ results }}</i>",
    "\ud83d",
    "汉字",
    "{}%s",
]


def test_names_of_any_kind_are_shown_as_text(register, tmp_path, caplog, parse):
    truth = np.repeat(np.arange(len(NAMES)), 6)[:, None].repeat(40, axis=1)
    name = register(tmp_path, [truth], stuff_classes=NAMES)
    evaluator = evaluate(name, tmp_path / "out", [truth])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    page = parse((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    shown = [row[0] for row in page.tables["classes"][1:]]
    assert shown[6] == "a\\nb" and shown[8:10] == ["\\udcff", "nul\\x00"] and shown[11] == "\\ud83d"
    same = [i for i in range(len(NAMES)) if i not in (6, 8, 9, 11)]
    assert [shown[i] for i in same] == [NAMES[i] for i in same]
    assert len(page.images) == 6
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in results["classes"]] == NAMES
    assert load_results(tmp_path / "out" / "results.json") == evaluator.results


def test_long_names_do_not_widen_the_page(browser, register, tmp_path):
    truth = np.repeat(np.arange(len(NAMES)), 6)[:, None].repeat(40, axis=1)
    name = register(tmp_path, [truth], stuff_classes=NAMES)
    evaluate(name, tmp_path / "out", [truth[::-1].copy()])
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.goto((tmp_path / "out" / "report.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    figure = tab.locator("#classes tr").nth(8).locator("td").last.bounding_box()
    assert figure["x"] + figure["width"] <= 390
    tab.close()


def test_a_file_name_that_is_no_utf8(register, tmp_path, caplog, parse):
    truth = np.zeros((20, 30), int)
    name = register(tmp_path, [truth])
    (record,) = DatasetCatalog.get(name)
    for key in ("file_name", "sem_seg_file_name"):
        path = os.fsencode(tmp_path) + b"/\xff\n" + os.fsencode(Path(record[key]).suffix)
        os.rename(record[key], path)
        record[key] = os.fsdecode(path)
    evaluate(name, tmp_path / "out", [truth], coco_predictions=True)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    page = parse((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert "\\udcff\\n.jpg: mIoU 100.0" in page.files[0]
    segments = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert segments[0]["file_name"] == record["file_name"]


@pytest.mark.parametrize(
    ("colors", "said"),
    [
        (COLORS[:3], "3 stuff_colors of 4 classes"),
        ([*COLORS, [0, 0, 0]], "5 stuff_colors of 4 classes"),
        ([*COLORS[:3], [0.5, 0.2, 0.1]], "'sky' are .*three integers"),
        ([*COLORS[:3], [0, 0, 256]], "'sky' are .*three integers"),
        ([*COLORS[:3], [0, 0, -1]], "'sky' are .*three integers"),
        ([*COLORS[:3], [0, 0]], "'sky' are .*three integers"),
        ([*COLORS[:3], "red"], "'sky' are .*three integers"),
        ([*COLORS[:3], None], "'sky' are .*three integers"),
        ([*COLORS[:3], [True, False, True]], "'sky' are .*three integers"),
    ],
)
def test_bad_colours_are_refused_before_the_evaluation(register, tmp_path, colors, said):
    name = register(tmp_path, [np.zeros((2, 2))], stuff_classes=CLASSES, stuff_colors=colors)
    with pytest.raises(ValueError, match=said) as error:
        FreeCPSemSegEvaluator(name, output_dir=tmp_path / "out")
    assert name in str(error.value) and "\n" not in str(error.value)


def test_colours_of_numpy(register, tmp_path, caplog):
    truth = np.zeros((20, 20), int)
    colors = np.array(COLORS, np.uint8)
    name = register(tmp_path, [truth], stuff_classes=CLASSES, stuff_colors=colors)
    evaluate(name, tmp_path / "out", [truth])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_report_that_fails_costs_no_figure(register, tmp_path, caplog, monkeypatch):
    truth = np.zeros((2, 2), int)
    name = register(tmp_path, [truth])
    evaluator = FreeCPSemSegEvaluator(name, output_dir=tmp_path / "out")
    evaluator.reset()
    (record,) = DatasetCatalog.get(name)
    evaluator.process([record], [{"label_map": torch.from_numpy(truth)}])
    os.remove(record["file_name"])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100
    (error,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "the report could not be drawn" in error and "\n" not in error
    assert str(tmp_path / "out" / "results.json") in error
    assert sorted(os.listdir(tmp_path / "out")) == ["per_class.csv", "records", "results.json"]


def _without(*path):
    def remove(results):
        for key in path[:-1]:
            results = results[key]
        del results[path[-1]]

    return remove


def _with(value, *path):
    def put(results):
        for key in path[:-1]:
            results = results[key]
        results[path[-1]] = value

    return put


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("metrics"), "no metrics"),
        (_without("metrics", "mIoU"), "no mIoU"),
        (_without("metrics", "fwIoU"), "no fwIoU"),
        (_without("classes"), "no classes"),
        (_without("classes", 3), "its classes are not those"),
        (_without("classes", 1, "IoU"), "class 1 has no IoU"),
        (_without("classes", 1, "name"), "its classes are not those"),
        (_without("images"), "no number of images"),
        (_without("dataset"), "no data set"),
        (_with("high", "metrics", "mIoU"), "mIoU is 'high'"),
        (_with(float("nan"), "metrics", "pACC"), "pACC is 'NaN'"),
        (_with([], "classes", 0, "IoU"), r"the IoU of class 0 is \[\]"),
        (_with("x", "classes", 0), "class 0 has no IoU"),
        (_with({}, "classes"), "no classes"),
        (_with(True, "images"), "no number of images"),
    ],
)
def test_an_incomplete_base_is_refused_before_the_evaluation(folder, tmp_path, change, said):
    results = json.loads((folder / "base" / "results.json").read_text())
    file = tmp_path / "results.json"
    name = results["dataset"]
    change(results)
    file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=said) as error:
        FreeCPSemSegEvaluator(name, compare_with=file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"[" * 100_000, b'{"a": 1}', b"3", b"null"])
def test_a_file_of_another_kind_is_refused(folder, tmp_path, content):
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"not the results\.json") as error:
        load_results(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["method", "enabled", "redundancy", "protocol", "config"])
def test_facts_of_any_kind_do_not_stop_a_report(folder, tmp_path, key, caplog):
    results = json.loads((folder / "base" / "results.json").read_text())
    for value in (None, 3, [], {}, "x" * 99):
        file = tmp_path / "results.json"
        file.write_text(json.dumps({**results, key: value}))
        truths = [load_label_map(record["sem_seg_file_name"]) for record in records_of(folder)]
        evaluate(results["dataset"], tmp_path / "out", truths, compare_with=file)
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


def records_of(folder) -> list[dict]:
    name = json.loads((folder / "base" / "results.json").read_text())["dataset"]
    return DatasetCatalog.get(name)


def test_pictures_of_images_that_were_not_turned(tmp_path):
    """INPUT.EXIF_ORIENTATION False: the picture shows the image that was evaluated."""
    image = np.zeros((30, 60, 3), np.uint8)
    image[:, :30] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(image).save(path, exif=exif)
    palette = np.array([[255, 0, 0]], np.uint8)
    for turned, shape in ((True, (60, 30)), (False, (30, 60))):
        labels = np.zeros(shape, int)
        example = report.Example(str(path), labels, labels, 50.0)
        picture = report.draw(example, palette, ("", ""), turned)[0]
        want = np.rot90(image, -1) if turned else image
        assert picture.title == "image" and np.abs(pixels(picture.uri) - want).mean() < 10
