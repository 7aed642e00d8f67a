"""Measured beside published: the figures, the rows, and wrong files."""

import json
import subprocess
import sys

import pytest

from freecp_d2.evaluation.table import PUBLISHED, main, markdown_table, published_miou

STUFF = "coco_2017_val_stuff164k_sem_seg"
MEANS = {
    "maskclip": 30.3,
    "maskclip + FreeCP": 41.2,
    "gem": 38.3,
    "gem + FreeCP": 42.0,
    "sclip": 38.2,
    "sclip + FreeCP": 42.1,
    "clearclip": 38.1,
    "clearclip + FreeCP": 42.2,
}


def result(dataset=STUFF, miou=26.04, method="clearclip", enabled=True, **other) -> dict:
    return {
        "dataset": dataset,
        "method": method,
        "enabled": enabled,
        "images": 5000,
        "clip": "ViT-B-16",
        "metrics": {"mIoU": miou},
        "classes": [{"IoU": miou}],
        **other,
    }


def rows(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_published_figures_have_the_published_means():
    assert PUBLISHED["miou"].keys() == MEANS.keys()
    for method, mean in MEANS.items():
        figures = [published_miou(dataset, method) for dataset in PUBLISHED["benchmarks"]]
        # Of rounded figures, one of them may be up to 0.1 off the mean of the unrounded.
        assert sum(figures) / 8 == pytest.approx(mean, abs=0.1), method


@pytest.mark.parametrize(
    ("dataset", "method", "miou"),
    [
        (STUFF, "clearclip + FreeCP", 26.1),
        ("voc_2012_val_21_sem_seg", "maskclip", 43.4),
        ("cityscapes_19_val_sem_seg", "gem + FreeCP", 35.7),
        ("coco_2017_val_object_sem_seg", "sclip + FreeCP", 37.2),
        ("pcontext_60_val_sem_seg", "clearclip", 32.6),
        ("voc_2012_val_20_sem_seg", "sclip", 80.4),
        ("pcontext_59_val_sem_seg", "maskclip + FreeCP", 36.6),
        ("ade20k_150_val_sem_seg", "gem", 15.7),
        ("scenes_val", "gem", None),
        (STUFF, "naclip", None),
    ],
)
def test_published_figures(dataset, method, miou):
    assert published_miou(dataset, method) == miou


def test_rows_and_differences():
    table = markdown_table(
        [
            result("scenes_val", 40.6, images=200, clip="x.json"),
            result(),
            result(miou=24.3, enabled=False),
            result(miou=20.0, method="naclip"),
            result(miou=25.0, ambiguity=False),
            result("voc_2012_val_21_sem_seg", None, images=1449),
        ]
    )
    assert rows(table) == [
        ["VOC21", "clearclip + FreeCP", "1449", "-", "64.5", "-"],
        ["COCO-Stuff 164K", "clearclip", "5000", "24.30", "23.9", "+0.40"],
        ["COCO-Stuff 164K", "clearclip + FreeCP", "5000", "26.04", "26.1", "-0.06"],
        ["COCO-Stuff 164K", "clearclip + FreeCP without ambiguity", "5000", "25.00", "-", "-"],
        ["COCO-Stuff 164K", "naclip + FreeCP", "5000", "20.00", "-", "-"],
        ["scenes_val", "clearclip + FreeCP", "200", "40.60", "-", "-"],
    ]
    assert "*" not in table


@pytest.mark.parametrize("other", [{"images": 3}, {"clip": "ViT-L-14"}])
def test_another_setting_than_the_published_is_marked(other):
    table = markdown_table([result(**other)])
    assert rows(table)[0][4:] == ["26.1 \\*", "-0.06"]
    assert table.splitlines()[-1].startswith("\\* not the setting")


def test_the_command(tmp_path):
    files = []
    for enabled, miou in ((False, 23.9), (True, 26.3)):
        files.append(tmp_path / f"{enabled}.json")
        files[-1].write_text(json.dumps(result(miou=miou, enabled=enabled)))
    command = [sys.executable, "-m", "freecp_d2.evaluation.table", *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert [row[3:] for row in rows(run.stdout)] == [
        ["23.90", "23.9", "+0.00"],
        ["26.30", "26.1", "+0.20"],
    ]


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"dataset": "x", "metrics": 3}'])
def test_wrong_files_end_with_one_line(tmp_path, capsys, content):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as error:
        main([str(file)])
    said = capsys.readouterr().err
    assert error.value.code == 2 and str(file) in said and said.count("\n") == 1
