"""Official ids to contiguous ones, against the data sets' own tables, and instances to pixels."""

import numpy as np
import pytest
import scipy.io
from pycocotools import mask as rle

from freecp_d2.data.benchmarks.layout import BENCHMARKS
from freecp_d2.data.prepare import convert
from freecp_d2.data.prepare.sources import _PIXEL_MAPS


def relabelled(name: str, pixel: int) -> int | None:
    """What a pixel of an official label map becomes; None when it is refused."""
    benchmark = BENCHMARKS[name]
    try:
        made = convert.relabel(
            np.full((1, 1), pixel, np.uint8),
            benchmark.pixel_to_contiguous,
            _PIXEL_MAPS[name].others,
        )
    except ValueError as error:
        assert f"no id {pixel};" in str(error)
        return None
    assert made.dtype == np.uint8
    return int(made[0, 0])


def test_every_id_of_coco_stuff_and_none_that_coco_dropped():
    dropped = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    made = [relabelled("coco_stuff164k", pixel) for pixel in range(256)]
    assert [i for i in range(182) if made[i] is None] == sorted(dropped)
    assert [i for i in made[:182] if i is not None] == list(range(171))
    assert made[182:255] == [None] * 73 and made[255] == 255
    assert (made[0], made[10], made[12], made[89], made[91], made[181]) == (0, 10, 11, 79, 80, 170)


def test_every_id_of_ade20k_and_voc():
    ade20k = [relabelled("ade20k", pixel) for pixel in range(256)]
    assert ade20k == [255, *range(150), *[None] * 105]
    voc20 = [relabelled("voc20", pixel) for pixel in range(256)]
    assert voc20 == [255, *range(20), *[None] * 234, 255]
    voc21 = [relabelled("voc21", pixel) for pixel in range(256)]
    assert voc21 == [*range(21), *[None] * 234, 255]


def test_every_id_of_cityscapes():
    made = [relabelled("cityscapes", pixel) for pixel in range(256)]
    table = [255] * 7 + [0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255]
    table += [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255, 16, 17, 18]
    assert made == table + [None] * 222


def test_negative_and_large_ids_are_refused():
    for wrong in (-1, 460, 70000):
        with pytest.raises(ValueError, match=f"no id {wrong};"):
            convert.relabel(np.array([[2, wrong]]), {2: 0}, range(460))


@pytest.mark.parametrize(("name", "fill"), [("pcontext59", 255), ("pcontext60", 0)])
def test_pascal_contexts_other_labels_become_background_or_ignored(name, fill):
    ids = BENCHMARKS[name].contiguous_ids
    labels = np.arange(460).reshape(20, 23)
    made = convert.relabel(labels, ids, range(460), fill)
    assert np.count_nonzero(made != fill) == 59
    first = 0 if fill else 1
    assert made[made != fill].tolist() == list(range(first, first + 59))
    # aeroplane, dog, person, sky, table, wood, as the 459 labels number them
    assert [made.flat[i] - first for i in (2, 113, 284, 360, 397, 458)] == [0, 22, 36, 46, 49, 58]


def square(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def test_crowds_lie_under_instances_and_later_instances_over_earlier():
    ids = BENCHMARKS["coco_object"].contiguous_ids
    crowd = np.zeros((6, 8), np.uint8, order="F")
    crowd[:, 3:] = 1
    annotations = [
        {"category_id": 1, "iscrowd": 0, "segmentation": square(0, 0, 4, 4)},
        {"category_id": 90, "iscrowd": 0, "segmentation": square(2, 2, 6, 6)},
        {"category_id": 13, "iscrowd": 1, "segmentation": rle.encode(crowd)},
    ]
    made = convert.coco_object(annotations, ids, 6, 8)
    assert made.tolist() == [
        [1, 1, 1, 1, 12, 12, 12, 12],
        [1, 1, 1, 1, 12, 12, 12, 12],
        [1, 1, 80, 80, 80, 80, 12, 12],
        [1, 1, 80, 80, 80, 80, 12, 12],
        [0, 0, 80, 80, 80, 80, 12, 12],
        [0, 0, 80, 80, 80, 80, 12, 12],
    ]
    assert made.dtype == np.uint8
    assert not convert.coco_object([], ids, 6, 8).any()


def test_polygons_of_several_parts_and_run_lengths_of_both_kinds():
    parts = square(0, 0, 1, 2) + square(2, 0, 3, 2)
    expected = [[7, 0, 7], [7, 0, 7]]
    runs = {"size": [2, 3], "counts": [0, 2, 2, 2]}
    coded = rle.encode(np.asfortranarray([[1, 0, 1], [1, 0, 1]], np.uint8))
    coded["counts"] = coded["counts"].decode()
    for segmentation in (parts, runs, coded):
        assert convert.paint([(7, segmentation)], 2, 3).tolist() == expected


@pytest.mark.parametrize("content", [{"other": np.ones((2, 2))}, {"LabelMap": "text"}])
def test_a_mat_without_label_map_is_refused(content, tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", content)
    with pytest.raises(ValueError, match="LabelMap"):
        convert.read_context_mat(tmp_path / "x.mat")
