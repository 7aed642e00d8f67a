"""`freecp segment` as the README calls it."""

import io
import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json, load_sem_seg
from PIL import Image
from pycocotools.coco import COCO
from tqdm import tqdm

from freecp_d2 import FreeCPPredictor
from freecp_d2.cli import segment
from freecp_d2.cli.segment.inputs import find_inputs
from freecp_d2.cli.segment.jobs import name_results
from freecp_d2.cli.segment.pictures import NOTHING, maps_figure, overlay
from freecp_d2.data.scenes.scene import draw_scene
from freecp_d2.fonts import draw_text

WORDS = "sky,lawn,road,mushroom"
OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]


def demo(output: Path, *arguments: object, config: str = "scenes/clearclip") -> int:
    argv = ["--config-file", config, "--output", output, *arguments]
    if "--opts" not in argv:
        argv.append("--opts")
    try:
        return segment.main([*map(str, argv), *OPTS], "freecp segment")
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        print(end.code, file=sys.stderr)  # as Python does
        return 1


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
    assert demo(output, *arguments) == 3
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
    presence = {name: round(score, 4) for name, score in result.presence.items()}
    assert coco.dataset["images"][0]["presence"] == presence
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
    assert demo(output, *arguments) == 3
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
    inside = images / "out"
    inside.mkdir()
    Image.new("RGB", (3, 3)).save(inside / "old.png")
    Image.new("RGB", (3, 3)).save(images / ".hidden.png")
    (images / "scan").write_bytes((images / "y.jpg").read_bytes())

    def names(*inputs: Path) -> tuple[list[str], list[str]]:
        found = find_inputs([str(path) for path in inputs], inside)
        assert not found.videos
        return tuple(
            [p.relative_to(images).as_posix() for p in files]
            for files in (found.images, found.skipped)
        )

    every = ["a/broken.png", "a/x.png", "b/x.png", "y.jpg"]
    assert names(images) == (every, ["notes.txt", "scan"])
    assert names(images / "*" / "x.png", images / "a" / "x.png") == (["a/x.png", "b/x.png"], [])
    assert names(images / "*") == (["y.jpg"], ["notes.txt", "scan"])
    assert names(images / "**/*.png") == (every[:3], [])
    assert names(images, images / "scan") == ([*every, "scan"], ["notes.txt"])
    assert names(images / "notes.txt") == (["notes.txt"], [])

    inside = images  # which has the output's own folders, too
    for kind in ("labels", "overlays", "masks", "maps"):
        (images / kind).mkdir()
        Image.new("RGB", (3, 3)).save(images / kind / "y.png")
    assert names(images) == ([*every[:3], "out/old.png", "y.jpg"], ["notes.txt", "scan"])
    assert names(images / "*") == (["y.jpg"], ["notes.txt", "scan"])
    assert names(images / "a", images / "*/x.png") == (every[:3], [])


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
        "freecp segment: skipped clip.mpg: videos are segmented where they are named, as in "
        "--input clip.mpg",
        "freecp segment: skipped report.pdf, weights.h5: not the suffix of an image",
    ]
    assert "1 of 1 images" in captured.out


def test_other_files_that_are_named_are_faults(tmp_path, mixed, capsys):
    arguments = [mixed / name for name in SHARED]
    assert demo(tmp_path / "out", "--vocabulary", WORDS, "--input", *arguments) == 3
    captured = capsys.readouterr()
    assert "1 of 4 images" in captured.out
    lines = captured.err.splitlines()[-4:]
    for line, name, said in zip(
        lines,
        ("IMG_0001.HEIC", "report.pdf", "weights.h5", "clip.mpg"),
        ("pip install 'freecp_d2[heif]'", "not an image", "not an image", "no frame can be read"),
        strict=True,
    ):
        assert line.startswith(f"freecp segment: {mixed / name}: ") and said in line
    (mixed / "photo.jpg").unlink()
    assert demo(tmp_path / "out", "--vocabulary", WORDS, "--input", mixed) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "no image in this folder; there is IMG_0001.HEIC: HEIC images need" in last


def named(folder: Path, *names: str, records: dict | None = None) -> dict[str, str]:
    jobs = name_results([folder / name for name in names], folder, records or {})
    assert len({job.name for job in jobs}) == len(jobs)
    return {job.file_name: job.name for job in jobs}


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
    encode = FreeCPPredictor.encode

    def limited(self, image, *args):
        if Path(image).name == "b.png":
            raise error
        return encode(self, image, *args)

    monkeypatch.setattr(FreeCPPredictor, "encode", limited)
    output = tmp_path / "out"
    assert demo(output, "--vocabulary", WORDS, "--input", folder) == 3
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

    monkeypatch.setattr(FreeCPPredictor, "encode", fail)
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
        overlay({"title": result})
        figure = maps_figure(predictor, encoded, result, words)
        figure.savefig(io.BytesIO())
    titles = [axis.get_title() for axis in figure.axes]
    assert any(title.startswith("□") for title in titles)
    assert sum("U+10FFFD" in record.getMessage() for record in caplog.records) <= 1


def write_clip(path: Path, scene: np.ndarray, frames: int = 4) -> Path:
    """A video of 128 x 96 pixels that moves over the scene."""
    codec = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), codec, 10, (128, 96))
    for shift in range(frames):
        writer.write(np.ascontiguousarray(scene[40:136, shift * 40 : shift * 40 + 128, ::-1]))
    writer.release()
    return path


def read_clip(path: Path) -> list[np.ndarray]:
    """Its frames, RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(np.ascontiguousarray(read[1][:, :, ::-1]))
    return frames


def test_a_photograph_of_many_windows_shows_how_far_it_is(tmp_path, scene, monkeypatch):
    Image.fromarray(scene).save(tmp_path / "x.png")
    said: list[str] = []
    monkeypatch.setattr(tqdm, "set_postfix_str", lambda bar, text: said.append(text))
    arguments = ("--vocabulary", "sky,lawn", "--input", tmp_path / "x.png", "--base", "--opts")
    windows = ("MODEL.FREECP.WINDOW", "64", "MODEL.FREECP.BATCH_SIZE", "15")
    assert demo(tmp_path / "out", *arguments, *windows, "MODEL.FREECP.STRIDE", "32") == 0
    once = ["15 of 48 windows", "30 of 48 windows", "45 of 48 windows", ""]
    assert said == once * 2
    said.clear()
    assert demo(tmp_path / "few", *arguments, *windows, "MODEL.FREECP.STRIDE", "64") == 0
    assert said == []


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_video(tmp_path, scene, suffix, capsys):
    source = write_clip(tmp_path / f"clip.{suffix}", scene)
    arguments = ("--vocabulary", "sky,lawn,road", "--base", "--input", source)
    output = tmp_path / "out"
    assert demo(output, *arguments) == 0
    written = output / "overlays" / "clip.mp4"
    said = [line for line in capsys.readouterr().err.splitlines() if str(written) in line]
    capture = cv2.VideoCapture(str(written))
    codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little")
    assert codec in (b"avc1", b"h264", b"H264") if not said else "browsers" in said[0]
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    assert list(files(output)) == ["overlays/clip.mp4"]
    frames = read_clip(written)
    assert len(frames) == 4 and frames[0].shape == (96, 256, 3)
    # In every frame the right half is what the predictor draws, but for compression: names and
    # colours stay.
    predictor = FreeCPPredictor("scenes/clearclip", OPTS)
    colors = predictor(scene, ["sky", "lawn", "road"]).colors
    for frame, original in zip(frames, read_clip(source), strict=True):
        result = predictor(original, ["sky", "lawn", "road"])
        assert np.abs(frame[:, 128:].astype(int) - result.draw()).mean() < 10
        assert result.class_names == ("sky", "lawn", "road")
        assert np.array_equal(result.colors, colors)
    stamp = written.stat().st_mtime_ns
    assert demo(output, "--vocabulary", "sky,lawn,road", "--base", "--video-input", source) == 0
    assert f"{written} is done already" in capsys.readouterr().out
    assert written.stat().st_mtime_ns == stamp


def test_a_video_of_which_something_has_changed_is_done_anew(tmp_path, scene, capsys):
    source, output = write_clip(tmp_path / "clip.avi", scene, 1), tmp_path / "out"
    written = output / "overlays" / "clip.mp4"

    def run(*arguments: object) -> tuple[bool, tuple[int, ...]]:
        before = written.stat().st_mtime_ns if written.exists() else None
        assert demo(output, "--input", source, *arguments) == 0
        said = "is done already" in capsys.readouterr().out
        assert said == (written.stat().st_mtime_ns == before)
        return said, read_clip(written)[0].shape

    words = ("--vocabulary", "sky,lawn,road")
    assert run(*words) == (False, (96, 128, 3))
    assert run(*words) == (True, (96, 128, 3))
    assert run("--vocabulary", "sky,lawn,mushroom") == (False, (96, 128, 3))
    assert run(*words)[0] is False
    assert run(*words, "--base") == (False, (96, 256, 3))
    assert run(*words, "--base", "--opts", "MODEL.FREECP.REDUNDANCY_THRESHOLD", "0.9")[0] is False
    assert run(*words)[0] is False
    write_clip(source, scene[:, ::-1], 1)
    assert run(*words)[0] is False
    written.unlink()
    assert run(*words)[0] is False

    other = write_clip(tmp_path / "other" / "clip.avi", scene, 1)
    before = files(output)
    assert demo(output, *words, "--input", other) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{other} would overwrite the results of {source}" in last
    assert files(output) == before
    other.write_bytes(b"no video")
    assert demo(tmp_path / "there", *words, "--input", other) == 3
    assert "no frame can be read" in capsys.readouterr().err.splitlines()[-1]
    assert files(tmp_path / "there") == {}


def test_images_and_videos_together(tmp_path, scene, capsys):
    """As telephones name a picture and its moment; a video in a folder is not segmented unasked."""
    folder = tmp_path / "pictures and.mov"  # a folder all the same
    for name in ("IMG_1.mov", "b/IMG_1.MP4", "b/IMG_1.avi"):
        write_clip(folder / name, scene, 1)
    Image.fromarray(scene[:60, :80]).save(folder / "IMG_1.jpg")
    words, output = ("--vocabulary", "sky,lawn"), tmp_path / "out"
    assert demo(output, *words, "--input", folder) == 0
    assert "skipped IMG_1.mov, IMG_1.MP4, IMG_1.avi: videos are" in capsys.readouterr().err
    images = {"labels/IMG_1.png", "overlays/IMG_1.png", "segmentation.json"}
    assert set(files(output)) == images
    given = (folder, folder / "*.mov", folder / "b" / "IMG_1.MP4", folder / "b" / "IMG_1.avi")
    assert demo(output, *words, "--input", *given) == 0
    captured = capsys.readouterr()
    assert "1 of 1 images are done already" in captured.out and "skipped" not in captured.err
    videos = {"IMG_1", "b/IMG_1_MP4", "b/IMG_1_avi"}
    assert set(files(output)) == images | {f"overlays/{name}.mp4" for name in videos}


def test_a_video_in_the_folder_of_the_output_is_not_overwritten(tmp_path, scene, capsys):
    source = write_clip(tmp_path / "overlays" / "clip.mp4", scene, 1)
    before = source.read_bytes()
    assert demo(tmp_path, "--vocabulary", "sky,lawn", "--input", source) == 3
    assert "clip.mp4 would be overwritten" in capsys.readouterr().err.splitlines()[-1]
    assert source.read_bytes() == before


def test_masks(tmp_path, images, capsys):
    """They are the label map's, a file a class, and go when their class goes."""
    os.remove(images / "a" / "broken.png")
    output = tmp_path / "out"
    arguments = ("--vocabulary", "sky,lawn,a/b", "--input", images)
    assert demo(output, *arguments, "--masks") == 0
    names = ("sky", "lawn", "a_b")
    for name in ("a/x", "b/x", "y"):
        labels = np.asarray(Image.open(output / "labels" / f"{name}.png"))
        written = {p.stem: np.asarray(Image.open(p)) for p in (output / "masks" / name).iterdir()}
        assert set(written) == {names[label] for label in np.unique(labels) if label != 255}
        for stem, mask in written.items():
            assert np.array_equal(mask, 255 * (labels == names.index(stem)))
    assert demo(output, *arguments) == 1
    assert "other settings (--masks)" in capsys.readouterr().err.splitlines()[-1]
    (output / "masks" / "y" / "sky.png").unlink()
    assert demo(output, *arguments, "--masks") == 0
    assert "2 of 3 images are done already" in capsys.readouterr().out
    assert (output / "masks" / "y" / "sky.png").is_file()

    only_sky = np.asarray(Image.open(images / "a" / "x.png"))[:32, :32]
    Image.fromarray(only_sky).save(images / "y.jpg")
    assert demo(output, *arguments, "--masks") == 0
    labels = np.asarray(Image.open(output / "labels" / "y.png"))
    assert {p.stem for p in (output / "masks" / "y").iterdir()} == {
        names[label] for label in np.unique(labels) if label != 255
    }


def test_detectron2_loads_the_label_maps(tmp_path, images):
    """`load_sem_seg` does not look into folders below, which are loaded one by one."""
    os.remove(images / "a" / "broken.png")
    for name in ("z.jpg", "clash.jpg", "clash.tif"):
        Image.open(images / "y.jpg").crop((0, 0, 64, 64)).save(images / name)
    output = tmp_path / "out"
    assert demo(output, "--vocabulary", WORDS, "--input", images) == 0
    for folder, suffix, names in (
        (".", "jpg", ["y", "z"]),
        ("a", "png", ["x"]),
        ("b", "png", ["x"]),
    ):
        pairs = load_sem_seg(output / "labels" / folder, images / folder, image_ext=suffix)
        assert [Path(pair["file_name"]).stem for pair in pairs] == names
        for pair in pairs:
            image, labels = (Path(pair[key]) for key in ("file_name", "sem_seg_file_name"))
            assert image.stem == labels.stem
            assert Image.open(image).size == Image.open(labels).size


def test_names_are_below_the_folder_that_is_given(tmp_path, scene):
    """Whatever lies in it: its label maps pair with it before and after more images come."""
    one = tmp_path / "in" / "a" / "x.png"
    one.parent.mkdir(parents=True)
    Image.fromarray(scene[:20, :20]).save(one)
    folder = str(tmp_path / "in")
    for given, root in (
        ([folder], "in"),
        ([str(one)], "in/a"),
        ([f"{folder}/*/x.png"], "in"),
        ([f"{folder}/**/x.png", str(one)], "in"),
        ([str(one), folder], "in"),
    ):
        found = find_inputs(given, tmp_path / "out")
        assert (found.root, found.images) == (tmp_path / root, [one])


def test_coco_of_stuff(tmp_path, images):
    """An annotation a class and image, none of pixels without a class, as two readers see it."""
    os.remove(images / "a" / "broken.png")
    output = tmp_path / "out"
    opts = ("--opts", "MODEL.FREECP.REDUNDANCY_THRESHOLD", "0.42")
    assert demo(output, "--vocabulary", WORDS, "--input", images, *opts) == 0
    coco = COCO(output / "segmentation.json")
    name = f"test_coco_of_stuff_{tmp_path.name}"
    loaded = load_coco_json(str(output / "segmentation.json"), str(images), name)
    meta = MetadataCatalog.get(name)
    assert meta.thing_classes == WORDS.split(",")
    assert len(loaded) == 3
    shares = []
    for record in loaded:
        image = Path(record["file_name"])
        labels = output / "labels" / image.relative_to(images).with_suffix(".png")
        want = np.asarray(Image.open(labels))
        assert image.is_file() and want.shape == (record["height"], record["width"])
        shares.append((want == 255).mean())
        for annotations, key in (
            (coco.imgToAnns[record["image_id"]], "category_id"),
            (record["annotations"], "category_id"),
        ):
            got = np.full(want.shape, 255)
            for annotation in annotations:
                assert annotation["iscrowd"] == 0
                mask = pycocotools.mask.decode(annotation["segmentation"]) > 0
                assert mask.any() and (got[mask] == 255).all()
                got[mask] = annotation[key]
            assert np.array_equal(got, want)
            assert len({a["category_id"] for a in annotations}) == len(annotations)
    assert any(0 < share < 1 for share in shares)


def test_pixels_without_a_class_are_in_title_and_legend(scene, monkeypatch):
    predictor = FreeCPPredictor("scenes/clearclip", OPTS)
    words = predictor.prepare(["sky", "lawn", "road", "sea"])
    encoded = predictor.encode(scene[:112, :112])
    whole = predictor.segment(encoded, words)
    said: list[tuple[str, str]] = []

    def listen(pen, position, text, size, ink):
        said.append((text, ink))
        draw_text(pen, position, text, size, ink)

    monkeypatch.setattr("freecp_d2.cli.segment.pictures.draw_text", listen)
    full = replace(whole, label_map=np.zeros((112, 112), int), shares=np.eye(4)[0])
    labels = np.zeros((112, 112), int)
    labels[:28] = full.nothing
    three_quarters = replace(full, label_map=labels, shares=0.75 * np.eye(4)[0])
    sheet = np.asarray(overlay({"a alone": full, "a + B": three_quarters}))
    assert ("a alone", "black") in said and ("a + B, 25.0 % nothing", "black") in said
    row = said.index(("nothing", "dimgray"))
    assert said[row : row + 3] == [("nothing", "dimgray"), ("–", "dimgray"), ("25.0 %", "dimgray")]
    assert (sheet == NOTHING).all(axis=-1).sum() > 50  # the swatch
    said.clear()
    overlay({"a + B": full})
    assert "nothing" not in " ".join(text for text, _ in said)
    figure = maps_figure(predictor, encoded, three_quarters, words)
    label_map = next(a for a in figure.axes if a.get_title() == "label map, 25.0 % nothing")
    picture = label_map.get_images()[0].get_array()
    assert (picture[:28] == NOTHING).all() and (picture[28:] == full.colors[0]).all()


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
        (("--input", "nowhere.mp4"), "no video matches it"),
        (("--video-input", "nowhere.mp4"), "nowhere.mp4: no such file"),
        (("--video-input", "TEXT", "--maps"), "--maps and --masks are of images"),
        (("--video-input", "TEXT", "--masks"), "--maps and --masks are of images"),
        (("--input", "IMAGE", "--background", ""), "--background '' names nothing"),
        (("--input", "IMAGE", "--background", " "), "--background ' ' names nothing"),
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
    assert not output.exists()


@pytest.mark.parametrize("flag", ["--input", "--video-input", "--output"])
@pytest.mark.parametrize("path", ["", " "])
def test_an_empty_path_is_not_the_current_folder(tmp_path, scene, monkeypatch, capsys, flag, path):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene[:60, :80]).save("x.png")
    more = ("--input", "x.png") if flag == "--output" else ()
    with pytest.raises(SystemExit) as end:
        demo(tmp_path / "out", *more, flag, path)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"freecp segment: error: argument {flag}: {path!r} is no path; is a variable of the shell "
        "empty?"
    )
    assert os.listdir(tmp_path) == ["x.png"]


def test_unknown_config(tmp_path, images, capsys):
    assert demo(tmp_path / "out", "--input", images, config="scenes/clerclip") == 1
    assert "scenes/clearclip" in capsys.readouterr().err.splitlines()[-1]


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
