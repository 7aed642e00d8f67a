"""Videos of the best codec that the machine has, and a word where that is not H.264."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from freecp_d2 import video
from freecp_d2.data.images import image_suffixes


def frames(count: int = 5) -> list[np.ndarray]:
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    still = np.stack([np.tile(ramp, (96, 1)), np.full((96, 128), 60), np.full((96, 128), 200)], 2)
    return [np.roll(still, 8 * i, axis=1).astype(np.uint8) for i in range(count)]


def write(path: Path, rate: float = 10) -> str:
    writer = video.open_video(path, rate, 128, 96)
    for frame in frames():
        writer.write(frame)
    writer.release()
    writer.release()
    return writer.note


def read(path: Path) -> tuple[str, float, list[np.ndarray]]:
    capture = cv2.VideoCapture(str(path))
    codec = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode()
    found = []
    while (one := capture.read())[0]:
        found.append(one[1])
    return codec, capture.get(cv2.CAP_PROP_FPS), found


def forbid(monkeypatch, *codecs: str) -> None:
    """OpenCV has no encoder for these."""
    opencv = video._opencv
    monkeypatch.setattr(
        video,
        "_opencv",
        lambda path, codec, *a: None if codec in codecs else opencv(path, codec, *a),
    )


def test_no_file_is_a_video_and_an_image():
    assert not video.VIDEO_SUFFIXES & image_suffixes()


@pytest.mark.parametrize(
    ("missing", "codec", "said"),
    [
        (("avc1",), "VP90", "VP9, which browsers play"),
        (("avc1", "vp09"), "FMP4", "browsers do not"),
    ],
)
def test_without_an_encoder_of_h264(tmp_path, monkeypatch, missing, codec, said):
    monkeypatch.setattr(video.shutil, "which", lambda _: None)
    forbid(monkeypatch, *missing)
    note = write(tmp_path / "v.mp4", 12.5)
    assert said in note and "install the program ffmpeg" in note
    found, rate, seen = read(tmp_path / "v.mp4")
    assert found.upper() == codec and rate == pytest.approx(12.5)
    assert len(seen) == 5
    for got, want in zip(seen, frames(), strict=True):
        assert np.abs(got.astype(int) - want).mean() < 8


FFMPEG = """#!{python}
# The arguments as a real ffmpeg takes them; it keeps the frames.
import sys
arguments = sys.argv[1:]
width, height = map(int, arguments[arguments.index("-s") + 1].split("x"))
assert arguments[arguments.index("-i") + 1] == "-" and "rawvideo" in arguments
if "libx264" in arguments and {broken!r} == "no encoder":
    sys.exit("Unknown encoder 'libx264'")
data = sys.stdin.buffer.read()
assert data and len(data) % (width * height * 3) == 0
if arguments[-1] != "-":
    if {broken!r} == "full":
        sys.exit("No space left on device")
    open(arguments[-1], "wb").write(data)
"""


def install(monkeypatch, folder: Path, broken: str = "") -> None:
    program = folder / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(FFMPEG.format(python=sys.executable, broken=broken))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    forbid(monkeypatch, "avc1")


def test_by_the_program_ffmpeg(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path)
    assert write(tmp_path / "v.mp4") == ""
    data = (tmp_path / "v.mp4").read_bytes()
    assert data == b"".join(frame.tobytes() for frame in frames())


def test_an_ffmpeg_without_the_encoder_is_left_alone(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "no encoder")
    assert "VP9" in write(tmp_path / "v.mp4") and len(read(tmp_path / "v.mp4")[2]) == 5


def test_an_ffmpeg_that_fails_says_why(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "full")
    with pytest.raises(ValueError, match="v.mp4: ffmpeg could not write it .No space left"):
        write(tmp_path / "v.mp4")


def test_ctrl_c_does_not_reach_ffmpeg(tmp_path, monkeypatch):
    """`freecp segment` finishes the frame at hand then; an ffmpeg that ends first is an error."""
    install(monkeypatch, tmp_path)
    script = (
        "import os, signal; from pathlib import Path; import numpy as np\n"
        "from freecp_d2 import video; video._opencv = lambda *a: None\n"
        "signal.signal(signal.SIGINT, lambda *a: None)\n"
        f"w = video.open_video(Path({str(tmp_path / 'v.mp4')!r}), 10, 128, 96)\n"
        "for _ in range(2):\n"
        "    w.write(np.zeros((96, 128, 3), np.uint8)); os.killpg(0, signal.SIGINT)\n"
        "w.release()"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, start_new_session=True
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "v.mp4").stat().st_size == 2 * 96 * 128 * 3


def test_nothing_to_write_with(tmp_path, monkeypatch):
    monkeypatch.setattr(video.shutil, "which", lambda _: None)
    forbid(monkeypatch, "avc1", "vp09", "mp4v")
    with pytest.raises(ValueError, match="no video of 128 x 96"):
        write(tmp_path / "v.mp4")


def test_encoders_that_are_not_there_are_not_talked_of(tmp_path):
    """OpenCV, and the ffmpeg in it, write to the standard error by themselves."""
    script = (
        "import os; os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')\n"
        "from pathlib import Path; import numpy as np; from freecp_d2 import video\n"
        f"w = video.open_video(Path({str(tmp_path / 'v.mp4')!r}), 10, 128, 96)\n"
        "w.write(np.zeros((96, 128, 3), np.uint8)); w.release()"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stderr == ""
    assert len(read(tmp_path / "v.mp4")[2]) == 1
