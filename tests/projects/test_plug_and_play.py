"""A Hugging Face CLIP and Detectron2's SemanticSegmentor through FreeCP's own PurificationHead."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SemanticSegmentor, build_model
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPModel

from freecp_d2 import load_config
from freecp_d2.clip import DenseCLIP, load_clip
from freecp_d2.clip.text import encode_sentences
from freecp_d2.data import Vocabulary
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.data.scenes import CLASSES, draw_scene
from freecp_d2.evaluation import FreeCPSemSegEvaluator
from freecp_d2.purification import PurificationHead

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "projects" / "PlugAndPlay"
MEAN, STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, PROJECT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


hugging = load("huggingface_clip")
plug = load("plug_and_play")


@pytest.fixture(scope="module")
def scene_clip():
    name = "freecp_d2://scenes/scene_clip"
    return load_clip(f"{name}.json", f"{name}.safetensors", "fp32")


@pytest.fixture(scope="module")
def converted(scene_clip):
    return hugging.from_open_clip(scene_clip[0])


@pytest.fixture(scope="module")
def windows():
    """(2, 3, 224, 224) normalised, of scenes that nothing else uses."""
    images = np.stack([draw_scene(seed).image[:, :224] for seed in (970000, 970001)])
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() - mean) / std


@pytest.mark.parametrize("method", hugging.METHODS)
def test_converted_weights_see_what_open_clip_sees(method, scene_clip, converted, windows):
    ours = DenseCLIP(scene_clip[0], method)
    theirs = hugging.HuggingFaceCLIP(converted, method)
    expected, found = ours(windows), theirs(windows)
    assert found.grid == expected.grid and theirs.patch_size == ours.patch_size
    assert theirs.logit_scale == pytest.approx(ours.logit_scale)
    for name in ("patches", "cls", "attention"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs.encode_cls(windows), expected.cls, atol=1e-4, rtol=0)


def test_both_clips_keep_the_same_classes(scene_clip, converted, windows):
    model, tokenizer = scene_clip
    ours, theirs = DenseCLIP(model), hugging.HuggingFaceCLIP(converted)
    sentences = [[f"a picture of the {name}"] for name in CLASSES]
    text = encode_sentences(model, tokenizer, sentences)
    own_text = encode_sentences(
        hugging.TextTower(converted), hugging.clip_tokenizer(converted), sentences
    )
    torch.testing.assert_close(own_text, text, atol=1e-4, rtol=0)
    head = PurificationHead(0.02, 0.5)
    expected = head(windows, ours(windows), text, text, ours)
    found = head(windows, theirs(windows), own_text, own_text, theirs)
    assert found.kept.equal(expected.kept) and found.beaten_by.equal(expected.beaten_by)
    assert 0 < expected.kept.sum() < expected.kept_redundancy.sum() < expected.kept.numel()
    torch.testing.assert_close(found.maps, expected.maps, atol=1e-4, rtol=0)


def test_a_clip_of_another_size_runs_in_freecp(tmp_path):
    tower = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            projection_dim=24,
            text_config={**tower, "hidden_size": 16, "vocab_size": 49408},
            vision_config={**tower, "hidden_size": 32, "image_size": 48, "patch_size": 8},
        )
    ).save_pretrained(tmp_path)
    options = ["MODEL.CLIP.NAME", str(tmp_path), "MODEL.FREECP.WINDOW", 64]
    options += ["MODEL.FREECP.STRIDE", 32, "MODEL.FREECP.REDUNDANCY_THRESHOLD", 0.0]
    options += ["MODEL.FREECP.DESCRIPTIONS", "", "MODEL.DEVICE", "cpu"]
    cfg = load_config(str(PROJECT / "configs" / "huggingface_scenes.yaml"), options)
    model = hugging.HuggingFaceFreeCP(cfg, vocabulary=Vocabulary.from_names(["dog", "sea", "sun"]))
    image = torch.randint(0, 256, (3, 70, 100), dtype=torch.uint8)
    (result,) = model.eval()([{"image": image}])
    assert result["sem_seg"].shape == (3, 70, 100) and result["sem_seg"].isfinite().all()
    assert result["kept"].any()


@pytest.mark.parametrize(("field", "message"), [("method", "gem"), ("layers", "one block")])
def test_what_cannot_be_read_is_refused(field, message):
    tower = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 20}
    vision = {**tower, "num_hidden_layers": 1 if field == "layers" else 2, "image_size": 32}
    text = {**tower, "num_hidden_layers": 1, "vocab_size": 99}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision))
    with pytest.raises(ValueError, match=message):
        hugging.HuggingFaceCLIP(model, "gem" if field == "method" else "clearclip")
    with pytest.raises(ValueError, match="99 tokens"):
        hugging.clip_tokenizer(model)


class Stripes(Backbone):
    """The image itself, averaged over 4 x 4 pixels."""

    size_divisibility = 16

    def forward(self, images):
        return {"stripes": F.avg_pool2d(images, 4)}

    def output_shape(self):
        return {"stripes": ShapeSpec(channels=3, stride=4)}


class ScoreHead(nn.Module):
    """Logits: the channels as classes, and one that is faint and scattered."""

    ignore_value = 255

    def __init__(self, bias: float):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, features, targets=None):
        maps = F.interpolate(features["stripes"], scale_factor=4.0, mode="nearest")
        faint = self.bias + 0.01 * maps.sum(dim=1, keepdim=True)
        scores = torch.cat([maps, faint], dim=1)
        if self.training:
            return None, {"loss": scores.mean()}
        return scores, {}


def segmentor(bias: float = -3.0) -> SemanticSegmentor:
    return SemanticSegmentor(
        backbone=Stripes(),
        sem_seg_head=ScoreHead(bias),
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(32.0, 32.0, 32.0),
    ).eval()


def purified(model: nn.Module, threshold: float = 0.2, background: int = 0, **options):
    head = PurificationHead(threshold, 0.7, background)
    affinity = plug.FeatureAffinity("stripes")
    return plug.PurifiedSegmentor(segmentor=model, head=head, affinity=affinity, **options).eval()


@pytest.fixture
def image():
    """(3, 40, 56): red on the left, green on the right, a little noise."""
    image = torch.randint(0, 20, (3, 40, 56), generator=torch.Generator().manual_seed(3))
    image[0, :, :24] += 200
    image[1, :, 24:] += 200
    return image.to(torch.uint8)


def brute_force_consistency(image: torch.Tensor, sem_seg: torch.Tensor) -> np.ndarray:
    """METHOD.md steps 2 to 5 in loops, with boxes by flood fill over cells of 4 x 4 pixels."""
    cells = image.double().reshape(3, 10, 4, 14, 4).mean((2, 4)).flatten(1).numpy() / 32
    unit = cells / np.linalg.norm(cells, axis=0)
    affinity = np.maximum(unit.T @ unit, 0)
    for _ in range(3):
        affinity = affinity / affinity.sum(0, keepdims=True)
        affinity = affinity / affinity.sum(1, keepdims=True)
    affinity = (affinity + affinity.T) / 2
    probabilities = (
        sem_seg.detach().double().softmax(0).reshape(-1, 10, 4, 14, 4).mean((2, 4)).numpy()
    )
    span = probabilities.max() - probabilities.min()
    normalized = (probabilities - probabilities.min()) / span
    scores = []
    for own, maps in zip(probabilities, normalized, strict=True):
        levels = np.floor(255 * maps)
        above, mask = levels > int(0.4 * levels.max()), np.zeros_like(maps)
        left = {tuple(place) for place in np.argwhere(above)}
        while left:
            region, queue = [], [left.pop()]
            while queue:
                y, x = queue.pop()
                region.append((y, x))
                near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
                left -= near
                queue += near
            (y0, x0), (y1, x1) = np.min(region, axis=0), np.max(region, axis=0) + 1
            mask[y0 : min(y1, 9), x0 : min(x1, 13)] = 1
        refined = (affinity @ affinity @ (mask * maps).ravel()).reshape(maps.shape)
        refined = (refined - refined.min()) / (refined.max() - refined.min() + 1e-8)
        scores.append((own * refined).sum() / (own.sum() + refined.sum() + 1e-8))
    return np.array(scores)


def test_a_segmentor_loses_the_classes_that_do_not_survive(image):
    inner = segmentor()
    (before,) = inner([{"image": image}])
    (after,) = purified(inner)([{"image": image}])
    expected = brute_force_consistency(image, before["sem_seg"])
    np.testing.assert_allclose(after["consistency"], expected, atol=1e-5)
    kept = torch.from_numpy(expected > 0.2)
    assert after["kept"].equal(kept) and kept.tolist() == [True, True, False, False]
    assert after["sem_seg"][kept].equal(before["sem_seg"][kept])
    assert (after["sem_seg"][~kept] == torch.finfo(torch.float32).min).all()
    assert after["sem_seg"].softmax(0)[~kept].eq(0).all()


def test_background_stays_and_nothing_is_lost_where_nothing_survives(image):
    inner = segmentor()
    (before,) = inner([{"image": image}])
    (untouched,) = purified(inner, 0.6)([{"image": image}])
    assert not untouched["kept"].any() and untouched["sem_seg"].equal(before["sem_seg"])
    (background,) = purified(inner, 0.6, background=1)([{"image": image}])
    assert background["kept"].tolist() == [False] * 3
    assert background["sem_seg"].argmax(0).eq(0).all()


def test_scores_may_be_probabilities(image):
    class Probabilities(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = segmentor()
            self.scale = 1.0

        def forward(self, inputs):
            return [{"sem_seg": self.scale * x["sem_seg"].softmax(0)} for x in self.inner(inputs)]

    model = Probabilities()
    wrapped = purified(model, submodule="inner.backbone", softmax=False)
    (logits,) = purified(segmentor())([{"image": image}])
    (found,) = wrapped([{"image": image}])
    torch.testing.assert_close(found["consistency"], logits["consistency"])
    model.scale = -1.0
    with pytest.raises(ValueError, match="cat.png.*SOFTMAX"):
        wrapped([{"image": image, "file_name": "cat.png"}])


def test_affinity_leaves_out_the_padding():
    features = torch.randn(1, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(1, 3, 64, 96)
    affinity, grid = plug.FeatureAffinity()((padded,), features, (48, 64))
    assert grid == (3, 4)
    own = features[0, :, :3, :4].flatten(1)
    expected = torch.stack([F.cosine_similarity(own, cell[:, None], dim=0) for cell in own.T])
    torch.testing.assert_close(affinity, expected.clamp(min=0), atol=1e-5, rtol=0)
    dead, _ = plug.FeatureAffinity()((padded,), torch.zeros(1, 5, 4, 6), (48, 64))
    assert dead.equal(torch.eye(12))


def test_look_alikes_compete_before_a_clip(image, scene_clip):
    class Twins(nn.Module):
        """Every class twice."""

        def __init__(self):
            super().__init__()
            self.inner = segmentor()

        def forward(self, inputs):
            return [{"sem_seg": x["sem_seg"].repeat(2, 1, 1)} for x in self.inner(inputs)]

    clip = DenseCLIP(scene_clip[0])
    unit = F.normalize(torch.randn(8, 128, generator=torch.Generator().manual_seed(1)), dim=1)
    options = {"submodule": "inner.backbone", "threshold": 0.15}
    (alone,) = purified(Twins(), **options)([{"image": image}])
    (both,) = purified(Twins(), **options, encoder=clip, descriptions=unit)([{"image": image}])
    assert alone["kept"].tolist() == [True, True, False, False] * 2
    assert both["kept_redundancy"].equal(alone["kept"]) and both["kept"].sum() == 2
    assert {frozenset(pair) for pair in both["ambiguous_losses"]} == {
        frozenset({0, 4}),
        frozenset({1, 5}),
    }
    related = np.zeros((8, 8), bool)
    related[0, 4] = related[4, 0] = True
    clip_and_words = {"encoder": clip, "descriptions": unit, "related": related}
    (kin,) = purified(Twins(), **options, **clip_and_words)([{"image": image}])
    assert {frozenset(pair) for pair in kin["ambiguous_losses"]} == {frozenset({1, 5})}
    with pytest.raises(ValueError, match="3 classes"):
        purified(Twins(), **options, encoder=clip, descriptions=unit[:3])([{"image": image}])


def test_bad_settings_and_broken_weights_are_named(image):
    with pytest.raises(ValueError, match="SUBMODULE.*backbone, sem_seg_head"):
        purified(segmentor(), submodule="neck")
    model = purified(segmentor())
    model.affinity = plug.FeatureAffinity("p9")
    with pytest.raises(ValueError, match="p9.*stripes"):
        model([{"image": image}])
    with pytest.raises(ValueError, match="dog.png.*MODEL.WEIGHTS"):
        purified(segmentor(float("nan")))([{"image": image, "file_name": "dog.png"}])


def test_training_and_checkpoints_are_the_wrapped_models(tmp_path, image):
    inner, model = segmentor(-7.0), purified(segmentor())
    torch.save({"model": inner.state_dict()}, tmp_path / "model.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "model.pth"))
    assert model.segmentor.sem_seg_head.bias == -7 and set(model.state_dict()) == set(
        inner.state_dict()
    )
    losses = model.train()([{"image": image}])
    losses["loss"].backward()
    assert model.segmentor.sem_seg_head.bias.grad is not None


def test_a_config_builds_it_and_detectron2_evaluates_it(tmp_path):
    name = f"plug_and_play_{tmp_path.name}"
    records = []
    for index, seed in enumerate((970002, 970003)):
        scene = draw_scene(seed, 96, 128)
        files = [tmp_path / f"{kind}{index}.png" for kind in ("image", "labels")]
        Image.fromarray(scene.image).save(files[0])
        Image.fromarray(scene.labels).save(files[1])
        paths = {"file_name": str(files[0]), "sem_seg_file_name": str(files[1])}
        records.append({**paths, "height": 96, "width": 128, "image_id": index})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
    )
    cfg = get_cfg()
    mean = list(cfg.MODEL.PIXEL_MEAN)
    plug.add_purified_config(cfg)
    assert cfg.MODEL.PIXEL_MEAN == mean and cfg.INPUT.FORMAT == "BGR"
    config = PROJECT / "configs" / "purified_semantic_R_50_FPN.yaml"
    cfg.merge_from_file(config, allow_unsafe=False)
    options = ["MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", len(CLASSES)]
    options += ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    options += ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32]
    options += ["MODEL.FREECP.REDUNDANCY_THRESHOLD", 0.01]
    cfg.merge_from_list(options)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    assert isinstance(model.segmentor, SemanticSegmentor)
    mapper = InferenceMapper(min_size=0, max_size=2048, image_format=cfg.INPUT.FORMAT)
    loader = build_detection_test_loader(records, mapper=mapper, num_workers=0)
    results = inference_on_dataset(model, loader, FreeCPSemSegEvaluator(name, distributed=False))
    assert 0 <= results["sem_seg"]["mIoU"] <= 100
    (result,) = model([mapper(records[0])])
    assert result["sem_seg"].shape == (41, 96, 128) and result["kept"].shape == (40,)


def clip_config(folder: Path, *options: object):
    """Of a segmentor before whose crops SceneCLIP reads the words of three classes."""
    vocabulary = folder / "vocabulary.json"
    vocabulary.write_text('{"classes": [["shirt"], ["person"], ["sky"]], "background": ["wall"]}')
    cfg = get_cfg()
    plug.add_purified_config(cfg)
    config = PROJECT / "configs" / "purified_semantic_R_50_FPN.yaml"
    cfg.merge_from_file(config, allow_unsafe=False)
    clip = "freecp_d2://scenes/scene_clip"
    words = ["MODEL.FREECP.VOCABULARY", str(vocabulary), "MODEL.FREECP.DESCRIPTIONS", ""]
    weights = ["MODEL.CLIP.NAME", f"{clip}.json", "MODEL.CLIP.PRETRAINED", f"{clip}.safetensors"]
    small = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    run = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", "", "MODEL.PURIFIED.AMBIGUITY", True]
    cfg.merge_from_list([*words, *weights, *small, *run, *options])
    return cfg


def test_a_config_keeps_related_classes_apart(tmp_path):
    file = tmp_path / "relations.json"
    file.write_text('{"shirt": {"person": "part"}}')
    model = build_model(clip_config(tmp_path, "MODEL.FREECP.RELATIONS", str(file)))
    related = np.zeros((3, 3), bool)
    related[0, 1] = related[1, 0] = True
    np.testing.assert_array_equal(model.related, related)
    assert build_model(clip_config(tmp_path)).related is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("ADAPTER", "bafta"), ("ADAPTER", "entropy_weights"), ("BACKGROUND", "auto")]
    + [("DECORRELATION", 0.5), ("SYNONYM_THRESHOLD", 0.1)],
)
def test_extensions_of_what_clip_scores_are_refused(tmp_path, key, value):
    with pytest.raises(ValueError, match=key):
        build_model(clip_config(tmp_path, f"MODEL.FREECP.{key}", value))


def test_the_demo_gives_the_same_figures_for_both_clips(tmp_path):
    # The demo's paths are relative to the repository; its output goes elsewhere.
    for name in ("configs", "projects", "freecp_d2"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [sys.executable, str(PROJECT / "demo.py"), "--images", "2"]
    environment = os.environ | {"DETECTRON2_DATASETS": str(ROOT / "datasets")}
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [line.split("|")[2:4] for line in run.stdout.splitlines() if line.startswith("| ")]
    assert rows[1] == rows[2] and all(float(cell) > 0 for cell in rows[1])
    assert (tmp_path / "output/plug_and_play/scene_clip/model.safetensors").is_file()
