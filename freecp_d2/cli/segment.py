"""Segment images, or a video, of one's own into classes that are named in words.

    freecp segment --config-file scenes/clearclip \
        --vocabulary "sky,lawn,road,mushroom" --input photo.jpg folder/ --output output/photos

Of photo.jpg it writes labels/photo.png (indexed by class, with a palette; 16 bits with more than
256 classes), overlays/photo.png and, on demand, maps/photo.png; of all images one segmentation.json
in COCO's format. A run that was interrupted goes on where it stopped.
"""

import argparse
import glob
import hashlib
import io
import json
import mimetypes
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.utils.logger import setup_logger
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from tqdm import tqdm

from .. import FreeCPPredictor, Segmentation
from ..data import Vocabulary
from ..data.images import HEIC_SENTENCE, image_suffixes
from ..files import whole_file, write_whole
from ..fonts import draw_text, set_fonts, text_length
from ..inputs import names_a_file
from ..segmentation import write_png
from ..video import open_video

LONG_SIDE = 600, 1600
"""Pixels that the long side of an overlay's pictures has at least and at most."""
LISTED = 24
"""Classes that a legend lists at most."""
PICTURED_KEPT, PICTURED_REMOVED = 5, 3
"""Classes in the figure of class activation maps at most."""
PROGRESS = ".progress.jsonl"
LONGEST_NAME = 245
"""Bytes of the name of a file that is written; most file systems take 255."""
NAMED = 20
"""Files that a sentence names at most."""
FAILURES = (OSError, ValueError, Image.DecompressionBombError, MemoryError)
"""What one image may raise without stopping the others."""
VIDEO_SENTENCE = "a video goes in by --video-input"
NO_MEMORY = (
    "alloc_failed",
    "can't allocate memory",
    "cannot allocate memory",
    "insufficient memory",
    "not enough memory",
    "out of memory",
)
"""What a RuntimeError of torch, or an error of OpenCV, says when memory ran out."""


@dataclass(frozen=True)
class Job:
    """An image and the place of its results below labels/, overlays/ and maps/.

    Attributes:
        source: the file.
        image: its path below the folder that all images share.
        name: the same without suffix, as :func:`name_results` chooses it.
    """

    source: Path
    image: str
    name: str

    def stamp(self) -> dict[str, Any]:
        """Which file it is, and of what state."""
        stat = self.source.stat()
        return {"path": str(self.source), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


class Progress:
    """What is done, a line of JSON an image behind one of the settings; survives a kill.

    Args:
        folder: of the output.
        settings: whatever the results depend on but the images.

    Raises:
        ValueError: the folder holds results of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = folder
        self.records: dict[str, dict[str, Any]] = {}
        path = folder / PROGRESS
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a kill may have left half a line
        header, *lines = map(json.loads, whole.splitlines()) if whole else [settings]
        if header != settings:
            changed = [key for key in settings if header.get(key) != settings[key]]
            raise ValueError(
                f"{folder} holds results of other settings ({', '.join(changed)}); choose another "
                "--output, or remove the folder"
            )
        for record in lines:
            self.records[record["name"]] = record
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(f"{json.dumps(x)}\n" for x in [settings, *lines]).encode())

    def is_done(self, job: Job) -> bool:
        """Whether the results of this very file are there.

        Raises:
            ValueError: there are results of another file in its place.
        """
        record = self.records.get(job.name)
        if record is None:
            return False
        if record["source"]["path"] != str(job.source):
            raise ValueError(
                f"{job.source} would overwrite the results of {record['source']['path']}; choose "
                "another --output"
            )
        return record["source"] == job.stamp() and all(
            (self.folder / file).is_file() for file in record["files"]
        )

    def add(self, record: dict[str, Any]) -> None:
        """An image is done."""
        self.records[record["name"]] = record
        with (self.folder / PROGRESS).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(record)}\n")

    def write_coco(self, class_names: Sequence[str]) -> None:
        """segmentation.json of all images of the folder, as pycocotools.coco.COCO reads it."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        records = sorted(self.records.values(), key=lambda record: record["image"])
        for image_id, record in enumerate(records, start=1):
            images.append({"id": image_id, "file_name": record["image"], **record["size"]})
            for segment in record["segments"]:
                ids = {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append({**segment, **ids})
        categories = [{"id": i, "name": name} for i, name in enumerate(class_names)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        write_whole(self.folder / "segmentation.json", json.dumps(content).encode())


def find_images(inputs: Sequence[str], output: Path) -> tuple[list[Path], list[Path]]:
    """The images of files, folders and globs, each once, sorted where the shell has not.

    A file that is named is taken for an image, whatever its suffix. Of a folder or pattern those
    are taken that have the suffix of an image; hidden ones of a folder do not count.

    Returns:
        The images, and the other files of folders and patterns.

    Raises:
        FileNotFoundError: an input that is not there, a folder without images or a pattern that
            nothing matches.
    """
    files: dict[Path, None] = {}
    skipped: dict[Path, None] = {}
    suffixes = image_suffixes()
    for given in inputs:
        path = Path(given).expanduser()
        if path.is_file():
            images, others = [path], []
        else:
            if path.is_dir():
                every = [p for p in path.rglob("*") if not _is_hidden(p.relative_to(path))]
                every = [p for p in every if output.resolve() not in p.resolve().parents]
                fault = "no image in this folder"
            else:
                every = [Path(p) for p in glob.glob(str(path), recursive=True)]
                fault = "no such file or folder, and no image matches it as a pattern"
            every = sorted(p for p in every if p.is_file())
            images = [p for p in every if p.suffix.lower() in suffixes]
            others = [p for p in every if p.suffix.lower() not in suffixes]
            if not images:
                there = [f"there {line}" for line in describe_skipped(others)]
                raise FileNotFoundError(f"--input {given}: {'; '.join([fault, *there])}")
        files.update(dict.fromkeys(Path(os.path.abspath(p)) for p in images))
        skipped.update(dict.fromkeys(Path(os.path.abspath(p)) for p in others))
    return list(files), [file for file in skipped if file not in files]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def describe_skipped(files: Sequence[Path]) -> list[str]:
    """Sentences, in the plural or singular, about files that are not images, and what to do."""
    kinds: dict[str, list[str]] = {}
    for file in files:
        if file.suffix.lower() in (".heic", ".heif", ".hif"):
            what = HEIC_SENTENCE
        elif _is_video(file):
            what = VIDEO_SENTENCE
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
    return (mimetypes.guess_type(file.name)[0] or "").startswith("video/")


def name_results(files: Sequence[Path], records: Mapping[str, dict[str, Any]]) -> list[Job]:
    """Where the results of images go: photo.jpg's become photo.png in labels/, overlays/ and maps/.

    Names keep the folders below the one that all images share. Images that differ in their suffix
    alone keep it: photo.jpg and photo.tif become photo_jpg.png and photo_tif.png. An image whose
    results are there already keeps their name. A name of more than 245 bytes is cut, and ends in 8
    digits of its SHA-256.

    Args:
        records: what :class:`Progress` knows, by name.
    """
    shared = Path(os.path.commonpath([file.parent for file in files]))
    known = {record["source"]["path"]: name for name, record in records.items()}
    images = [file.relative_to(shared) for file in files]
    plain = Counter(image.with_suffix("") for image in images)
    jobs: list[Job] = []
    taken: set[str] = set()
    for file, image in zip(files, images, strict=True):
        stem = image.with_suffix("")
        other = records.get(stem.as_posix())
        alike = other is not None and Path(other["source"]["path"]).name != file.name
        if plain[stem] > 1 or alike:
            stem = image.with_name(f"{stem.name}_{image.suffix[1:]}")
        name = known.get(str(file)) or _fitting(stem, image, taken).as_posix()
        taken.add(name)
        jobs.append(Job(file, image.as_posix(), name))
    return jobs


def _fitting(stem: Path, image: Path, taken: set[str]) -> Path:
    """`stem`, or where it is too long or taken a shorter one with a hash of the image's path."""
    bytes_of = os.fsencode(stem.name)
    most = LONGEST_NAME - len(".png")
    if len(bytes_of) <= most and stem.as_posix() not in taken:
        return stem
    digest = hashlib.sha256(os.fsencode(image)).hexdigest()[:8]
    cut = bytes_of[: most - 9].decode(errors="ignore")
    return stem.with_name(f"{cut}_{digest}")


def overlay(results: dict[str, Segmentation]) -> Image.Image:
    """Pictures side by side under their titles, with one legend.

    Args:
        results: title -> segmentation, of one image and vocabulary.
    """
    pictures = [_picture(result) for result in results.values()]
    height, width = pictures[0].shape[:2]
    size = max(13, round(max(height, width) / 55))
    line, gap = round(1.6 * size), size
    legend = _legend(results, size, line)
    top = line + gap // 2
    count = len(pictures)
    sheet = Image.new(
        "RGB",
        (
            gap + count * (width + gap) + legend.width + gap,
            max(top + height, legend.height) + gap,
        ),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    for index, (title, picture) in enumerate(zip(results, pictures, strict=True)):
        left = gap + index * (width + gap)
        draw_text(pen, (left, gap // 2), title, size, "black")
        sheet.paste(Image.fromarray(picture), (left, top))
    sheet.paste(legend, (gap + count * (width + gap), 0))
    return sheet


def _picture(result: Segmentation) -> np.ndarray:
    """`result.draw()` in a size in which names are legible and a photograph takes no minute."""
    height, width = result.label_map.shape
    least, most = LONG_SIDE
    long_side = max(height, width)
    if long_side > most:
        size = max(1, width * most // long_side), max(1, height * most // long_side)
        labels = result.label_map.astype(np.int32)
        result = replace(
            result,
            image=cv2.resize(result.image, size, interpolation=cv2.INTER_AREA),
            label_map=cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST),
        )
    return result.draw(scale=max(1.0, least / long_side))


def _legend(results: dict[str, Segmentation], size: int, line: int) -> Image.Image:
    """Classes by their share, a column of shares a picture, and how many were removed."""
    shares = np.stack([result.shares for result in results.values()])
    last = list(results.values())[-1]
    shown = [i for i in np.argsort(-shares[-1], kind="stable") if shares[:, i].any()]
    texts = [_shortened(last.class_names[i]) for i in shown[:LISTED]]
    notes = [f"and {len(shown) - LISTED} more"] if len(shown) > LISTED else []
    for stage in ("redundancy", "ambiguity"):
        count = sum(removed.stage == stage for removed in last.removed)
        notes += [f"{count} removed by {stage}"] if count else []

    def widest(lines: Sequence[str]) -> int:
        return round(max(text_length(text, size) for text in lines))

    def write(x: int, text: str, fill: str = "black") -> None:
        draw_text(pen, (x, y), text, size, fill)

    def write_to(right: int, text: str) -> None:
        draw_text(pen, (right - text_length(text, size), y), text, size, "black")

    column = widest([" 100.0 %"]) + line // 2
    names = widest([*texts, "class"]) + 2 * line
    width = max(names + column * len(results), widest([*notes, ""]) + line)
    image = Image.new("RGB", (width, line * (len(texts) + len(notes) + 2)), "white")
    pen = ImageDraw.Draw(image)
    y = line // 2
    for place, title in enumerate(results if len(results) > 1 else ()):
        write_to(names + column * (place + 1), title.split()[-1])
    y += line
    for index, text in zip(shown, texts, strict=False):
        box = (0, y + line // 8, line, y + line - line // 4)
        pen.rectangle(box, tuple(last.colors[index].tolist()), "black")
        write(line + line // 2, text)
        for place, share in enumerate(shares[:, index]):
            value = f"{100 * share:.1f} %" if share else "–"
            write_to(names + column * (place + 1), value)
        y += line
    for note in notes:
        write(0, note, "dimgray")
        y += line
    return image


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def maps_figure(
    predictor: FreeCPPredictor, encoded: Any, result: Segmentation, words: Vocabulary
) -> Figure:
    """Class activation maps before and after refinement: classes that stay, and a few that do not.

    Those that stay are the ones of the largest shares, the others the ones of the highest
    consistency.
    """
    removed = sorted(result.removed, key=lambda r: -r.consistency)[:PICTURED_REMOVED]
    gone = {r.name for r in result.removed}
    order = np.argsort(-result.shares, kind="stable")
    names = [synonyms[0] for synonyms in words.classes]
    first = len(result.class_names) - len(names)
    kept = [names[i - first] for i in order if i >= first and names[i - first] not in gone]
    verdicts = {name: "stays" for name in kept[:PICTURED_KEPT]}
    for r in removed:
        verdicts[r.name] = f"beaten by {r.beaten_by}" if r.beaten_by else "redundant"
    maps = predictor.class_maps(encoded, list(verdicts), words)
    consistency = dict(zip(result.class_names[first:], result.consistency[first:], strict=True))
    height, width = result.label_map.shape
    row = min(max(2 * height / width, 0.8), 4)
    figure = Figure(figsize=(2.1 * (1 + len(verdicts)), 2 * row + 0.9), layout="constrained")
    grid = figure.subplots(2, 1 + len(verdicts), squeeze=False)
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
    grid[0, 0].imshow(result.image)
    grid[0, 0].set_title("image", fontsize=9)
    colors = np.vstack([result.colors, np.zeros((1, 3), np.uint8)])
    grid[1, 0].imshow(colors[np.minimum(result.label_map, len(result.colors))])
    grid[1, 0].set_title("label map", fontsize=9)
    columns = zip(grid[:, 1:].T, verdicts.items(), maps.activation, maps.refined, strict=True)
    for (above, below), (name, verdict), activation, refined in columns:
        title = f"{_shortened(name)}\n{verdict}, {consistency[name]:.3f}"
        above.imshow(activation, cmap="magma", vmin=0)
        above.set_title(title, fontsize=9)
        above.set_xlabel(f"highest {activation.max():.2g}", fontsize=8)
        below.imshow(refined, cmap="magma", vmin=0, vmax=1)
    if verdicts:
        grid[0, 1].set_ylabel("before refinement", fontsize=9)
        grid[1, 1].set_ylabel("after refinement", fontsize=9)
    figure.suptitle("Class activation maps; the number is the consistency", fontsize=10)
    set_fonts(figure)
    return figure


def segment_image(
    predictor: FreeCPPredictor, job: Job, words: Vocabulary, args: argparse.Namespace
) -> dict[str, Any]:
    """Write an image's results; what :meth:`Progress.add` takes."""
    stamp, method = job.stamp(), predictor.cfg.MODEL.CLIP.METHOD
    if args.maps:
        encoded = predictor.encode(job.source)
        result = predictor.segment(encoded, words)
    else:
        result = predictor(job.source, words)
    results = {f"{method} + FreeCP" if predictor.purifies else method: result}
    if args.base:
        results = {f"{method} alone": predictor.base(result.image, words), **results}
    files = {"labels": result.label_image(), "overlays": overlay(results)}
    for kind, picture in files.items():
        write_png(args.output / kind / f"{job.name}.png", picture)
    if args.maps:
        content = io.BytesIO()
        maps_figure(predictor, encoded, result, words).savefig(content, dpi=120)
        write_whole(args.output / "maps" / f"{job.name}.png", content.getvalue())
    height, width = result.label_map.shape
    return {
        "name": job.name,
        "image": job.image,
        "source": stamp,
        "size": {"height": height, "width": width},
        "files": [f"{kind}/{job.name}.png" for kind in (*files, *["maps"] * args.maps)],
        "segments": result.to_coco()["annotations"],
    }


def segment_images(
    predictor: FreeCPPredictor, words: Vocabulary, args: argparse.Namespace
) -> list[str]:
    """Segment every --input; sentences about those that could not be."""
    files, skipped = find_images(args.input, args.output)
    for sentence in describe_skipped(skipped):
        print(f"{args.prog}: skipped {sentence.split(' ', 1)[1]}", file=sys.stderr)
    settings = {
        "--config-file and --opts": hashlib.sha256(predictor.cfg.dump().encode()).hexdigest(),
        "--vocabulary": [list(names) for names in words.classes],
        "--background": list(words.background),
        "--base": args.base,
        "--maps": args.maps,
    }
    progress = Progress(args.output, settings)
    jobs = name_results(files, progress.records)
    for job in jobs:
        if not Path(job.name).name.startswith(job.source.stem):
            print(
                f"{args.prog}: {job.source}: its results are named {job.name}.png", file=sys.stderr
            )
    waiting = [job for job in jobs if not progress.is_done(job)]
    if len(waiting) < len(jobs):
        print(f"{len(jobs) - len(waiting)} of {len(jobs)} images are done already")
    faults = []
    try:
        for job in tqdm(waiting, unit="image"):
            try:
                progress.add(segment_image(predictor, job, words, args))
            except FAILURES as error:
                faults.append(_sentence(job.source, error))
            except (RuntimeError, cv2.error) as error:
                if not _memory_ran_out(error):
                    raise
                faults.append(_sentence(job.source, error))
    finally:
        background = ["background"] * bool(words.background)
        progress.write_coco([*background, *(names[0] for names in words.classes)])
    print(f"{len(jobs) - len(faults)} of {len(jobs)} images: {args.output}")
    return faults


def segment_video(predictor: FreeCPPredictor, words: Vocabulary, args: argparse.Namespace) -> Path:
    """Write --video-input with its classes drawn on it, the base method at the left with --base.

    Returns:
        The new file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: OpenCV can read no frame of it, or can write no video.
    """
    source: Path = args.video_input
    if not source.is_file():
        raise FileNotFoundError(f"--video-input {source}: no such file; check the path")
    stem = source.with_name(f"{source.stem}_overlay")
    target = args.output / f"{_fitting(stem, Path(source.name), set()).name}.mp4"
    if os.path.abspath(source) == os.path.abspath(target):
        raise ValueError(f"{target} would be overwritten; choose another --output")
    if target.exists():
        print(f"{target} is done already; remove it to make it anew")
        return target
    capture, writer, count = cv2.VideoCapture(str(source)), None, 0
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    try:
        with whole_file(target) as part:
            for frame in tqdm(_frames(capture), total=max(expected, 0) or None, unit="frame"):
                pictures = [predictor.base(frame, words).draw()] if args.base else []
                picture = np.concatenate([*pictures, predictor(frame, words).draw()], axis=1)
                # Video codecs want even sides.
                odd = [(0, n % 2) for n in picture.shape[:2]]
                picture = np.pad(picture, [*odd, (0, 0)], "edge")
                if writer is None:
                    writer = open_video(part, rate, picture.shape[1], picture.shape[0])
                writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
                count += 1
            if writer is None:
                raise ValueError(f"{source}: no frame can be read; give a video that OpenCV knows")
            writer.release()
    finally:
        capture.release()
        if writer is not None:
            writer.release()
    if count < expected:
        print(f"{source} says it has {expected} frames; {count} could be read", file=sys.stderr)
    if writer.note:
        print(f"{args.prog}: {target}: {writer.note}", file=sys.stderr)
    print(f"{count} frames: {target}")
    return target


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 RGB."""
    while True:
        read, frame = capture.read()
        if not read:
            return
        yield np.ascontiguousarray(frame[:, :, ::-1])


def _sentence(source: Path, error: BaseException) -> str:
    if _memory_ran_out(error):
        return (
            f"{source}: memory ran out; give it in a smaller size, name fewer classes, or leave "
            "out --base and --maps"
        )
    if isinstance(error, ValueError) and _is_video(source):
        return f"{source}: {VIDEO_SENTENCE}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if str(source) in text else f"{source}: {text}"


def _memory_ran_out(error: BaseException) -> bool:
    if isinstance(error, RuntimeError | cv2.error):
        return any(phrase in str(error).lower() for phrase in NO_MEMORY)
    return isinstance(error, MemoryError)


def words_of(text: str) -> str | list[str]:
    """--vocabulary as the predictor takes it: the path of a file, or the names between commas."""
    return text if names_a_file(text) else _names("--vocabulary", text)


def _names(flag: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    if "" in names:
        kept = ", ".join(filter(None, names))
        raise ValueError(
            f"{flag} {text!r}: there is no name beside a comma; leave the comma out, or put quotes "
            f'around the whole list, as in {flag} "{kept or "drum"}, trifle"'
        )
    return names


def parse_args(argv: Sequence[str] | None, prog: str | None = None) -> argparse.Namespace:
    """The options of Detectron2's demo, and more. `prog`: as in :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(prog=parser.prog)
    parser.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="a YAML file, or the name of one that the library ships, such as scenes/clearclip",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="IMAGE", help="image files, folders, patterns like 'a/*.jpg'"
    )
    source.add_argument("--video-input", type=Path, metavar="FILE", help="a video file")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--vocabulary",
        metavar="WORDS",
        help="class names, separated by commas; or a file, one class a line, its names separated "
        "by commas, or JSON; by default the config's classes",
    )
    parser.add_argument(
        "--background",
        nargs="?",
        const=True,
        default=False,
        metavar="WORDS",
        help="what is none of the classes is background, by 26 common names or by these",
    )
    parser.add_argument(
        "--base", action="store_true", help="show the method without FreeCP beside it"
    )
    parser.add_argument(
        "--maps", action="store_true", help="a figure of class activation maps of every image"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="last: KEY VALUE ... of the config"
    )
    given = list(sys.argv[1:] if argv is None else argv)
    args, unknown = parser.parse_known_args(given)
    if unknown:
        parser.error(_unrecognized(given, unknown))
    if args.maps and args.video_input:
        parser.error("--maps is for images; leave it out with --video-input")
    return args


def _unrecognized(given: Sequence[str], unknown: Sequence[str]) -> str:
    """What to say of arguments that argparse has no place for: words without quotes, perhaps."""
    sentence = f"unrecognized arguments: {' '.join(unknown)}"
    start = given.index(unknown[0])
    flags = [i for i, argument in enumerate(given[:start]) if argument.startswith("--")]
    if unknown[0].startswith("-") or not flags:
        return sentence
    flag, _, first = given[flags[-1]].partition("=")
    if len(flag) < 3 or not any(name.startswith(flag) for name in ("--vocabulary", "--background")):
        return sentence
    words = [first] if first else []
    for argument in given[flags[-1] + 1 :]:
        if argument.startswith("--"):
            break
        words.append(argument)
    return f'{sentence}; put quotes around the whole list: {flag} "{" ".join(words)}"'


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command line; the exit code, 1 when an image or anything else failed.

    Args:
        prog: what the command is called; by default the name of the script.
    """
    args = parse_args(argv, prog)
    # Read when a video is first opened. What OpenCV's ffmpeg says of encoders that are not there,
    # nobody asked.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    setup_logger(name="freecp_d2")
    try:
        vocabulary = None if args.vocabulary is None else words_of(args.vocabulary)
        background = args.background
        if isinstance(background, str):
            background = _names("--background", background)
        predictor = FreeCPPredictor(args.config_file, args.opts)
        if not predictor.purifies and (args.base or args.maps):
            raise ValueError("MODEL.FREECP.ENABLED is False: leave out --base and --maps")
        words = predictor.prepare(vocabulary, background)
        if args.video_input:
            segment_video(predictor, words, args)
            return 0
        faults = segment_images(predictor, words, args)
    except (OSError, ValueError) as error:
        print(f"{args.prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError, cv2.error) as error:
        if not _memory_ran_out(error):
            raise
        source = args.video_input or Path(args.config_file)
        print(f"{args.prog}: {_sentence(source, error)}", file=sys.stderr)
        return 1
    for fault in faults:
        print(f"{args.prog}: {fault}", file=sys.stderr)
    return 1 if faults else 0
