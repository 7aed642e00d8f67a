"""What may happen to a run of `freecp segment`: full disks, signals, damage, a second run."""

import errno
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from freecp_d2 import FreeCPPredictor
from freecp_d2.cli import segment
from freecp_d2.data.scenes.scene import draw_scene
from freecp_d2.locks import locked

NAMES = ("a", "b", "c", "d")
OPTS = ["--opts", "MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, scene = tmp_path_factory.mktemp("in"), draw_scene(87).image
    for number, name in enumerate(NAMES):
        Image.fromarray(scene[: 60 + number, :80]).save(folder / f"{name}.png")
    (folder / "a.png").write_bytes(b"no image")
    writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for shift in range(3):
        writer.write(np.ascontiguousarray(scene[:64, shift * 10 : shift * 10 + 64]))
    writer.release()
    return folder


def arguments(source: Path, output: Path) -> list[str]:
    return [
        *("--config-file", "scenes/clearclip", "--vocabulary", "sky,lawn"),
        *("--input", str(source), "--output", str(output), *OPTS),
    ]


def run(source: Path, output: Path) -> int:
    return segment.main(arguments(source, output), "freecp segment")


def results(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("out")
    assert run(images, folder) == 3
    return results(folder)


@pytest.fixture
def encoded(monkeypatch) -> list[str]:
    """The images that go through CLIP."""
    names: list[str] = []
    encode = FreeCPPredictor.encode

    def note(self, image, *rest):
        names.append(Path(image).stem if isinstance(image, str | os.PathLike) else "frame")
        return encode(self, image, *rest)

    monkeypatch.setattr(FreeCPPredictor, "encode", note)
    return names


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_full_disk_stops_it_at_once_and_the_faults_are_said(
    tmp_path, images, undisturbed, encoded, monkeypatch, capsys, number
):
    output, write = tmp_path / "out", Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if len(encoded) > 2:
            write(path, content[:10])
            raise OSError(number, os.strerror(number))
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(SystemExit) as end:
            run(images, output)
    assert encoded == ["a", "b", "c"]
    assert "a.png: not an image" in capsys.readouterr().err.splitlines()[-1]
    line = str(end.value.code)
    assert line.startswith(f"freecp segment: {output}/") and os.strerror(number)[1:] in line
    left = {name.split("/")[-1] for name in results(output)}
    assert left == {"b.png"}
    assert not [p for p in output.rglob("*.part*")]
    encoded.clear()
    assert run(images, output) == 3
    assert encoded == ["a", "c", "d"]
    assert results(output) == undisturbed


def test_an_image_that_may_not_be_read_stops_no_other(tmp_path, images, monkeypatch, capsys):
    encode = FreeCPPredictor.encode

    def refuse(self, image, *rest):
        if Path(image).name == "b.png":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(image))
        return encode(self, image, *rest)

    monkeypatch.setattr(FreeCPPredictor, "encode", refuse)
    assert run(images, tmp_path / "out") == 3
    assert f"segment: {images}/b.png: permission denied; check" in capsys.readouterr().err
    assert {Path(name).name for name in results(tmp_path / "out") if "labels" in name} == {
        "c.png",
        "d.png",
    }


def test_an_output_that_cannot_be_made_is_a_sentence(tmp_path, images):
    (tmp_path / "file").touch()
    for output, said in ((tmp_path / "file", "exists"), (tmp_path / "file" / "x", "not a dir")):
        with pytest.raises(SystemExit) as end:
            run(images, output)
        line = str(end.value.code)
        assert line.startswith(f"freecp segment: {output}: ") and said in line


def test_a_second_run_is_refused(tmp_path, images):
    with locked(tmp_path / "out", "freecp segment"), pytest.raises(SystemExit) as end:
        run(images, tmp_path / "out")
    assert f"{tmp_path / 'out'}: in use by freecp segment, process " in str(end.value.code)
    assert results(tmp_path / "out") == {}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_stop_it_after_the_image_at_hand(
    tmp_path, images, undisturbed, encoded, monkeypatch, capsys, number, code
):
    output, note = tmp_path / "out", FreeCPPredictor.encode

    def stop(self, image, *rest):
        if Path(image).stem == "b":
            os.kill(os.getpid(), number)
        return note(self, image, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FreeCPPredictor, "encode", stop)
        assert run(images, output) == code
    said = capsys.readouterr()
    assert encoded == ["a", "b"] and "1 of 4 images" in said.out
    assert set(results(output)) == {"labels/b.png", "overlays/b.png", "segmentation.json"}
    first, last = said.err.splitlines()[-2:]
    assert "a.png: not an image" in first
    *_, command = last.partition("go on with: freecp segment ")
    assert last.startswith(f"freecp segment: stopped by {number.name}; ")
    assert command == " ".join(
        f"'{word}'" if word == "" else word for word in arguments(images, output)
    )
    assert run(images, output) == 3
    assert results(output) == undisturbed


def test_a_signal_leaves_the_video_at_hand(tmp_path, images, encoded, monkeypatch, capsys):
    note = FreeCPPredictor.encode

    def stop(self, image, *rest):
        os.kill(os.getpid(), signal.SIGTERM)
        return note(self, image, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(FreeCPPredictor, "encode", stop)
        assert run(images / "v.avi", tmp_path / "out") == 143
    assert encoded == ["frame"] and results(tmp_path / "out") == {}
    assert not list(tmp_path.rglob("*.part*"))
    assert run(images / "v.avi", tmp_path / "out") == 0
    assert set(results(tmp_path / "out")) == {"overlays/v.mp4"}


def test_a_video_that_is_cut_short_is_a_fault(tmp_path, images, monkeypatch, capsys):
    """As OpenCV leaves it on a full disk, without a word."""

    class Short:
        note = ""

        def __init__(self, path: Path, *_: object):
            self.path = path

        def write(self, frame: np.ndarray) -> None:
            self.path.write_bytes(b"\0\0\0\x1cftypisom")

        def release(self) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr("freecp_d2.cli.segment.video.open_video", Short)
        assert run(images / "v.avi", tmp_path / "out") == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'out'}/overlays/v.mp4: it could not be written whole; is the disk" in last
    assert results(tmp_path / "out") == {} and not list(tmp_path.rglob("*.part*"))
    assert run(images / "v.avi", tmp_path / "out") == 0


@pytest.mark.parametrize(
    ("line", "again"),
    [(0, ["b", "c", "d"]), (1, ["b"]), (2, ["c"]), (3, ["d"])],
    ids=["settings", "first", "second", "last"],
)
@pytest.mark.parametrize("damage", ["bits", "bytes", "cut"])
def test_damaged_records_are_done_anew(
    tmp_path, images, undisturbed, encoded, caplog, line, again, damage
):
    output = tmp_path / "out"
    assert run(images, output) == 3
    file = output / ".progress.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    changes = {
        "bits": lambda text: text[:20] + bytes([text[20] ^ 1]) + text[21:],
        "bytes": lambda text: b"\xff\x00[[[\n",
        "cut": lambda text: text[: len(text) // 2] + b"\n",
    }
    lines[line] = changes[damage](lines[line])
    file.write_bytes(b"".join(lines))
    encoded.clear()
    assert run(images, output) == 3
    assert [name for name in encoded if name != "a"] == again
    assert results(output) == undisturbed
    assert f"{file}: 1 of its lines are damaged, the first is line {line + 1}" in caplog.text
    encoded.clear()
    assert run(images, output) == 3
    assert encoded == ["a"]


def test_damaged_records_of_videos_are_done_anew(tmp_path, images, encoded):
    output = tmp_path / "out"
    assert run(images / "v.avi", output) == 0
    before = results(output)
    for content in (b"[[[[\n", b'{"v": {}}\n', b"\xff\n", b""):
        (output / ".videos.jsonl").write_bytes(content)
        encoded.clear()
        assert run(images / "v.avi", output) == 0
        assert len(encoded) == 3 and set(results(output)) == set(before)
    encoded.clear()
    assert run(images / "v.avi", output) == 0
    assert not encoded


def test_what_a_kill_left_is_swept(tmp_path, images):
    part = tmp_path / "out" / "overlays" / f".{'0' * 32}.part.png"
    part.parent.mkdir(parents=True)
    part.touch()
    os.utime(part, (0, time.time() - 4000))
    assert run(images / "b.png", tmp_path / "out") == 0
    assert not part.exists()


def test_debug_shows_where_an_error_comes_from(tmp_path, images):
    given = arguments(images, tmp_path / "out")
    with pytest.raises(ValueError, match="not an image"):
        segment.main([*given[: -len(OPTS)], "--debug", *OPTS], "freecp segment")
    given[1] = "scenes/nothing"
    with pytest.raises(FileNotFoundError, match="no such name"):
        segment.main([*given[: -len(OPTS)], "--debug", *OPTS], "freecp segment")
