"""`freecp robustness` on a few scenes, with a small lexicon."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import freecp
from freecp_d2.data.scenes import CLASSES
from freecp_d2.data.scenes.catalog import load_scenes

LEXICON = ("banjo", "toaster", "wolf", "Sky", "ladder", "hot dog", "turf")
REGISTER = """
from pathlib import Path
from detectron2.data import DatasetCatalog, MetadataCatalog
from freecp_d2.data.scenes import CLASSES
from freecp_d2.data.scenes.catalog import load_scenes
folder = Path(__file__).parent / "val"
DatasetCatalog.register("three_scenes", lambda: load_scenes(folder, range(1, 4)))
MetadataCatalog.get("three_scenes").set(
    stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a data set of three scenes in Detectron2's catalogs, a lexicon and synonyms."""
    folder = tmp_path_factory.mktemp("robustness")
    (folder / "register.py").write_text(REGISTER)
    (folder / "lexicon.txt").write_text("\n".join(LEXICON))
    names = [[name] if name != "lawn" else ["lawn", "turf"] for name in CLASSES]
    (folder / "names.json").write_text(json.dumps(names))
    return folder


@pytest.fixture
def run(folder):
    """Options -> the exit code; the data set is registered as --register does it, once a test."""

    def run(output, *options, config="scenes/clearclip"):
        command = ["robustness", "--config-file", config, "--output", str(output)]
        command += ["--lexicon", str(folder / "lexicon.txt"), "--distractors", "2,4"]
        if "three_scenes" not in DatasetCatalog:
            command += ["--register", str(folder / "register.py")]
        if "--dataset" not in options:
            command += ["--dataset", "three_scenes"]
        return freecp.main([*command, "--max-similarity", "0.99", "--seeds", "2", *options])

    yield run
    if "three_scenes" in DatasetCatalog:
        DatasetCatalog.remove("three_scenes")
        MetadataCatalog.remove("three_scenes")


def results(output):
    return json.loads((output / "robustness.json").read_text())


@pytest.fixture(scope="module")
def whole(folder):
    """The folder of a whole run."""
    output = folder / "whole"
    names = str(folder / "names.json")
    command = ["robustness", "--config-file", "scenes/clearclip", "--output", str(output)]
    command += ["--lexicon", str(folder / "lexicon.txt"), "--distractors", "2,4", "--seeds", "2"]
    command += ["--max-similarity", "0.99", "--dataset", "three_scenes", "--synonyms", names]
    assert freecp.main([*command, "--register", str(folder / "register.py")]) == 0
    DatasetCatalog.remove("three_scenes")
    MetadataCatalog.remove("three_scenes")
    return output


def test_a_run_writes_figures_table_and_picture(whole):
    found = results(whole)
    assert (found["dataset"], found["images"], found["failed"]) == ("three_scenes", 3, {})
    assert [row["name"] for row in found["settings"]] == [
        *("official", "plain", "synonyms 1", "oracle"),
        *("near 2", "random 2, seed 0", "random 2, seed 1"),
        *("near 4", "random 4, seed 0", "random 4, seed 1"),
    ]
    # Neither a name of a class nor a synonym is a distractor.
    assert set(found["pool"]) == {"banjo", "toaster", "wolf", "ladder", "hot dog"}
    assert found["distractors"]["near 2"] == found["pool"][:2]
    assert len(found["distractors"]["random 4, seed 1"]) == 4
    official, plain = found["settings"][:2]
    assert official["freecp"] == plain["freecp"]
    assert 0 < official["base"]["mIoU"] < official["base"]["mIoU-present"] < 100
    assert [row["name"] for row in found["summary"]][2] == "synonyms, the worst of 1"
    table = (whole / "robustness.md").read_text()
    assert found["verdict"] in table and "| near 4 " in table
    with Image.open(whole / "robustness.png") as picture:
        assert picture.width > 1000 and len(picture.convert("RGB").getcolors(2**24)) > 20


def test_the_figures_are_those_of_an_evaluation(whole, run, tmp_path):
    """`freecp evaluate` has other code between model and figures."""
    command = ["evaluate", "--config-file", "scenes/clearclip"]
    command += [
        "--register",
        str(whole.parent / "register.py"),
        "DATASETS.TEST",
        "('three_scenes',)",
    ]
    for method, enabled in (("base", "False"), ("freecp", "True")):
        output = tmp_path / method
        more = ["MODEL.FREECP.ENABLED", enabled, "OUTPUT_DIR", str(output)]
        assert freecp.main([*command, *more]) == 0
        DatasetCatalog.remove("three_scenes")
        MetadataCatalog.remove("three_scenes")
        evaluated = json.loads((output / "results.json").read_text())["metrics"]
        official = results(whole)["settings"][0][method]
        assert official["mIoU"] == pytest.approx(evaluated["mIoU"])
        assert official["mIoU-present"] == pytest.approx(evaluated["mIoU-detectron2"])


def test_a_resumed_run_gives_the_same_and_looks_at_what_is_missing_alone(
    whole, run, tmp_path, folder, monkeypatch
):
    output = tmp_path / "resumed"
    (output / "records").mkdir(parents=True)
    for file in (whole / "records").iterdir():
        lines = file.read_text().splitlines(keepends=True)
        kept = lines[:1] + [lines[1][:50]] if file.suffix == ".jsonl" else lines
        (output / "records" / file.name).write_text("".join(kept))
    from freecp_d2.robustness.bench import Bench

    seen = []
    of_image = Bench.of_image

    def noted(self, image, truth):
        seen.append(image["file_name"])
        return of_image(self, image, truth)

    monkeypatch.setattr(Bench, "of_image", noted)
    assert run(output, "--resume", "--synonyms", str(folder / "names.json")) == 0
    assert len(seen) == 2
    assert results(output) == results(whole)
    seen.clear()
    assert run(output, "--resume", "--synonyms", str(folder / "names.json")) == 0
    assert not seen
    assert results(output) == results(whole)


def test_other_words_are_no_resumption(whole, run, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(whole, "--resume", "--synonyms", str(folder / "names.json"), "--distractors", "3")
    assert "holds what was measured otherwise (words)" in str(end.value)
    assert results(whole)["images"] == 3


def test_only_the_chosen_classes_are_asked_for(run, tmp_path):
    output = tmp_path / "chosen"
    assert run(output, "--classes", "sand, Sky,river", "--distractors", "2") == 0
    found = results(output)
    assert found["classes"] == ["sky", "sand", "river"]
    assert [row["name"] for row in found["settings"]] == [
        *("official", "oracle", "near 2", "random 2, seed 0", "random 2, seed 1")
    ]
    # "three_scenes" has no synonyms of its own, and "turf" is no name of these classes.
    assert "turf" in found["pool"]
    with pytest.raises(SystemExit) as end:
        run(output, "--classes", "sand,sun glasses")
    assert "--classes: the data set has no class 'sun glasses'; it has sky, lawn" in str(end.value)


def test_an_image_that_cannot_be_read_is_named_and_the_others_count(run, folder, tmp_path, caplog):
    spoilt = tmp_path / "000002.png"
    spoilt.write_bytes(b"no image")
    records = load_scenes(folder / "val", range(1, 4))
    records[1]["file_name"] = str(spoilt)
    DatasetCatalog.register("spoilt", lambda: records)
    MetadataCatalog.get("spoilt").set(
        stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
    )
    try:
        assert run(tmp_path / "out", "--dataset", "spoilt", "--distractors", "1") == 3
    finally:
        DatasetCatalog.remove("spoilt")
        MetadataCatalog.remove("spoilt")
    found = results(tmp_path / "out")
    assert found["images"] == 2
    assert list(found["failed"]) == [str(spoilt)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--dataset", "tree_scenes"), "there is no data set 'tree_scenes'; did you mean three_"),
        (("--opts", "MODEL.FREECP.ENABLED", "False"), "MODEL.FREECP.ENABLED is False; take"),
        (("--opts", "MODEL.FREECP.ADAPTER", "bafta"), "MODEL.FREECP.ADAPTER is 'bafta'"),
        (("--lexicon", "coco"), "there is no lexicon 'coco'"),
        (("--max-similarity", "-1"), "no word of the 6 of --lexicon has a cosine below"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(run, tmp_path, options, said):
    with pytest.raises(SystemExit) as end:
        run(tmp_path, *options)
    assert str(end.value).startswith(f"freecp robustness: {said}")
    assert not (tmp_path / "robustness.json").exists()


@pytest.mark.parametrize("names", [CLASSES[:-1], ("background", *CLASSES)])
def test_synonyms_of_more_or_fewer_classes_are_refused(run, tmp_path, names):
    (tmp_path / "names.json").write_text(json.dumps(names))
    with pytest.raises(SystemExit, match=f"of {len(names)} classes, and the data set has 41; give"):
        run(tmp_path, "--synonyms", str(tmp_path / "names.json"), "--classes", "sky,lawn")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--distractors", "50,x"), "--distractors '50,x': give numbers above 0"),
        (("--distractors", "0"), "--distractors '0': give numbers above 0"),
        (("--seeds", "0"), "--seeds 0: at least one random draw"),
    ],
)
def test_an_option_that_is_no_number_is_refused(run, tmp_path, capsys, options, said):
    with pytest.raises(SystemExit):
        run(tmp_path, *options)
    assert said in capsys.readouterr().err
