"""`freecp rank`: what it writes, goes on with, and refuses."""

import csv
import os
import re
import signal
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from freecp_d2.cli import rank
from freecp_d2.data.scenes import draw_scene
from freecp_d2.ranking import MOST, disagreement
from freecp_d2.segmenter import Segmenter

OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
SEEDS = {"a/x": 87, "a/y": 120, "b/x": 7}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    for name, seed in SEEDS.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_scene(seed).image).save(path)
    return folder


def run(images: Path, output: Path, *arguments: object) -> int:
    argv = ["--config-file", "scenes/clearclip", "--vocabulary", "sky,lawn,road,dog"]
    argv += ["--input", str(images), "--output", str(output), *map(str, arguments)]
    argv += [] if "--opts" in argv else ["--opts"]
    try:
        return rank.main([*argv, *OPTS], "freecp rank")
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        print(end.code, file=sys.stderr)  # as Python does
        return 1


def read(output: Path) -> list[list[str]]:
    with (output / "ranking.csv").open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def looked_at(monkeypatch) -> list:
    """What is asked of the images that go through CLIP."""
    calls: list = []
    whole = Segmenter.encode

    def encode(self, images, *arguments):
        calls.extend(images)
        return whole(self, images, *arguments)

    monkeypatch.setattr(Segmenter, "encode", encode)
    return calls


def test_ranking_maps_and_pictures(tmp_path, images, monkeypatch):
    found = {}

    def kept(model, encoded, halves):
        result = disagreement(model, encoded, halves)
        found[Path(encoded.names[0]).relative_to(images).with_suffix("").as_posix()] = result
        return result

    monkeypatch.setattr(rank, "disagreement", kept)
    output = tmp_path / "out"
    assert run(images, output, "--pictures", 2) == 0
    header, *lines = read(output)
    assert header == ["image", "largest", "class", "other_class"]
    order = sorted(found, key=lambda name: -found[name].scores["largest"])
    names = ["sky", "lawn", "road", "dog"]
    assert lines == [
        [
            f"{name}.png",
            f"{found[name].scores['largest']:.6f}",
            *([names[channel] for channel in found[name].pair] if found[name].pair else ["", ""]),
        ]
        for name in order
    ]
    assert len(lines) == len(SEEDS) and 0 < sum(line[2] == "" for line in lines) < 3
    for name in SEEDS:
        levels = cv2.imread(output / "maps" / f"{name}.png", cv2.IMREAD_UNCHANGED)
        expected = found[name].map.numpy()
        assert levels.dtype == np.uint8 and levels.shape == expected.shape
        np.testing.assert_allclose(levels * (MOST / 255), expected, atol=MOST / 255)
    first = Image.open(output / "first.jpg")
    assert first.width > first.height  # two of the three, side by side


def test_clip_sees_an_image_once_whatever_is_asked_for(tmp_path, images, looked_at):
    output = tmp_path / "out"
    assert run(images, output) == 0
    assert len(looked_at) == len(SEEDS)
    largest = read(output)
    assert run(images, output, "--score", "entropy", "--pictures", 0) == 0
    assert not (output / "first.jpg").exists()  # it would be of the former ranking
    entropy = read(output)
    assert entropy[0][1] == "entropy" and entropy[1:] != largest[1:]
    values = [float(line[1]) for line in entropy[1:]]
    assert values == sorted(values, reverse=True)
    assert run(images, output, "--cover") == 0
    assert sorted(read(output)) == sorted(largest)
    assert len(looked_at) == len(SEEDS)
    Image.fromarray(draw_scene(3).image).save(images / "a" / "x.png")
    assert run(images, output) == 0
    assert looked_at[len(SEEDS) :] == [images / "a" / "x.png"]


def test_a_broken_image_is_named_and_the_others_are_ranked(tmp_path, images, capsys):
    (images / "broken.png").write_bytes(b"no image")
    assert run(images, tmp_path / "out") == 3
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"freecp rank: {images / 'broken.png'}: not an image")
    assert sorted(line[0] for line in read(tmp_path / "out")[1:]) == [
        "a/x.png",
        "a/y.png",
        "b/x.png",
    ]


def test_an_image_that_broke_since_is_ranked_no_more(tmp_path, images, capsys):
    assert run(images, tmp_path / "out") == 0
    (images / "a" / "x.png").write_bytes(b"no image")
    assert run(images, tmp_path / "out") == 3
    assert sorted(line[0] for line in read(tmp_path / "out")[1:]) == ["a/y.png", "b/x.png"]


def test_a_signal_ends_it_after_the_image_at_hand(tmp_path, images, monkeypatch, looked_at, capsys):
    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return disagreement(*arguments)

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(rank, "disagreement", interrupted)
        assert run(images, output) == 143
    assert "go on with: freecp rank --config-file" in capsys.readouterr().err
    assert len(looked_at) == 1 and not (output / "ranking.csv").exists()
    assert run(images, output) == 0
    assert len(looked_at) == len(SEEDS) == len(read(output)) - 1


def test_the_background_is_a_class(tmp_path, images, monkeypatch):
    monkeypatch.setattr(rank, "disagreement", lambda *a: _with_pair(disagreement(*a)))
    assert run(images, tmp_path / "out", "--background", "tree") == 0
    assert [line[2:] for line in read(tmp_path / "out")[1:]] == [["background", "sky"]] * 3


def _with_pair(found):
    return type(found)(found.scores, (0, 1), found.channels, found.map)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--opts", "MODEL.FREECP.ENABLED", "False"], "ENABLED is False.*; take the config"),
        (["--opts", "MODEL.FREECP.ADAPTER", "bafta"], "ADAPTER is 'bafta'.*; leave it empty"),
        (["--input", "{images}/film.mp4"], "a video; give its frames"),
        (["--input", "{images}/none"], "no such file"),
    ],
)
def test_what_is_refused_in_one_sentence(tmp_path, images, capsys, arguments, said):
    (images / "film.mp4").write_bytes(b"")
    arguments = [argument.format(images=images) for argument in arguments]
    assert run(images, tmp_path / "out", *arguments) == 1
    assert re.search(f"^freecp rank: .*{said}", capsys.readouterr().err.splitlines()[-1])


def test_other_words_want_another_folder(tmp_path, images, capsys):
    assert run(images, tmp_path / "out") == 0
    assert run(images, tmp_path / "out", "--background") == 1
    assert "results of other settings (--background)" in capsys.readouterr().err


def test_an_image_of_the_input_is_not_written_over(tmp_path, images, capsys):
    photo = images / "first.jpg"
    Image.fromarray(draw_scene(7).image).save(photo)
    before = photo.read_bytes()
    assert run(images, images) == 1
    assert "first.jpg: an image of the input where the contact sheet" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_no_fewer_than_no_pictures(tmp_path, images):
    with pytest.raises(SystemExit) as end:
        run(images, tmp_path / "out", "--pictures", -1)
    assert end.value.code == 2
