"""Images into label maps, overlays and, on demand, masks and class activation maps."""

import argparse
import hashlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...data import Vocabulary
from ...files import write_whole
from ...predictor import FreeCPPredictor
from ...segmentation import write_masks, write_png
from ...stopping import Stop
from .bar import windows_on
from .faults import noted
from .inputs import Inputs
from .jobs import Job, Progress, name_results
from .pictures import maps_figure, overlay


def settings_of(
    predictor: FreeCPPredictor, words: Vocabulary, args: argparse.Namespace
) -> dict[str, Any]:
    """What the results of images and videos depend on beside these."""
    return {
        "--config-file and --opts": hashlib.sha256(predictor.cfg.dump().encode()).hexdigest(),
        "--vocabulary": [list(names) for names in words.classes],
        "--background": list(words.background),
        "--base": args.base,
    }


def segment_images(
    predictor: FreeCPPredictor,
    words: Vocabulary,
    inputs: Inputs,
    args: argparse.Namespace,
    faults: list[str],
    stop: Stop,
) -> None:
    """Segment the images, until `stop` has a signal.

    Sentences about those that could not be segmented are added to `faults`.

    Raises:
        OSError: nothing can be written.
        ValueError: the folder holds results of other settings, or of another image of a name.
    """
    settings = settings_of(predictor, words, args) | {"--maps": args.maps, "--masks": args.masks}
    with Progress(args.output, settings) as progress:
        jobs = name_results(inputs.images, inputs.root, progress.records)
        for job in jobs:
            if not Path(job.name).name.startswith(job.source.stem):
                print(
                    f"{args.prog}: {job.source}: its results are named {job.name}.png",
                    file=sys.stderr,
                )
        waiting = [job for job in jobs if not progress.is_done(job)]
        done = len(jobs) - len(waiting)
        if done:
            print(f"{done} of {len(jobs)} images are done already")
        try:
            for job in (bar := tqdm(waiting, unit="image")):
                with noted(faults, job.source, args.debug):
                    progress.add(_segment_image(predictor, job, words, args, windows_on(bar)))
                    done += 1
                if stop.signal:
                    break
        finally:
            background = ["background"] * bool(words.background)
            progress.write_coco([*background, *(names[0] for names in words.classes)])
    print(f"{done} of {len(jobs)} images: {args.output}")


def _segment_image(
    predictor: FreeCPPredictor,
    job: Job,
    words: Vocabulary,
    args: argparse.Namespace,
    windows_done: Callable[[int, int], None],
) -> dict[str, Any]:
    """Write an image's results; what :meth:`Progress.add` takes."""
    stamp, method = job.stamp(), predictor.cfg.MODEL.CLIP.METHOD
    encoded = predictor.encode(job.source, windows_done)
    result = predictor.segment(encoded, words)
    results = {f"{method} + FreeCP" if predictor.purifies else method: result}
    if args.base:
        base = predictor.base
        alone = base.segment(base.encode(result.image, windows_done), words)
        results = {f"{method} alone": alone, **results}
    pictures = {"labels": result.label_image(), "overlays": overlay(results)}
    files = []
    for kind, picture in pictures.items():
        files.append(args.output / kind / f"{job.name}.png")
        write_png(files[-1], picture)
    if args.masks:
        files += write_masks(args.output / "masks" / job.name, result)
    if args.maps:
        content = io.BytesIO()
        maps_figure(predictor, encoded, result, words).savefig(content, dpi=120)
        files.append(args.output / "maps" / f"{job.name}.png")
        write_whole(files[-1], content.getvalue())
    height, width = result.label_map.shape
    coco = result.to_coco()
    return {
        "name": job.name,
        "file_name": job.file_name,
        "source": stamp,
        "size": {"height": height, "width": width},
        "files": [file.relative_to(args.output).as_posix() for file in files],
        "presence": coco["images"][0]["presence"],
        "segments": coco["annotations"],
    }
