"""COCO's annotations of label maps, read back by pycocotools."""

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_fill_holes

from freecp_d2.coco import annotations, encode_mask, outline


def masks(height: int, width: int, seed: int, block: int) -> np.ndarray:
    """Random pieces of at least `block` pixels."""
    cells = np.random.default_rng(seed).random((-(-height // block), -(-width // block))) > 0.5
    return cells.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 999), st.integers(1, 7))
def test_masks_come_back(height, width, seed, block):
    mask = masks(height, width, seed, block)
    rle = encode_mask(mask)
    assert isinstance(rle["counts"], str) and rle["size"] == [height, width]
    assert np.array_equal(pycocotools.mask.decode(rle) > 0, mask)


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 999), st.integers(1, 7))
def test_polygons_are_masks_without_holes(height, width, seed, block):
    mask = masks(height, width, seed, block)
    polygons = outline(mask)
    if not mask.any():
        assert polygons == []
        return
    assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)
    rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, height, width))
    filled = pycocotools.mask.decode(rle) > 0
    # A hole is one whether or not its corners touch the outside.
    assert any(
        np.array_equal(filled, binary_fill_holes(mask, structure))
        for structure in (None, np.ones((3, 3)))
    )


def test_an_annotation_a_class():
    labels = np.array([[2, 2, 0, 255], [2, 0, 0, 255]])
    first, second = annotations(labels, {0: 0.25, 2: 0.123456}, ignore=(255,))
    assert first | {"segmentation": None} == {
        "category_id": 0,
        "segmentation": None,
        "area": 3,
        "bbox": [1.0, 0.0, 2.0, 2.0],
        "iscrowd": 0,
        "score": 0.25,
    }
    assert (second["category_id"], second["area"], second["score"]) == (2, 3, 0.1235)
    assert np.array_equal(pycocotools.mask.decode(second["segmentation"]), labels == 2)
    (polygon,) = annotations(labels, {0: 0, 2: 0}, ignore=(0, 255), shape="polygons")
    (rle,) = pycocotools.mask.frPyObjects(polygon["segmentation"], 2, 4)
    assert np.array_equal(pycocotools.mask.decode(rle), labels == 2)


def test_a_class_without_a_score_is_an_error():
    with pytest.raises(KeyError):
        annotations(np.zeros((2, 2), int), {1: 0.5})
