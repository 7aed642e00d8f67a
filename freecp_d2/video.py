"""What a video is called, and writing one that browsers play, where this machine can."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

VIDEO_SUFFIXES = frozenset(
    ".3gp .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .webm .wmv".split()
)
"""Of videos, in lower case."""


class VideoWriter(Protocol):
    """Takes (H, W, 3) uint8 BGR frames of even sides.

    Attributes:
        note: what its user should know of the file; "" for H.264, which plays everywhere.
    """

    note: str

    def write(self, frame: np.ndarray) -> None:
        """Add a frame."""

    def release(self) -> None:
        """Finish the file; more than once is no harm.

        Raises:
            ValueError: it could not be written.
        """


def open_video(path: Path, rate: float, width: int, height: int) -> VideoWriter:
    """Start an .mp4 file.

    H.264 by OpenCV, whose usual wheels have no encoder for it, or else by the program `ffmpeg`;
    without these VP9, which browsers play too, or MPEG-4 Part 2, which they do not.

    Args:
        rate: frames a second.
        width, height: of the frames, even.

    Raises:
        ValueError: it cannot be written.
    """
    advice = "for H.264, which plays everywhere, install the program ffmpeg"
    if writer := _opencv(path, "avc1", rate, width, height, ""):
        return writer
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg and _encodes(ffmpeg, width, height):
        return _Ffmpeg(ffmpeg, path, rate, width, height)
    note = f"written as VP9, which browsers play and some other programs do not; {advice}"
    if writer := _opencv(path, "vp09", rate, width, height, note):
        return writer
    note = f"written as MPEG-4 Part 2, which browsers do not play; {advice}"
    if writer := _opencv(path, "mp4v", rate, width, height, note):
        return writer
    raise ValueError(f"no video of {width} x {height} can be written by OpenCV or ffmpeg here")


class _OpenCV:
    def __init__(self, writer: cv2.VideoWriter, note: str):
        self._writer = writer
        self.note = note

    def write(self, frame: np.ndarray) -> None:
        self._writer.write(frame)

    def release(self) -> None:
        self._writer.release()


def _opencv(
    path: Path, codec: str, rate: float, width: int, height: int, note: str
) -> _OpenCV | None:
    """A writer, or None where OpenCV has no such encoder; a frame is written to know."""
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        trial = f"{folder}/trial.mp4"
        fourcc = cv2.VideoWriter.fourcc(*codec)
        for name in (trial, str(path)):
            writer = cv2.VideoWriter(name, fourcc, rate, (width, height))
            if not writer.isOpened():
                return None
            if name == trial:
                writer.write(np.zeros((height, width, 3), dtype=np.uint8))
                writer.release()
                if not cv2.VideoCapture(trial).read()[0]:
                    return None
    return _OpenCV(writer, note)


@contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV says on the standard error which encoders it has not."""
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


class _Ffmpeg:
    """H.264 by the program ffmpeg, which is fed frames by a pipe."""

    note = ""

    def __init__(self, program: str, path: Path, rate: float, width: int, height: int):
        self._path = path
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            _command(program, rate, width, height, str(path)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C, which a terminal sends to all, is this process's
        )

    def write(self, frame: np.ndarray) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(frame.tobytes())
        except BrokenPipeError:
            self.release()

    def release(self) -> None:
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # it says why below
            pass
        code = self._process.wait()
        self._errors.seek(0)
        said = " ".join(self._errors.read().decode(errors="replace").split())[-300:]
        self._errors.close()
        if code:
            raise ValueError(f"{self._path}: ffmpeg could not write it ({said})")


def _encodes(program: str, width: int, height: int) -> bool:
    """Whether an ffmpeg encodes a frame of this size as H.264."""
    command = _command(program, 25.0, width, height, "-f null -")
    frame = np.zeros((height, width, 3), dtype=np.uint8).tobytes()
    return subprocess.run(command, input=frame, capture_output=True).returncode == 0


def _command(program: str, rate: float, width: int, height: int, target: str) -> list[str]:
    raw = f"-f rawvideo -pix_fmt bgr24 -s {width}x{height} -r {rate} -i -".split()
    coded = "-c:v libx264 -pix_fmt yuv420p -movflags +faststart".split()
    end = target.split() if target.startswith("-f ") else [target]
    return [program, "-y", "-loglevel", "error", *raw, *coded, *end]
