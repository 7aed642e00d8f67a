"""FreeCP without PyTorch: an image to a label map by onnxruntime, NumPy, SciPy and OpenCV alone.

    python projects/Export/run_onnx.py --model output/exported --input scene.png --output labels.png

`--model` is a folder that `freecp export --format onnx` wrote. Of an image it writes a label map
whose values are positions in `labels` of description.json, and prints which classes it holds. Steps
are those of docs/METHOD.md.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
from scipy.sparse.csgraph import connected_components

FORMAT_VERSION = 1
WINDOWS_AT_ONCE = 8


class Model:
    """The programs, words and settings of a folder that `freecp export` wrote.

    Raises:
        ValueError: it is of another format.
    """

    def __init__(self, folder: Path):
        self.settings = json.loads((folder / "description.json").read_text(encoding="utf-8"))
        version, kind = self.settings["format_version"], self.settings["format"]
        if (version, kind) != (FORMAT_VERSION, "onnx"):
            raise ValueError(
                f"{folder}: format {kind}, version {version}; this program reads onnx, version "
                f"{FORMAT_VERSION}: export it anew"
            )
        self.sessions = {
            name: onnxruntime.InferenceSession(
                folder / program["file"], providers=["CPUExecutionProvider"]
            )
            for name, program in self.settings["programs"].items()
        }
        self.text, descriptions = (
            np.load(folder / self.settings["features"][name]) for name in ("text", "descriptions")
        )
        self.descriptions = descriptions[self.settings["num_background"] :]
        self.query_label = np.array(self.settings["query_label"])[self.settings["num_background"] :]

    def run(self, program: str, *inputs: np.ndarray) -> list[np.ndarray]:
        """The outputs of a program, for as many windows as there are."""
        names = self.settings["programs"][program]
        return self.sessions[program].run(
            names["outputs"], dict(zip(names["inputs"], inputs, strict=True))
        )


def segment(model: Model, image: np.ndarray) -> np.ndarray:
    """The label map (H, W) of an image (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the image is too long and narrow for the model's windows.
    """
    settings = model.settings
    pixels = normalized(resized(image, settings["image"]), settings["image"])
    places = windows(pixels.shape[1:], settings["window"], settings["stride"])
    maps, kept = [], []
    for start in range(0, len(places), WINDOWS_AT_ONCE):
        views = np.stack([pixels[:, y, x] for y, x in places[start : start + WINDOWS_AT_ONCE]])
        patches, _, affinity = model.run("encoder", views)
        refined, consistency, keep, soft_iou = model.run("head", patches, affinity, model.text)
        if not np.isfinite(consistency).all():
            raise ValueError("NaN or infinity in the consistency; check the weights")
        maps += list(refined)
        kept += map(partial(purify_ambiguity, model), views, refined, keep, soft_iou)
    merged, queries = merge(places, maps, np.stack(kept), pixels.shape[1:])
    return labels(merged, model.query_label[queries], settings, image.shape[:2])


def read(file: Path, upright: bool) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image file.

    Args:
        upright: turn it as its EXIF data say.

    Raises:
        OSError, ValueError: there is no such file, or OpenCV does not know it.
    """
    flags = cv2.IMREAD_COLOR | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    content = np.frombuffer(file.read_bytes(), np.uint8)
    image = cv2.imdecode(content, flags) if len(content) else None
    if image is None:
        raise ValueError(f"{file}: not an image that OpenCV reads; convert it")
    return np.ascontiguousarray(image[:, :, ::-1])


def resized(image: np.ndarray, rule: dict) -> np.ndarray:
    """The image with the short side that the model wants, as uint8."""
    if not rule["short_side"]:
        return image
    height, width = image.shape[:2]
    scale = min(rule["long_side"] / max(height, width), rule["short_side"] / min(height, width))
    size = max(int(width * scale + 0.5), 1), max(int(height * scale + 0.5), 1)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def normalized(image: np.ndarray, rule: dict) -> np.ndarray:
    """(3, H, W) float32."""
    mean, std = (np.array(rule[name], np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((image.astype(np.float32) - mean) / std).transpose(2, 0, 1))


def windows(size: tuple[int, int], window: int, stride: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the sliding windows (step 7); the last ones are shifted back inside."""
    if min(size) < window:
        raise ValueError(
            f"the image is {size[0]}x{size[1]} when resized, smaller than the model's window of "
            f"{window}; pad or cut it"
        )
    spans = []
    for side in size:
        count = max(side - window + stride - 1, 0) // stride + 1
        starts = [min(i * stride, side - window) for i in range(count)]
        spans.append([slice(start, start + window) for start in starts])
    return [(rows, columns) for rows in spans[0] for columns in spans[1]]


def purify_ambiguity(
    model: Model, view: np.ndarray, refined: np.ndarray, keep: np.ndarray, soft_iou: np.ndarray
) -> np.ndarray:
    """Step 6 in one window: of look-alikes those stay that win a crop.

    Args:
        view: (3, H, W) normalised pixels.
        refined: (C, h, w) maps.
        keep: (C,) bool, the classes that stayed in step 5.
        soft_iou: (C, C) of the maps, 0 where one of the two did not stay.

    Returns:
        (C,) bool.
    """
    settings = model.settings
    if settings["ambiguity_threshold"] is None:
        return keep
    alike = soft_iou >= settings["ambiguity_threshold"]
    count, group_of = connected_components(alike, directed=False)
    stays = keep.copy()
    height, width = settings["patch_size"]
    for group in range(count):
        members = np.flatnonzero((group_of == group) & keep)
        if len(members) < 2:
            continue
        boxes = boxes_of(refined[members].mean(axis=0), settings["boxes"])
        stays[members] = any(x0 >= x1 or y0 >= y1 for x0, y0, x1, y1 in boxes)
        crops = [
            crop(view[:, y0 * height : y1 * height, x0 * width : x1 * width], settings["crop_size"])
            for x0, y0, x1, y1 in boxes
            if x0 < x1 and y0 < y1
        ]
        if crops:
            (embeddings,) = model.run("crops", np.stack(crops))
            best = (embeddings @ model.descriptions[members].T).argmax(axis=1)
            stays[members[best]] = True
    return stays


def boxes_of(average: np.ndarray, rule: dict) -> list[tuple[int, int, int, int]]:
    """x0, y0, x1, y1 in patches of every contour of a map (step 4's procedure)."""
    height, width = average.shape
    right, bottom = (width, height) if rule["full_extent"] else (width - 1, height - 1)
    quantised = (255 * average).astype(np.uint8)
    above = (quantised > int(rule["threshold"] * quantised.max())).astype(np.uint8)
    contours, _ = cv2.findContours(above, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return [
        (x, y, min(x + w, right), min(y + h, bottom))
        for x, y, w, h in map(cv2.boundingRect, contours)
    ]


def crop(pixels: np.ndarray, size: list[int]) -> np.ndarray:
    """(3, h, w) resampled bilinearly to `size`."""
    image = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)


def merge(
    places: list[tuple[slice, slice]], maps: list[np.ndarray], kept: np.ndarray, size: tuple
) -> tuple[np.ndarray, np.ndarray]:
    """The mean over windows of the queries that stay in any of them (step 7).

    Returns:
        (S, H, W), and the positions (S,) of these queries.
    """
    queries = np.flatnonzero(kept.any(axis=0))
    total, count = np.zeros((len(queries), *size), np.float32), np.zeros(size, np.float32)
    for (y, x), of_window, stays in zip(places, maps, kept, strict=True):
        extent = x.stop - x.start, y.stop - y.start
        for position, query in enumerate(queries):
            if stays[query]:
                total[position, y, x] += cv2.resize(of_window[query], extent)
        count[y, x] += 1
    return total / count, queries


def labels(
    maps: np.ndarray, query_label: np.ndarray, settings: dict, size: tuple[int, int]
) -> np.ndarray:
    """The best query's label at every pixel of an image of `size`; the background's is 0."""
    score, label = np.zeros(size, np.float32), np.zeros(size, np.int64)
    for of_query, its_label in zip(maps, query_label, strict=True):
        upsampled = cv2.resize(of_query, size[::-1])
        better = upsampled > score
        score[better], label[better] = upsampled[better], its_label
    if settings["num_background"]:
        label[1 - score >= score] = 0
    return label


def main() -> None:
    """Segment an image."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--input", required=True, type=Path, metavar="IMAGE")
    parser.add_argument("--output", required=True, type=Path, metavar="PNG")
    args = parser.parse_args()
    try:
        model = Model(args.model)
        label_map = segment(model, read(args.input, model.settings["image"]["exif_orientation"]))
        names = model.settings["labels"]
        _, png = cv2.imencode(".png", label_map.astype(np.uint8 if len(names) < 256 else np.uint16))
        args.output.write_bytes(png.tobytes())
    except (OSError, ValueError) as error:
        sys.exit(f"run_onnx.py: {error}")
    shares = np.bincount(label_map.ravel(), minlength=len(names)) / label_map.size
    for label in np.argsort(-shares, kind="stable"):
        if shares[label]:
            print(f"{names[label]}: {100 * shares[label]:.0f} %")


if __name__ == "__main__":
    main()
