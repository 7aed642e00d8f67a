"""Tiny folders in the layouts of the official downloads, with the label maps to expect of them.

Ids and paths are written down here once more, and masks are made pixel by pixel, so that nothing
of the package is taken for granted.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as rle

COCO_STUFF_DROPPED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_THINGS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
CITYSCAPES_TRAIN_IDS = {
    7: 0,  # road
    8: 1,  # sidewalk
    11: 2,  # building
    12: 3,  # wall
    13: 4,  # fence
    17: 5,  # pole
    19: 6,  # traffic light
    20: 7,  # traffic sign
    21: 8,  # vegetation
    22: 9,  # terrain
    23: 10,  # sky
    24: 11,  # person
    25: 12,  # rider
    26: 13,  # car
    27: 14,  # truck
    28: 15,  # bus
    31: 16,  # train
    32: 17,  # motorcycle
    33: 18,  # bicycle
}
# fmt: off
CONTEXT_59 = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on
COCO_STUFF_IDS = [i for i in range(182) if i not in COCO_STUFF_DROPPED] + [255]

BENCHMARKS = (
    "coco_stuff164k",
    "coco_object",
    "ade20k",
    "voc20",
    "voc21",
    "pcontext59",
    "pcontext60",
    "cityscapes",
    "ade20k_847",
    "pcontext459",
)
ADE20K_847 = {2978: 0, 312: 1, 2420: 2, 14: 94, 3144: 99, 3107: 165, 10: 210, 2646: 843, 3148: 846}
"""Some objects of the full ADE20K -> class."""


def write_official(
    benchmark: str, root: Path, images: int = 3, seed: int = 0, context: str = "mat"
) -> dict[str, np.ndarray]:
    """Write a benchmark's validation set as it is downloaded: JPEG, PNG, .mat, JSON, file lists.

    Benchmarks of one data set may be written to one root; with the same arguments they share the
    images and COCO's two the label maps.

    Args:
        root: DETECTRON2_DATASETS.
        context: "mat" or "json", the annotation of Pascal Context.

    Returns:
        Name relative to the image folder, without suffix -> the (H, W) label map that
        `freecp_d2.data.prepare` must make of it, uint8, or uint16 of the large vocabularies.
    """
    return _WRITERS[benchmark](benchmark, Path(root), images, seed, context)


def each_pixel(labels: np.ndarray, expected: Callable[[int], int], dtype=np.uint8) -> np.ndarray:
    """A label map made from another by a loop over its pixels."""
    result = np.empty(labels.shape, dtype)
    for row in range(labels.shape[0]):
        for column in range(labels.shape[1]):
            result[row, column] = expected(int(labels[row, column]))
    return result


def _coco_stuff(benchmark, root, images, seed, context):
    def expected(raw: int) -> int:
        return 255 if raw == 255 else raw - sum(dropped < raw for dropped in COCO_STUFF_DROPPED)

    masks = {}
    for i in range(images):
        name = f"{139 + 146 * i:012d}"
        labels = _blocks(COCO_STUFF_IDS, seed, i)
        _image(root / f"coco/val2017/{name}.jpg", seed, i)
        _png(root / f"coco/stuffthingmaps/val2017/{name}.png", labels)
        masks[name] = each_pixel(labels, expected)
    return masks


def _ade20k(benchmark, root, images, seed, context):
    base, masks = root / "ADEChallengeData2016", {}
    for i in range(images):
        name = f"ADE_val_{i + 1:08d}"
        labels = _blocks(range(151), seed, i)
        _image(base / f"images/validation/{name}.jpg", seed, i)
        _png(base / f"annotations/validation/{name}.png", labels)
        masks[name] = each_pixel(labels, lambda raw: 255 if raw == 0 else raw - 1)
    return masks


def _ade20k_847(benchmark, root, images, seed, context):
    """Objects in colours beside the images; what else is there, parts and JSON, does not count."""
    base, masks = root / "ADE20K_2021_17_01/images/ADE/validation", {}
    for i in range(images):
        name = f"urban/street/ADE_val_{i + 1:08d}"
        labels = _blocks([0, 1, 6399, *ADE20K_847], seed, i)
        colors = np.stack([labels // 256 * 10, labels % 256, np.full(labels.shape, 7)], axis=-1)
        _image(base / f"{name}.jpg", seed, i)
        _png(base / f"{name}_seg.png", colors)
        _png(base / f"{name}_parts_1.png", colors)
        _lines(base / f"{name}.json", ["{}"])
        masks[name] = each_pixel(labels, lambda raw: ADE20K_847.get(raw, 65535), np.uint16)
    return masks


def _voc(benchmark, root, images, seed, context):
    base, masks = root / "VOCdevkit/VOC2012", {}
    for i in range(images + 1):  # the last is of the training set
        name = f"2007_{33 + 9 * i:06d}"
        labels = _blocks([*range(21), 255], seed, i)
        _image(base / f"JPEGImages/{name}.jpg", seed, i)
        _png(base / f"SegmentationClass/{name}.png", labels, palette=True)
        if i < images:
            voc21 = benchmark == "voc21"
            masks[name] = each_pixel(
                labels,
                lambda raw, voc21=voc21: raw if voc21 else (255 if raw in (0, 255) else raw - 1),
            )
    _lines(base / "ImageSets/Segmentation/val.txt", masks)
    _lines(base / "ImageSets/Segmentation/train.txt", [name])
    return masks


def _cityscapes(benchmark, root, images, seed, context):
    base, masks = root / "cityscapes", {}
    for i in range(images):
        city = ("frankfurt", "lindau", "munster")[i % 3]
        name = f"{city}/{city}_{i:06d}_000019"
        labels = _blocks(range(34), seed, i)
        _image(base / f"leftImg8bit/val/{name}_leftImg8bit.png", seed, i)
        _png(base / f"gtFine/val/{name}_gtFine_labelIds.png", labels)
        _png(base / f"gtFine/val/{name}_gtFine_instanceIds.png", labels)
        masks[name] = each_pixel(labels, lambda raw: CITYSCAPES_TRAIN_IDS.get(raw, 255))
    return masks


def _context(benchmark, root, images, seed, context):
    base, masks = root / "VOCdevkit/VOC2010", {}
    known, all_459 = benchmark == "pcontext60", benchmark == "pcontext459"

    def expected(raw: int) -> int:
        if all_459:
            return raw - 1 if raw else 65535
        if raw in CONTEXT_59:
            return CONTEXT_59.index(raw) + known
        return 0 if known else 255

    entries, segments = [], []
    for i in range(images + 1):  # the last is of the training set
        name = f"2008_{2 + 3 * i:06d}"
        labels = _blocks([0, *CONTEXT_59, 1, 3, 200, 459], seed, i)
        _image(base / f"JPEGImages/{name}.jpg", seed, i)
        height, width = labels.shape
        if context == "mat":
            file = base / f"trainval/{name}.mat"
            file.parent.mkdir(parents=True, exist_ok=True)
            scipy.io.savemat(file, {"LabelMap": labels.astype(np.uint16)}, do_compression=True)
        number = int(name.replace("_", ""))
        entries.append(
            {
                "file_name": f"{name}.jpg",
                "image_id": number,
                "phase": "val" if i < images else "train",
                "height": height,
                "width": width,
            }
        )
        for category in np.unique(labels[labels > 0]):
            coded = rle.encode(np.asfortranarray(labels == category, np.uint8))
            coded = {"size": coded["size"], "counts": coded["counts"].decode()}
            segments.append(
                {
                    "id": len(segments),
                    "image_id": number,
                    "category_id": int(category),
                    "segmentation": coded,
                }
            )
        if i < images:
            masks[name] = each_pixel(labels, expected, np.uint16 if all_459 else np.uint8)
    _lines(base / "ImageSets/Main/val.txt", masks)
    _lines(base / "ImageSets/Main/train.txt", [name])
    if context == "json":
        content = {"images": entries, "annos_segmentation": segments, "categories": []}
        (base / "trainval_merged.json").write_text(json.dumps(content))
    return masks


def _coco_object(benchmark, root, images, seed, context):
    """COCO-Object as it is published: the 80 things of COCO-Stuff's maps, all else background."""
    _coco_stuff(benchmark, root, images, seed, context)
    masks = {}
    for i in range(images):
        name = f"{139 + 146 * i:012d}"
        masks[name] = each_pixel(
            _blocks(COCO_STUFF_IDS, seed, i),
            lambda raw: COCO_THINGS.index(raw + 1) + 1 if raw + 1 in COCO_THINGS else 0,
        )
    return masks


def write_instances(root: Path, images: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """COCO's images and instances, without pixel maps; the first image has no instance.

    Returns:
        As :func:`write_official`.
    """
    masks, entries, annotations = {}, [], []
    for i in range(images):
        name, number = f"{139 + 146 * i:012d}", 139 + 146 * i
        _image(root / f"coco/val2017/{name}.jpg", seed, i)
        height, width = _size(seed, i)
        entries.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        rng = np.random.default_rng([seed, i, 2])
        boxes = []
        for k in range(0 if i == 0 else 6):
            left, top = rng.integers(0, width - 8), rng.integers(0, height - 8)
            right, bottom = rng.integers(left + 4, width + 1), rng.integers(top + 4, height + 1)
            box = [int(edge) for edge in (left, top, right, bottom)]
            boxes.append((box, int(rng.choice(COCO_THINGS)), int(k in (2, 4))))
        for box, category, crowd in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "iscrowd": crowd,
                    "area": (box[2] - box[0]) * (box[3] - box[1]),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "segmentation": _runs(box, height, width) if crowd else [_polygon(box)],
                }
            )
        masks[name] = _painted(boxes, height, width)
    content = {
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in COCO_THINGS],
    }
    file = root / "coco/annotations/instances_val2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return masks


def _painted(boxes, height: int, width: int) -> np.ndarray:
    """At every pixel the last single instance, else the last crowd, else 0."""
    mask = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            here = [b for b in boxes if b[0][0] <= x < b[0][2] and b[0][1] <= y < b[0][3]]
            chosen = [b for b in here if not b[2]] or here
            if chosen:
                mask[y, x] = COCO_THINGS.index(chosen[-1][1]) + 1
    return mask


def _polygon(box: list[int]) -> list[int]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]


def _runs(box: list[int], height: int, width: int) -> dict:
    """Uncompressed run lengths, column by column, zeros first."""
    left, top, right, bottom = box
    flat = [left <= x < right and top <= y < bottom for x in range(width) for y in range(height)]
    counts, value = [0], False
    for pixel in flat:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": [height, width], "counts": counts}


def _size(seed: int, i: int) -> tuple[int, int]:
    height, width = np.random.default_rng([seed, i]).integers(24, 49, 2)
    return int(height), int(width)


def _blocks(ids, seed: int, i: int) -> np.ndarray:
    """A label map (H, W) of 4 x 4 blocks of ids drawn at random."""
    height, width = _size(seed, i)
    coarse = np.random.default_rng([seed, i, 1]).choice(list(ids), (13, 13))
    return coarse.repeat(4, 0).repeat(4, 1)[:height, :width]


def _image(path: Path, seed: int, i: int) -> None:
    pixels = np.random.default_rng([seed, i, 3]).integers(0, 256, (*_size(seed, i), 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _png(path: Path, labels: np.ndarray, palette: bool = False) -> None:
    image = Image.fromarray(labels.astype(np.uint8))
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _lines(path: Path, names) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


_WRITERS = {
    "coco_stuff164k": _coco_stuff,
    "coco_object": _coco_object,
    "ade20k": _ade20k,
    "voc20": _voc,
    "voc21": _voc,
    "pcontext59": _context,
    "pcontext60": _context,
    "cityscapes": _cityscapes,
    "ade20k_847": _ade20k_847,
    "pcontext459": _context,
}
