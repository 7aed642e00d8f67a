"""demo.py as the README calls it."""

import json
import os
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from freecp_d2 import FreeCPPredictor
from freecp_d2.data.scenes.scene import draw_scene

ROOT = Path(__file__).parents[2]
DEMO = runpy.run_path(str(ROOT / "projects" / "Demo" / "demo.py"))
WORDS = "sky,lawn,road,mushroom"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]


def demo(output: Path, *arguments: object, config: str = "scenes/clearclip") -> int:
    argv = ["--config-file", config, "--output", output, *arguments]
    if "--opts" not in argv:
        argv.append("--opts")
    return DEMO["main"]([*map(str, argv), *OPTS])


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    return draw_scene(87).image


@pytest.fixture
def images(tmp_path: Path, scene: np.ndarray) -> Path:
    """Two images of the same name, a third, and a broken one."""
    folder = tmp_path / "in"
    for name, image in (("a/x.png", scene), ("b/x.png", scene[:90, :120]), ("y.jpg", scene[40:])):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    (folder / "a" / "broken.png").write_bytes(b"\x89PNG and no more")
    (folder / "notes.txt").write_text("no image")
    return folder


def files(folder: Path) -> dict[str, int]:
    return {
        p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


def test_a_folder_with_a_broken_image(tmp_path, images, scene, capsys):
    output = tmp_path / "out"
    arguments = ("--vocabulary", WORDS, "--background", "--base", "--maps", "--input", images)
    assert demo(output, *arguments) == 1
    assert "broken.png: not a" in capsys.readouterr().err.splitlines()[-1]
    names = ("a/x.png", "b/x.png", "y.jpg")
    kinds = ("labels", "maps", "overlays")
    expected = {f"{kind}/{name}.png" for kind in kinds for name in names} | {"segmentation.json"}
    done = files(output)
    assert set(done) == expected

    result = FreeCPPredictor("scenes/clearclip", OPTS)(scene, WORDS.split(","), background=True)
    with Image.open(output / "labels" / "a" / "x.png.png") as labels:
        assert labels.mode == "P" and np.array_equal(np.asarray(labels), result.label_map)
        palette = np.asarray(labels.convert("RGB"))
        assert np.array_equal(palette, result.colors[result.label_map])
    coco = COCO(output / "segmentation.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["background", *WORDS.split(",")]
    assert [image["file_name"] for image in coco.dataset["images"]] == list(names)
    for image in coco.dataset["images"]:
        with Image.open(output / "labels" / f"{image['file_name']}.png") as labels:
            want = np.asarray(labels)
        assert want.shape == (image["height"], image["width"])
        got = np.full(want.shape, -1)
        for segment in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(segment) > 0
            assert mask.sum() == segment["area"] and (got[mask] == -1).all()
            got[mask] = segment["category_id"]
        assert np.array_equal(got, want)

    with Image.open(output / "overlays" / "a" / "x.png.png") as one:
        assert one.width > 2 * 600  # base and FreeCP, and a legend
    assert demo(output, *arguments) == 1
    assert files(output).items() >= {k: v for k, v in done.items() if "json" not in k}.items()
    assert "3 of 4 images are done already" in capsys.readouterr().out


def test_an_interrupted_run_is_finished(tmp_path, images, capsys):
    """Killed while the second image's line is written, and one picture lost."""
    os.remove(images / "a" / "broken.png")
    whole, output = tmp_path / "whole", tmp_path / "out"
    arguments = ("--vocabulary", WORDS, "--input", images)
    assert demo(whole, *arguments) == demo(output, *arguments) == 0
    progress = output / ".progress.jsonl"
    text = progress.read_text().splitlines(keepends=True)
    progress.write_text("".join(text[:2]) + text[2][:40])
    (output / "segmentation.json").unlink()
    assert demo(output, *arguments) == 0
    assert "1 of 3 images are done already" in capsys.readouterr().out
    contents = [(folder / "segmentation.json").read_text() for folder in (whole, output)]
    assert contents[0] == contents[1]
    (output / "labels" / "y.jpg.png").unlink()
    Image.new("RGB", (50, 40)).save(images / "b" / "x.png")
    assert demo(output, *arguments) == 0
    assert "1 of 3 images are done already" in capsys.readouterr().out
    sizes = {i["file_name"]: i["width"] for i in COCO(output / "segmentation.json").imgs.values()}
    assert sizes == {"a/x.png": 288, "b/x.png": 50, "y.jpg": 288}


def test_results_of_other_words_or_folders_are_not_mixed(tmp_path, images, capsys):
    output = tmp_path / "out"
    assert demo(output, "--vocabulary", WORDS, "--input", images / "a" / "x.png") == 0
    before = files(output)
    assert demo(output, "--vocabulary", "sky,sea", "--input", images / "a" / "x.png") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "other settings (--vocabulary)" in last and "another --output" in last
    assert demo(output, "--vocabulary", WORDS, "--input", images / "b" / "x.png") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "b/x.png would overwrite" in last and "a/x.png" in last
    assert files(output) == before


def test_inputs_are_files_folders_and_patterns(tmp_path, images):
    find = DEMO["find_images"]
    inside = images / "out"
    inside.mkdir()
    Image.new("RGB", (3, 3)).save(inside / "old.png")
    Image.new("RGB", (3, 3)).save(images / ".hidden.png")
    every = [job.name for job in find([str(images)], inside)]
    assert every == ["a/broken.png", "a/x.png", "b/x.png", "y.jpg"]
    globbed = find([str(images / "*" / "x.png"), str(images / "a" / "x.png")], inside)
    assert [job.name for job in globbed] == ["a/x.png", "b/x.png"]
    (single,) = find([str(images / "a" / "x.png")], inside)
    assert single.name == "x.png"


def test_many_classes_get_sixteen_bits(scene):
    result = FreeCPPredictor("scenes/clearclip", OPTS)(scene, ["sky", "lawn", "road"])
    names = tuple(f"class {i}" for i in range(300))
    many = DEMO["replace"](result, class_names=names, label_map=result.label_map + 290)
    image = DEMO["label_image"](many)
    assert image.mode == "I;16" and np.array_equal(np.asarray(image), many.label_map)


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_video(tmp_path, scene, suffix, capsys):
    source = tmp_path / f"clip.{suffix}"
    codec = cv2.VideoWriter.fourcc(*("mp4v" if suffix == "mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(source), codec, 10, (128, 96))
    for shift in range(4):
        writer.write(np.ascontiguousarray(scene[40:136, shift * 8 : shift * 8 + 128, ::-1]))
    writer.release()
    arguments = ("--vocabulary", "sky,lawn,road", "--base", "--video-input", source)
    assert demo(tmp_path / "out", *arguments) == 0
    written = tmp_path / "out" / "clip_overlay.mp4"
    assert [p.name for p in (tmp_path / "out").iterdir()] == [written.name]
    capture = cv2.VideoCapture(str(written))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == 4 and frames[0].shape == (96, 256, 3)
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    # The right half is what the predictor draws on the first frame, but for compression.
    first = cv2.VideoCapture(str(source)).read()[1]
    predictor = FreeCPPredictor("scenes/clearclip", OPTS)
    drawn = predictor(np.ascontiguousarray(first[:, :, ::-1]), ["sky", "lawn", "road"]).draw()
    assert np.abs(frames[0][:, 128:, ::-1].astype(int) - drawn).mean() < 10
    stamp = written.stat().st_mtime_ns
    assert demo(tmp_path / "out", *arguments) == 0
    assert written.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--input", "nowhere.png"), "--input nowhere.png: no such file"),
        (("--input", "EMPTY"), "no image in this folder"),
        (("--input", "IMAGE", "--vocabulary", ""), "the vocabulary is empty"),
        (("--input", "IMAGE", "--vocabulary", "sky,road,sky"), "'sky' of class 1"),
        (("--input", "IMAGE", "--vocabulary", "word " * 90), "CLIP's context holds"),
        (("--input", "IMAGE", "--vocabulary", "words.txt"), "'words.txt': there is no such file"),
        (("--input", "IMAGE", "--opts", "MODEL.NOTHING", "1"), "MODEL.NOTHING"),
        (
            ("--input", "IMAGE", "--base", "--opts", "MODEL.FREECP.ENABLED", "False"),
            "leave out --base",
        ),
        (("--video-input", "nowhere.mp4"), "nowhere.mp4: no such file"),
        (("--video-input", "TEXT"), "no frame can be read"),
    ],
)
def test_misuse_is_one_sentence(tmp_path, images, capsys, arguments, sentence):
    (tmp_path / "empty").mkdir()
    places = {
        "IMAGE": images / "y.jpg",
        "EMPTY": tmp_path / "empty",
        "TEXT": images / "notes.txt",
    }
    output = tmp_path / "out"
    assert demo(output, *(places.get(a, a) for a in arguments)) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("demo.py: ") and sentence in last
    assert not output.exists() or not list(output.iterdir())


def test_unknown_config_and_wrong_options(tmp_path, images, capsys):
    assert demo(tmp_path / "out", "--input", images, config="scenes/clerclip") == 1
    assert "scenes/clearclip" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        demo(tmp_path / "out", "--video-input", "v.mp4", "--maps")
    assert "--maps is for images" in capsys.readouterr().err.splitlines()[-1]


def test_json_vocabulary_with_synonyms(tmp_path, images):
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"classes": [["sky", "heaven"], "lawn"], "background": ["road"]}))
    assert demo(tmp_path / "out", "--vocabulary", words, "--input", images / "y.jpg") == 0
    content = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["background", "sky", "lawn"]
