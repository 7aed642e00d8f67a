"""Affinity by masks against brute force, over any masks, windows, grids and sizes."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from freecp_d2 import ops
from freecp_d2.affinity import AffinityFault, MaskFolder, SourceImage, mask_affinity, read_masks
from freecp_d2.sliding_window import Window, windows_of


def brute_force_shares(mask, size, window, patch, grid):
    """Of (H, W) bool: how much of each patch it covers, on a grid as fine as both sizes need."""
    (height, width), (rows, columns) = size, mask.shape
    fine = mask.repeat(height, axis=0).repeat(width, axis=1)
    shares = np.zeros(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            top, left = window.rows.start + i * patch[0], window.columns.start + j * patch[1]
            part = fine[
                top * rows : (top + patch[0]) * rows, left * columns : (left + patch[1]) * columns
            ]
            assert part.shape == (patch[0] * rows, patch[1] * columns)
            shares[i, j] = part.mean()
    return shares.flatten()


def brute_force_affinity(shares):
    """Of a list of (N,), by the sum that the documentation says."""
    count = len(shares[0]) if shares else 0
    given = [s / np.maximum(sum(shares), 1) for s in shares]
    affinity = np.diag(1 - sum(given)) if shares else np.zeros((count, count))
    for w in given:
        for i in range(count):
            for j in range(count):
                if w.sum():
                    affinity[i, j] += w[i] * w[j] / w.sum()
    return affinity


def write_masks(folder: Path, stem: str, masks: list[np.ndarray], kind: str) -> None:
    """In one of the formats that hold overlapping masks."""
    if kind == "folder":
        (folder / stem).mkdir()
        (folder / stem / "metadata.csv").write_text("id,area\n")  # as amg.py
        for number, mask in enumerate(masks):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / stem / f"{number}.png")
        return
    rles = [pycocotools.mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
    segmentations = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]
    if kind == "uncompressed":
        segmentations = [{"size": [*mask.shape], "counts": uncompressed(mask)} for mask in masks]
    records = [{"segmentation": s, "area": 1, "predicted_iou": 0.9} for s in segmentations]
    content = {"image": {}, "annotations": records} if kind == "sa-1b" else records
    (folder / f"{stem}.json").write_text(json.dumps(content))


def uncompressed(mask: np.ndarray) -> list[int]:
    """Lengths of runs down the columns, the first of zeros."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    ends = [0, *changes.tolist(), len(flat)]
    lengths = np.diff(ends).tolist()
    return [0, *lengths] if flat[0] else lengths


KINDS = ("json", "uncompressed", "sa-1b", "folder")


@st.composite
def images(draw):
    """Sizes, windows and masks of an image; and the patch, at most as large as a window."""
    size = draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    original = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    count = draw(st.integers(1, 4))
    bits = draw(st.lists(st.booleans(), min_size=count * 81, max_size=count * 81))
    masks = np.array(bits).reshape(count, 9, 9)[:, : original[0], : original[1]]
    return size, original, list(masks)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(images(), min_size=1, max_size=3),
    patch=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    window=st.integers(3, 9),
    stride=st.integers(1, 3),
    kind=st.sampled_from(KINDS),
)
def test_any_masks_windows_and_grids_are_brute_force(
    tmp_path_factory, batch, patch, window, stride, kind
):
    folder = tmp_path_factory.mktemp("masks")
    sources, expected, by_size = [], {}, {}
    for index, (size, original, masks) in enumerate(batch):
        write_masks(folder, f"{index}", masks, kind)
        windows = windows_of(index, size, window, stride)
        sources.append(SourceImage(f"/elsewhere/{index}.jpg", original, size, windows))
        for place in windows:
            grid = place.size[0] // patch[0], place.size[1] // patch[1]
            shares = [brute_force_shares(m, size, place, patch, grid) for m in masks]
            key = (index, place.rows.start, place.columns.start)
            expected[key] = brute_force_affinity(shares)
            by_size.setdefault(place.size, []).append(place)
    affinity = MaskFolder(folder=folder).of_images(sources, patch)
    for (height, width), places in by_size.items():
        pixels = torch.zeros(len(places), 3, height, width)
        together = affinity(places, pixels)
        assert together.dtype == torch.float32 and (together >= 0).all()
        for place, found in zip(places, together, strict=True):
            brute = expected[place.image, place.rows.start, place.columns.start]
            np.testing.assert_allclose(found.numpy(), brute, atol=2e-6)
            (alone,) = affinity([place], pixels[:1])
            torch.testing.assert_close(alone, found, atol=1e-6, rtol=0)
        # Sinkhorn normalisation finds nothing to do.
        torch.testing.assert_close(ops.sinkhorn_affinity(together), together, atol=1e-5, rtol=0)


def test_maps_are_averaged_in_every_mask_and_stay_outside():
    masks = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.float32)
    maps = torch.tensor([0.2, 0.4, 0.0, 1.0, 0.7])
    refined = mask_affinity(masks[None])[0] @ maps
    torch.testing.assert_close(refined, torch.tensor([0.3, 0.3, 0.5, 0.5, 0.7]))


def test_no_masks_leave_every_patch_to_itself(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    window = Window(0, slice(0, 4), slice(0, 6))
    source = SourceImage("a.png", (4, 6), (4, 6), [window])
    affinity = MaskFolder(folder=tmp_path).of_images([source], (2, 2))
    assert affinity([window], torch.zeros(1, 3, 4, 6)).equal(torch.eye(6)[None])


def test_every_format_holds_the_same_masks(tmp_path):
    rng = np.random.default_rng(0)
    masks = list(rng.random((5, 7, 11)) < 0.5)
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        write_masks(tmp_path / kind, "photo.of", masks, kind)
        read = [*read_masks(tmp_path / kind, "s3://bucket/photo.of.jpg", (7, 11))]
        assert np.array_equal(read, masks), kind


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=12).filter(sum),
    st.booleans(),
)
def test_long_runs_are_read_as_pycocotools_reads_them(tmp_path_factory, lengths, first):
    folder = tmp_path_factory.mktemp("masks")
    mask = np.repeat((np.arange(len(lengths)) + first) % 2, lengths).astype(bool)[None]
    write_masks(folder, "a", [mask], "json")
    (read,) = read_masks(folder, "a.jpg", mask.shape)
    (record,) = json.loads((folder / "a.json").read_text())
    assert np.array_equal(read, mask)
    assert np.array_equal(read, pycocotools.mask.decode(record["segmentation"]))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=0x100), max_size=12))
def test_no_text_of_counts_does_more_than_be_refused(tmp_path_factory, text):
    """pycocotools ends the process at some of them."""
    folder = tmp_path_factory.mktemp("masks")
    rle = {"size": [3, 4], "counts": text}
    (folder / "a.json").write_text(json.dumps([{"segmentation": rle}]))
    try:
        (mask,) = read_masks(folder, "a.jpg", (3, 4))
    except AffinityFault:
        return
    assert mask.shape == (3, 4) and mask.dtype == bool


def test_every_value_of_a_label_map_but_0_is_a_mask(tmp_path):
    labels = np.array([[0, 300, 300], [7, 0, 65535]], np.uint16)
    Image.fromarray(labels).save(tmp_path / "a.png")
    read = [*read_masks(tmp_path, "a.jpg", (2, 3))]
    assert np.array_equal(read, [labels == 7, labels == 300, labels == 65535])


MASK = {"size": [2, 3], "counts": [0, 6]}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", b"[", "cannot be read"),
        ("a.json", b"\xff", "cannot be read"),
        ("a.json", b'{"masks": []}', "no list of records"),
        ("a.json", b"[3]", "mask 0 .* no segmentation as COCO's RLE"),
        ("a.json", json.dumps([{"segmentation": [[0, 0, 1, 1]]}]).encode(), "mask 0 .* COCO's RLE"),
        ("a.json", json.dumps([{"segmentation": {"size": [2, 3]}}]).encode(), "mask 0 .* RLE"),
        *(
            ("a.json", json.dumps([{"segmentation": MASK | changed}]).encode(), sentence)
            for changed, sentence in (
                ({"size": [3, 2]}, r"have \(height, width\) \(3, 2\), and the image \(2, 3\)"),
                ({"size": [2, 3, 1]}, "have"),
                ({"counts": [6, 1]}, "mask 0 .* damaged"),
                ({"counts": [-1, 7]}, "mask 0 .* damaged"),
                ({"counts": []}, "mask 0 .* damaged"),
                ({"counts": ["6"]}, "mask 0 .* damaged"),
                ({"counts": [2.0, 4]}, "mask 0 .* damaged"),
                ({"counts": None}, "mask 0 .* COCO's RLE"),
                ({"counts": ""}, "mask 0 .* damaged"),
                ({"counts": "é"}, "mask 0 .* damaged"),
                ({"counts": "~~~~"}, "mask 0 .* damaged"),
            )
        ),
        ("a.png", b"no image", "not an image"),
        ("a/x.png", b"no image", "not an image"),
        ("a/metadata.csv", b"", "has no PNG"),
        ("b.png", b"", "there is none of them"),
    ],
)
def test_what_is_wrong_with_masks_is_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AffinityFault, match=sentence) as error:
        [*read_masks(tmp_path, "/photos/a.jpg", (2, 3))]
    text = str(error.value)
    assert text.startswith("/photos/a.jpg: ") and str(tmp_path / "a") in text and "\n" not in text


def test_a_png_of_another_size_or_of_colours_is_refused(tmp_path):
    Image.new("L", (2, 3)).save(tmp_path / "a.png")
    with pytest.raises(AffinityFault, match=r"\(3, 2\), and the image \(2, 3\).*EXIF_ORIENTATION"):
        [*read_masks(tmp_path, "a.jpg", (2, 3))]
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(AffinityFault, match="one channel"):
        [*read_masks(tmp_path, "a.jpg", (2, 3))]


def test_two_kinds_of_masks_of_an_image_are_refused(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(AffinityFault, match="more than one of them"):
        [*read_masks(tmp_path, "a.jpg", (2, 3))]


def test_the_folder_must_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="AFFINITY_MASKS: there is no folder"):
        MaskFolder(folder=tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="AFFINITY_MASKS: there is no folder ''"):
        MaskFolder(folder="")
