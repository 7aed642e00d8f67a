"""An answer drawn on its picture."""

from dataclasses import replace

import numpy as np
import pytest

from freecp_d2.cli.web import overlay as module
from freecp_d2.cli.web.overlay import overlay
from freecp_d2.segmentation import Segmentation

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def segmentation_of(label_map, names=("left", "right", "speck")):
    labels = np.asarray(label_map)
    count = len(names)
    return Segmentation(
        image=np.full((*labels.shape, 3), 100, np.uint8),
        label_map=labels,
        class_names=tuple(names),
        scores=np.ones(count, np.float32),
        shares=np.bincount(labels.ravel(), minlength=count) / labels.size,
        consistency=np.full(count, np.nan, np.float32),
        removed=[],
        colors=COLORS[:count],
    )


def halves(height, width):
    labels = np.zeros((height, width), np.int64)
    labels[:, width // 2 :] = 1
    return labels


def test_classes_are_blended_outlined_and_named():
    picture = overlay(segmentation_of(halves(200, 400)))
    assert picture.shape == (200, 400, 3) and picture.dtype == np.uint8
    blend = np.round(module.ALPHA * COLORS + (1 - module.ALPHA) * 100)
    for label, columns in ((0, slice(0, 40)), (1, slice(360, 400))):
        assert (abs(picture[:, columns] - blend[label]) <= 1).all()
    assert (picture[:60, 199:201] == 255).all()  # the outline
    for columns in (slice(50, 150), slice(250, 350)):
        box = picture[:, columns]
        assert (box == 0).all(axis=2).sum() > 100 and (box > 200).all(axis=2).sum() > 20


@pytest.mark.parametrize("shape", [(300, 400), (3000, 4000)])
def test_small_pieces_are_outlined_and_only_their_names_left_out(shape):
    labels = np.zeros(shape, np.int64)
    step = shape[0] // 100
    labels[5 * step : 6 * step, 5 * step : 6 * step] = 2
    picture = overlay(segmentation_of(labels))
    near = picture[4 * step : 7 * step, 4 * step : 7 * step]
    assert (near == 255).all(axis=2).any() and not (near == 0).all(axis=2).any()


@pytest.mark.parametrize("shape", [(60, 900), (900, 60), (12, 16)])
def test_names_lie_inside_the_class_and_the_picture(shape):
    labels = np.ones(shape, np.int64)
    picture = overlay(segmentation_of(labels, ["left", "i"]))
    ys, xs = np.nonzero((picture == 0).all(axis=2))
    assert len(ys) and ys.max() < shape[0] and xs.max() < shape[1]
    assert abs(ys.mean() - shape[0] / 2) < shape[0] / 3
    assert abs(xs.mean() - shape[1] / 2) < shape[1] / 3


def test_a_name_stands_where_its_class_is_widest():
    labels = np.zeros((400, 400), np.int64)
    labels[300:, 250:] = 1
    labels[0:6, :] = 1  # longer, but thin
    segmentation = replace(segmentation_of(labels, ["left", "i"]), shares=np.array([0, 1]))
    y, x = np.argwhere((overlay(segmentation) == 0).all(axis=2)).mean(axis=0)
    assert 300 < y < 400 and 250 < x < 400
