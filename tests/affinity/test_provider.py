"""FreeCP with an affinity from elsewhere: on images, in evaluations, in labelling."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from freecp_d2 import FreeCPPredictor, get_config
from freecp_d2.affinity import (
    AFFINITY_PROVIDERS,
    AffinityFault,
    MaskFolder,
    SourceImage,
    build_affinity,
)
from freecp_d2.cli.evaluate import main as evaluate
from freecp_d2.cli.label import main as label
from freecp_d2.data.scenes import draw_scene
from freecp_d2.encoding import encode_images
from freecp_d2.evaluation.facts import facts_of, label_settings
from freecp_d2.sliding_window import Window, window_batches
from freecp_d2.timing import StageTimer

WORDS = ["sky", "sand", "river", "mountain", "snow", "dog", "lawn", "road"]


class Constant:
    """A provider that says what it was asked."""

    def __init__(self):
        self.asked = []

    def of_images(self, images, patch_size):
        self.asked += images

        def affinity(windows, pixels):
            count = (pixels.shape[2] // patch_size[0]) * (pixels.shape[3] // patch_size[1])
            return torch.eye(count).expand(len(windows), -1, -1) + windows[0].rows.start

        return affinity


def encode(encoder, provider, base=False):
    torch.manual_seed(0)
    images = [torch.randn(3, 60, 50), torch.randn(3, 40, 70)]
    inputs = [
        {"image": images[0], "file_name": "a.jpg", "height": 120, "width": 100},
        {"image": images[1], "file_name": "b.jpg"},
    ]
    batches = window_batches(images, 40, 20, 4)
    encoded = encode_images(
        inputs, images, batches, encoder, provider, StageTimer(), base=base, pad=False
    )
    return encoded.in_memory().batches


def test_it_stands_in_place_of_the_attention_and_changes_nothing_else(encoder):
    clip, provider = encoder("clearclip"), Constant()
    for usual, batch in zip(encode(clip, None), encode(clip, provider), strict=True):
        count = batch.patches.shape[1]
        expected = torch.eye(count).expand(len(batch.windows), -1, -1)
        assert batch.features.attention.equal(expected + batch.windows[0].rows.start)
        # To the bit where the trunk records no attention for itself either.
        alone, grid, _ = clip.encode_dense(batch.pixels)
        assert batch.features.patches.equal(alone) and batch.features.grid == grid
        for name in ("patches", "cls"):
            ours, theirs = getattr(batch.features, name), getattr(usual.features, name)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    first, second = provider.asked
    assert (first.file_name, first.original_size, first.size) == ("a.jpg", (120, 100), (60, 50))
    assert (second.file_name, second.original_size, second.size) == ("b.jpg", (40, 70), (40, 70))
    assert {window.rows.start for window in first.windows} == {0, 20}
    assert [window.image for window in second.windows] == [1, 1, 1]


def test_a_base_method_alone_asks_for_none(encoder):
    provider = Constant()
    encode(encoder("clearclip"), provider, base=True)
    assert not provider.asked


def test_the_config_names_a_provider_or_none():
    assert build_affinity(get_config("scenes/clearclip")) is None
    with pytest.raises(ValueError, match="is 'DINO'; choose one of MaskFolder, TimmViT, or leave"):
        build_affinity(get_config("scenes/clearclip", ["MODEL.FREECP.AFFINITY_PROVIDER", "DINO"]))
    opts = ["MODEL.FREECP.AFFINITY_PROVIDER", "MaskFolder", "MODEL.FREECP.AFFINITY", "method"]
    with pytest.raises(ValueError, match="AFFINITY is 'method' and AFFINITY_PROVIDER MaskFolder"):
        build_affinity(get_config("scenes/clearclip", opts))


def test_a_provider_of_ones_own_is_registered_by_name(monkeypatch):
    monkeypatch.setattr(AFFINITY_PROVIDERS, "_obj_map", dict(AFFINITY_PROVIDERS._obj_map))
    AFFINITY_PROVIDERS.register(lambda cfg: cfg.MODEL.CLIP.METHOD)
    cfg = get_config("scenes/clearclip", ["MODEL.FREECP.AFFINITY_PROVIDER", "<lambda>"])
    assert build_affinity(cfg) == "clearclip"


def opts(folder: Path) -> list[str]:
    provider = ["MODEL.FREECP.AFFINITY_PROVIDER", "MaskFolder"]
    return [*provider, "MODEL.FREECP.AFFINITY_MASKS", str(folder), "MODEL.DEVICE", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two photos and masks of one of them."""
    folder = tmp_path_factory.mktemp("provider")
    (folder / "photos").mkdir()
    for number, seed in enumerate((120, 121)):
        scene = draw_scene(seed)
        Image.fromarray(scene.image).save(folder / "photos" / f"{number}.png")
    (folder / "masks").mkdir()
    truth = draw_scene(120).labels
    Image.fromarray(truth + np.uint8(1)).save(folder / "masks" / "0.png")
    return folder


@pytest.fixture(scope="module")
def predictor(folder) -> FreeCPPredictor:
    return FreeCPPredictor("scenes/clearclip", opts(folder / "masks"))


def test_masks_change_the_segmentation_and_only_of_images_that_have_some(folder, predictor):
    photo, other = (folder / "photos" / f"{number}.png" for number in (0, 1))
    usual = FreeCPPredictor("scenes/clearclip", ["MODEL.DEVICE", "cpu"])
    labels = predictor(photo, WORDS).label_map
    assert not np.array_equal(labels, usual(photo, WORDS).label_map)
    assert np.array_equal(
        predictor.base(other, WORDS).label_map, usual.base(other, WORDS).label_map
    )
    with pytest.raises(AffinityFault, match=f"^{other}: its masks are .*none of them"):
        predictor(other, WORDS)
    with pytest.raises(AffinityFault, match="^the image: its masks are"):
        predictor(Image.open(photo), WORDS)
    results = predictor([photo, other], WORDS, on_error="skip")
    assert np.array_equal(results[0].label_map, labels)
    assert results[1].error.startswith(f"{other}: its masks")


@pytest.mark.parametrize("orientation", [3, 6])
def test_masks_are_of_the_image_as_exif_turns_it(folder, predictor, tmp_path, orientation):
    """A photo that is stored turned, with masks of it upright, is that photo stored upright."""
    with Image.open(folder / "photos" / "0.png") as upright:
        turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / "turned").mkdir()
        upright.transpose(turn).save(tmp_path / "turned" / "0.png", exif=exif)
    expected = predictor(folder / "photos" / "0.png", WORDS)
    found = predictor(tmp_path / "turned" / "0.png", WORDS)
    assert np.array_equal(found.label_map, expected.label_map)
    if orientation == 6:
        stored = FreeCPPredictor(
            "scenes/clearclip",
            [*opts(folder / "masks"), "INPUT.EXIF_ORIENTATION", "False"],
            model=predictor._segmenter.model,
        )
        with pytest.raises(AffinityFault, match="and the image .*EXIF_ORIENTATION"):
            stored(tmp_path / "turned" / "0.png", WORDS)


def test_masks_follow_a_resized_image(folder, predictor, tmp_path):
    """At twice the size, image and masks give the same affinity of patches."""
    model, masks = predictor._segmenter.model, tmp_path / "masks"
    masks.mkdir()
    with Image.open(folder / "masks" / "0.png") as small:
        big = small.resize((2 * small.width, 2 * small.height), Image.Resampling.NEAREST)
        big.save(masks / "0.png")
        size = small.height, small.width
    window = Window(0, slice(0, 224), slice(30, 254))
    source = {"file_name": "0.jpg", "size": size, "windows": [window]}
    pixels = torch.zeros(1, 3, 224, 224)
    affinities = []
    for path, times in ((folder / "masks", 1), (masks, 2)):
        image = SourceImage(**source, original_size=(times * size[0], times * size[1]))
        of_windows = MaskFolder(folder=path).of_images([image], model.encoder.patch_size)
        affinities.append(of_windows([window], pixels))
    torch.testing.assert_close(*affinities, atol=1e-6, rtol=0)


def test_an_evaluation_leaves_out_what_has_no_masks(folder, tmp_path):
    register = tmp_path / "photos.py"
    register.write_text(REGISTER.format(folder=folder))
    for number, seed in enumerate((120, 121)):
        truth = folder / f"{number}_truth.png"
        Image.fromarray(draw_scene(seed).labels).save(truth)
    code = evaluate(
        [
            *("--config-file", "scenes/clearclip", "--register", str(register)),
            *(*opts(folder / "masks"), "DATASETS.TEST", "('photos_with_masks',)"),
            *("OUTPUT_DIR", str(tmp_path / "output")),
        ]
    )
    assert code == 3
    results = json.loads((tmp_path / "output" / "results.json").read_text())
    assert results["config"]["MODEL"]["FREECP"]["AFFINITY_PROVIDER"] == "MaskFolder"
    assert results["affinity_weights"] is None
    (sentence,) = results["failed"].values() if "failed" in results else ()
    assert "1.png: its masks are" in sentence


REGISTER = """
from detectron2.data import DatasetCatalog, MetadataCatalog
import freecp_d2.data.scenes

truth = MetadataCatalog.get("scenes_val")
DatasetCatalog.register("photos_with_masks", lambda: [
    dict(file_name=f"{folder}/photos/{{i}}.png", sem_seg_file_name=f"{folder}/{{i}}_truth.png")
    for i in range(2)
])
MetadataCatalog.get("photos_with_masks").set(
    stuff_classes=truth.stuff_classes, ignore_label=255, evaluator_type="sem_seg"
)
"""


def test_labelling_knows_the_names_of_images(folder, tmp_path):
    output = tmp_path / "labels"
    code = label(
        [
            *("--config-file", "scenes/clearclip", "--input", str(folder / "photos")),
            *("--vocabulary", ",".join(WORDS), "--output", str(output)),
            *("--opts", *opts(folder / "masks")),
        ]
    )
    assert code == 3
    records = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    errors = {record["id"]: record.get("error") for record in records}
    assert errors["0"] is None and "1.png: its masks are" in errors["1"]
    settings = json.loads((output / "settings.json").read_text())
    assert settings["MODEL.FREECP.AFFINITY_PROVIDER"] == "MaskFolder"


def test_weights_of_the_provider_are_a_fact(predictor):
    model = predictor._segmenter.model
    usual = facts_of(predictor.cfg, model)
    hashes = [usual["affinity_weights"]]
    for bias in (0.0, 1.0):
        module = torch.nn.LayerNorm(2)
        torch.nn.init.constant_(module.bias, bias)
        names = "encoder", "vocabulary", "device", "extensions"
        parts = {name: getattr(model, name) for name in names}
        facts = facts_of(predictor.cfg, SimpleNamespace(**parts, affinity=module))
        hashes.append(label_settings(facts)["affinity_weights"])
    assert hashes[0] is None and len(set(hashes)) == 3
    assert "MODEL.FREECP.AFFINITY_VIT_WEIGHTS" not in label_settings(usual)
