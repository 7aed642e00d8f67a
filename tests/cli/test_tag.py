"""`freecp tag`."""

import json

import pytest
from PIL import Image

from freecp_d2 import FreeCPPredictor
from freecp_d2.cli import tag
from freecp_d2.data.scenes.scene import draw_scene

WORDS = "sky,sand,river,mountain,snow,dog"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tag")
    for index in (120, 87):
        Image.fromarray(draw_scene(index).image).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def presence(folder):
    """Score -> class -> score, of 120.png."""
    predictor = FreeCPPredictor("scenes/clearclip", OPTS)
    return {
        score: predictor(folder / "120.png", WORDS.split(","), presence=score).presence
        for score in ("consistency", "local", "erasing")
    }


def run(*arguments) -> int:
    given = ["--config-file", "scenes/clearclip", "--vocabulary", WORDS, *map(str, arguments)]
    opts = OPTS if "--opts" not in given else OPTS[2:]
    return tag.main([*given, *["--opts"] * ("--opts" not in given), *opts], "freecp tag")


def line(scores: dict[str, float]) -> str:
    above = sorted(scores.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {score:.2f}" for name, score in above)


def test_a_line_an_image(folder, presence, capsys):
    assert run("--input", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = {k: v for k, v in presence["consistency"].items() if v > 0.05}
    assert lines[0] == f"{folder / '120.png'}: {line(expected)}"
    assert lines[1].startswith(f"{folder / '87.png'}: ") and len(lines) == 2


@pytest.mark.parametrize("score", ["local", "erasing"])
def test_json_of_other_scores(folder, presence, capsys, score):
    low = ("--threshold", "-0.9", "--top", 2)
    assert run("--input", folder / "120.png", "--score", score, *low, "--json") == 0
    (found,) = map(json.loads, capsys.readouterr().out.splitlines())
    best = sorted(presence[score].items(), key=lambda item: -item[1])[:2]
    assert found["file_name"] == str(folder / "120.png")
    assert list(found["tags"]) == [name for name, _ in best]
    assert list(found["tags"].values()) == pytest.approx([value for _, value in best], abs=2e-6)


def test_a_file_of_lines_and_a_broken_image(folder, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG and no more")
    output = tmp_path / "tags.jsonl"
    inputs = (broken, folder / "120.png")
    assert run("--input", *inputs, "--json", "--output", output, "--threshold", "1") == 3
    said = capsys.readouterr()
    assert not said.out and "broken.png: not a" in said.err
    assert [json.loads(text) for text in output.read_text().splitlines()] == [
        {"file_name": str(folder / "120.png"), "tags": {}}
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--score", "local"], "has no threshold of its own"),
        (["--top", "0"], "--top is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_asked(folder, arguments, said):
    with pytest.raises(SystemExit, match=said):
        run("--input", folder, *arguments)
    with pytest.raises(SystemExit, match="a video; freecp tag takes images"):
        video = folder / "clip.mp4"
        video.touch()
        run("--input", video)


def test_a_file_that_cannot_be_written_is_said_before_the_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tag, "FreeCPPredictor", None)
    with pytest.raises(SystemExit, match=f"--output {tmp_path} is a folder; name a file"):
        run("--input", folder, "--output", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=f"{tmp_path / 'file'}: cannot be written"):
        run("--input", folder, "--output", tmp_path / "file" / "tags.jsonl")


def test_the_lines_are_alone_on_stdout(folder, capsys):
    """Without a GPU the device is a warning, which goes elsewhere."""
    run("--input", folder / "120.png", "--json", "--opts", "MODEL.DEVICE", "cuda")
    for text in capsys.readouterr().out.splitlines():
        json.loads(text)


def test_a_folder_that_one_is_in(folder, presence, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert run("--input", ".", "--top", 1) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
