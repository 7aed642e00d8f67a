"""From folders in the official layouts to what evaluation reads, and what happens to bad files."""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from freecp_d2.data.benchmarks.catalog import BENCHMARKS
from freecp_d2.data.prepare import prepare, verify, write
from freecp_d2.data.prepare.__main__ import main

spec = importlib.util.spec_from_file_location(
    "official_layouts", Path(__file__).with_name("official_layouts.py")
)
official = importlib.util.module_from_spec(spec)
spec.loader.exec_module(official)

CASES = [(name, "mat") for name in official.BENCHMARKS]
CASES += [("pcontext59", "json"), ("pcontext60", "json")]


def digests(root: Path) -> dict[Path, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(*arguments) -> int:
    return main([*map(str, arguments), "--workers", "1"])


def target(name: str, root: Path, image: str) -> Path:
    layout = BENCHMARKS[name].layout
    return root / layout.mask_folder / f"{image}{layout.mask_suffix}"


@pytest.mark.parametrize(("name", "context"), CASES)
def test_official_files_become_what_evaluation_reads(name, context, tmp_path, monkeypatch):
    expected = official.write_official(name, tmp_path, images=3, context=context)
    originals = digests(tmp_path)

    assert run(name, "--root", tmp_path, "--partial") == 0

    after = digests(tmp_path)
    assert originals.items() <= after.items()
    for image, mask in expected.items():
        made = Image.open(target(name, tmp_path, image))
        np.testing.assert_array_equal(np.asarray(made), mask)
        mode = {"voc21": "P", "ade20k_847": "I;16", "pcontext459": "I;16"}.get(name, "L")
        assert made.mode == mode
    new = {path.relative_to(tmp_path).as_posix() for path in after.keys() - originals.keys()}
    written = set() if name == "voc21" else {target(name, Path(), image) for image in expected}
    lists = {"VOCdevkit/VOC2010/ImageSets/SegmentationContext/val.txt"}
    assert new == {path.as_posix() for path in written} | (lists if "context" in name else set())

    assert run(name, "--root", tmp_path, "--partial", "--verify") == 0
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    pairs = {
        Path(d["file_name"]).name: Path(d["sem_seg_file_name"])
        for d in DatasetCatalog.get(BENCHMARKS[name].dataset)
    }
    suffix = BENCHMARKS[name].layout.image_suffix
    assert pairs == {
        f"{Path(image).name}{suffix}": target(name, tmp_path, image) for image in expected
    }


def test_coco_object_of_the_instances_is_a_fallback_and_said_so(tmp_path, capsys, caplog):
    expected = official.write_instances(tmp_path)
    assert run("coco_object", "--root", tmp_path, "--partial") == 0
    printed = capsys.readouterr().out
    assert "note: label maps from" in printed and "instances_val2017.json" in printed
    (warning,) = [r.getMessage() for r in caplog.records if "prepare" in r.name]
    assert "crowds" in warning
    for image, mask in expected.items():
        np.testing.assert_array_equal(Image.open(target("coco_object", tmp_path, image)), mask)
    caplog.clear()
    assert run("coco_object", "--root", tmp_path, "--partial") == 0  # nothing was made, or said
    assert "label maps from" not in capsys.readouterr().out and not caplog.records


def test_maps_of_the_instances_are_told_apart_and_give_way(tmp_path, monkeypatch, caplog):
    """Evaluation warns of them, and preparing with pixel maps on disk makes them anew."""
    official.write_instances(tmp_path)
    prepare(BENCHMARKS["coco_object"], tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    dataset = BENCHMARKS["coco_object"].dataset
    caplog.clear()
    DatasetCatalog.get(dataset)
    DatasetCatalog.get(dataset)
    said = [record.getMessage() for record in caplog.records]
    assert len([message for message in said if "COCO's instances" in message]) == 1
    assert MetadataCatalog.get(dataset).label_maps_as_published is False

    expected = official.write_official("coco_object", tmp_path)
    done = prepare(BENCHMARKS["coco_object"], tmp_path, partial=True)
    assert (done.written, done.skipped, done.faults) == (3, 0, [])
    for image, mask in expected.items():
        np.testing.assert_array_equal(Image.open(target("coco_object", tmp_path, image)), mask)
    assert prepare(BENCHMARKS["coco_object"], tmp_path).skipped == 3
    caplog.clear()
    DatasetCatalog.get(dataset)
    assert not [r for r in caplog.records if "instances" in r.getMessage()]
    assert MetadataCatalog.get(dataset).label_maps_as_published is True


def test_the_instances_do_not_count_where_there_are_pixel_maps(tmp_path, capsys):
    expected = official.write_official("coco_object", tmp_path)
    instances = official.write_instances(tmp_path)
    assert any((instances[image] != mask).any() for image, mask in expected.items())
    assert run("coco_object", "--root", tmp_path, "--partial") == 0
    assert "label maps from" not in capsys.readouterr().out
    for image, mask in expected.items():
        np.testing.assert_array_equal(Image.open(target("coco_object", tmp_path, image)), mask)


def test_a_real_pixel_map(tmp_path):
    """Of COCO-Stuff, 8 x 8 pixels: person, dog, toothbrush, grass, unlabelled."""
    shutil.copytree(Path(__file__).with_name("stuffthingmaps"), tmp_path, dirs_exist_ok=True)
    raw = np.array(Image.open(tmp_path / "coco/stuffthingmaps/val2017/000000000139.png"))
    assert np.unique(raw).tolist() == [0, 17, 89, 123, 255]
    for name, ids in (
        ("coco_object", {0: 1, 17: 17, 89: 80, 123: 0, 255: 0}),
        ("coco_stuff164k", {0: 0, 17: 16, 89: 79, 123: 112, 255: 255}),
    ):
        assert run(name, "--root", tmp_path, "--partial") == 0
        made = Image.open(target(name, tmp_path, "000000000139"))
        expected = np.vectorize(ids.get)(raw)
        np.testing.assert_array_equal(made, expected)
        assert run(name, "--root", tmp_path, "--partial", "--verify") == 0


@pytest.mark.parametrize("name", ["coco_object", "pcontext60"])
def test_a_second_run_leaves_alone_what_is_done(name, tmp_path):
    expected = official.write_official(name, tmp_path)
    assert prepare(BENCHMARKS[name], tmp_path).written == 3
    before = {image: target(name, tmp_path, image).stat().st_mtime_ns for image in expected}
    done = prepare(BENCHMARKS[name], tmp_path)
    assert (done.written, done.skipped) == (0, 3)
    assert before == {image: target(name, tmp_path, image).stat().st_mtime_ns for image in expected}


def test_a_run_that_was_cut_off_is_taken_up(tmp_path, monkeypatch):
    expected = official.write_official("ade20k", tmp_path, images=4)
    first, second, *_ = (target("ade20k", tmp_path, image) for image in expected)
    replace = write.os.replace

    def cut_off(part, path):
        if path == second:
            raise KeyboardInterrupt
        replace(part, path)

    with monkeypatch.context() as patch:
        patch.setattr(write.os, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            prepare(BENCHMARKS["ade20k"], tmp_path)
    assert first.is_file() and not second.exists()
    modified = first.stat().st_mtime_ns

    done = prepare(BENCHMARKS["ade20k"], tmp_path, partial=True)
    assert (done.written, done.skipped, done.faults) == (3, 1, [])
    assert first.stat().st_mtime_ns == modified
    for image, mask in expected.items():
        np.testing.assert_array_equal(Image.open(target("ade20k", tmp_path, image)), mask)
    assert not list(second.parent.glob(".*"))


def test_processes_make_the_same_files(tmp_path):
    expected = official.write_official("cityscapes", tmp_path, images=20)
    done = prepare(BENCHMARKS["cityscapes"], tmp_path, workers=2, partial=True)
    assert (done.written, done.faults) == (20, [])
    for image, mask in expected.items():
        np.testing.assert_array_equal(Image.open(target("cityscapes", tmp_path, image)), mask)


def source(name: str, root: Path, image: str) -> Path:
    return {
        "ade20k": root / f"ADEChallengeData2016/annotations/validation/{image}.png",
        "pcontext59": root / f"VOCdevkit/VOC2010/trainval/{image}.mat",
        "voc20": root / f"VOCdevkit/VOC2012/SegmentationClass/{image}.png",
    }[name]


@pytest.mark.parametrize("damage", ["truncated", "other content", "empty"])
@pytest.mark.parametrize("name", ["ade20k", "pcontext59", "voc20"])
def test_a_damaged_file_is_named_and_the_rest_done(name, damage, tmp_path, capsys):
    expected = official.write_official(name, tmp_path)
    bad, *good = expected
    file = source(name, tmp_path, bad)
    content = file.read_bytes()
    damaged = {"truncated": content[: len(content) // 2], "other content": b"x" * 300, "empty": b""}
    file.write_bytes(damaged[damage])

    assert run(name, "--root", tmp_path, "--partial") == 1

    faults = capsys.readouterr().err.split("fault: ")[1:]
    assert len(faults) == 1 and faults[0].startswith(f"{bad}: ")
    assert not target(name, tmp_path, bad).exists()
    for image in good:
        np.testing.assert_array_equal(Image.open(target(name, tmp_path, image)), expected[image])


def test_a_label_map_in_colour_is_refused(tmp_path):
    bad, *_ = official.write_official("ade20k", tmp_path)
    file = source("ade20k", tmp_path, bad)
    Image.open(file).convert("RGB").save(file)
    done = prepare(BENCHMARKS["ade20k"], tmp_path, partial=True)
    assert len(done.faults) == 1 and "one channel" in done.faults[0] and bad in done.faults[0]
    assert done.written == 2


def test_a_label_map_that_is_a_jpeg_is_refused(tmp_path):
    bad, *_ = official.write_official("ade20k", tmp_path)
    file = source("ade20k", tmp_path, bad)
    Image.open(file).save(file, "JPEG")
    done = prepare(BENCHMARKS["ade20k"], tmp_path, partial=True)
    assert len(done.faults) == 1 and "JPEG" in done.faults[0] and bad in done.faults[0]
    assert done.written == 2


def test_cat_segs_list_names_the_validation_set_of_the_mat_files(tmp_path):
    expected = official.write_official("pcontext59", tmp_path)
    voc = tmp_path / "VOCdevkit/VOC2010"
    (voc / "ImageSets/Main/val.txt").rename(voc / "pascalcontext_val.txt")
    done = prepare(BENCHMARKS["pcontext59"], tmp_path, partial=True)
    assert (done.written, done.faults) == (3, [])
    for image, mask in expected.items():
        np.testing.assert_array_equal(Image.open(target("pcontext59", tmp_path, image)), mask)


def test_missing_annotations_and_images_are_named(tmp_path):
    names = list(official.write_official("ade20k", tmp_path, images=10))
    for image in names[:7]:
        source("ade20k", tmp_path, image).unlink()
    (tmp_path / f"ADEChallengeData2016/images/validation/{names[9]}.jpg").unlink()
    done = prepare(BENCHMARKS["ade20k"], tmp_path, partial=True)
    assert done.written == 3 and done.images == 9
    assert len(done.faults) == 2
    assert f"7 images without annotation ({', '.join(names[:5])} and 2 more)" in done.faults[0]
    assert f"1 annotation without image ({names[9]})" in done.faults[1]


def edited(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def same_file_name(content: dict) -> None:
    """Another image of the same name, with an annotation of its own."""
    images, key = content["images"], "id" if "id" in content["images"][0] else "image_id"
    images.append({**images[0], key: 999999})
    annotations = content.get("annotations", content.get("annos_segmentation"))
    annotations.append({**annotations[0], "image_id": 999999, "id": 10**6})


def same_id(content: dict) -> None:
    content["images"].append({**content["images"][0], "file_name": "other.jpg"})


def same_stem(content: dict) -> None:
    same_file_name(content)
    image = content["images"][-1]
    image["file_name"] = f"val2017/{Path(image['file_name']).stem}.png"


@pytest.mark.parametrize("change", [same_file_name, same_id, same_stem])
@pytest.mark.parametrize("name", ["coco_object", "pcontext59"])
def test_two_images_of_one_name_or_id_are_refused(name, change, tmp_path, capsys):
    if name == "coco_object":
        official.write_instances(tmp_path)
    else:
        official.write_official(name, tmp_path, context="json")
    (file,) = tmp_path.rglob("*.json")
    edited(file, change)
    assert run(name, "--root", tmp_path, "--partial") == 1
    printed = capsys.readouterr()
    (fault,) = printed.err.split("fault: ")[1:]
    assert str(file) in fault and "images share their" in fault and "nothing done" in printed.out
    assert not list(tmp_path.rglob("*detectron2*"))


def test_a_list_that_repeats_a_name_counts_it_once_and_says_so(
    tmp_path, capsys, caplog, monkeypatch
):
    names = list(official.write_official("voc20", tmp_path))
    file = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    file.write_text("\n".join([*names, names[1]]))
    assert run("voc20", "--root", tmp_path, "--partial") == 0
    printed = capsys.readouterr().out
    assert "voc20: 3 images; label maps: 3 written" in printed
    assert f"val.txt has names more than once ({names[1]}): each counts once" in printed
    assert run("voc20", "--root", tmp_path, "--partial", "--verify") == 0
    printed = capsys.readouterr().out
    assert f"val.txt has names more than once ({names[1]}): each counts once" in printed
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    caplog.clear()
    assert len(DatasetCatalog.get(BENCHMARKS["voc20"].dataset)) == 3
    assert any(f"{names[1]} more than once" in record.getMessage() for record in caplog.records)


def test_a_list_that_is_no_text_is_named(tmp_path, capsys):
    official.write_official("voc20", tmp_path)
    file = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    file.write_bytes(b"\xff\xfe\x00")
    assert run("voc20", "--root", tmp_path, "--partial") == 1
    assert f"{file}: not a text file" in capsys.readouterr().err


CAPTIONS = {"images": [{"id": 1, "file_name": "1.jpg", "height": 2, "width": 2}]}
CAPTIONS["annotations"] = [{"id": 5, "image_id": 1, "caption": "A dog."}]
OTHER_KINDS = {
    "captions": CAPTIONS,
    "person_keypoints": {
        "images": CAPTIONS["images"],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "iscrowd": 0,
                         "segmentation": [[0, 0, 1, 0, 1, 1]], "keypoints": [0] * 51}
                        for i in range(9)],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose"], "skeleton": []}],
    },
    "panoptic": {
        "images": CAPTIONS["images"],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": []}],
        "categories": [{"id": i, "name": str(i), "isthing": 1} for i in range(1, 134)],
    },
    "stuff": {
        "images": CAPTIONS["images"],
        "annotations": [],
        "categories": [{"id": i, "name": str(i)} for i in range(92, 184)],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("name", ["coco_object", "pcontext59"])
def test_a_json_of_another_kind_is_refused_once(name, kind, tmp_path, capsys):
    file = (
        tmp_path
        / {
            "coco_object": "coco/annotations/instances_val2017.json",
            "pcontext59": "VOCdevkit/VOC2010/trainval_merged.json",
        }[name]
    )
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(OTHER_KINDS[kind]))
    assert run(name, "--root", tmp_path, "--partial") == 1
    (fault,) = capsys.readouterr().err.split("fault: ")[1:]
    assert str(file) in fault and "not the official file" in fault
    if name == "coco_object":
        assert "categories" in fault


@pytest.mark.parametrize("size", [(0, 8), (-3, 8), (8.5, 8), ("8", 8), (None, 8), (10**9, 8)])
def test_a_json_whose_images_have_no_size_is_refused(size, tmp_path, capsys):
    official.write_instances(tmp_path)
    file = tmp_path / "coco/annotations/instances_val2017.json"
    edited(file, lambda content: content["images"][1].update(height=size[0], width=size[1]))
    assert run("coco_object", "--root", tmp_path, "--partial") == 1
    assert "has height and width" in capsys.readouterr().err


@pytest.mark.parametrize("name", official.BENCHMARKS)
def test_nothing_downloaded_is_said_with_where_to_get_it(name, tmp_path, capsys):
    assert run(name, "--root", tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert str(tmp_path) in error and BENCHMARKS[name].source in error
    assert "no annotation at all" in error and "0 images without" not in error
    assert not list(tmp_path.iterdir())
    assert run(name, "--root", tmp_path, "--partial", "--verify") == 1
    error = capsys.readouterr().err
    assert "no label map at all" in error and f"prepare {name} makes" in error


@pytest.mark.parametrize("name", official.BENCHMARKS)
def test_images_alone_have_no_annotation_at_all(name, tmp_path, capsys):
    official.write_official(name, tmp_path)
    for file in [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.mat"), *tmp_path.rglob("*.json")]:
        if "leftImg8bit" not in file.name:
            file.unlink()
    assert run(name, "--root", tmp_path, "--partial") == 1
    error = capsys.readouterr().err
    assert error.count("annotation") >= 1 and "no annotation at all: looked for" in error
    assert "without annotation" not in error


def test_what_coco_object_and_pc60_ignore_is_a_fault(tmp_path, capsys):
    for name in ("coco_object", "pcontext60", "ade20k"):
        image = next(iter(official.write_official(name, tmp_path)))
        assert run(name, "--root", tmp_path, "--partial") == 0
        labels = np.array(Image.open(target(name, tmp_path, image)))
        labels[0, 0] = 255
        Image.fromarray(labels).save(target(name, tmp_path, image))
        capsys.readouterr()
        faulty = name != "ade20k"
        assert run(name, "--root", tmp_path, "--partial", "--verify") == faulty
        if faulty:
            error = capsys.readouterr().err
            assert f"{image}: label map: ids out of range: 255" in error and "none is" in error


def test_a_count_below_the_published_is_a_fault(tmp_path, capsys):
    official.write_official("voc20", tmp_path)
    assert run("voc20", "--root", tmp_path) == 1
    assert "3 images, the published set has 1449; --partial says" in capsys.readouterr().err
    assert run("voc20", "--root", tmp_path, "--verify") == 1
    assert "3 images, the published set has 1449; --partial says" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", ["", '{"images": []', "[]", '{"images": [{}]}', '{"images": 1}']
)
@pytest.mark.parametrize("name", ["coco_object", "pcontext59"])
def test_a_damaged_json_is_named_and_the_other_benchmarks_done(name, content, tmp_path, capsys):
    if name == "coco_object":
        official.write_instances(tmp_path)
    else:
        official.write_official(name, tmp_path, context="json")
    official.write_official("ade20k", tmp_path)
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content)
    assert run(name, "ade20k", "--root", tmp_path, "--partial") == 1
    printed = capsys.readouterr()
    assert str(file) in printed.err and len(printed.err.split("fault: ")) == 2
    assert "ade20k: 3 images; label maps: 3 written" in printed.out


def test_an_instance_that_cannot_be_read_costs_its_image_only(tmp_path):
    names = list(official.write_instances(tmp_path, images=4))
    file = tmp_path / "coco/annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    by_image = {a["image_id"]: a for a in content["annotations"]}
    by_image[int(names[1])]["category_id"] = 12
    by_image[int(names[2])]["segmentation"] = {"size": [3, 4], "counts": [0, 12]}
    by_image[int(names[3])]["segmentation"] = [["a", "b"]]
    file.write_text(json.dumps(content))
    done = prepare(BENCHMARKS["coco_object"], tmp_path, partial=True)
    assert done.written == 1
    for name, fault, words in zip(
        names[1:], done.faults, ("category_id 12", "size [3, 4]", "malformed"), strict=True
    ):
        assert fault.startswith(name) and words in fault


def test_verify_names_every_kind_of_fault(tmp_path, capsys):
    names = list(official.write_official("ade20k", tmp_path, images=7))
    assert run("ade20k", "--root", tmp_path, "--partial") == 0
    masks = {name: target("ade20k", tmp_path, name) for name in names}
    images = tmp_path / "ADEChallengeData2016/images/validation"
    masks[names[0]].unlink()
    (images / f"{names[1]}.jpg").unlink()
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(masks[names[2]])
    labels = np.array(Image.open(masks[names[3]]))
    labels[0, :3] = 150, 200, 255
    Image.fromarray(labels).save(masks[names[3]])
    masks[names[4]].write_bytes(masks[names[4]].read_bytes()[:50])
    (images / f"{names[5]}.jpg").write_bytes(b"no image")
    capsys.readouterr()

    assert run("ade20k", "--root", tmp_path, "--partial", "--verify") == 1

    printed = capsys.readouterr()
    assert "ade20k: 6 images, 6 label maps" in printed.out
    faults = printed.err.split("fault: ")[1:]
    assert len(faults) == 6
    for fault, name, words in zip(
        faults,
        names,
        (
            "1 image without label map",
            "1 label map without image",
            "sizes do not match: image",
            "ids out of range: 150, 200 ",
            "label map:",
            "image:",
        ),
        strict=False,
    ):
        assert name in fault and words in fault
    assert "label map 9 x 5" in faults[2]


def test_folders_of_other_projects_are_verified_where_they_lie(tmp_path):
    """MMSegmentation's layout of COCO-Stuff, which is not the one that is written."""
    official.write_official("coco_stuff164k", tmp_path)
    prepare(BENCHMARKS["coco_stuff164k"], tmp_path)
    other = tmp_path / "coco_stuff164k"
    (other / "annotations").mkdir(parents=True)
    (other / "images").mkdir()
    (tmp_path / "coco/val2017").rename(other / "images/val2017")
    (tmp_path / "coco/stuffthingmaps_detectron2/val2017").rename(other / "annotations/val2017")
    for mask in list((other / "annotations/val2017").iterdir()):
        mask.rename(mask.with_name(f"{mask.stem}_labelTrainIds.png"))
    seen = verify(BENCHMARKS["coco_stuff164k"], tmp_path, partial=True)
    assert (seen.images, seen.masks, seen.faults) == (3, 3, [])


def test_the_command_as_it_is_typed(tmp_path):
    official.write_official("voc20", tmp_path)
    command = [sys.executable, "-m", "freecp_d2.data.prepare", "voc20", "--root", str(tmp_path)]
    done = subprocess.run([*command, "--partial"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "voc20: 3 images; label maps: 3 written, 0 there already" in done.stdout
    assert "voc20" in done.stderr and "3/3" in done.stderr


def fail_to_write(number: int, monkeypatch) -> list[Path]:
    """Files that could not be written, as they are asked for."""
    asked: list[Path] = []

    def fail(path: Path, content: bytes) -> None:
        asked.append(path)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", fail)
    return asked


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_written_it_stops_in_a_sentence(tmp_path, monkeypatch, number):
    official.write_official("voc20", tmp_path)
    asked = fail_to_write(number, monkeypatch)
    with pytest.raises(SystemExit) as end:
        run("voc20", "voc21", "--partial", "--root", tmp_path)
    assert len(asked) == 1
    folder = tmp_path / BENCHMARKS["voc20"].layout.mask_folder
    line = f"python -m freecp_d2.data.prepare: {folder}/2007_000033.png: {os.strerror(number)}"
    assert str(end.value.code).lower().startswith(line.lower()) and os.listdir(folder) == []


def test_what_one_file_does_not_let_be_written_costs_that_one(tmp_path, monkeypatch, capsys):
    official.write_official("voc20", tmp_path)
    asked = fail_to_write(errno.EIO, monkeypatch)
    assert run("voc20", "--partial", "--root", tmp_path) == 1
    assert len(asked) == 3 and capsys.readouterr().err.count("  fault: 2007_0000") == 3


def test_workers_are_one_at_the_least(tmp_path, capsys):
    for workers in ("0", "-3"):
        with pytest.raises(SystemExit) as end:
            main(["voc20", "--root", str(tmp_path), "--workers", workers])
        assert end.value.code == 2
        assert capsys.readouterr().err.endswith(f"--workers {workers}: must be at least 1\n")


def test_debug_shows_where_an_error_comes_from(tmp_path):
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "coco/val2017").mkdir()
    (tmp_path / "coco/annotations/instances_val2017.json").write_text("{")
    assert run("coco_object", "--root", tmp_path) == 1
    with pytest.raises(ValueError, match="instances_val2017"):
        run("coco_object", "--root", tmp_path, "--debug")
