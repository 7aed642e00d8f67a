"""The images and videos that the command line names."""

import argparse
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.images import HEIC_SENTENCE, image_suffixes
from ...files import results_of
from ...video import VIDEO_SUFFIXES

NAMED = 20
"""Files that a sentence names at most."""
RESULTS = "labels", "overlays", "masks", "maps"
"""Folders of the output."""


@dataclass(frozen=True)
class Inputs:
    """What --input names, each file once, sorted where the shell has not.

    Attributes:
        root: the folder that all of it is below; where one folder is given, that one.
        images: files that are named, whatever their suffix, and those of folders and patterns that
            have the suffix of an image.
        videos: those of files and patterns that are named and have the suffix of a video.
        skipped: other files of folders and patterns.
    """

    root: Path
    images: list[Path]
    videos: list[Path]
    skipped: list[Path]


def inputs_of(args: argparse.Namespace) -> Inputs:
    """The images and videos of --input, or the video of --video-input.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: --maps or --masks of no image.
    """
    video = args.video_input
    if video is None:
        inputs = find_inputs(args.input, args.output)
    elif video.is_file():
        video = _absolute(video)
        inputs = Inputs(video.parent, [], [video], [])
    else:
        raise FileNotFoundError(f"--video-input {video}: no such file; check the path")
    if (args.maps or args.masks) and not inputs.images:
        raise ValueError("--maps and --masks are of images, and here is none; leave them out")
    return inputs


def find_inputs(inputs: Sequence[str | Path], output: Path) -> Inputs:
    """The images and videos of files, folders and patterns.

    Hidden files of a folder do not count, nor those below `output`, or where the input lies in
    that, those of its :data:`RESULTS`. Of a folder or pattern the images are taken, of a pattern
    that ends in the suffix of a video the videos.

    Raises:
        FileNotFoundError: an input that is not there, or a folder or pattern of no such files.
    """
    images: dict[Path, None] = {}
    videos: dict[Path, None] = {}
    skipped: dict[Path, None] = {}
    roots = []
    output = output.resolve()
    for given in inputs:
        path = Path(given).expanduser()
        kind, files = ("video", videos) if _is_video(path) else ("image", images)
        if path.is_file():
            roots.append(path.parent)
            files[_absolute(path)] = None
            continue
        if path.is_dir():
            roots.append(path)
            kind, files = "image", images
            every = [p for p in path.rglob("*") if not _is_hidden(p.relative_to(path))]
            fault = "no image in this folder"
        else:
            roots.append(_before_wildcards(path))
            every = [Path(p) for p in glob.glob(str(path), recursive=True)]
            fault = f"no such file or folder, and no {kind} matches it as a pattern"
        suffixes = VIDEO_SUFFIXES if kind == "video" else image_suffixes()
        results = {*map(Path, results_of(str(output), str(path.resolve()), RESULTS))}
        every = [p for p in every if results.isdisjoint(p.resolve().parents)]
        every = sorted(p for p in every if p.is_file())
        wanted = [p for p in every if p.suffix.lower() in suffixes]
        others = [p for p in every if p.suffix.lower() not in suffixes]
        if not wanted:
            there = [f"there {line}" for line in describe_skipped(others)]
            raise FileNotFoundError(f"--input {given}: {'; '.join([fault, *there])}")
        files.update(dict.fromkeys(map(_absolute, wanted)))
        skipped.update(dict.fromkeys(map(_absolute, others)))
    rest = [file for file in skipped if file not in images and file not in videos]
    return Inputs(
        Path(os.path.commonpath([_absolute(root) for root in roots])), [*images], [*videos], rest
    )


def _before_wildcards(pattern: Path) -> Path:
    """The lowest folder that all files of a pattern are below."""
    return next(folder for folder in pattern.parents if not set("*?[") & set(str(folder)))


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def describe_skipped(files: Sequence[Path]) -> list[str]:
    """Sentences, in the plural or singular, about files that are not images, and what to do."""
    kinds: dict[str, list[str]] = {}
    video = next((file.name for file in files if _is_video(file)), "")
    for file in files:
        if file.suffix.lower() in (".heic", ".heif", ".hif"):
            what = HEIC_SENTENCE
        elif _is_video(file):
            what = f"videos are segmented where they are named, as in --input {video}"
        else:
            what = "not the suffix of an image"
        kinds.setdefault(what, []).append(file.name)
    sentences = []
    for what, names in kinds.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        verb = "is" if len(names) == 1 else "are"
        sentences.append(f"{verb} {', '.join(names[:NAMED])}{more}: {what}")
    return sentences


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_SUFFIXES
