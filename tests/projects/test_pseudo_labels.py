"""From FreeCP's labels to a trained student; the losses against plain loops."""

import argparse
import importlib.util
import json
import logging
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.checkpoint.catalog import ModelCatalog
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.modeling import SemanticSegmentor, build_model
from PIL import Image
from torch import Tensor

from freecp_d2 import FreeCPPredictor, load_config
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import CLASSES, draw_scene
from freecp_d2.evaluation import FreeCPSemSegEvaluator
from freecp_d2.labelling import Job, Outputs, register_labels
from freecp_d2.labelling.launch import label

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "projects" / "PseudoLabels"
LABELS = "pseudo_labels"
TINY = [
    *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.FPN.OUT_CHANNELS", 8, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8),
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", 0),
]
"""A student that takes a moment."""


def load(name: str) -> ModuleType:
    """A module or package of the project."""
    file, folders = PROJECT / f"{name}.py", None
    if not file.is_file():
        file, folders = PROJECT / name / "__init__.py", [str(PROJECT / name)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


pseudo = load("pseudo_labels")
root_train_net = sys.modules.pop("train_net", None)
train_net = load("train_net")
if root_train_net:
    sys.modules["train_net"] = root_train_net
else:
    del sys.modules["train_net"]
draw_scenes = load("draw_scenes")
compare = load("compare")


def student_config(*opts, file: str = "scenes") -> CfgNode:
    return pseudo.load_student_config(PROJECT / "configs" / f"{file}.yaml", [*TINY, *opts])


@pytest.fixture(autouse=True)
def log_of_detectron2_as_before():
    """Detectron2 adds handlers for every OUTPUT_DIR and every screen, which pytest closes."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore")]
    handlers = [list(logger.handlers) for logger in loggers]
    yield
    for logger, before in zip(loggers, handlers, strict=True):
        logger.handlers = before


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --------------------------------------------------------------------------------------- losses


@pytest.fixture
def batch(generator) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (2, 4, 3, 5) that want a gradient, labels of which some are ignored, weights."""
    logits = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.double, requires_grad=True)
    labels = torch.randint(0, 4, (2, 3, 5), generator=generator)
    labels[torch.rand(2, 3, 5, generator=generator) < 0.3] = 255
    weights = torch.rand(2, 3, 5, generator=generator, dtype=torch.double)
    assert (labels == 255).any() and (labels == 0).any()
    return logits, labels, weights


def test_the_weighted_cross_entropy_of_a_loop(batch):
    logits, labels, weights = batch
    total = weight = 0.0
    for image, row, column in np.ndindex(*labels.shape):
        wanted = int(labels[image, row, column])
        if wanted == 255:
            continue
        scores = logits[image, :, row, column].tolist()
        loss = math.log(sum(math.exp(s) for s in scores)) - scores[wanted]
        total += float(weights[image, row, column]) * loss
        weight += float(weights[image, row, column])
    loss = pseudo.weighted_cross_entropy(logits, labels, weights, 255)
    assert loss.item() == pytest.approx(total / weight, rel=1e-12)


def test_equal_weights_are_the_ordinary_mean(batch):
    logits, labels, _ = batch
    ordinary = F.cross_entropy(logits, labels, ignore_index=255)
    weighted = pseudo.weighted_cross_entropy(logits, labels, torch.full(labels.shape, 0.3), 255)
    torch.testing.assert_close(weighted, ordinary)


def test_ignored_pixels_and_those_without_a_weight_have_no_gradient(batch):
    logits, labels, weights = batch
    weights[0, 0] = 0
    pseudo.weighted_cross_entropy(logits, labels, weights, 255).backward()
    silent = (labels == 255) | (weights == 0)
    gradients = logits.grad.abs().sum(1)
    assert (gradients[silent] == 0).all() and (gradients[~silent] > 0).all()


def test_the_gradient_of_the_weighted_cross_entropy(batch):
    logits, labels, weights = batch
    assert torch.autograd.gradcheck(
        lambda x: pseudo.weighted_cross_entropy(x, labels, weights, 255), logits
    )


@pytest.mark.parametrize("nothing", ["weights", "labels"])
def test_a_batch_of_which_nothing_counts_has_no_loss(batch, nothing):
    logits, labels, weights = batch
    if nothing == "weights":
        weights.zero_()
    else:
        labels.fill_(255)
    loss = pseudo.weighted_cross_entropy(logits, labels, weights, 255)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_the_region_means_of_a_loop(generator):
    features = torch.randn(2, 3, 4, 4, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 4), generator=generator) * 5
    labels[0, 0], labels[1, 0, 0] = 255, 7
    means, classes = pseudo.region_means(features, labels, 255)
    assert classes.tolist() == [0, 5, 7, 10]
    for mean, index in zip(means, classes.tolist(), strict=True):
        pixels = [
            features[image, :, row, column]
            for image, row, column in np.ndindex(2, 4, 4)
            if labels[image, row, column] == index
        ]
        torch.testing.assert_close(mean, torch.stack(pixels).mean(0))


def test_the_relation_loss_of_a_loop(generator):
    regions = torch.randn(5, 3, generator=generator)
    text = torch.randn(5, 8, generator=generator)

    def distance(a: Tensor, b: Tensor) -> float:
        return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    total = sum(
        abs(distance(regions[i], regions[j]) - distance(text[i], text[j]))
        for i in range(5)
        for j in range(5)
    )
    assert float(pseudo.relation_loss(regions, text)) == pytest.approx(total / 25, rel=1e-5)


def test_the_relation_loss_sees_angles_alone(generator):
    text = torch.randn(4, 6, generator=generator, dtype=torch.double)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.double)).Q
    regions = text @ rotation * torch.tensor([[0.1], [2.0], [30.0], [1.0]])
    assert float(pseudo.relation_loss(regions, text)) == pytest.approx(0, abs=1e-12)
    assert float(pseudo.relation_loss(-regions[[1, 0, 2, 3]], text)) > 0.01


def test_the_gradient_of_the_relation_loss(generator):
    features = torch.randn(1, 3, 3, 3, generator=generator, dtype=torch.double, requires_grad=True)
    text = torch.randn(3, 5, generator=generator, dtype=torch.double)
    labels = torch.tensor([[[0, 0, 1], [1, 1, 2], [2, 255, 255]]])

    def loss(features: Tensor) -> Tensor:
        regions, classes = pseudo.region_means(features, labels, 255)
        return pseudo.relation_loss(regions, text[classes])

    assert torch.autograd.gradcheck(loss, features)
    loss(features).backward()
    assert (features.grad[0, :, labels[0] == 255] == 0).all() and features.grad.any()


@pytest.mark.parametrize("classes", [0, 1])
def test_fewer_than_two_classes_have_no_relation(classes):
    features = torch.ones(1, 3, 2, 2, requires_grad=True)
    labels = torch.full((1, 2, 2), 0 if classes else 255)
    regions, present = pseudo.region_means(features, labels, 255)
    loss = pseudo.relation_loss(regions, torch.ones(4, 3)[present])
    loss.backward()
    assert len(present) == classes and loss == 0 and (features.grad == 0).all()


# --------------------------------------------------------------------------------------- mapper


def write_sample(folder: Path, classes: int) -> dict:
    """An image whose red tells the label, and confidences that tell it, too."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, (6, 8)).repeat(8, 0).repeat(8, 1)
    files = {key: str(folder / f"{key}.png") for key in ("image", "labels", "scores")}
    image = np.stack([labels % 256, labels // 256, labels * 0], axis=2).astype(np.uint8)
    Image.fromarray(image).save(files["image"])
    Image.fromarray(labels.astype(np.uint8 if classes < 255 else np.uint16)).save(files["labels"])
    Image.fromarray((255 - labels % 256).astype(np.uint8)).save(files["scores"])
    return {
        "file_name": files["image"],
        "sem_seg_file_name": files["labels"],
        "scores_file_name": files["scores"],
        **{"height": 48, "width": 64, "image_id": 1},
    }


def mapper_of(classes: int, augmentations: list, **options) -> object:
    return pseudo.PseudoLabelMapper(
        True,
        num_classes=classes,
        ignore_value=255 if classes < 255 else 65535,
        augmentations=augmentations,
        image_format="RGB",
        **{"with_scores": True, **options},
    )


@pytest.mark.parametrize("classes", [40, 700])
def test_image_labels_and_scores_go_through_the_same_transforms(classes, tmp_path):
    record = write_sample(tmp_path, classes)
    before = json.dumps(record)
    np.random.seed(0)
    mapper = mapper_of(classes, [T.RandomCrop("absolute", (24, 40)), T.RandomFlip()])
    seen = set()
    for _ in range(8):
        result = mapper(record)
        red, green, _ = result["image"].long()
        assert result["sem_seg"].dtype == torch.int64 and result["sem_seg"].shape == (24, 40)
        assert (result["sem_seg"] == red + 256 * green).all()
        assert torch.allclose(result["scores"], (255 - red) / 255)
        seen.add(tuple(result["sem_seg"][0].tolist()))
    assert len(seen) > 4 and json.dumps(record) == before


@pytest.mark.parametrize("classes", [40, 700])
def test_resized_labels_are_still_labels(classes, tmp_path):
    record = write_sample(tmp_path, classes)
    result = mapper_of(classes, [T.Resize((36, 80))])(record)
    labels = np.array(Image.open(record["sem_seg_file_name"]))
    assert result["sem_seg"].shape == result["scores"].shape == (36, 80)
    assert set(result["sem_seg"].unique().tolist()) <= set(labels.ravel().tolist())
    assert len(result["sem_seg"].unique()) > 20


def test_without_training_there_is_the_image_alone(tmp_path):
    record = write_sample(tmp_path, 40)
    result = pseudo.PseudoLabelMapper(student_config("INPUT.MIN_SIZE_TEST", 24), False)(record)
    assert result["image"].shape == (3, 24, 32) and result["height"] == 48
    assert not {"sem_seg", "scores"} & result.keys()


def test_labels_that_do_not_belong_to_the_image_are_named(tmp_path):
    record = write_sample(tmp_path, 40)
    with pytest.raises(ValueError, match=r"labels.png: label 3. is neither one of the 30 classes"):
        mapper_of(30, [])(record)
    Image.new("L", (64, 47)).save(record["scores_file_name"])
    with pytest.raises(ValueError, match=r"scores.png: it has size \(47, 64\), its image \(48, 64"):
        mapper_of(40, [])(record)
    assert "scores" not in mapper_of(40, [], with_scores=False)(record)


# ---------------------------------------------------------------------------------------- model


def samples(generator: torch.Generator, sizes=((64, 96), (96, 64))) -> list[dict]:
    """A batch of images of two sizes, with labels of which a fifth is ignored, and confidences."""
    batch = []
    for height, width in sizes:
        labels = torch.randint(0, 41, (height // 16, width // 16), generator=generator)
        labels = labels.repeat_interleave(16, 0).repeat_interleave(16, 1)
        labels[torch.rand(height, width, generator=generator) < 0.2] = 255
        image = torch.randint(0, 256, (3, height, width), generator=generator).to(torch.uint8)
        scores = torch.rand(height, width, generator=generator)
        batch.append({"image": image, "sem_seg": labels, "scores": scores})
    return batch


def features_and_logits(model: SemanticSegmentor, batch: list[dict]) -> tuple[Tensor, Tensor]:
    """What the head's last layer takes, and logits at full size, by calling the parts."""
    pixels = torch.zeros(2, 3, 96, 96)
    for i, x in enumerate(batch):
        _, height, width = x["image"].shape
        pixels[i, :, :height, :width] = (x["image"] - model.pixel_mean) / model.pixel_std
    head = model.sem_seg_head
    kept = torch.nn.Identity()
    predictor, head.predictor = head.predictor, kept
    features = head.layers(model.backbone(pixels))
    head.predictor = predictor
    logits = F.interpolate(
        predictor(features), scale_factor=4, mode="bilinear", align_corners=False
    )
    return features, logits


def padded(batch: list[dict], key: str, value: float) -> Tensor:
    result = torch.full((2, 96, 96), value, dtype=batch[0][key].dtype)
    for i, x in enumerate(batch):
        height, width = x[key].shape
        result[i, :height, :width] = x[key]
    return result


@pytest.fixture
def catalogued():
    """A data set of scenes' classes for configs; it and the labels go away again."""
    MetadataCatalog.get(LABELS).set(stuff_classes=list(CLASSES))
    yield
    MetadataCatalog.remove(LABELS)


RELATION = ("PSEUDO_LABELS.RELATION_WEIGHT", 10.0, "PSEUDO_LABELS.TEACHER", "scenes/clearclip")
WEIGHTED = ("PSEUDO_LABELS.CONFIDENCE_WEIGHTED", True)


def test_without_losses_it_is_detectron2s(generator):
    cfg = student_config()
    assert not cfg.PSEUDO_LABELS.CONFIDENCE_WEIGHTED and cfg.PSEUDO_LABELS.RELATION_WEIGHT == 0
    model = build_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    plain = build_model(cfg)
    plain.load_state_dict(model.state_dict())
    batch = samples(generator)
    ours, theirs = model(batch), plain(batch)
    assert ours.keys() == theirs.keys() == {"loss_sem_seg"}
    assert ours["loss_sem_seg"].equal(theirs["loss_sem_seg"])
    model.eval(), plain.eval()
    assert model(batch)[0]["sem_seg"].equal(plain(batch)[0]["sem_seg"])


def test_the_losses_of_a_batch_of_two_sizes(generator, catalogued):
    model = build_model(student_config(*WEIGHTED, *RELATION, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.5))
    batch = samples(generator)
    losses = model(batch)
    features, logits = features_and_logits(model, batch)
    labels, scores = padded(batch, "sem_seg", 255), padded(batch, "scores", 0)
    counted = labels != 255
    each = F.cross_entropy(logits, labels, reduction="none", ignore_index=255)[counted]
    weighted = (each * scores[counted]).sum() / scores[counted].sum()
    torch.testing.assert_close(losses["loss_sem_seg"], 0.5 * weighted)

    cells = labels[:, 2::4, 2::4]
    classes = [i for i in range(41) if (cells == i).any()]
    regions = torch.stack([features.movedim(1, -1)[cells == i].mean(0) for i in classes])
    text = FreeCPPredictor("scenes/clearclip", device="cpu")._segmenter.words_of(None, False).text
    wanted = pseudo.relation_loss(regions, text[classes])
    assert wanted > 0.01
    torch.testing.assert_close(losses["loss_relation"], 10 * wanted)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_relation_alone_keeps_the_heads_own_loss(generator, catalogued):
    model = build_model(student_config(*RELATION))
    batch = samples(generator)
    losses = model(batch)
    model.relation_weight = 0
    assert losses["loss_sem_seg"].equal(model(batch)["loss_sem_seg"])
    assert losses.keys() == {"loss_sem_seg", "loss_relation"}
    assert "text" not in model.state_dict()


def test_the_text_of_a_class_of_several_names(catalogued):
    MetadataCatalog.remove(LABELS)
    vocabulary = Vocabulary((("sky",), ("river", "sea"), ("sand",)), ("wall",))
    MetadataCatalog.get(LABELS).set(vocabulary=vocabulary)
    text = pseudo.text_features(student_config(*RELATION))
    predictor = FreeCPPredictor("scenes/clearclip", device="cpu")
    words = predictor._segmenter.words_of(["sky", "river", "sea", "sand"], False).text
    river = F.normalize(words[1] + words[2], dim=0)
    torch.testing.assert_close(text, torch.stack([words[0], river, words[3]]))


def test_the_text_is_as_decorrelated_as_the_teachers(tmp_path, catalogued):
    base = Path(__file__).parents[2] / "configs" / "scenes" / "clearclip.yaml"
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(f"_BASE_: {base}\nMODEL:\n  FREECP:\n    DECORRELATION: 1.0\n")
    relation = (*RELATION[:-1], str(teacher))
    plain = pseudo.text_features(student_config(*RELATION))
    text = pseudo.text_features(student_config(*relation))
    eye = torch.eye(len(text))
    torch.testing.assert_close(text @ text.T, eye, atol=1e-3, rtol=0)
    assert (plain @ plain.T - eye).abs().max() > 0.1


def test_deeplab_has_the_same_losses(generator, catalogued):
    pytest.importorskip("detectron2.projects.deeplab")
    opts = ("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8, "MODEL.SEM_SEG_HEAD.PROJECT_CHANNELS", [4])
    opts += ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 41, "MODEL.SEM_SEG_HEAD.NORM", "BN")
    cfg = student_config(*opts, *WEIGHTED, *RELATION, file="deeplab_v3_plus_R_50")
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = samples(generator)
    for x in batch:
        x["scores"].fill_(1)
    torch.manual_seed(1)  # of its dropout
    losses = model(batch)
    model.confidence_weighted = False
    torch.manual_seed(1)
    ordinary = model(batch)
    torch.testing.assert_close(losses, ordinary)
    assert losses["loss_relation"] > 0
    model.eval()
    assert model([{"image": torch.zeros(3, 50, 70)}])[0]["sem_seg"].shape == (41, 50, 70)


@pytest.mark.parametrize("file", ["semantic_fpn_R_50", "deeplab_v3_plus_R_50"])
def test_configs_begin_with_weights_that_detectron2_knows(file):
    cfg = pseudo.load_student_config(PROJECT / "configs" / f"{file}.yaml")
    weights = cfg.MODEL.WEIGHTS.removeprefix("detectron2://")
    assert weights in ModelCatalog.C2_IMAGENET_MODELS.values()
    assert cfg.MODEL.META_ARCHITECTURE == "PseudoLabelSegmentor"
    assert cfg.DATASETS.TEST[0] in DatasetCatalog.list()
    classes = MetadataCatalog.get(cfg.DATASETS.TEST[0]).stuff_classes
    assert len(classes) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


# ------------------------------------------------------------------- from labels to a student


TEST_SET = "scenes_of_the_student"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """Three scenes labelled as `freecp label --scores` does, and the teacher's results on two."""
    folder = tmp_path_factory.mktemp("student")
    draw_scenes.main(["--output", str(folder / "images"), "--count", "3"])
    cfg = load_config("scenes/clearclip", ["MODEL.DEVICE", "cpu", "MODEL.FREECP.STRIDE", "112"])
    words = Vocabulary.from_names(CLASSES)
    job = Job(cfg, str(folder / "images"), str(folder / "labels"), words, Outputs(scores=True))
    assert label(job, "test") == 0
    records = []
    (folder / "test").mkdir()
    for seed in (980_000, 980_001):
        scene = draw_scene(seed)
        files = [str(folder / "test" / f"{seed}{kind}.png") for kind in ("", "_labels")]
        for file, pixels in zip(files, (scene.image, scene.labels), strict=True):
            Image.fromarray(pixels).save(file)
        size = {"height": scene.labels.shape[0], "width": scene.labels.shape[1]}
        records.append({"file_name": files[0], "sem_seg_file_name": files[1], **size})
    DatasetCatalog.register(TEST_SET, lambda: records)
    MetadataCatalog.get(TEST_SET).set(
        stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
    )
    teacher = FreeCPPredictor(cfg)
    evaluator = FreeCPSemSegEvaluator(TEST_SET, output_dir=folder / "teacher")
    evaluator.reset()
    for record in records:
        labels = torch.from_numpy(teacher(record["file_name"]).label_map.astype(np.int64))
        evaluator.process([record], [{"label_map": labels}])
    evaluator.evaluate()
    yield folder
    DatasetCatalog.remove(TEST_SET)
    MetadataCatalog.remove(TEST_SET)


@pytest.fixture
def labels(workplace: Path):
    """sem_seg.json of the workplace; what is registered under its name goes away."""
    yield str(workplace / "labels" / "sem_seg.json")
    forget_labels()


def forget_labels() -> None:
    if LABELS in DatasetCatalog:
        DatasetCatalog.remove(LABELS)
        MetadataCatalog.remove(LABELS)


def arguments(output: Path, *opts, flags: tuple[str, ...] = ()) -> argparse.Namespace:
    given = ["--config-file", str(PROJECT / "configs" / "scenes.yaml"), *flags]
    values = {
        **dict(zip(TINY[::2], TINY[1::2], strict=True)),
        "DATASETS.TEST": (TEST_SET,),
        "INPUT.CROP.SIZE": [96, 96],
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.BASE_LR": 0.05,
        "SOLVER.WARMUP_ITERS": 0,
        "SEED": 1,
        "OUTPUT_DIR": str(output),
        **dict(zip(opts[::2], opts[1::2], strict=True)),
    }
    return train_net.parse_args([*given, *(str(x) for pair in values.items() for x in pair)])


def logged(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def test_labels_become_a_student(workplace, labels, tmp_path, capsys):
    results = workplace / "teacher" / "results.json"
    opts = ("PSEUDO_LABELS.LABELS", labels, *WEIGHTED, *RELATION)
    opts += ("PSEUDO_LABELS.TEACHER_RESULTS", results)
    figures = train_net.main(arguments(tmp_path, *opts, "SOLVER.MAX_ITER", 40))
    first, second, last = logged(tmp_path)
    assert first["total_loss"] > second["total_loss"] and second["loss_relation"] > 0

    teacher = json.loads(results.read_text())["metrics"]["mIoU"]
    evaluation = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    student = evaluation["metrics"]["mIoU"]
    assert figures["teacher/sem_seg/mIoU"][0] == last["teacher/sem_seg/mIoU"] == teacher
    assert figures["student/sem_seg/mIoU"][0] == pytest.approx(student)
    assert evaluation["method"] == "student" and evaluation["images"] == 2
    report = (tmp_path / "evaluation" / "report.html").read_text()
    assert f"{teacher:.2f}" in report
    printed = capsys.readouterr().out
    assert f"teacher  {teacher:.2f}" in printed and f"student  {student:.2f}" in printed

    forget_labels()
    train_net.main(arguments(tmp_path, *opts, "SOLVER.MAX_ITER", 42, flags=("--resume",)))
    assert [x["iteration"] for x in logged(tmp_path)[3:]] == [41, 42]
    student = json.loads((tmp_path / "evaluation" / "results.json").read_text())["metrics"]["mIoU"]

    weights = ("MODEL.WEIGHTS", tmp_path / "model_final.pth")
    again = train_net.main(arguments(tmp_path / "again", *weights, flags=("--eval-only",)))
    assert again["sem_seg"]["mIoU"] == pytest.approx(student)

    compare.main(
        ["--teacher", "scenes/clearclip", "--student", str(tmp_path), "--timed", "2"]
        + ["--output", str(tmp_path / "compare"), "--pictured", "1"]
    )
    rates = json.loads((tmp_path / "compare" / "compare.json").read_text())["per_second"]
    assert rates.keys() == {"teacher", "student"} and min(rates.values()) > 0
    with Image.open(tmp_path / "compare" / "compare.jpg") as picture:
        assert picture.width > 2 * picture.height


def test_the_students_labels_are_those_of_its_evaluation(workplace, labels, tmp_path):
    """What is timed and pictured is what is evaluated."""
    train_net.main(arguments(tmp_path, "PSEUDO_LABELS.LABELS", labels, "SOLVER.MAX_ITER", 2))
    segment, dataset = compare.load_student(tmp_path)
    evaluator = FreeCPSemSegEvaluator(dataset)
    evaluator.reset()
    for record in DatasetCatalog.get(dataset):
        image = np.array(Image.open(record["file_name"]))
        predicted = torch.from_numpy(segment(image))
        evaluator.process([record], [{"label_map": predicted}])
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(results["metrics"]["mIoU"])


def refusal(args: argparse.Namespace) -> str:
    """The one line that it ends with."""
    with pytest.raises(SystemExit) as error:
        train_net.run(args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_wrong_input_is_one_sentence(workplace, labels, tmp_path):
    bare = json.loads(Path(labels).read_text())
    for image in bare["images"]:
        del image["scores_file_name"]
    (workplace / "labels" / "bare.json").write_text(json.dumps(bare))
    opts = ("PSEUDO_LABELS.LABELS", workplace / "labels" / "bare.json", *WEIGHTED)
    assert "3 of 3 images of pseudo_labels have no scores" in refusal(arguments(tmp_path, *opts))
    assert "PSEUDO_LABELS.LABELS is empty" in refusal(arguments(tmp_path))
    (tmp_path / "mine.py").write_text("import nobody_has_this")
    args = arguments(tmp_path, flags=("--register", str(tmp_path / "mine.py")))
    assert "mine.py: No module named 'nobody_has_this'" in refusal(args)


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        (("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 40), "NUM_CLASSES is 40, .* labels of 41 classes"),
        (("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 254), "IGNORE_VALUE is 254, .* they are 255"),
        (("DATASETS.TEST", ()), r"DATASETS.TEST is \(\); name one data set"),
        (("DATASETS.TEST", ("shuffled",)), "class 0 is 'sky' and 'rock'; label with the words of"),
        (
            ("DATASETS.TEST", ("fewer",)),
            "pseudo_labels and fewer differ in their classes: 41 and 2",
        ),
    ],
)
def test_labels_that_do_not_fit_the_model_or_the_test(opts, sentence, workplace, labels):
    sets = {"shuffled": [*reversed(CLASSES)], "fewer": ["sky", "sand"]}
    for name, classes in sets.items():
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(stuff_classes=classes)
    register_labels(LABELS, labels)
    values = {"DATASETS.TEST": (TEST_SET,), **dict([opts])}
    try:
        with pytest.raises(ValueError, match=sentence):
            pseudo.check_labels(student_config(*(x for pair in values.items() for x in pair)))
    finally:
        for name in sets:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_a_relation_needs_a_teacher():
    with pytest.raises(ValueError, match="RELATION_WEIGHT is set, but not PSEUDO_LABELS.TEACHER"):
        build_model(student_config("PSEUDO_LABELS.RELATION_WEIGHT", 10.0))


def test_results_of_another_data_set_are_refused(workplace, tmp_path):
    results = json.loads((workplace / "teacher" / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({**results, "dataset": "others"}))
    opts = ("PSEUDO_LABELS.TEACHER_RESULTS", str(tmp_path / "results.json"))
    with pytest.raises(ValueError, match="results on others, not on scenes_of_the_student"):
        train_net.Trainer.build_evaluator(
            student_config(*opts, "OUTPUT_DIR", str(tmp_path)), TEST_SET
        )


def test_configs_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml: no such file"):
        pseudo.load_student_config("nowhere.yaml")
    (tmp_path / "strange.yaml").write_text("MODEL: {STUDENT: 1}\n")
    with pytest.raises(ValueError, match="strange.yaml: .*MODEL.STUDENT"):
        pseudo.load_student_config(tmp_path / "strange.yaml")
    with pytest.raises(ValueError, match="config override: .*KEY VALUE"):
        student_config("MODEL.STUDENT", 1)


def test_drawn_scenes_are_nobody_elses(tmp_path):
    draw_scenes.main(["--output", str(tmp_path), "--count", "2"])
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["2000000.png", "2000001.png"]
    assert (np.array(Image.open(files[1])) == draw_scene(2_000_001).image).all()
