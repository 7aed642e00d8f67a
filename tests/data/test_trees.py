"""Folder trees of other projects, as their own files have them, and what docs/data.md says of them.

Paths and ids are written down here once more, so that nothing of the package is taken for granted.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from freecp_d2.data.benchmarks.catalog import BENCHMARKS
from freecp_d2.data.images import load_label_map
from freecp_d2.data.prepare import prepare, verify
from freecp_d2.data.prepare.__main__ import main

# fmt: off
STUFF_DROPPED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# fmt: on
STUFF = [pixel for pixel in range(182) if pixel not in STUFF_DROPPED]


def less_one(classes: int, ignored: tuple[int, ...]) -> dict[int, int]:
    return {**{i: 255 for i in ignored}, **{i: i - 1 for i in range(1, classes + 1)}}


def as_it_is(classes: int, ignored: bool = True) -> dict[int, int]:
    return {**{i: i for i in range(classes)}, **({255: 255} if ignored else {})}


IDS = {  # benchmark, kind of map -> pixel of the map on disk -> pixel that is evaluated
    ("coco_stuff164k", "raw"): {**{p: i for i, p in enumerate(STUFF)}, 255: 255},
    ("coco_stuff164k", "ready"): as_it_is(171),
    ("coco_object", "raw"): {**{p: i + 1 if i < 80 else 0 for i, p in enumerate(STUFF)}, 255: 0},
    ("coco_object", "ready stuff"): {**{i: i + 1 if i < 80 else 0 for i in range(171)}, 255: 0},
    ("coco_object", "ready"): as_it_is(81, ignored=False),
    ("ade20k", "raw"): less_one(150, (0,)),
    ("ade20k", "ready"): as_it_is(150),
    ("voc20", "raw"): less_one(20, (0, 255)),
    ("voc20", "ready"): as_it_is(20),
    ("voc21", "ready"): as_it_is(21),
    ("pcontext59", "ready 60"): less_one(59, (0,)),
    ("pcontext59", "ready"): as_it_is(59),
    ("pcontext60", "ready 59"): {**{i: i + 1 for i in range(59)}, 255: 0},
    ("pcontext60", "ready"): as_it_is(60, ignored=False),
    ("cityscapes", "raw"): {i: CITYSCAPES.index(i) if i in CITYSCAPES else 255 for i in range(34)},
    ("cityscapes", "ready"): as_it_is(19),
    ("ade20k_847", "ready"): {**{i: i for i in range(0, 847, 5)}, 846: 846, 65535: 65535},
    ("pcontext459", "ready"): {**{i: i for i in range(0, 459, 5)}, 458: 458, 65535: 65535},
}


@dataclass(frozen=True)
class Tree:
    """`maps` of `kind` are on disk; `read` are evaluated, the same or those that prepare makes.

    `*` is the image's name. `names`: a file list that is on disk; `made_list`: one that is made.
    """

    project: str
    benchmark: str
    images: str
    maps: str
    kind: str = "ready"
    read: str = ""
    names: str = ""
    made_list: str = ""

    def __str__(self) -> str:
        return f"{self.project}-{self.benchmark}-{self.kind}".replace(" ", "-")

    @property
    def evaluated(self) -> str:
        return self.read or self.maps


def of_voc(project: str, voc: str, listed: bool = True) -> list[Tree]:
    """The official folder: VOC20 is made, VOC21 read as it is."""
    images, maps = f"{voc}/JPEGImages/*.jpg", f"{voc}/SegmentationClass/*.png"
    names = f"{voc}/ImageSets/Segmentation/val.txt"
    ours = f"{voc}/annotations_detectron2/*.png"
    return [
        Tree(project, "voc20", images, maps, "raw", ours, names),
        Tree(project, "voc21", images, maps, names=names),
    ]


def of_context(project: str, voc: str) -> list[Tree]:
    """What MMSegmentation's converter leaves: PC60 is read as it is, PC59 is made."""
    images, maps = f"{voc}/JPEGImages/*.jpg", f"{voc}/SegmentationClassContext/*.png"
    names = f"{voc}/ImageSets/SegmentationContext/val.txt"
    ours = f"{voc}/annotations_detectron2/pc59_val/*.png"
    return [
        Tree(project, "pcontext59", images, maps, "ready 60", ours, names),
        Tree(project, "pcontext60", images, maps, names=names),
    ]


def of_two(project: str, benchmark: str, images: str, raw: str, ready: str) -> list[Tree]:
    """Official maps, of which ours are made where the project has its own, and its own."""
    return [
        Tree(project, benchmark, images, raw, "raw", ready),
        Tree(project, benchmark, images, ready),
    ]


ADE = "ADEChallengeData2016"
ADE_FOLDERS = (
    "images/validation/*.jpg",
    "annotations/validation/*.png",
    "annotations_detectron2/validation/*.png",
)
CITY_FOLDERS = (
    "leftImg8bit/val/*_leftImg8bit.png",
    "gtFine/val/*_gtFine_labelIds.png",
    "gtFine/val/*_gtFine_labelTrainIds.png",
)
MMSEG, CATSEG, SAN, FREECP, D2 = "MMSegmentation", "CAT-Seg", "SAN", "FreeCP", "Detectron2"
COCO = {
    MMSEG: "coco_stuff164k/images/val2017/*.jpg",
    CATSEG: "coco-stuff/images/val2017/*.jpg",
    SAN: "coco/val2017/*.jpg",
    D2: "coco/val2017/*.jpg",
    FREECP: "ms_coco_17/images/val2017/*.jpg",
}
MM_MAPS, MS_MAPS = "coco_stuff164k/annotations/val2017", "ms_coco_17/annotations"
CAT_MAPS = "coco-stuff/annotations_detectron2/val2017/*.png"
SAN_MAPS = "coco/stuffthingmaps_detectron2/val2017/*.png"
CAT_VOC, SAN_VOC = "VOCdevkit/VOC2012", "VOC2012"
CONTEXT = "VOCdevkit/VOC2010"
ADE_FULL = "ADE20K_2021_17_01"

TREES = [
    # COCO-Stuff
    *of_two(D2, "coco_stuff164k", COCO[D2], "coco/stuffthingmaps/val2017/*.png", SAN_MAPS)[:1],
    Tree(SAN, "coco_stuff164k", COCO[SAN], SAN_MAPS),
    *of_two(
        MMSEG, "coco_stuff164k", COCO[MMSEG], f"{MM_MAPS}/*.png", f"{MM_MAPS}/*_labelTrainIds.png"
    ),
    *of_two(
        CATSEG, "coco_stuff164k", COCO[CATSEG], "coco-stuff/annotations/val2017/*.png", CAT_MAPS
    ),
    *of_two(
        *(FREECP, "coco_stuff164k", COCO[FREECP]),
        *(f"{MS_MAPS}/stuff/*.png", f"{MS_MAPS}/stuff/*_labelTrainIds.png"),
    ),
    # COCO-Object: of COCO-Stuff's maps, official or prepared
    *of_two(
        *(D2, "coco_object", COCO[D2]),
        *("coco/stuffthingmaps/val2017/*.png", "coco/objectmaps_detectron2/val2017/*.png"),
    ),
    Tree(
        *(SAN, "coco_object", COCO[SAN], SAN_MAPS, "ready stuff"),
        "coco/objectmaps_detectron2/val2017/*.png",
    ),
    *of_two(
        *(MMSEG, "coco_object", COCO[MMSEG]),
        *(f"{MM_MAPS}/*.png", f"{MM_MAPS}/*_instanceTrainIds.png"),
    ),
    Tree(
        *(MMSEG, "coco_object", COCO[MMSEG], f"{MM_MAPS}/*_labelTrainIds.png", "ready stuff"),
        f"{MM_MAPS}/*_instanceTrainIds.png",
    ),
    Tree(
        *(CATSEG, "coco_object", COCO[CATSEG], "coco-stuff/annotations/val2017/*.png", "raw"),
        "coco-stuff/objectmaps_detectron2/val2017/*.png",
    ),
    Tree(
        *(CATSEG, "coco_object", COCO[CATSEG], CAT_MAPS, "ready stuff"),
        "coco-stuff/objectmaps_detectron2/val2017/*.png",
    ),
    Tree(FREECP, "coco_object", COCO[FREECP], f"{MS_MAPS}/object/*_instanceTrainIds.png"),
    Tree(
        *(FREECP, "coco_object", COCO[FREECP]),
        *(f"{MS_MAPS}/stuff/*_labelTrainIds.png", "ready stuff"),
        f"{MS_MAPS}/object/*_instanceTrainIds.png",
    ),
    Tree(
        *("others", "coco_object", "coco_object/images/val2017/*.jpg"),
        "coco_object/annotations/val2017/*_instanceTrainIds.png",
    ),
    # ADE20K
    *of_two(CATSEG, "ade20k", *(f"{ADE}/{folder}" for folder in ADE_FOLDERS)),
    Tree(SAN, "ade20k", f"{ADE}/{ADE_FOLDERS[0]}", f"{ADE}/{ADE_FOLDERS[2]}"),
    *of_two(MMSEG, "ade20k", *(f"ade/{ADE}/{folder}" for folder in ADE_FOLDERS))[:1],
    *of_two(FREECP, "ade20k", *(f"ADE/{ADE}/{folder}" for folder in ADE_FOLDERS))[:1],
    # Pascal VOC
    *of_voc(MMSEG, CAT_VOC),
    *of_voc(FREECP, "PascalVOC/VOC2012"),
    Tree(
        *(CATSEG, "voc20", f"{CAT_VOC}/JPEGImages/*.jpg"),
        f"{CAT_VOC}/annotations_detectron2/val/*.png",
        names=f"{CAT_VOC}/ImageSets/Segmentation/val.txt",
    ),
    Tree(
        *(SAN, "voc20", f"{SAN_VOC}/JPEGImages/*.jpg"),
        f"{SAN_VOC}/annotations_detectron2/val/*.png",
    ),
    Tree(
        *(SAN, "voc20", f"{SAN_VOC}/images_detectron2/val/*.jpg"),
        f"{SAN_VOC}/annotations_detectron2/val/*.png",
    ),
    # Pascal Context
    *of_context(MMSEG, CONTEXT),
    *of_context(FREECP, "PascalVOC/VOC2010"),
    Tree(
        *(CATSEG, "pcontext59", f"{CONTEXT}/JPEGImages/*.jpg"),
        f"{CONTEXT}/annotations_detectron2/pc59_val/*.png",
    ),
    Tree(
        *(CATSEG, "pcontext60", f"{CONTEXT}/JPEGImages/*.jpg"),
        *(f"{CONTEXT}/annotations_detectron2/pc59_val/*.png", "ready 59"),
        f"{CONTEXT}/SegmentationClassContext/*.png",
        made_list=f"{CONTEXT}/ImageSets/SegmentationContext/val.txt",
    ),
    Tree(SAN, "pcontext59", "pcontext/val/image/*.jpg", "pcontext/val/label/*.png"),
    Tree(
        *(SAN, "pcontext60", "pcontext/val/image/*.jpg", "pcontext/val/label/*.png", "ready 59"),
        "pcontext/val/label_60/*.png",
    ),
    # 847 and 459 classes: maps of 16 bits
    *(
        Tree(
            *(project, "ade20k_847", f"{ADE_FULL}/images_detectron2/validation/*.jpg"),
            f"{ADE_FULL}/annotations_detectron2/validation/*.tif",
        )
        for project in ("MaskFormer", CATSEG, SAN)
    ),
    Tree(
        *(CATSEG, "pcontext459", f"{CONTEXT}/JPEGImages/*.jpg"),
        f"{CONTEXT}/annotations_detectron2/pc459_val/*.tif",
    ),
    Tree(SAN, "pcontext459", "pcontext_full/val/image/*.jpg", "pcontext_full/val/label/*.tif"),
    # Cityscapes
    *of_two(MMSEG, "cityscapes", *(f"cityscapes/{folder}" for folder in CITY_FOLDERS)),
    *of_two(FREECP, "cityscapes", *(f"Cityscapes/{folder}" for folder in CITY_FOLDERS)),
]


def write(tree: Tree, root: Path) -> dict[str, np.ndarray]:
    """The tree with two images of the set and, where lists or maps say which count, one more."""
    names = {
        "cityscapes": ["lindau/lindau_000000_000019", "munster/munster_000001_000019"],
        "ade20k": ["ADE_val_00000001", "ADE_val_00000002"],
    }.get(tree.benchmark, ["000000000139", "000000000285"])
    ids, rng, expected = IDS[tree.benchmark, tree.kind], np.random.default_rng(0), {}
    for name in names:
        labels = rng.permuted([*ids, *rng.choice([*ids], 400 - len(ids))]).reshape(16, 25)
        expected[name] = np.vectorize(ids.get)(labels)
        save(root / tree.maps.replace("*", name), labels)
        save(root / tree.images.replace("*", name), rng.integers(0, 256, (16, 25, 3)))
    if "JPEGImages" in tree.images:
        save(root / tree.images.replace("*", "2008_000001"), np.zeros((16, 25, 3)))
    if tree.names:
        (root / tree.names).parent.mkdir(parents=True)
        (root / tree.names).write_text("".join(f"{name}\n" for name in names))
    return expected


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint16 if path.suffix == ".tif" else np.uint8)).save(path)


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def run(benchmark: str, *arguments: str) -> int:
    return main([benchmark, "--partial", "--workers", "1", *arguments])


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_the_tree_is_read(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    expected = write(tree, tmp_path)
    dataset = BENCHMARKS[tree.benchmark].dataset
    before = digests(tmp_path)
    if tree.read:  # never evaluated as they are: the ids are others
        with pytest.raises(FileNotFoundError) as refused:
            DatasetCatalog.get(dataset)
        assert f"python -m freecp_d2.data.prepare {tree.benchmark}" in str(refused.value)
        assert f"made from {tmp_path / tree.maps.rpartition('/')[0].partition('*')[0]}" in str(
            refused.value
        )
    assert run(tree.benchmark) == 0, capsys.readouterr().err

    records = {
        Path(r["file_name"]): Path(r["sem_seg_file_name"]) for r in DatasetCatalog.get(dataset)
    }
    images = {name: tmp_path / tree.images.replace("*", name) for name in expected}
    assert set(records) == set(images.values())
    for name, image in images.items():
        assert records[image] == tmp_path / tree.evaluated.replace("*", name)
        np.testing.assert_array_equal(load_label_map(records[image]), expected[name])

    after = digests(tmp_path)
    assert before.items() <= after.items()
    made = {tree.read.replace("*", name) for name in expected} if tree.read else set()
    assert after.keys() - before.keys() == made | ({tree.made_list} - {""})
    assert run(tree.benchmark, "--verify") == 0, capsys.readouterr().err
    assert run(tree.benchmark) == 0 and digests(tmp_path) == after


def test_cat_segs_maps_with_the_background_last_are_not_voc21s(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("2007_000033", "2007_000042"):
        save(tmp_path / CAT_VOC / f"JPEGImages/{name}.jpg", np.zeros((4, 5, 3)))
        save(tmp_path / CAT_VOC / f"annotations_detectron2_bg/val/{name}.png", np.full((4, 5), 20))
    with pytest.raises(FileNotFoundError, match="SegmentationClass;"):
        DatasetCatalog.get("voc_2012_val_21_sem_seg")


def test_images_and_maps_of_two_trees_come_together(tmp_path, monkeypatch):
    """Images where Detectron2 has them, official maps where MMSegmentation has them."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    raw = f"{MM_MAPS}/*.png"
    for benchmark, read in (
        ("coco_stuff164k", SAN_MAPS),
        ("coco_object", "coco/objectmaps_detectron2/val2017/*.png"),
    ):
        expected = write(Tree("", benchmark, COCO[D2], raw, "raw"), tmp_path)
        assert run(benchmark) == 0
        for name, labels in expected.items():
            made = load_label_map(tmp_path / read.replace("*", name))
            np.testing.assert_array_equal(made, labels)


@pytest.mark.parametrize("benchmark", ["coco_stuff164k", "coco_object"])
def test_maps_are_made_of_what_lies_with_the_images(benchmark, tmp_path, monkeypatch):
    """Though other official maps, without images, lie where Detectron2 has them."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    others = write(
        Tree("", benchmark, COCO[D2], "coco/stuffthingmaps/val2017/*.png", "raw"), tmp_path
    )
    for name in others:
        (tmp_path / COCO[D2].replace("*", name)).unlink()
        save(tmp_path / f"coco/stuffthingmaps/val2017/{name}.png", np.zeros((16, 25)))
    tree = next(t for t in TREES if (t.project, t.benchmark, t.kind) == (CATSEG, benchmark, "raw"))
    expected = write(tree, tmp_path)
    assert run(benchmark) == 0
    for name, labels in expected.items():
        made = load_label_map(tmp_path / tree.read.replace("*", name))
        np.testing.assert_array_equal(made, labels)
    assert not list((tmp_path / "coco").glob("*_detectron2"))


def test_the_tree_with_images_and_maps_goes_before_one_with_images(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    tree = next(t for t in TREES if t.project == CATSEG and t.kind == "raw")
    for name in write(tree, tmp_path):
        save(tmp_path / COCO[D2].replace("*", name), np.zeros((16, 25, 3)))
    assert run(tree.benchmark) == 0
    assert len(list(tmp_path.glob(tree.read))) == 2
    assert not list((tmp_path / "coco").glob("*_detectron2"))


@pytest.mark.parametrize("home", ["DETECTRON2_DATASETS", "--root"])
def test_a_tilde_is_the_home_folder(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tree = next(tree for tree in TREES if tree.benchmark == "ade20k" and tree.read)
    write(tree, tmp_path / "data")
    if home == "--root":
        arguments = ["--root", "~/data"]
    else:
        arguments = []
        monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert run("ade20k", *arguments) == 0 == run("ade20k", "--verify", *arguments)
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert len(DatasetCatalog.get("ade20k_150_val_sem_seg")) == 2
    benchmark = BENCHMARKS["ade20k"]
    assert prepare(benchmark, "~/data").skipped == 2 == verify(benchmark, "~/data").masks
    assert not (tmp_path / "~").exists()


def test_the_docs_name_these_trees_and_no_others():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| `(\w+)` \| `(\S+)` \| `(\S+)` \| (.+) \|$", text, re.M)
    told = {tuple(row): set(made.replace("`", "").split(" or ")) for *row, made in rows}
    tested: dict[tuple, set[str]] = {}
    for tree in TREES:
        row = tested.setdefault((tree.project, tree.benchmark, tree.images, tree.evaluated), set())
        row |= {tree.maps} if tree.read else set()
    assert told == {row: made or {"-"} for row, made in tested.items()}
