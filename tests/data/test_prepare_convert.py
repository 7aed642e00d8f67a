"""Official ids to contiguous ones, against the data sets' own tables, and instances to pixels."""

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image
from pycocotools import mask as rle

from freecp_d2.data.benchmarks.layout import BENCHMARKS
from freecp_d2.data.prepare import convert


def relabelled(name: str, pixel: int) -> int | None:
    """What a pixel of an official label map becomes; None when it is refused."""
    source = BENCHMARKS[name].sources[0]
    labels = np.full((1, 1), pixel, np.uint8)
    try:
        made = convert.relabel(labels, source.ids, source.others, source.fill)
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


def test_coco_object_is_the_things_of_coco_stuff_and_nothing_is_ignored():
    """METHOD.md section 9: pixels 0..90 of the 80 things -> 1..80, everything else and 255 -> 0."""
    dropped = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    made = [relabelled("coco_object", pixel) for pixel in range(256)]
    things = [pixel for pixel in range(91) if pixel not in dropped]
    assert [made[pixel] for pixel in things] == list(range(1, 81))
    assert all(made[pixel] == 0 for pixel in {*dropped, *range(91, 256)})


def test_coco_object_is_the_same_from_prepared_maps_of_coco_stuff():
    labels = np.array(
        [[*[p for p in range(182) if relabelled("coco_stuff164k", p) is not None], 255]]
    )
    raw, stuff = BENCHMARKS["coco_object"].sources[0], BENCHMARKS["coco_stuff164k"].sources[0]
    contiguous = convert.relabel(labels, stuff.ids, stuff.others)
    prepared = [s for s in BENCHMARKS["coco_object"].sources if "detectron2" in s.path]
    assert len(prepared) == 2
    expected = convert.relabel(labels, raw.ids, raw.others, raw.fill)
    for source in prepared:
        made = convert.relabel(contiguous, source.ids, source.others, source.fill)
        assert made.tolist() == expected.tolist()


def test_pascal_context_from_the_maps_of_the_other_number_of_classes():
    of59, of60 = (
        [s for s in BENCHMARKS[name].sources if hasattr(s, "ids")][0]
        for name in ("pcontext59", "pcontext60")
    )
    maps60, maps59 = np.arange(60)[None], np.array([[255, *range(59)]])
    assert convert.relabel(maps60, of59.ids, of59.others, of59.fill).tolist() == maps59.tolist()
    assert convert.relabel(maps59, of60.ids, of60.others, of60.fill).tolist() == maps60.tolist()


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


def compressed(mask: np.ndarray) -> dict:
    return rle.encode(np.asfortranarray(mask, np.uint8))


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_are_read_as_pycocotools_reads_them(seed):
    """The counts that are checked are those that pycocotools decodes."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2)
    mask = rng.random((height, width)) < rng.choice([0, 0.01, 0.5, 0.99, 1])
    mask = mask.repeat(rng.integers(1, 9), 0)[:height]
    edges = np.flatnonzero(np.diff(np.r_[0, mask.T.ravel(), 2]))
    runs = np.diff(np.r_[0, edges]).tolist()
    if mask[0, 0]:
        runs = [0, *runs[1:]] if runs[0] == 0 else [0, *runs]
    coded = compressed(mask)
    assert convert._runs(coded["counts"]) == runs == convert._runs(coded["counts"].decode())
    np.testing.assert_array_equal(convert.paint([(1, coded)], *mask.shape), mask)


BIG = np.indices((40, 50)).sum(0) % 7 > 2


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ({"size": [40, 50], "counts": [0, 1]}, "sum to 1, its image has 2000"),
        ({"size": [40, 50], "counts": [1000, 999]}, "sum to 1999"),
        ({"size": [40, 50], "counts": [1000, 1001]}, "sum to 2001"),
        ({"size": [40, 50], "counts": []}, "sum to 0"),
        ({"size": [40, 50], "counts": [-5, 2005]}, "negative"),
        ({"size": [40, 50], "counts": [1000.5, 999.5]}, "whole numbers"),
        ({"size": [40, 50], "counts": [True, 1999]}, "whole numbers"),
        ({"size": [40, 50], "counts": [2**70, 0]}, "malformed"),
        ({"size": [40, 50], "counts": compressed(BIG[:, :30])["counts"]}, "sum to 1200"),
        ({"size": [40, 50], "counts": compressed(np.tile(BIG, 2))["counts"]}, "sum to 4000"),
        ({"size": [40, 50], "counts": compressed(BIG)["counts"][:-30]}, "malformed"),
        ({"size": [40, 50], "counts": compressed(BIG)["counts"] + b"1"}, "sum to 2004"),
        ({"size": [40, 50], "counts": b""}, "no text of COCO's"),
        ({"size": [40, 50], "counts": b"o"}, "no text of COCO's"),
        ({"size": [40, 50], "counts": b"\xff\xfe"}, "no text of COCO's"),
        ({"size": [40, 50], "counts": "\u00e9"}, "malformed"),
        ({"size": [40, 50], "counts": "oooooooooooooooo1"}, "no text of COCO's"),
        ({"size": [40, 50], "counts": None}, "no text of COCO's"),
        ({"size": [40, 50], "counts": 10**12}, "no text of COCO's"),
        ({"size": [40, 50]}, "no 'counts'"),
        ({"size": [50, 40], "counts": compressed(BIG.T)["counts"]}, "it has size [50, 40]"),
        ([], "malformed"),
        ([[1, 2, 3, 4]], "three points"),
        ([[1, 2, 3, 4, 5]], "three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three points"),
        ([[1, 2, float("nan"), 4, 5, 6]], "x = nan"),
        ([[1, 2, 3, float("inf"), 5, 6]], "y = inf"),
        ([[1, 2, 3, 4, 5e8, 6]], "x = 500000000"),
        (7, "neither polygons nor run lengths"),
        (None, "neither polygons nor run lengths"),
        ("[[0, 0, 1, 0, 1, 1]]", "neither polygons nor run lengths"),
    ],
)  # fmt: skip
def test_damaged_segmentations_are_refused_and_named(segmentation, words):
    annotation = {"id": 4711, "category_id": 2, "iscrowd": 1, "segmentation": segmentation}
    for make in (
        lambda: convert.coco_object([annotation], {2: 1}, 40, 50),
        lambda: convert.context_segments([annotation], {2: 1}, 255, 40, 50),
    ):
        with pytest.raises(ValueError, match="^annotation 4711: ") as caught:
            make()
        assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("category", [460, -1, 2.7, "2", None, True])
def test_categories_that_do_not_exist_are_refused(category):
    annotation = {"id": 4711, "category_id": category, "segmentation": square(0, 0, 4, 4)}
    for make in (
        lambda: convert.coco_object([annotation], {2: 1}, 6, 8),
        lambda: convert.context_segments([annotation], {2: 1}, 255, 6, 8),
    ):
        with pytest.raises(ValueError, match=f"annotation 4711: category_id {category} is none"):
            make()


@pytest.mark.parametrize("content", [{"other": np.ones((2, 2))}, {"LabelMap": "text"}])
def test_a_mat_without_label_map_is_refused(content, tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", content)
    with pytest.raises(ValueError, match="LabelMap"):
        convert.read_context_mat(tmp_path / "x.mat")


def test_a_sparse_mat_is_refused(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"LabelMap": scipy.sparse.csc_matrix(np.eye(3))})
    with pytest.raises(ValueError, match="no LabelMap"):
        convert.read_context_mat(tmp_path / "x.mat")


@pytest.mark.parametrize("value", [2.7, 0.5, np.nan, np.inf, -1.0, -0.5, 460.0, 1e30, -1, 460])
def test_labels_of_a_mat_that_are_none_are_refused(value, tmp_path):
    labels = np.full((3, 4), 2, np.float32 if isinstance(value, float) else np.int16)
    labels[1, 2] = value
    scipy.io.savemat(tmp_path / "x.mat", {"LabelMap": labels})
    with pytest.raises(ValueError, match="its LabelMap holds .* whole numbers of 0 to 459"):
        convert.read_context_mat(tmp_path / "x.mat")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_whole_labels_of_any_type_are_read(dtype, tmp_path):
    labels = np.array([[0, 2], [255, 459 if dtype is not np.uint8 else 7]])
    scipy.io.savemat(tmp_path / "x.mat", {"LabelMap": labels.astype(dtype)})
    read = convert.read_context_mat(tmp_path / "x.mat")
    assert read.dtype == np.int64 and read.tolist() == labels.tolist()


def test_colours_of_the_full_ade20k_become_the_847(tmp_path):
    """Every id that a colour can be, to its class or to what is ignored; B is the instance."""
    ids = np.arange(26 * 256)
    pixels = np.stack([ids // 256 * 10, ids % 256, ids % 7], axis=-1)[None].astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x_seg.png")
    labels = convert.read_colors(tmp_path / "x_seg.png")
    np.testing.assert_array_equal(labels[0], ids)
    (source,) = BENCHMARKS["ade20k_847"].sources
    made = convert.relabel(labels, source.ids, source.others, source.fill)
    assert made.dtype == np.uint16
    known = {int(i): int(c) for i, c in zip(ids, made[0], strict=True) if c != 65535}
    assert known == BENCHMARKS["ade20k_847"].contiguous_ids and len(known) == 847


def test_colours_without_three_channels_are_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "x_seg.png")
    with pytest.raises(ValueError, match=r"x_seg\.png: it has pixels of mode L and not RGB"):
        convert.read_colors(tmp_path / "x_seg.png")
    with pytest.raises(FileNotFoundError, match=r"y_seg\.png: no such file"):
        convert.read_colors(tmp_path / "y_seg.png")


def test_16_bits_only_where_they_are_needed():
    labels = np.array([[1, 2]])
    assert convert.relabel(labels, {1: 0, 2: 255}, ()).dtype == np.uint8
    assert convert.relabel(labels, {1: 0, 2: 256}, ()).dtype == np.uint16
    made = convert.relabel(labels, {1: 0}, (2,), fill=65535)
    assert made.dtype == np.uint16 and made.tolist() == [[0, 65535]]
