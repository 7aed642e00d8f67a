"""`freecp segment` as the README calls it."""

import io
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from freecp_d2 import FreeCPPredictor
from freecp_d2.cli import segment
from freecp_d2.data.scenes.scene import draw_scene

WORDS = "sky,lawn,road,mushroom"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]


def demo(output: Path, *arguments: object, config: str = "scenes/clearclip") -> int:
    argv = ["--config-file", config, "--output", output, *arguments]
    if "--opts" not in argv:
        argv.append("--opts")
    return segment.main([*map(str, argv), *OPTS], "freecp segment")


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
    written = ("a/x.png", "b/x.png", "y.png")
    expected = {f"{kind}/{name}" for kind in kinds for name in written} | {"segmentation.json"}
    done = files(output)
    assert set(done) == expected

    result = FreeCPPredictor("scenes/clearclip", OPTS)(scene, WORDS.split(","), background=True)
    with Image.open(output / "labels" / "a" / "x.png") as labels:
        assert labels.mode == "P" and np.array_equal(np.asarray(labels), result.label_map)
        palette = np.asarray(labels.convert("RGB"))
        assert np.array_equal(palette, result.colors[result.label_map])
    coco = COCO(output / "segmentation.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["background", *WORDS.split(",")]
    assert [image["file_name"] for image in coco.dataset["images"]] == list(names)
    for image, name in zip(coco.dataset["images"], written, strict=True):
        with Image.open(output / "labels" / name) as labels:
            want = np.asarray(labels)
        assert want.shape == (image["height"], image["width"])
        got = np.full(want.shape, -1)
        for annotation in coco.imgToAnns[image["id"]]:
            mask = coco.annToMask(annotation) > 0
            assert mask.sum() == annotation["area"] and (got[mask] == -1).all()
            got[mask] = annotation["category_id"]
        assert np.array_equal(got, want)

    with Image.open(output / "overlays" / "a" / "x.png") as one:
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
    (output / "labels" / "y.png").unlink()
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
    find = segment.find_images
    inside = images / "out"
    inside.mkdir()
    Image.new("RGB", (3, 3)).save(inside / "old.png")
    Image.new("RGB", (3, 3)).save(images / ".hidden.png")
    (images / "scan").write_bytes((images / "y.jpg").read_bytes())

    def names(*inputs: Path) -> tuple[list[str], list[str]]:
        found = find([str(path) for path in inputs], inside)
        return tuple([p.relative_to(images).as_posix() for p in part] for part in found)

    every = ["a/broken.png", "a/x.png", "b/x.png", "y.jpg"]
    assert names(images) == (every, ["notes.txt", "scan"])
    assert names(images / "*" / "x.png", images / "a" / "x.png") == (["a/x.png", "b/x.png"], [])
    assert names(images / "*") == (["y.jpg"], ["notes.txt", "scan"])
    assert names(images, images / "scan") == ([*every, "scan"], ["notes.txt"])
    assert names(images / "notes.txt") == (["notes.txt"], [])


SHARED = ("IMG_0001.HEIC", "clip.mpg", "photo.jpg", "report.pdf", "weights.h5")


@pytest.fixture
def mixed(tmp_path, scene) -> Path:
    """What telephones and people leave beside a photo; the first bytes are the formats' own."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    contents = {
        "IMG_0001.HEIC": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(60),
        "clip.mpg": b"\0\0\1\xba" + bytes(60),
        "report.pdf": b"%PDF-1.4\n%%EOF\n",
        "weights.h5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.fromarray(scene[:60, :80]).save(folder / "photo.jpg")
    return folder


@pytest.mark.parametrize("pattern", ["", "*"])
def test_other_files_of_a_folder_are_named_and_skipped(tmp_path, mixed, capsys, pattern):
    output = tmp_path / "out"
    assert demo(output, "--vocabulary", WORDS, "--input", f"{mixed}/{pattern}") == 0
    assert set(files(output)) == {"labels/photo.png", "overlays/photo.png", "segmentation.json"}
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "skipped" in line]
    assert lines == [
        "freecp segment: skipped IMG_0001.HEIC: HEIC images need one more package, pip install "
        "'freecp_d2[heif]'; or save them as JPEG",
        "freecp segment: skipped clip.mpg: a video goes in by --video-input",
        "freecp segment: skipped report.pdf, weights.h5: not the suffix of an image",
    ]
    assert "1 of 1 images" in captured.out


def test_other_files_that_are_named_are_faults(tmp_path, mixed, capsys):
    arguments = [mixed / name for name in SHARED]
    assert demo(tmp_path / "out", "--vocabulary", WORDS, "--input", *arguments) == 1
    captured = capsys.readouterr()
    assert "1 of 5 images" in captured.out
    lines = captured.err.splitlines()[-4:]
    for line, name, said in zip(
        lines,
        [name for name in SHARED if name != "photo.jpg"],
        ["pip install 'freecp_d2[heif]'", "--video-input", "not an image", "not an image"],
        strict=True,
    ):
        assert line.startswith(f"freecp segment: {mixed / name}: ") and said in line
    (mixed / "photo.jpg").unlink()
    assert demo(tmp_path / "out", "--vocabulary", WORDS, "--input", mixed) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "no image in this folder; there is IMG_0001.HEIC: HEIC images need" in last


def named(folder: Path, *names: str, records: dict | None = None) -> dict[str, str]:
    jobs = segment.name_results([folder / name for name in names], records or {})
    assert len({job.name for job in jobs}) == len(jobs)
    return {job.image: job.name for job in jobs}


def test_names_of_results(tmp_path):
    assert named(tmp_path, "photo.jpg") == {"photo.jpg": "photo"}
    assert named(tmp_path, "a/IMG.1.JPG", "b/x.tar.png", "c") == {
        "a/IMG.1.JPG": "a/IMG.1",
        "b/x.tar.png": "b/x.tar",
        "c": "c",
    }
    # Those that differ in their suffix alone keep it, in their own folder only.
    assert named(tmp_path, "a.jpg", "a.png", "sub/a.jpg", "A.png") == {
        "a.jpg": "a_jpg",
        "a.png": "a_png",
        "sub/a.jpg": "sub/a",
        "A.png": "A",
    }
    thrice = named(tmp_path, "a_jpg.gif", "a.jpg", "a.png")
    assert thrice["a_jpg.gif"] == "a_jpg" and thrice["a.png"] == "a_png"
    assert thrice["a.jpg"].startswith("a_jpg_") and len(thrice["a.jpg"]) == len("a_jpg_") + 8


def test_names_of_results_that_are_there(tmp_path):
    """photo.jpg keeps photo.png when photo.png comes later, and the other way round."""
    records = {"a": {"source": {"path": str(tmp_path / "a.jpg")}}}
    assert named(tmp_path, "a.jpg", "a.png", records=records) == {"a.jpg": "a", "a.png": "a_png"}
    assert named(tmp_path, "a.png", records=records) == {"a.png": "a_png"}
    records = {"a_jpg": {"source": {"path": str(tmp_path / "a.jpg")}}}
    assert named(tmp_path, "a.jpg", records=records) == {"a.jpg": "a_jpg"}


@pytest.mark.parametrize("letter", ["x", "é", "狗", "\udcff"])
def test_names_that_are_too_long(tmp_path, letter):
    size = len(os.fsencode(letter))
    for length in (230, 241, 242, 251):
        stem = letter * (length // size) + "y" * (length % size)
        other = "z" + stem[1:]
        jobs = named(tmp_path, f"sub/{stem}.jpg", f"sub/{other}.jpg", "w.png")
        name = jobs[f"sub/{stem}.jpg"]
        assert len(os.fsencode(f"{Path(name).name}.png")) <= 245
        if len(os.fsencode(stem)) <= 241:
            assert name == f"sub/{stem}"
        else:
            assert name[:-9].rstrip("y") in f"sub/{stem}" and name[-9] == "_"
            assert jobs[f"sub/{other}.jpg"][-8:] != name[-8:]


def test_long_names_and_names_of_no_utf8_are_written(tmp_path, scene, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    long = "狗" * 83  # 249 bytes
    for name in (long, os.fsdecode(b"caf\xe9")):
        Image.fromarray(scene[:60, :80]).save(folder / f"{name}.png")
    arguments = ("--vocabulary", WORDS, "--maps", "--input", folder)
    assert demo(tmp_path / "out", *arguments) == 0
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "are named" in line]
    cut = line.rpartition(" ")[2].removesuffix(".")
    assert long in line and cut.startswith("狗" * 70) and len(os.fsencode(cut)) <= 245
    results = {p.name for p in (tmp_path / "out" / "labels").iterdir()}
    assert results == {cut, os.fsdecode(b"caf\xe9.png")}
    names = [i["file_name"] for i in COCO(tmp_path / "out" / "segmentation.json").imgs.values()]
    assert set(names) == {f"{long}.png", os.fsdecode(b"caf\xe9.png")}
    assert demo(tmp_path / "out", *arguments) == 0
    assert "2 of 2 images are done already" in capsys.readouterr().out


def test_suffixes_apart_are_resumed(tmp_path, scene, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    arguments = ("--vocabulary", WORDS, "--input", folder)
    Image.fromarray(scene[:60, :80]).save(folder / "a.jpg")
    assert demo(output, *arguments) == 0
    Image.fromarray(scene[60:120, :80]).save(folder / "a.png")
    assert demo(output, *arguments) == 0
    assert "1 of 2 images are done already" in capsys.readouterr().out
    assert {p.name for p in (output / "labels").iterdir()} == {"a.png", "a_png.png"}
    coco = COCO(output / "segmentation.json")
    assert [i["file_name"] for i in coco.imgs.values()] == ["a.jpg", "a.png"]


NO_MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 9.09 TiB for an array with shape (1000000, 1250000)"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 40000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    cv2.error("OpenCV(5.0.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_memory_that_runs_out_on_an_image_stops_no_other(
    tmp_path, scene, monkeypatch, capsys, error
):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(scene[:60, :80]).save(folder / name)
    call = FreeCPPredictor.__call__

    def limited(self, image, *args):
        if Path(image).name == "b.png":
            raise error
        return call(self, image, *args)

    monkeypatch.setattr(FreeCPPredictor, "__call__", limited)
    output = tmp_path / "out"
    assert demo(output, "--vocabulary", WORDS, "--input", folder) == 1
    captured = capsys.readouterr()
    assert "2 of 3 images" in captured.out
    assert captured.err.splitlines()[-1].startswith(
        f"freecp segment: {folder / 'b.png'}: memory ran out; give it in a smaller size"
    )
    assert {p.name for p in (output / "labels").iterdir()} == {"a.png", "c.png"}


def test_memory_that_runs_out_elsewhere_is_a_sentence(tmp_path, images, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(FreeCPPredictor, "prepare", fail)
    assert demo(tmp_path / "out", "--vocabulary", WORDS, "--input", images) == 1
    assert "memory ran out" in capsys.readouterr().err.splitlines()[-1]


def test_other_runtime_errors_are_not_hidden(tmp_path, images, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a mistake of this program")

    monkeypatch.setattr(FreeCPPredictor, "__call__", fail)
    with pytest.raises(RuntimeError, match="a mistake"):
        demo(tmp_path / "out", "--vocabulary", WORDS, "--input", images)


def test_names_of_other_scripts_are_drawn(scene, monkeypatch, caplog):
    """In the overlay's picture and legend, and in the figure of maps; what no font has is said."""
    predictor = FreeCPPredictor("scenes/clearclip", OPTS)
    words = predictor.prepare(["sky", "lawn", "road", "\U0010fffd"])
    encoded = predictor.encode(scene[:112, :112])
    result = predictor.segment(encoded, words)
    result = replace(result, label_map=np.full_like(result.label_map, 3))
    result = replace(result, shares=np.eye(4)[3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segment.overlay({"title": result})
        figure = segment.maps_figure(predictor, encoded, result, words)
        figure.savefig(io.BytesIO())
    titles = [axis.get_title() for axis in figure.axes]
    assert any(title.startswith("□") for title in titles)
    assert sum("U+10FFFD" in record.getMessage() for record in caplog.records) <= 1


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
    said = [line for line in capsys.readouterr().err.splitlines() if str(written) in line]
    codec = int(cv2.VideoCapture(str(written)).get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
    assert codec in (b"avc1", b"h264", b"H264") if not said else "browsers" in said[0]
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
        (("--input", "IMAGE", "--vocabulary", "wrods.csv"), "'wrods.csv': there is no such file"),
        (("--input", "IMAGE", "--vocabulary", "./words"), "'./words': there is no such file"),
        (("--input", "IMAGE", "--vocabulary", "drum,"), 'as in --vocabulary "drum, trifle"'),
        (("--input", "IMAGE", "--vocabulary", ","), 'as in --vocabulary "drum, trifle"'),
        (("--input", "IMAGE", "--background", "a,,b"), 'as in --background "a, b, trifle"'),
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
    assert last.startswith("freecp segment: ") and sentence in last
    assert not output.exists() or not list(output.iterdir())


def test_unknown_config_and_wrong_options(tmp_path, images, capsys):
    assert demo(tmp_path / "out", "--input", images, config="scenes/clerclip") == 1
    assert "scenes/clearclip" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        demo(tmp_path / "out", "--video-input", "v.mp4", "--maps")
    assert "--maps is for images" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        (("--vocabulary", "drum,", "trifle", "--input", "x.png"), '--vocabulary "drum, trifle"'),
        (("--input", "x.png", "--vocabulary", "red", "car,", "cup"), '--vocabulary "red car, cup"'),
        (("--input", "x.png", "--vocab=a,", "b", "--base"), '--vocab "a, b"'),
        (("--input", "x.png", "--background", "wall,", "floor"), '--background "wall, floor"'),
        (("--video-input", "v.mp4", "more.mp4"), None),
        (("--input", "x.png", "--bas", "drum"), None),
        (("--input", "x.png", "--nothing"), None),
    ],
)
def test_words_without_quotes(tmp_path, capsys, arguments, whole):
    with pytest.raises(SystemExit) as exit:
        demo(tmp_path / "out", *arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert exit.value.code == 2 and "unrecognized arguments: " in last
    assert ("put quotes around the whole list: " in last) == (whole is not None)
    assert whole is None or last.endswith(whole)


def test_json_vocabulary_with_synonyms(tmp_path, images):
    words = tmp_path / "words.json"
    words.write_text(json.dumps({"classes": [["sky", "heaven"], "lawn"], "background": ["road"]}))
    assert demo(tmp_path / "out", "--vocabulary", words, "--input", images / "y.jpg") == 0
    content = json.loads((tmp_path / "out" / "segmentation.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["background", "sky", "lawn"]
