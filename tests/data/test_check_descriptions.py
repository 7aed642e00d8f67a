"""The check of class descriptions finds each fault, and the shipped file has none."""

import json
import subprocess
import sys

import pytest

from freecp_d2.data import describe, load_descriptions
from freecp_d2.data.benchmarks import DESCRIPTIONS_FILE
from freecp_d2.data.check_descriptions import benchmark_names, faults_of, main


@pytest.fixture
def sound() -> dict[str, list[str]]:
    """Sentences that pass: a class has the very list of every name that is normalised alike."""
    descriptions: dict[str, list[str]] = {}
    for name in benchmark_names():
        if not describe(descriptions, name):
            descriptions[name] = [f"It shows {name} in view number {i}." for i in range(10)]
    return descriptions


def test_names_are_the_classes_and_not_the_background():
    names = benchmark_names()
    assert {"trafficlight", "traffic light", "wall-brick", "crt screen", "rider"} <= names.keys()
    assert {"television monitor screen", "person in jeans", "body"} <= names.keys()
    assert names["body"] == ["sclip/coco_object", "sfp/coco_object"]
    assert names["rider"] == ["published/cityscapes", "curated/cityscapes"]
    assert not {"sands", "rail", "background"} & names.keys()


def test_sound_descriptions_have_no_faults(sound):
    assert faults_of(sound) == []


@pytest.mark.parametrize(
    ("sentences", "said"),
    [
        (["It has two long ears."] * 2, "repeats a sentence of 'zebra'"),
        (["IT HAS TWO LONG EARS!", "It has two long ears."], "repeats a sentence of 'zebra'"),
        (["It shows giraffe in view number 3."], "repeats a sentence of 'zebra'"),
        (["Two long ears."], "has a sentence of under 4 words: 'Two long ears.'"),
        (["a " * 76], "has a sentence of 78 tokens, more than 77"),
    ],
)
def test_a_bad_sentence_is_one_fault(sentences, said, sound):
    sound["zebra"] = [*sound["zebra"], *sentences]
    (fault,) = faults_of(sound)
    assert said in fault and "\n" not in fault


def test_the_longest_sentence_is_no_fault(sound):
    sound["zebra"].append(" ".join("a" * 75))
    assert faults_of(sound) == []


def test_few_sentences_and_none_are_faults(sound):
    del sound["zebra"], sound["giraffe"][9]
    assert sorted(faults_of(sound)) == [
        "'giraffe' has 9 sentences, fewer than 10",
        "'zebra' of published/coco_stuff164k, curated/coco_stuff164k, published/coco_object, "
        "curated/coco_object has no descriptions",
    ]


def test_an_alias_repeats_nothing_but_a_copy_does(sound, tmp_path, capsys):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({**sound, "okapi": "zebra"}))
    assert main([str(path)]) == 0
    assert "and 1 aliases" in capsys.readouterr().out
    path.write_text(json.dumps({**sound, "okapi": sound["zebra"]}))
    assert main([str(path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, capsys):
    path = tmp_path / "d.json"
    assert main([str(path)]) == 1
    path.write_text("{}")
    assert main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(str(path) in line for line in lines)


def test_the_shipped_descriptions_pass_from_any_folder(tmp_path):
    module = "freecp_d2.data.check_descriptions"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(DESCRIPTIONS_FILE)
    assert len({id(s) for s in load_descriptions(DESCRIPTIONS_FILE).values()}) >= 230
