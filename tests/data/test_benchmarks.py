"""The ten benchmarks: their names, words, configs, and what loading them gives or refuses."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from freecp_d2 import load_config
from freecp_d2.data import dataset_vocabulary
from freecp_d2.data.benchmarks import BENCHMARKS, KINDS, PROTOCOL_WORDS, Layout, vocabulary_of
from freecp_d2.data.mapper import load_label_map

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = (
    *("maskclip", "sclip", "clearclip", "naclip", "gem", "vanilla"),
    *("scclip", "sfp", "resclip", "pearl"),
)
BACKGROUND_26 = (
    "sky, wall, tree, wood, grass, road, sea, river, mountain, sands, desk, bed, building, cloud, "
    "lamp, door, window, wardrobe, ceiling, shelf, curtain, stair, floor, hill, rail, fence"
).split(", ")

# METHOD.md steps 0, 8 and 9: data set, classes, images, short side, window, RP, AP, background
# queries; then the background threshold of the base method alone, PROTOCOL same.
TABLE = {
    "coco_stuff164k": (
        ("coco_2017_val_stuff164k_sem_seg", 171, 5000, 448, 384, 0.05, 0.7, []),
        None,
    ),
    "coco_object": (
        ("coco_2017_val_object_sem_seg", 81, 5000, 448, 384, 0.15, 0.8, BACKGROUND_26),
        0.4,
    ),
    "ade20k": (("ade20k_150_val_sem_seg", 150, 2000, 448, 384, 0.05, 0.7, []), None),
    "voc20": (("voc_2012_val_20_sem_seg", 20, 1449, 448, 384, 0.15, 0.7, []), None),
    "voc21": (
        ("voc_2012_val_21_sem_seg", 21, 1449, 448, 384, 0.15, 0.8, BACKGROUND_26),
        0.5,
    ),
    "pcontext59": (
        ("pcontext_59_val_sem_seg", 59, 5104, 448, 384, 0.10, 0.7, []),
        None,
    ),
    "pcontext60": (
        ("pcontext_60_val_sem_seg", 60, 5104, 448, 384, 0.10, 0.7, ["background"]),
        0.15,
    ),
    "cityscapes": (
        ("cityscapes_19_val_sem_seg", 19, 500, 560, 224, 0.10, 0.8, []),
        None,
    ),
    # Not in METHOD.md: its figures are ours.
    "ade20k_847": (("ade20k_847_val_sem_seg", 847, 2000, 448, 384, 0.05, 0.7, []), None),
    "pcontext459": (("pcontext_459_val_sem_seg", 459, 5104, 448, 384, 0.05, 0.7, []), None),
}
LARGE = ("ade20k_847", "pcontext459")
every = pytest.mark.parametrize("name", TABLE)


def test_there_are_eight_of_the_paper_and_two_large_ones():
    assert list(BENCHMARKS) == list(TABLE) and list(TABLE)[8:] == list(LARGE)
    assert [name for name, b in BENCHMARKS.items() if not b.in_paper] == list(LARGE)


@every
def test_the_metadata(name):
    benchmark = BENCHMARKS[name]
    (dataset, classes, images, *_, background), _ = TABLE[name]
    metadata = MetadataCatalog.get(dataset)
    assert dataset in DatasetCatalog.list() and benchmark.num_images == images
    assert metadata.evaluator_type == "sem_seg"
    assert metadata.ignore_label == (65535 if name in LARGE else 255)
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == classes
    assert (metadata.stuff_classes[0] == "background") == bool(background)
    assert len({tuple(color) for color in metadata.stuff_colors}) == classes
    assert all(0 <= value <= 255 for color in metadata.stuff_colors for value in color)
    ids = metadata.stuff_dataset_id_to_contiguous_id
    assert sorted(ids.values()) == list(range(classes))
    assert name == "ade20k_847" or list(ids) == sorted(ids)  # that list begins with the frequent
    vocabulary = dataset_vocabulary(metadata)
    assert list(vocabulary.background) == background
    assert len(vocabulary.classes) == classes - bool(background)
    for kind in ("image_root", "sem_seg_root"):
        assert metadata.get(kind)


def test_ids_of_the_annotations():
    stuff = BENCHMARKS["coco_stuff164k"].pixel_to_contiguous
    things = MetadataCatalog.get("coco_2017_val_stuff164k_sem_seg").stuff_classes
    by_pixel = {pixel: things[index] for pixel, index in stuff.items()}
    assert [by_pixel[i] for i in (0, 10, 12, 89, 91, 181)] == [
        "person", "firehydrant", "stopsign", "toothbrush", "banner", "wood",
    ]  # fmt: skip
    assert not {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90} & stuff.keys()
    assert BENCHMARKS["coco_object"].contiguous_ids[90] == 80
    assert BENCHMARKS["ade20k"].pixel_to_contiguous == {i + 1: i for i in range(150)}
    assert BENCHMARKS["voc20"].pixel_to_contiguous == {i + 1: i for i in range(20)}
    assert BENCHMARKS["voc21"].pixel_to_contiguous == {i: i for i in range(21)}
    assert BENCHMARKS["cityscapes"].pixel_to_contiguous[33] == 18
    with_background = BENCHMARKS["pcontext60"].pixel_to_contiguous
    assert with_background.pop(0) == 0
    without = BENCHMARKS["pcontext59"].pixel_to_contiguous
    assert with_background == {pixel: index + 1 for pixel, index in without.items()}


@every
@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabularies(name, kind):
    (_, classes, *_, background), _ = TABLE[name]
    vocabulary = vocabulary_of(BENCHMARKS[name], kind)
    assert len(vocabulary.classes) + bool(background) == classes
    assert list(vocabulary.background) == background
    if kind == "published":
        assert all(len(names) == 1 for names in vocabulary.classes)


# SHA-256 of the names in their order, one a line; the background's in one line, parted by ", ".
# published: as METHOD.md section 9 lists, compared name by name with the official lists.
HASHES = {
    ("published", "coco_stuff164k"): "fb98709b9ab1baff",
    ("published", "coco_object"): "3b2c73cdc5c57f4a",
    ("published", "ade20k"): "e53ded02c488bdb9",
    ("published", "voc20"): "7cef5ab8ab84203a",
    ("published", "voc21"): "80d6f974e66e6234",
    ("published", "pcontext59"): "cd808465f06a1616",
    ("published", "pcontext60"): "e29ff1a0eaea71eb",
    ("published", "cityscapes"): "6f6782fc1bf92bfd",
    ("published", "ade20k_847"): "ee311c5f3b780a16",
    ("published", "pcontext459"): "f22a02ac1b8419bc",
    ("sclip", "coco_object"): "3475d03d61f85ce0",
    ("sclip", "voc20"): "c68f65a2b342397c",
    ("sclip", "voc21"): "80e643a9a1439668",
    ("sfp", "voc20"): "317dafe95650b39e",
    ("sfp", "voc21"): "3b5987c2d5028cff",
    ("sfp", "cityscapes"): "8dba4f1e3eeefc37",
    ("sfp", "coco_object"): "3475d03d61f85ce0",
    ("clearclip", "coco_object"): "1f17b53017e44225",
    ("clearclip", "voc20"): "6b9a85ffb907e34a",
    ("clearclip", "voc21"): "265d9ede93be451d",
}


@pytest.mark.parametrize(("kind", "name"), HASHES)
def test_the_words_are_the_official_ones(kind, name):
    vocabulary = vocabulary_of(BENCHMARKS[name], kind)
    lines = [", ".join(names) for names in vocabulary.classes]
    if vocabulary.background:
        lines.insert(0, ", ".join(vocabulary.background))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == HASHES[kind, name]


def test_ids_of_ade20k_847_are_places_in_the_alphabet():
    """The objects of the full ADE20K are sorted by name, but for some that it got later."""
    benchmark = BENCHMARKS["ade20k_847"]
    names = dict(zip(benchmark.dataset_ids, vocabulary_of(benchmark).queries, strict=True))
    first = [names[id_] for id_ in sorted(names) if id_ <= 3088]
    assert first == sorted(first) and len(first) == 827
    assert (names[2978], names[14], names[3107]) == (
        "wall", "airplane, aeroplane, plane", "horse, equus caballus",
    )  # fmt: skip


def test_the_59_classes_of_pascal_context_are_among_the_459():
    words = vocabulary_of(BENCHMARKS["pcontext459"]).queries
    named = MetadataCatalog.get("pcontext_59_val_sem_seg").stuff_classes
    assert [words[id_ - 1] for id_ in BENCHMARKS["pcontext59"].dataset_ids] == named


def test_curated_words_of_the_large_ones():
    """A short name each, words apart, and none twice."""
    for name, differ in (("ade20k_847", 217), ("pcontext459", 95)):
        published, curated = (vocabulary_of(BENCHMARKS[name], kind).queries for kind in KINDS)
        pairs = [(p, c) for p, c in zip(published, curated, strict=True) if p != c]
        assert len(pairs) == differ and len(set(curated)) == len(curated)
        if name == "ade20k_847":
            assert all(c in p.split(", ") for p, c in zip(published, curated, strict=True))
        else:
            assert all(c.replace(" ", "") == p for p, c in pairs)


def test_the_published_words_of_voc_and_coco_object():
    person = "person in shirt jeans dress sweater skirt jacket"
    for name, background in (("voc20", 0), ("voc21", 26)):
        queries = vocabulary_of(BENCHMARKS[name]).queries[background:]
        shown = MetadataCatalog.get(BENCHMARKS[name].dataset).stuff_classes[bool(background) :]
        differ = {s: q for s, q in zip(shown, queries, strict=True) if s != q}
        assert differ == {
            "boat": "ship",
            "diningtable": "table",
            "person": person,
            "tvmonitor": "television monitor screen",
        }
    queries = vocabulary_of(BENCHMARKS["coco_object"]).queries[26:]
    shown = MetadataCatalog.get("coco_2017_val_object_sem_seg").stuff_classes[1:]
    assert queries == (f"{person} body", *shown[1:]) and shown[0] == "person"
    assert sum(" " in name for name in shown) == 15
    stuff = vocabulary_of(BENCHMARKS["coco_stuff164k"]).queries[:80]
    assert [name.replace(" ", "") for name in shown] == list(stuff)


def test_fifteen_published_words_of_ade20k_are_together():
    queries = vocabulary_of(BENCHMARKS["ade20k"]).queries
    shown = MetadataCatalog.get("ade20k_150_val_sem_seg").stuff_classes
    apart = (44, 56, 58, 64, 73, 75, 78, 89, 91, 105, 109, 123, 136, 141, 144)
    assert tuple(i for i, name in enumerate(shown) if " " in name) == apart
    assert [name.replace(" ", "") for name in shown] == list(queries)
    assert (queries[44], queries[105], queries[144]) == (
        "chestofdrawers", "conveyerbelt", "bulletinboard",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("sclip", (56, 30, 113)), ("clearclip", (21, 20, 81)), ("sfp", (56, 30, 113, 19))],
)
def test_words_of_the_base_methods_own_protocols(kind, counts):
    words = {name: vocabulary_of(benchmark, kind) for name, benchmark in BENCHMARKS.items()}
    own = ("voc21", "voc20", "coco_object", "cityscapes")[: len(counts)]
    assert tuple(len(words[name].queries) for name in own) == counts
    for name, benchmark in BENCHMARKS.items():
        published = vocabulary_of(benchmark)
        assert len(words[name].classes) == len(published.classes)
        assert bool(words[name].background) == benchmark.scored_background
        assert (words[name] == published) == (name not in own)


def test_sfp_says_people_where_sclip_says_person():
    """Both alike in VOC's six further names; on COCO-Object it says person, too."""
    for name, count in (("voc20", 7), ("voc21", 7), ("cityscapes", 1), ("coco_object", 0)):
        sfp, sclip = (vocabulary_of(BENCHMARKS[name], kind) for kind in ("sfp", "sclip"))
        pairs = list(zip(sfp.queries, sclip.queries, strict=True))
        differ = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
        assert len(differ) == count and sfp.query_class == sclip.query_class
        assert all(theirs.replace("person", "people") == ours for ours, theirs in differ)


def test_an_unknown_kind_of_words():
    with pytest.raises(FileNotFoundError, match=r"officiel/voc20\.json"):
        vocabulary_of(BENCHMARKS["voc20"], "officiel")


@pytest.mark.parametrize("kind", [*KINDS, *PROTOCOL_WORDS])
def test_vocabularies_of_the_same_classes_agree(kind):
    words = {name: vocabulary_of(b, kind).classes for name, b in BENCHMARKS.items()}
    assert words["voc20"] == words["voc21"]
    assert words["pcontext59"] == words["pcontext60"]


def test_published_words_are_together_and_curated_ones_apart():
    published, curated = (vocabulary_of(BENCHMARKS["coco_stuff164k"], kind) for kind in KINDS)
    assert published.classes[9:11] == (("trafficlight",), ("firehydrant",))
    assert [own[0] for own in curated.classes[9:11]] == ["traffic light", "fire hydrant"]
    assert not any(" " in own[0] for own in published.classes)
    assert not any("-other" in name or "-stuff" in name for name in curated.queries)


@every
@pytest.mark.parametrize("config", [*METHODS, "clearclip_vit_l14", "scclip_vit_l14"])
def test_the_configs(name, config):
    cfg = load_config(str(CONFIGS / name / f"{config}.yaml"))
    (dataset, _, _, short, window, rp, ap, _), threshold = TABLE[name]
    large = config.endswith("l14")
    freecp, clip = cfg.MODEL.FREECP, cfg.MODEL.CLIP
    assert cfg.MODEL.META_ARCHITECTURE == "FreeCP" and freecp.ENABLED
    assert clip.METHOD == config.removesuffix("_vit_l14")
    assert (clip.NAME, clip.PRETRAINED) == ("ViT-L-14" if large else "ViT-B-16", "openai")
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (short, 2048)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_MEAN == [122.771, 116.746, 104.094]
    assert cfg.MODEL.PIXEL_STD == [68.501, 66.632, 70.323]
    assert (freecp.WINDOW, freecp.STRIDE) == (378 if large and window == 384 else window, 112)
    assert (freecp.REDUNDANCY_THRESHOLD, freecp.AMBIGUITY_THRESHOLD) == (rp, ap)
    assert freecp.PROTOCOL == "same"
    if threshold is not None:
        assert freecp.BACKGROUND_THRESHOLD == threshold
    descriptions = "" if name in LARGE else "freecp_d2://benchmarks/descriptions.json"
    assert freecp.DESCRIPTIONS == descriptions
    assert freecp.VOCABULARY == ""
    assert cfg.DATASETS.TEST == (dataset,)
    assert cfg.OUTPUT_DIR == f"output/{name}_{config}"
    scclip = clip.SCCLIP
    blocks = (scclip.PRE_ADJUST_IDX, scclip.POST_ADJUST_IDX)
    blocks += (scclip.MULTI_START_IDX, scclip.MULTI_END_IDX, scclip.RES_CLS)
    deep = config == "scclip_vit_l14"  # what its authors' first commit has for 24 blocks
    assert blocks == ((16, 6, 8, 19, 0.1) if deep else (8, 3, 3, 10, 0.3))


def test_each_config_is_a_few_lines_over_its_base():
    for file in CONFIGS.glob("*/*.yaml"):
        if file.parent.name in BENCHMARKS:
            assert "_BASE_" in yaml.safe_load(file.read_text())
            assert len(file.read_text().splitlines()) < 17


@pytest.mark.parametrize("model", ["ViT-B-16", "ViT-L-14"])
def test_the_weights_of_the_configs_run_with_quick_gelu(model):
    assert open_clip.get_pretrained_cfg(model, "openai")["quick_gelu"]


def test_importing_looks_at_no_data_set(tmp_path):
    """The data sets' root is not read, listed or made, with and without the variable."""
    script = """
import os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0]))
    if event in ("open", "os.listdir", "os.scandir", "os.mkdir") else None)
import freecp_d2.data
from detectron2.data import DatasetCatalog
assert "coco_2017_val_stuff164k_sem_seg" in DatasetCatalog.list()
root = os.environ.get("DETECTRON2_DATASETS", "datasets")
touched = [name for name in opened if name.startswith((root, os.path.abspath(root)))]
assert not touched, touched
"""
    plain = {key: value for key, value in os.environ.items() if key != "DETECTRON2_DATASETS"}
    for env in (plain, {**plain, "DETECTRON2_DATASETS": str(tmp_path / "nowhere")}):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            cwd=tmp_path, env=env, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """An empty DETECTRON2_DATASETS, set after the benchmarks were registered."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def write(root: Path, layout: Layout, *stems: str) -> None:
    """Empty files of the layout; loading does not open them."""
    for folder, suffix in (
        (layout.image_folder, layout.image_suffix),
        (layout.mask_folder, layout.mask_suffix),
    ):
        for stem in stems:
            file = root / folder / f"{stem}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    if layout.file_list:
        file = root / layout.file_list
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{stem}\n" for stem in stems))


LAYOUTS = [(name, layout) for name, b in BENCHMARKS.items() for layout in b.layouts]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS, ids=lambda value: str(value)[:20])
def test_every_layout_loads(name, layout, root, caplog):
    stems = {
        "cityscapes": ["munster/munster_000001_000019", "frankfurt/frankfurt_000000_000294"],
        "coco_stuff164k": ["000000000139", "000000000022"],
    }.get(name, ["2007_000033", "2007_000027"])
    write(root, layout, *stems)
    for folder in (layout.image_folder, layout.mask_folder):  # not of this benchmark
        (root / folder / "README.md").touch()
        (root / folder / "other_gtFine_color.bmp").touch()
        for suffix in (layout.image_suffix, layout.mask_suffix):
            (root / folder / f"._hidden{suffix}").touch()
    records = DatasetCatalog.get(BENCHMARKS[name].dataset)
    assert records == [
        {
            "file_name": f"{root}/{layout.image_folder}/{stem}{layout.image_suffix}",
            "sem_seg_file_name": f"{root}/{layout.mask_folder}/{stem}{layout.mask_suffix}",
            "image_id": {"000000000139": 139, "000000000022": 22}.get(stem, stem),
        }
        for stem in sorted(stems)
    ]
    metadata = MetadataCatalog.get(BENCHMARKS[name].dataset)
    assert metadata.image_root == f"{root}/{layout.image_folder}"
    assert metadata.sem_seg_root == f"{root}/{layout.mask_folder}"
    (record,) = caplog.records
    assert f"2 images in {root}" in record.getMessage()


def test_the_first_layout_wins(root):
    for layout in BENCHMARKS["coco_object"].layouts:
        write(root, layout, "1")
    (record,) = DatasetCatalog.get("coco_2017_val_object_sem_seg")
    assert record["sem_seg_file_name"] == f"{root}/coco/objectmaps_detectron2/val2017/1.png"


def test_the_count_is_warned_of_once(root, caplog):
    """An evaluation loads its data set for the loader, the evaluator and the sampler."""
    write(root, BENCHMARKS["voc21"].layout, "1", "2")
    for _ in range(3):
        DatasetCatalog.get("voc_2012_val_21_sem_seg")
    (record,) = caplog.records
    assert "2 images in" in record.getMessage() and "official set has 1449" in record.getMessage()
    write(root, BENCHMARKS["voc21"].layout, "1", "2", "3")
    DatasetCatalog.get("voc_2012_val_21_sem_seg")
    assert len(caplog.records) == 2


def test_a_layout_with_images_goes_before_one_without(root):
    first, second, *_ = BENCHMARKS["coco_stuff164k"].layouts
    write(root, first, "1")
    write(root, second, "2")
    (root / first.image_folder / "1.jpg").unlink()
    (record,) = DatasetCatalog.get("coco_2017_val_stuff164k_sem_seg")
    assert record["image_id"] == 2


def test_a_file_list_leaves_the_others_out(root):
    layout = BENCHMARKS["voc21"].layout
    write(root, layout, "2007_000033", "2007_000027")
    (root / layout.file_list).write_text("2007_000027  1\n\n")
    (record,) = DatasetCatalog.get("voc_2012_val_21_sem_seg")
    assert record["image_id"] == "2007_000027"


def refused(name: str) -> str:
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get(BENCHMARKS[name].dataset)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(BENCHMARKS[name].dataset)
    assert message.endswith(f"python -m freecp_d2.data.prepare {name}")
    assert "DETECTRON2_DATASETS" in message
    return message


@every
def test_missing_and_empty_folders_are_named(name, root):
    layout = BENCHMARKS[name].layout
    assert f"there is no {root / layout.mask_folder};" in refused(name)
    (root / layout.mask_folder).mkdir(parents=True)
    if layout.file_list:
        if len(BENCHMARKS[name].layouts) == 1:
            assert f"there is no {root / layout.file_list};" in refused(name)
        write(root, layout)
        (root / layout.file_list).touch()
        assert f"{layout.file_list} names no image;" in refused(name)
    else:
        assert f"no *{layout.mask_suffix} in {root / layout.mask_folder};" in refused(name)


@every
def test_missing_images_and_masks_are_named(name, root):
    layout = BENCHMARKS[name].layout
    write(root, layout, "a/1", "a/2", "a/3")
    for stem in ("a/2", "a/3"):
        (root / layout.image_folder / f"{stem}{layout.image_suffix}").unlink()
    assert f"2 of 3 images are missing in {root / layout.image_folder}, the first is a/2;" in (
        refused(name)
    )
    if layout.file_list:
        write(root, layout, "a/1", "a/2", "a/3")
        (root / layout.mask_folder / f"a/3{layout.mask_suffix}").unlink()
        assert f"1 of 3 masks are missing in {root / layout.mask_folder}, the first is a/3;" in (
            refused(name)
        )


def test_palette_masks_read_as_ids(tmp_path):
    """As VOC's SegmentationClass, which evaluation reads as it is."""
    from PIL import Image

    mask = Image.new("P", (3, 1))
    mask.putpalette([7] * 768)
    mask.putdata([0, 20, 255])
    mask.save(tmp_path / "m.png")
    assert load_label_map(tmp_path / "m.png").tolist() == [[0, 20, 255]]
