"""The page of several evaluations: which files it takes, what it shows, and how it ends."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from freecp_d2.evaluation import compare
from freecp_d2.evaluation.compare import Run, base_of, find_results, load_runs, main

ROOT = Path(__file__).parents[2]


def result(miou=40.0, enabled=True, dataset="mine_val", ious=(50.0, 30.0, None), **other) -> dict:
    names = ["sky", "<b>cat</b>", "sea"]
    config = {"MODEL": {"FREECP": {"ENABLED": enabled, "WINDOW": 224}}, "OUTPUT_DIR": str(miou)}
    figures = {"mIoU-detectron2": miou, "fwIoU": None, "mACC": miou + 1, "pACC": miou + 2}
    return {
        "dataset": dataset,
        "method": "clearclip",
        "enabled": enabled,
        "protocol": "same",
        "clip": "ViT-B-16",
        "pretrained": "openai",
        "precision": "fp32",
        "images": 4,
        "metrics": {"mIoU": miou, **figures},
        "classes": [{"name": n, "IoU": iou} for n, iou in zip(names, ious, strict=True)],
        "seconds_per_image": {"encode": 0.25, "merge": 0.05},
        "config": config,
        **other,
    }


def write(folder: Path, name: str, content: dict, report: bool = False) -> Path:
    path = folder / name / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    if report:
        path.with_name("report.html").touch()
    return path


@pytest.fixture
def output(tmp_path) -> Path:
    """Two FreeCP runs and their base method, and what else lies in a folder of outputs."""
    folder = tmp_path / "output"
    write(folder, "base", result(36.5, False, ious=(51.0, 20.0, None)), report=True)
    stages = {"truth": {"classes": 2.0}, "ambiguity": {"f1": 61.25}}
    write(folder, "freecp", result(40.0, purification=stages))
    wider = result(35.0, ious=(50.0, 10.0, None))
    wider["config"]["MODEL"]["FREECP"]["WINDOW"] = 336
    write(folder, "wider window", wider, report=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "pictures").mkdir()
    return folder


def shown(output: Path, parse, *more: Path, name: str = "compare.html"):
    main([*map(str, sorted(output.iterdir())), *map(str, more), "--output", str(output / name)])
    return parse((output / name).read_text(encoding="utf-8"))


def test_all_runs_with_gains_and_links(output, parse, capsys):
    page = shown(output, parse)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("No results.json in ") and "notes.txt" in said[0]
    assert "pictures" in said[0] and said[1] == f"{output / 'compare.html'}: 3 runs"
    head, *rows = page.tables["runs"]
    assert head == [
        *("run", "method", "mIoU", "gain"),
        *("mIoU-detectron2", "fwIoU", "mACC", "pACC", "F1 of classes", "images", "ms an image"),
    ]
    ours, base = "clearclip + FreeCP", "clearclip (protocol same)"
    assert rows == [
        ["base", base, "36.50", "–", "36.50", "–", "37.50", "38.50", "–", "4", "300.0"],
        ["freecp", ours, "40.00", "+3.50", "40.00", "–", "41.00", "42.00", "61.2", "4", "300.0"],
        [
            "wider window",
            ours,
            "35.00",
            "−1.50",
            *("35.00", "–", "36.00", "37.00", "–", "4", "300.0"),
        ],
    ]
    links = [url for url in page.urls if not url.startswith("#")]
    assert links == ["base/report.html", "wider%20window/report.html"]
    assert page.titles == ["over base", "over base"]


def test_classes_and_settings_side_by_side(output, parse):
    page = shown(output, parse)
    assert page.tables["sortable classes"] == [
        ["class", "base", "freecp", "wider window", "spread"],
        ["sky", "51.0", "50.0", "50.0", "1.0"],
        ["<b>cat</b>", "20.0", "30.0", "10.0", "20.0"],
        ["sea", "–", "–", "–", "–"],
    ]
    text = (output / "compare.html").read_text(encoding="utf-8")
    rows = text.split("spread</th>")[1]
    assert re.findall(r'class="best">([^<]+)', rows) == ["51.0", "30.0"]
    assert page.tables["settings"] == [
        ["", "base", "freecp", "wider window"],
        ["MODEL.FREECP.ENABLED", "False", "True", "True"],
        ["MODEL.FREECP.WINDOW", "224", "224", "336"],
    ]


def test_files_of_one_name_and_other_content_are_told_apart(tmp_path, parse):
    """By their hashes: of words, sentences, relations, and both kinds of weights."""
    keys = ("words", "descriptions", "relations", "weights", "affinity_weights")
    write(tmp_path, "a", result(**dict.fromkeys(keys, "0123456789abcdef")))
    write(tmp_path, "b", result(**dict.fromkeys(keys)))
    rows = shown(tmp_path, parse).tables["settings"][1:]
    assert rows == [[f"{key} (SHA-256)", "0123456789ab", "none"] for key in keys]


def test_it_is_one_file_that_loads_nothing(output, parse):
    page = shown(output, parse)
    text = (output / "compare.html").read_text(encoding="utf-8")
    assert len(page.scripts) == 1 and "<b>cat" not in text
    assert "http" not in text.lower().replace("http-equiv", "")
    assert "default-src 'none'" in page.policy
    assert not [url for url in page.urls if ":" in url]


def test_data_sets_and_published_figures_apart(output, parse):
    """Other data sets, and other classes of one, have tables of their own."""
    benchmark = result(26.0, dataset="coco_2017_val_stuff164k_sem_seg", images=5000)
    write(output, "stuff", benchmark)
    other = result(20.0)
    other["classes"][0]["name"] = "land"
    write(output, "other words", other)
    page = shown(output, parse)
    head, *rows = page.tables["runs"]
    assert head[1] == "data set" and head[5] == "published"
    by_name = {row[0]: row for row in rows}
    assert by_name["stuff"][1:6] == [
        "COCO-Stuff 164K",
        *("clearclip + FreeCP", "26.00", "–", "26.1 *"),
    ]
    assert by_name["other words"][4] == "–"  # the base method's run is of other classes
    assert by_name["freecp"][4:6] == ["+3.50", "–"]
    heads = [row for row in page.tables["sortable classes"] if row[0] == "class"]
    assert heads == [["class", "base", "freecp", "wider window", "spread"]]
    assert "precision fp32 (fp16)" in (output / "compare.html").read_text(encoding="utf-8")


def test_the_base_is_of_the_same_method_data_and_clip():
    def run(name: str, **other) -> Run:
        return Run(Path(name), name, result(enabled=False, **other))

    ours = Run(Path("ours"), "ours", result())
    others = [
        run("method", method="sclip"),
        run("data", dataset="another"),
        run("images", images=3),
        run("clip", clip="ViT-L-14"),
        run("weights", pretrained="laion"),
    ]
    assert base_of(ours, [ours, *others]) is None
    paper, same = run("paper", protocol="paper"), run("same")
    assert base_of(ours, [*others, paper]) is paper
    assert base_of(ours, [*others, paper, same, run("again")]) is same
    assert base_of(same, [paper, same]) is None


def test_which_files_are_taken(output, tmp_path, monkeypatch):
    several = write(tmp_path / "two", "a", result()), write(tmp_path / "two", "b", result())
    file = output / "freecp" / "results.json"
    paths = [output / "freecp", file, output / "notes.txt", tmp_path / "two", tmp_path / "no.json"]
    found, without = find_results(paths)
    assert found == [file, *several, tmp_path / "no.json"]
    assert without == [output / "notes.txt"]
    renamed = tmp_path / "two" / "mine.json"
    renamed.write_text(json.dumps(result()))
    assert [run.name for run in load_runs([several[0], renamed])] == ["a", "mine.json"]
    monkeypatch.chdir(tmp_path / "two")
    here = Path("a", "results.json")
    assert [run.name for run in load_runs([here, renamed])] == ["a", "mine.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "nothing to compare"),
        ("{}", "results.json: not the results.json of an evaluation"),
    ],
)
def test_nothing_to_compare_ends_with_one_line(tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path), "--output", str(tmp_path / "compare.html")])
    assert error.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("compare: ") and said in err and err.count("\n") == 1
    assert not (tmp_path / "compare.html").exists()


def test_a_file_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none.json")])
    assert "none.json: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key", ["config", "versions", "seconds_per_image", "purification", "method"]
)
def test_older_results_are_shown(output, parse, key):
    old = result(30.0)
    old.pop(key, None)
    write(output, "old", old)
    names = [row[0] for row in shown(output, parse).tables["runs"]]
    assert "old" in names


def test_as_a_command(output):
    command = [sys.executable, "-m", "freecp_d2.evaluation.compare", "base", "freecp"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "compare.html: 2 runs\n" and not run.stderr
    assert (output / "compare.html").exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_sorts_and_fits_a_phone(browser, output, parse, scheme):
    shown(output, parse)
    tab = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    errors: list[str] = []
    tab.on("console", lambda message: errors.append(message.text))
    tab.goto((output / "compare.html").as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    names = tab.locator("#runs tbody td:first-child")
    tab.locator("#runs th").nth(2).get_by_role("button").click()
    assert names.all_inner_texts() == ["freecp", "base", "wider window"]
    tab.locator("#runs th").nth(2).get_by_role("button").click()
    assert names.all_inner_texts() == ["wider window", "base", "freecp"]
    tab.locator("#runs th").nth(3).get_by_role("button").click()
    assert names.all_inner_texts() == ["freecp", "wider window", "base"]
    tab.locator("#runs th").nth(0).get_by_role("button").click()
    assert names.all_inner_texts() == ["base", "freecp", "wider window"]
    gain = tab.locator("#runs tbody tr").nth(1).locator("td").nth(3).bounding_box()
    assert gain["x"] + gain["width"] <= 390
    names.first.locator("a").click()
    assert tab.url.endswith("/base/report.html")
    assert not errors
    tab.close()


def test_templates_and_script_are_package_data():
    folder = Path(compare.__file__).parent
    data = re.search(r'^"\*" = (\[.*\])$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert data is not None
    suffixes = {path.suffix for path in folder.iterdir() if path.is_file()} - {".py"}
    assert {f"*{suffix}" for suffix in suffixes} <= set(json.loads(data[1]))
