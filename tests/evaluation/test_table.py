"""Measured beside published: the figures, the rows, and wrong files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from freecp_d2 import load_config
from freecp_d2.data import load_vocabulary
from freecp_d2.data.benchmarks.catalog import vocabulary_of
from freecp_d2.data.benchmarks.layout import BENCHMARKS
from freecp_d2.data.benchmarks.protocols import PAPER
from freecp_d2.evaluation.facts import hash_of_words
from freecp_d2.evaluation.table import (
    BY_DATASET,
    PUBLISHED,
    deviations,
    main,
    markdown_table,
    published_miou,
)

ROOT = Path(__file__).parents[2]

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
    for method, mean in {**MEANS, "naclip": 42.46}.items():
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
        (STUFF, "naclip", 25.69),
        (STUFF, "naclip + FreeCP", None),
        ("voc_2012_val_21_sem_seg", "naclip", 64.07),
    ],
)
def test_published_figures(dataset, method, miou):
    assert published_miou(dataset, method) == miou


def config_of(dataset=STUFF, **other) -> dict:
    """The config of the published figure."""
    by_benchmark = PUBLISHED["by_benchmark"]
    flat = {**PUBLISHED["common"], **PUBLISHED["freecp"], **PUBLISHED["options"]["gem"]}
    flat |= PUBLISHED["options"]["naclip"]
    flat |= dict(zip(by_benchmark["keys"], by_benchmark[dataset], strict=True))
    flat |= {"MODEL.FREECP.DESCRIPTIONS": "ade20k.py", **other}
    config: dict = {}
    for key, value in flat.items():
        node = config
        *path, last = key.split(".")
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return config


def as_published(dataset=STUFF, enabled=True, method="clearclip", protocol="paper", **other):
    """Results with the setting of the published figure; what cannot be checked is left."""
    benchmark = BY_DATASET[dataset]
    config, words = config_of(dataset), vocabulary_of(benchmark)
    if not enabled:
        own = PAPER[method][benchmark.name]
        config["INPUT"]["MIN_SIZE_TEST"] = own.short_side
        config["MODEL"]["FREECP"] |= {"WINDOW": own.window, "STRIDE": own.stride}
        config["MODEL"]["CLIP"]["LAST_BLOCK"] = "residual" if method == "sclip" else ""
        words = load_vocabulary(own.words) if own.words else words
    facts = {
        "images": benchmark.num_images,
        "pretrained": "openai",
        "precision": "fp16",
        "protocol": protocol,
        "words": hash_of_words(words),
        "descriptions": "of the paper",
        "weights": "some",
        "config": config,
    }
    return result(dataset, 50.0, method, enabled, **{**facts, **other})


def test_rows_and_differences():
    table = markdown_table(
        [
            result("scenes_val", 40.6, images=200, clip="x.json"),
            result(),
            result(miou=24.3, enabled=False, refine="none"),
            result(miou=20.0, method="naclip"),
            result(miou=25.0, ambiguity=False),
            result(miou=27.0, refine="pamr"),
            result("voc_2012_val_21_sem_seg", None, images=1449),
        ]
    )
    assert rows(table) == [
        ["VOC21", "clearclip + FreeCP", "1449", "-", "64.5 \\*", "-"],
        ["COCO-Stuff 164K", "clearclip", "5000", "24.30", "23.9 \\*", "+0.40"],
        ["COCO-Stuff 164K", "clearclip + FreeCP", "5000", "26.04", "26.1 \\*", "-0.06"],
        ["COCO-Stuff 164K", "clearclip + FreeCP + PAMR", "5000", "27.00", "-", "-"],
        ["COCO-Stuff 164K", "clearclip + FreeCP without ambiguity", "5000", "25.00", "-", "-"],
        ["COCO-Stuff 164K", "naclip + FreeCP", "5000", "20.00", "-", "-"],
        ["scenes_val", "clearclip + FreeCP", "200", "40.60", "-", "-"],
    ]


def notes(table: str) -> list[str]:
    return [line for line in table.splitlines() if line.startswith("- ")]


def test_results_that_do_not_tell_their_setting_are_marked():
    table = markdown_table([result(), result(enabled=False)])
    assert all(row[4].endswith("\\*") for row in rows(table))
    assert len(notes(table)) == 2 and all("setting is unknown" in note for note in notes(table))


@pytest.mark.parametrize("dataset", PUBLISHED["benchmarks"])
@pytest.mark.parametrize("method", ["maskclip", "sclip", "clearclip", "gem"])
def test_the_published_setting_has_no_star(dataset, method):
    """But for the descriptions, of which nothing says that they are the paper's."""
    (note,) = deviations(as_published(dataset, method=method))
    assert note == "descriptions ade20k.py, not checked (the paper's)"
    base = deviations(as_published(dataset, False, method))
    unknown = method in ("clearclip", "gem") and BY_DATASET[dataset].scored_background
    assert base == ["the protocol of the published figure is not known"] * unknown
    table = markdown_table([as_published(dataset, False, method)])
    assert rows(table)[0][1] == f"{method} (protocol paper)"
    assert ("\\*" in table) == unknown


@pytest.mark.parametrize("dataset", PUBLISHED["benchmarks"])
def test_a_figure_of_the_authors_has_their_setting(dataset):
    assert deviations(as_published(dataset, False, "naclip")) == []
    table = markdown_table([as_published(dataset, False, "naclip")])
    assert rows(table)[0][4] == str(published_miou(dataset, "naclip"))
    config = config_of(dataset, **{"MODEL.CLIP.NACLIP.ATTN_STRATEGY": "kk"})
    (note,) = [
        note
        for note in deviations(as_published(dataset, False, "naclip", config=config))
        if "NACLIP" in note
    ]
    assert note == "MODEL.CLIP.NACLIP.ATTN_STRATEGY kk (naclip)"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.FREECP.AFFINITY", "method"),
        ("MODEL.FREECP.AFFINITY_PROVIDER", "vit"),
        ("MODEL.FREECP.REFINE", "pamr"),
        ("MODEL.FREECP.BACKGROUND", "auto"),
        ("MODEL.FREECP.DECORRELATION", 0.25),
        ("MODEL.FREECP.ADAPTER", "clip_ot"),
        ("MODEL.FREECP.RELATIONS", "relations.json"),
        ("MODEL.FREECP.SYNONYM_THRESHOLD", 0.1),
        ("MODEL.FREECP.STRIDE", 56),
        ("MODEL.FREECP.WINDOW", 378),
        ("MODEL.FREECP.REDUNDANCY_THRESHOLD", 0.1),
        ("MODEL.FREECP.AMBIGUITY_THRESHOLD", 0.8),
        ("MODEL.FREECP.CONSISTENCY", "paper"),
        ("MODEL.FREECP.BOX_FULL_EXTENT", True),
        ("MODEL.CLIP.LAST_BLOCK", "residual"),
        ("MODEL.CLIP.GEM.HEAD_AVERAGE", True),
        ("MODEL.CLIP.GEM.DEPTH", 6),
        ("MODEL.META_ARCHITECTURE", "HuggingFaceFreeCP"),
        ("MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0]),
        ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0]),
        ("INPUT.MIN_SIZE_TEST", 336),
        ("INPUT.MAX_SIZE_TEST", 1333),
    ],
)
def test_every_other_key_is_named(key, value):
    config = config_of(**{key: value})
    found = deviations(as_published(method="gem", config=config))
    published = config_of()
    for name in key.split("."):
        published = published[name]
    assert f"{key} {value!s} ({published!s})" in found and len(found) == 2


def test_no_key_of_freecp_is_forgotten():
    """A key is compared, or it is known why not: options of what is off are not, for one."""
    in_the_name_of_the_row = {"ENABLED", "PROTOCOL", "REDUNDANCY", "AMBIGUITY"}
    by_their_hashes = {"DESCRIPTIONS", "VOCABULARY"}
    of_no_label = {"OUTPUT", "BATCH_SIZE", "CROP_BATCH_SIZE", "COMPILE"}
    of_a_starred_protocol = {"BACKGROUND_THRESHOLD"}
    of_providers = {f"AFFINITY_{key}" for key in ("VIT", "VIT_WEIGHTS", "VIT_BETA", "VIT_GAMMA")}
    known = in_the_name_of_the_row | by_their_hashes | of_no_label | of_a_starred_protocol
    freecp = load_config("ade20k/clearclip").MODEL.FREECP
    keys = {key for key, value in freecp.items() if not isinstance(value, dict)}
    compared = config_of()["MODEL"]["FREECP"].keys() - {"DESCRIPTIONS"}
    assert keys - compared == known | of_providers | {"AFFINITY_MASKS"}


@pytest.mark.parametrize("name", [name for name, b in BENCHMARKS.items() if b.in_paper])
def test_published_settings_are_those_of_the_configs(name):
    cfg = load_config(str(ROOT / "configs" / name / "gem.yaml"))

    def compare(expected: dict, node: dict) -> None:
        for key, value in expected.items():
            if isinstance(value, dict):
                compare(value, node[key])
            elif key != "DESCRIPTIONS":
                assert node[key] == value, key

    compare(config_of(BENCHMARKS[name].dataset), cfg)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"images": 3}, "3 images (5000)"),
        ({"clip": "ViT-L-14"}, "CLIP ViT-L-14 (ViT-B-16)"),
        ({"pretrained": "laion2b_s34b_b88k"}, "CLIP weights laion2b_s34b_b88k (openai)"),
        ({"pretrained": "weights.pt"}, "CLIP weights weights.pt (openai)"),
        ({"precision": "fp32"}, "precision fp32 (fp16)"),
        (
            {"label_maps_as_published": False},
            "label maps from COCO's instances (COCO-Stuff's pixel maps)",
        ),
        ({"words": "x", "vocabulary": "mine.txt"}, "words mine.txt (the published)"),
        ({"words": "x"}, "words of the data set (the published)"),
        ({"descriptions": None}, "no descriptions (the paper's)"),
    ],
)
def test_another_setting_than_the_published_is_marked(other, said):
    run = as_published(**other)
    assert said in deviations(run)
    table = markdown_table([run])
    assert rows(table)[0][4] == "26.1 \\*"
    (note,) = notes(table)
    assert note.startswith("- COCO-Stuff 164K, clearclip + FreeCP: ") and said in note


def test_descriptions_of_ours_are_marked():
    config = config_of(**{"MODEL.FREECP.DESCRIPTIONS": "freecp_d2://benchmarks/descriptions.json"})
    assert deviations(as_published(config=config)) == ["descriptions of ours (the paper's)"]


def test_a_base_method_in_freecps_way_is_marked():
    run = as_published(enabled=False, protocol="same")
    table = markdown_table([run])
    assert rows(table)[0][1] == "clearclip (protocol same)"
    assert "protocol same" in notes(table)[0] and rows(table)[0][4].endswith("\\*")


def test_the_command(tmp_path):
    files = []
    for enabled, miou in ((False, 23.9), (True, 26.3)):
        files.append(tmp_path / f"{enabled}.json")
        files[-1].write_text(json.dumps(result(miou=miou, enabled=enabled)))
    command = [sys.executable, "-m", "freecp_d2.evaluation.table", *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert [row[3:] for row in rows(run.stdout)] == [
        ["23.90", "23.9 \\*", "+0.00"],
        ["26.30", "26.1 \\*", "+0.20"],
    ]


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "{}", '{"dataset": "x", "metrics": 3}', json.dumps([[result()]])]
)
def test_wrong_files_end_with_one_line(tmp_path, capsys, content):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as error:
        main([str(file)])
    said = capsys.readouterr().err
    assert error.value.code == 2 and str(file) in said and said.count("\n") == 1
