"""Videos with their classes drawn on them."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ...data import Vocabulary
from ...files import whole_file
from ...journal import Journal, read_journal
from ...predictor import FreeCPPredictor
from ...stopping import Stop
from ...video import open_video
from .bar import windows_on
from .faults import noted
from .images import settings_of
from .inputs import Inputs
from .jobs import Job, name_results, require_same_source

RECORDS = ".videos.jsonl"
"""A line a video: its name, the file that it was made of, its state, and the settings."""


class _Stopped(Exception):
    """A signal came in the middle of a video."""


def segment_videos(
    predictor: FreeCPPredictor,
    words: Vocabulary,
    inputs: Inputs,
    args: argparse.Namespace,
    faults: list[str],
    stop: Stop,
) -> None:
    """Segment the videos into overlays/, until `stop` has a signal; the one at hand is left then.

    A video is done anew where it, the words or other settings have changed. Sentences about those
    that could not be segmented are added to `faults`.

    Raises:
        OSError: nothing can be written.
    """
    file = args.output / RECORDS
    lines = read_journal(file) if file.is_file() else ()
    records = {record["name"]: record for record in lines}
    settings = settings_of(predictor, words, args)
    with Journal(file) as journal:
        for job in name_results(inputs.videos, inputs.root, records):
            target = args.output / "overlays" / f"{job.name}.mp4"
            record = {"name": job.name, "source": job.stamp(), "settings": settings}
            with noted(faults, job.source, args.debug):
                if _is_done(job, target, record, records):
                    print(f"{target} is done already")
                    continue
                try:
                    _segment_video(predictor, words, job, target, args, stop)
                except _Stopped:
                    return
                journal.add(record)


def _is_done(
    job: Job, target: Path, record: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> bool:
    """Whether a video is there as it would be made.

    Raises:
        ValueError: it would overwrite its source, or the video of another.
    """
    if os.path.abspath(target) == str(job.source):
        raise ValueError(f"{target} would be overwritten; choose another --output")
    former = records.get(job.name)
    if former is None or not target.is_file():
        return False
    require_same_source(job, former)
    return former == record


def _segment_video(
    predictor: FreeCPPredictor,
    words: Vocabulary,
    job: Job,
    target: Path,
    args: argparse.Namespace,
    stop: Stop,
) -> None:
    """Write a video, the base method at the left with --base.

    Raises:
        OSError: it cannot be written.
        ValueError: OpenCV can read no frame of it, or cannot write a video or all of it.
        _Stopped: `stop` has a signal.
    """
    capture, writer, count = cv2.VideoCapture(str(job.source)), None, 0
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    expected = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    frames = _frames(capture)
    try:
        first = next(frames, None)
        if first is None:
            raise ValueError(f"{job.source}: no frame can be read; give a video that OpenCV knows")
        with whole_file(target) as part:
            bar = tqdm(chain([first], frames), job.source.name, expected or None, unit="frame")
            for frame in bar:
                picture = _picture(predictor, words, frame, args.base, windows_on(bar))
                if writer is None:
                    writer = open_video(part, rate, picture.shape[1], picture.shape[0])
                writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
                count += 1
                if stop.signal:
                    raise _Stopped
            assert writer is not None
            writer.release()
            # OpenCV says nothing when it cannot write; its file then lacks the index at its end.
            if not cv2.VideoCapture(str(part)).read()[0]:
                raise ValueError(f"{target}: it could not be written whole; is the disk full?")
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if count < expected:
        print(f"{job.source} says it has {expected} frames; {count} could be read", file=sys.stderr)
    if writer.note:
        print(f"{args.prog}: {target}: {writer.note}", file=sys.stderr)
    print(f"{count} frames: {target}")


def _picture(
    predictor: FreeCPPredictor,
    words: Vocabulary,
    frame: np.ndarray,
    base: bool,
    windows_done: Callable[[int, int], None],
) -> np.ndarray:
    """A frame of the new video, of even sides as codecs want."""
    methods = [predictor.base, predictor] if base else [predictor]
    drawn = [method.segment(method.encode(frame, windows_done), words).draw() for method in methods]
    picture = np.concatenate(drawn, axis=1)
    odd = [(0, side % 2) for side in picture.shape[:2]]
    return np.pad(picture, [*odd, (0, 0)], "edge")


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB."""
    while True:
        read, frame = capture.read()
        if not read:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])
