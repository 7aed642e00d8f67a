"""The synthetic scenes: the same bits everywhere, exact labels, and files that appear whole."""

import hashlib
import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from freecp_d2 import get_config, list_configs
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.data.scenes import (
    CLASSES,
    COLORS,
    DESCRIPTIONS,
    HEIGHT,
    VAL_SEEDS,
    WIDTH,
    catalog,
    draw_scene,
)
from freecp_d2.sliding_window import windows_of

SEEDS = (0, 7, 123, 1_000_003)


@pytest.fixture(scope="module")
def val_scenes():
    return [draw_scene(seed) for seed in VAL_SEEDS]


def test_the_same_seed_gives_the_same_bits_on_every_machine():
    """With the Pillow of requirements.lock: another one may draw an edge otherwise."""
    digest = hashlib.sha256()
    for seed in SEEDS:
        scene = draw_scene(seed)
        digest.update(scene.image.tobytes() + scene.labels.tobytes() + scene.caption.encode())
    assert digest.hexdigest() == "9035941a49fe4f3efa5e2938a2f9e8427c18444bdff89254055f58067c958ec9"


@pytest.mark.parametrize(("height", "width"), [(224, 288), (64, 64), (100, 333)])
def test_shapes_and_dtypes(height, width):
    scene = draw_scene(5, height, width)
    assert scene.image.shape == (height, width, 3)
    assert scene.labels.shape == (height, width)
    assert scene.image.dtype == scene.labels.dtype == np.uint8


def test_too_small_a_scene_is_refused():
    with pytest.raises(ValueError, match="64 x 64"):
        draw_scene(0, 63, 100)


def test_every_scene_shows_three_to_six_classes_and_names_them(val_scenes):
    for scene in val_scenes:
        present = {CLASSES[i] for i in np.unique(scene.labels)}
        assert 3 <= len(present) <= 6
        assert set(scene.nouns) == present
        assert all(noun in scene.caption for noun in present)


def test_every_class_occurs_in_the_benchmark(val_scenes):
    assert {noun for scene in val_scenes for noun in scene.nouns} == set(CLASSES)


def test_labels_follow_the_image(val_scenes):
    """Across a label's edge colours differ more than inside a region."""
    edge, inside = [], []
    for scene in val_scenes[:40]:
        step = np.abs(np.diff(scene.image.astype(int), n=1, axis=1)).mean(-1)
        change = np.diff(scene.labels, axis=1) != 0
        edge.append(step[change].mean())
        inside.append(step[~change].mean())
    assert np.mean(edge) > 1.5 * np.mean(inside)


def test_vocabulary_is_complete():
    assert len(CLASSES) == len(set(CLASSES)) == len(COLORS) == len(set(COLORS)) >= 30
    assert set(DESCRIPTIONS) == set(CLASSES)
    for sentences in DESCRIPTIONS.values():
        assert len(sentences) == len(set(sentences)) >= 5


def test_registered_in_the_catalogs_with_what_the_evaluator_needs():
    assert "scenes_val" in DatasetCatalog
    metadata = MetadataCatalog.get("scenes_val")
    assert metadata.stuff_classes == list(CLASSES)
    assert metadata.evaluator_type == "sem_seg"
    assert metadata.ignore_label == 255
    assert metadata.stuff_dataset_id_to_contiguous_id == {i: i for i in range(len(CLASSES))}


def test_files_hold_what_was_drawn(tmp_path):
    dicts = catalog.load_scenes(tmp_path / "val", range(4))
    assert [d["image_id"] for d in dicts] == [0, 1, 2, 3]
    for d in dicts:
        scene = draw_scene(d["image_id"])
        assert (d["height"], d["width"]) == (HEIGHT, WIDTH)
        with Image.open(d["file_name"]) as image, Image.open(d["sem_seg_file_name"]) as labels:
            assert (np.asarray(image) == scene.image).all()
            assert (np.asarray(labels) == scene.labels).all()


@pytest.fixture
def scene_configs():
    return [get_config(name) for name in list_configs() if name.startswith("scenes/")]


def test_configs_show_the_model_every_scene_to_the_bit(val_scenes, scene_configs, tmp_path):
    path = tmp_path / "scene.png"
    assert all(cfg.INPUT == scene_configs[0].INPUT for cfg in scene_configs)
    mapper = InferenceMapper(scene_configs[0])
    for scene in val_scenes:
        Image.fromarray(scene.image).save(path)
        image = mapper({"file_name": str(path), "height": HEIGHT, "width": WIDTH})["image"]
        assert (image.permute(1, 2, 0).numpy() == scene.image).all()


@pytest.mark.parametrize("size", [(4000, 3000), (3000, 4000), (9000, 1400), (640, 480)])
def test_configs_bring_photos_down_to_few_windows(size, scene_configs, tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", size).save(path)
    for cfg in scene_configs:
        image = InferenceMapper(cfg)({"file_name": str(path)})["image"]
        assert min(image.shape[1:]) == HEIGHT and max(image.shape[1:]) <= HEIGHT * 6.5
        windows = windows_of(0, image.shape[1:], cfg.MODEL.FREECP.WINDOW, cfg.MODEL.FREECP.STRIDE)
        assert len(windows) <= 24


def test_a_second_call_draws_nothing(tmp_path, monkeypatch):
    first = catalog.load_scenes(tmp_path / "val", range(2))
    monkeypatch.setattr(catalog, "draw_scene", None)
    assert catalog.load_scenes(tmp_path / "val", range(2)) == first


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def fail_late(seed):
        if seed == 2:
            raise KeyboardInterrupt
        return draw_scene(seed)

    monkeypatch.setattr(catalog, "draw_scene", fail_late)
    with pytest.raises(KeyboardInterrupt):
        catalog.load_scenes(tmp_path / "val", range(3))
    assert list(tmp_path.iterdir()) == []


def test_several_writers_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda _: catalog.load_scenes(tmp_path / "val", range(3)), range(4))
        )
    assert all(result == results[0] for result in results)
    assert [path.name for path in tmp_path.iterdir()] == ["val"]
    assert len(list((tmp_path / "val" / "images").iterdir())) == 3


def test_the_home_folder_of_the_root(monkeypatch):
    """As of the benchmarks; not a folder that is called "~"."""
    for names in (DatasetCatalog, MetadataCatalog):
        monkeypatch.delitem(names.data, "scenes_val")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    importlib.reload(catalog)
    root = MetadataCatalog.get("scenes_val").image_root
    assert root == str(Path.home() / "sets" / "scenes" / "val" / "images")
