"""Small data sets in Detectron2's catalogs, whose files are written where they are asked for."""

import itertools
import shutil
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

CLASSES = ("a", "b", "c", "d", "e")
IGNORE = 255


class Page(HTMLParser):
    """What a page shows, by tables, and what it could load."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.rows: list[list[str]] = []
        self.images: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.bars: list[str] = []
        self.files: list[str] = []
        self.legends: list[list[tuple[str, bool]]] = []
        self.titles: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.urls: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        classes = attrs.get("class", "").split()
        self.urls += [attrs[key] for key in ("src", "href", "data") if key in attrs]
        self.titles += [attrs["title"]] if "title" in attrs else []
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attrs.get("id") or attrs["class"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "img":
            self.images.append((attrs["alt"], attrs["src"]))
        elif tag == "h2":
            self.headings.append("")
        elif tag == "ul" and "legend" in classes:
            self.legends.append([])
        elif tag == "li" and self.legends:
            self.legends[-1].append(("", "best" in classes))
        elif tag == "script":
            self.scripts.append("")
        elif "file" in classes:
            self.files.append("")
        elif "bar" in classes:
            self.bars.append(attrs["style"])
        elif attrs.get("http-equiv") == "Content-Security-Policy":
            self.policy = attrs["content"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        if self.open[-1] == "script":
            self.scripts[-1] += data
        elif "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        elif self.open[-1] == "h2":
            self.headings[-1] += data
        elif "li" in self.open and self.legends:
            name, bold = self.legends[-1].pop()
            self.legends[-1].append((name + data, bold))
        elif self.open[-1] == "p" and self.files and not self.legends[len(self.files) - 1 :]:
            self.files[-1] += data


@pytest.fixture(scope="module")
def browser():
    """Playwright's chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no chromium: apt install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = p.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def parse() -> type[Page]:
    """parse(text) -> Page."""
    return Page


@pytest.fixture(scope="module")
def register() -> Callable[..., str]:
    """register(folder, truths, **metadata) -> the data set's name.

    Writes each (H, W) label map and a grey image of its size; the names are removed at the end.
    """
    names: list[str] = []
    numbers = itertools.count()

    def register(folder: Path, truths: Sequence[np.ndarray], **metadata) -> str:
        records = []
        for i, labels in enumerate(truths):
            record = {"file_name": str(folder / f"image {i}.jpg"), "image_id": 100 + i}
            record["sem_seg_file_name"] = str(folder / f"{i}.png")
            Image.fromarray(labels.astype(np.uint8)).save(record["sem_seg_file_name"])
            Image.new("RGB", labels.shape[::-1], (128, 128, 128)).save(record["file_name"])
            records.append(record)
        names.append(f"test_evaluation_{next(numbers)}")
        DatasetCatalog.register(names[-1], lambda: records)
        MetadataCatalog.get(names[-1]).set(
            **{
                "stuff_classes": list(CLASSES),
                "ignore_label": IGNORE,
                "evaluator_type": "sem_seg",
                **metadata,
            }
        )
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
