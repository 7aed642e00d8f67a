"""The HTML report, opened and parsed; what the pictures in it show."""

import base64
import io
import json
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, Metadata
from PIL import Image

from freecp_d2 import fonts
from freecp_d2.evaluation import FreeCPSemSegEvaluator, load_label_map, report
from freecp_d2.evaluation.results import load_results

CLASSES = ["road", "<b>cat</b>", "dog & co", "sky"]
COLORS = [[200, 0, 0], [0, 200, 0], [0, 0, 200], [200, 200, 0]]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Rows of every table by its id, images, headings, and all attributes that could load a URL."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.images: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.widths: list[str] = []
        self.files: list[str] = []
        self.urls: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.urls += [attrs[key] for key in ("src", "href", "data") if key in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attrs["id"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            self.images.append((attrs["alt"], attrs["src"]))
        elif tag == "h2":
            self.headings.append("")
        elif attrs.get("class") == "file":
            self.files.append("")
        elif "style" in attrs:
            self.widths.append(attrs["style"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] == "h2":
            self.headings[-1] += data
        elif self.open and self.open[-1] == "p" and self.files:
            self.files[-1] += data


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
def folder(register, tmp_path_factory):
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
    facts = {"method": "sclip", "enabled": False}
    evaluate(name, folder / "base", worse, facts=facts)
    evaluate(
        name,
        folder / "freecp",
        predictions,
        kept={0, 1},
        facts={**facts, "enabled": True},
        compare_with=folder / "base" / "results.json",
        stage_seconds=lambda: {"encode": 0.3},
        pictures=2,
    )
    return folder


def test_the_report_holds_the_figures(folder):
    page = Page((folder / "freecp" / "report.html").read_text())
    results, base = (
        json.loads((folder / run / "results.json").read_text()) for run in ("freecp", "base")
    )
    assert [row[0] for row in page.tables["metrics"][1:]] == ["sclip", "sclip + FreeCP"]
    assert page.tables["metrics"][2][1] == f"{results['metrics']['mIoU']:.2f}"
    rows = page.tables["classes"][1:]
    assert [row[0] for row in rows] == CLASSES
    for row, ours, theirs in zip(rows, results["classes"], base["classes"], strict=True):
        shown = ["–" if x["IoU"] is None else f"{x['IoU']:.1f}" for x in (theirs, ours)]
        assert row[2:4] == shown
    assert rows[3][2:] == ["–", "–", "–"] and rows[1][4] == f"{results['classes'][1]['IoU']:.1f}"
    assert page.tables["purification"][2] == ["ambiguity", "100.0", "100.0", "100.0", "2.0"]
    assert page.tables["pairs"][1:] == [["dog & co", "<b>cat</b>", "6", "6", "0"]]
    assert len(page.widths) == 8 and page.widths[3] == f"width:{rows[1][3]}%"


def test_the_report_stands_alone(folder):
    text = (folder / "freecp" / "report.html").read_text()
    page = Page(text)
    assert page.urls and all(url.startswith("data:image/jpeg;base64,") for url in page.urls)
    assert (
        "<b>cat" not in text
        and "<script" not in text
        and "http" not in text.lower().replace("http-equiv", "")
    )


def test_best_and_worst_images_with_their_pictures(folder):
    page = Page((folder / "freecp" / "report.html").read_text())
    assert page.headings[-2:] == ["Best images", "Worst images"]
    shown = [file.split(": mIoU")[0].rpartition("/")[2] for file in page.files]
    assert shown == ["image 0.jpg", "image 1.jpg", "image 5.jpg", "image 4.jpg"]
    assert page.files[0].split("mIoU ")[1].startswith("100.0")
    names = [name for name, _ in page.images]
    assert names == ["image", "ground truth", "prediction"] * 4
    pictures = []
    for _, uri in page.images[:3]:
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
            pictures.append(np.asarray(image.convert("RGB"), dtype=float))
    photo, truth, _ = pictures
    assert np.abs(photo - 128).max() < 4
    corner = truth[2:6, 2:6].mean((0, 1)), truth[-6:-2, -6:-2].mean((0, 1))
    assert corner[0].argmax() == 0 and corner[1].argmax() == 1  # the palette's red and green


def test_without_a_base_there_is_one_bar_a_class(folder):
    page = Page((folder / "base" / "report.html").read_text())
    assert len(page.widths) == len(CLASSES)
    assert "purification" not in page.tables and "pairs" not in page.tables
    assert len(page.tables["metrics"]) == 2


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


def test_names_of_any_kind_are_drawn_as_text(register, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(fonts, "_said", set())
    truth = np.repeat(np.arange(len(NAMES)), 6)[:, None].repeat(40, axis=1)
    name = register(tmp_path, [truth], stuff_classes=NAMES)
    evaluator = evaluate(name, tmp_path / "out", [truth])
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    lacking = [r.getMessage() for r in caplog.records if "No font" in r.getMessage()]
    has_font = fonts.BOX not in fonts.split_by_font("汉字")[0][0]
    assert has_font or "汉 (U+6C49)" in lacking[0] and len(lacking) == 1
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    shown = [row[0] for row in page.tables["classes"][1:]]
    assert shown[6] == "a\\nb" and shown[8:10] == ["\\udcff", "nul\\x00"] and shown[11] == "\\ud83d"
    same = [i for i in range(len(NAMES)) if i not in (6, 8, 9, 11)]
    assert [shown[i] for i in same] == [NAMES[i] for i in same]
    assert len(page.images) == 6
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in results["classes"]] == NAMES
    assert load_results(tmp_path / "out" / "results.json") == evaluator.results


def test_a_file_name_that_is_no_utf8(register, tmp_path, caplog):
    truth = np.zeros((20, 30), int)
    name = register(tmp_path, [truth])
    (record,) = DatasetCatalog.get(name)
    for key in ("file_name", "sem_seg_file_name"):
        path = os.fsencode(tmp_path) + b"/\xff\n" + os.fsencode(Path(record[key]).suffix)
        os.rename(record[key], path)
        record[key] = os.fsdecode(path)
    evaluate(name, tmp_path / "out", [truth], coco_predictions=True)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    page = Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
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
    assert sorted(os.listdir(tmp_path / "out")) == ["per_class.csv", "results.json"]


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
    names = Metadata(stuff_classes=["a"], stuff_colors=[[255, 0, 0]])
    for turned, shape in ((True, (60, 30)), (False, (30, 60))):
        labels = np.zeros(shape, int)
        example = report.Example(str(path), 50.0, labels, labels)
        uri = report.draw(example, names, turned)["image"]
        with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
            got = np.asarray(picture.convert("L"), dtype=int)
        want = np.rot90(image, -1) if turned else image
        assert np.abs(got - want[:, :, 0]).mean() < 10
