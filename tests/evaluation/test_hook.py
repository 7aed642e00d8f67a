"""SemSegEvalHook in a Detectron2 training run of a small SemanticSegmentor."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.engine import SimpleTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from PIL import Image
from torch import nn

from freecp_d2 import FreeCP
from freecp_d2.clip.text import TextEncoder
from freecp_d2.data import Vocabulary
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.evaluation import FreeCPSemSegEvaluator, SemSegEvalHook
from freecp_d2.purification import PurificationHead

MEAN, STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)
SIDE = 96
COLORS = [[220, 30, 30], [30, 30, 220]]


class PatchEmbedding(Backbone):
    """CLIP's first layer as a backbone, with a normalisation that stays in eval mode."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv.requires_grad_(True)
        self.norm = nn.BatchNorm2d(conv.out_channels)

    def forward(self, images):
        return {"patches": self.norm(self.conv(images))}

    def output_shape(self):
        return {"patches": ShapeSpec(channels=self.conv.out_channels, stride=16)}


class StubTokenizer:
    """The text tower of the vectors' CLIP has 16 tokens: every text is two of them."""

    context_length = 8

    def __call__(self, texts, context_length=8):
        tokens = torch.zeros(len(texts), context_length, dtype=torch.long)
        tokens[:, 0], tokens[:, 1] = 14, 15
        return tokens


def mapper() -> InferenceMapper:
    """Images as they are on disk."""
    return InferenceMapper(min_size=0, max_size=2048, image_format="RGB")


@pytest.fixture
def dataset(register, tmp_path):
    """Two images, red above blue and blue above red, of the classes 0 and 1."""
    top = np.zeros((SIDE, SIDE), int)
    top[SIDE // 2 :] = 1
    name = register(tmp_path, [top, 1 - top])
    for record, labels in zip(DatasetCatalog.get(name), [top, 1 - top], strict=True):
        pixels = np.array(COLORS, np.uint8)[labels]
        Image.fromarray(pixels).save(record["file_name"], quality=95)
    return name


@pytest.fixture
def freecp(encoder, inputs, dataset):
    clip = encoder("clearclip")
    model = FreeCP(
        encoder=clip,
        text_encoder=TextEncoder(clip.model, StubTokenizer()),
        vocabulary=Vocabulary.from_names(["a", "b", "c", "d", "e"]),
        descriptions={},
        head=PurificationHead(0.0, 1.0),
        window=0,
        stride=0,
        batch_size=4,
        pixel_mean=MEAN,
        pixel_std=STD,
        input_format="RGB",
    )
    # CLIP's weights are random: its features of the first image's halves are the classes' "texts".
    image = mapper()(DatasetCatalog.get(dataset)[0])["image"]
    halves = model.encoder(model.normalize({"image": image})[None]).patches[0]
    text = inputs["text"][:5].clone()
    text[:2] = nn.functional.normalize(halves.unflatten(0, (2, -1)).mean(dim=1), dim=1)
    model.words = replace(model.words, text=text, descriptions=text)
    return model


def test_a_training_run_logs_its_own_model_and_freecp(dataset, freecp):
    torch.manual_seed(0)
    backbone = PatchEmbedding(freecp.encoder.model.visual.conv1)
    head = SemSegFPNHead(
        backbone.output_shape(),
        num_classes=5,
        conv_dims=16,
        common_stride=16,
        loss_weight=1.0,
        norm="",
        ignore_value=255,
    )
    segmentor = SemanticSegmentor(
        backbone=backbone, sem_seg_head=head, pixel_mean=MEAN, pixel_std=STD
    )

    records = DatasetCatalog.get(dataset)
    batch = []
    for record in records:
        with Image.open(record["sem_seg_file_name"]) as image:
            labels = torch.from_numpy(np.array(image, dtype=int))
        batch.append({**mapper()(record), "sem_seg": labels})
    optimizer = torch.optim.Adam(segmentor.parameters(), lr=0.02)
    trainer = SimpleTrainer(segmentor, [batch] * 6, optimizer)
    backbone.norm.eval()

    loader = build_detection_test_loader(records, mapper=mapper())
    evaluator = FreeCPSemSegEvaluator(dataset)
    trainer.register_hooks(
        [
            SemSegEvalHook(2, freecp, loader, evaluator),
            SemSegEvalHook(0, segmentor, loader, evaluator, prefix="segmentor"),
        ]
    )
    trainer.train(0, 6)

    assert segmentor.training and head.training and not backbone.norm.training
    history = trainer.storage.history("freecp/sem_seg/mIoU").values()
    assert [iteration for _, iteration in history] == [1, 3, 6]
    figures = [value for value, _ in history]
    assert all(0 <= value <= 100 for value in figures)
    assert len(set(figures)) > 1  # the layer that is trained is FreeCP's too
    assert len(trainer.storage.history("freecp/purification/ambiguity/recall").values()) == 3

    names = trainer.storage.histories()
    assert "freecp/sem_seg/ACC-a" in names
    assert "freecp/sem_seg/ACC-c" not in names  # NaN: class c is nowhere
    own = trainer.storage.history("segmentor/sem_seg/mIoU").values()
    assert [iteration for _, iteration in own] == [6]
    segmentor.eval()
    with torch.no_grad():
        predicted = [output["sem_seg"].argmax(0) for output in segmentor(batch)]
    right = [(p == x["sem_seg"]).float().mean() for p, x in zip(predicted, batch, strict=True)]
    logged, _ = trainer.storage.latest()["segmentor/sem_seg/pACC"]
    assert logged == pytest.approx(100 * float(sum(right)) / 2, abs=1e-3)


def test_modes_are_restored_when_the_evaluation_fails(dataset):
    class Broken(nn.Sequential):
        def forward(self, batch):
            assert not any(module.training for module in self.modules())
            raise RuntimeError("out of order")

    model = Broken(nn.BatchNorm2d(3).eval(), nn.ReLU()).train()
    model[0].eval()
    loader = build_detection_test_loader(DatasetCatalog.get(dataset), mapper=mapper())
    hook = SemSegEvalHook(1, model, loader, FreeCPSemSegEvaluator(dataset))
    with pytest.raises(RuntimeError, match="out of order"):
        hook._do_eval()
    assert model.training and model[1].training and not model[0].training


def test_a_model_of_other_classes_is_refused_before_it_runs(dataset):
    class Idle(nn.Module):
        vocabulary = Vocabulary.from_names(["a", "b", "c"])

        def forward(self, batch):
            raise AssertionError("it has run")

    loader = build_detection_test_loader(DatasetCatalog.get(dataset), mapper=mapper())
    hook = SemSegEvalHook(1, Idle(), loader, FreeCPSemSegEvaluator(dataset))
    with pytest.raises(ValueError, match="3 classes.* has 5"):
        hook._do_eval()


SCRIPT = """
import json, os, sys
from pathlib import Path
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from PIL import Image
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.evaluation import FreeCPSemSegEvaluator, SemSegEvalHook
from freecp_d2.ranks import launch

folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
records = [
    {"file_name": str(folder / f"{i}.jpg"), "sem_seg_file_name": str(folder / f"{i}.png")}
    for i in range(5)
]
DatasetCatalog.register("five", lambda: records)
MetadataCatalog.get("five").set(stuff_classes=["dark", "bright"], ignore_label=255)


class Threshold(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(60.0))

    def forward(self, batch):
        if self.training:
            return {"loss": (self.level - 130) ** 2}
        return [{"label_map": (x["image"][0] > self.level).long()} for x in batch]


def main():
    model = Threshold()
    mapper = InferenceMapper(min_size=0, max_size=2048, image_format="RGB")
    trainer = SimpleTrainer(model, [[]] * 4, torch.optim.SGD(model.parameters(), lr=0.1))
    loader = build_detection_test_loader(records, mapper=mapper)
    evaluator = FreeCPSemSegEvaluator("five")
    trainer.register_hooks([SemSegEvalHook(2, model, loader, evaluator)])
    trainer.train(0, 4)
    assert model.training and comm.get_world_size() == ranks
    logged = trainer.storage.histories()
    if comm.is_main_process():
        figures = {k: h.values() for k, h in logged.items() if k.startswith("freecp/")}
        (folder / f"{ranks}.json").write_text(json.dumps(figures))
    else:
        assert not any(key.startswith("freecp/") for key in logged)


if __name__ == "__main__":
    launch(main, (), ranks=ranks)
"""


def test_two_ranks_log_what_one_logs(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 256, (12, 10), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg")
        Image.fromarray((pixels > 128).astype(np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "script.py").write_text(SCRIPT)
    figures = []
    for ranks in ("1", "2"):
        command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), ranks]
        # On the CPU, where there may be more ranks than GPUs.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
        assert run.returncode == 0, run.stderr[-3000:]
        figures.append(json.loads((tmp_path / f"{ranks}.json").read_text()))
    one, two = figures
    assert two == one
    logged = one["freecp/sem_seg/mIoU"]
    assert [iteration for _, iteration in logged] == [1, 4]
    assert 0 < logged[0][0] < logged[1][0] < 100  # the threshold gets nearer to the truth's
