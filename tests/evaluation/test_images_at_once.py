"""Images of an evaluation go through the model at once, and each is counted by itself."""

import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.modeling import build_model

from freecp_d2.affinity import AffinityFault
from freecp_d2.cli.evaluate import SparingMapper, Trainer, evaluate_images
from freecp_d2.config import load_config
from freecp_d2.data.mapper import InferenceMapper
from freecp_d2.evaluation import FreeCPSemSegEvaluator


class Model:
    """Labels by the images' names; refuses batches, or some images, as it is told."""

    def __init__(self, error=None, broken=()):
        self.error, self.broken, self.batches = error, broken, []

    def __call__(self, images):
        self.batches.append([image["file_name"] for image in images])
        if self.error is not None and (
            len(images) > 2 or any(image["file_name"] in self.broken for image in images)
        ):
            raise self.error
        return [{"label_map": torch.zeros_like(x["sem_seg"], dtype=torch.int64)} for x in images]


class Counter:
    """What an evaluator is asked."""

    def __init__(self):
        self.counted, self.failed = [], {}

    def process(self, inputs, outputs):
        (x,), (_,) = inputs, outputs
        self.counted.append(x["file_name"])

    def fail(self, file, error):
        self.failed[file] = error


def batch(*names: str) -> list[dict]:
    return [{"file_name": name, "sem_seg": torch.zeros(2, 2)} for name in names]


def test_images_that_cannot_be_read_are_left_out():
    model, evaluator = Model(), Counter()
    images = batch("a", "b", "c")
    images[1] = {"file_name": "b", "error": "b: broken"}
    evaluate_images(model, images, evaluator)
    assert model.batches == [["a", "c"]]
    assert evaluator.counted == ["a", "c"] and evaluator.failed == {"b": "b: broken"}
    evaluate_images(model, images[1:2], evaluator)
    assert len(model.batches) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("no"), "c: memory ran out; resume on a machine that has more"),
        (AffinityFault("c: no masks"), "c: no masks"),
    ],
)
def test_a_batch_that_fails_is_tried_one_by_one(error, said):
    model, evaluator = Model(error, broken=("c",)), Counter()
    evaluate_images(model, batch("a", "b", "c", "d"), evaluator)
    assert model.batches == [["a", "b", "c", "d"], ["a"], ["b"], ["c"], ["d"]]
    assert evaluator.counted == ["a", "b", "d"] and evaluator.failed == {"c": said}


def test_other_errors_are_raised():
    with pytest.raises(KeyError):
        evaluate_images(Model(KeyError("x")), batch("a", "b", "c"), Counter())


def test_figures_do_not_depend_on_the_batch():
    cfg = load_config("scenes/clearclip", ["MODEL.CLIP.TEXT_CACHE", "", "MODEL.DEVICE", "cpu"])
    records = DatasetCatalog.get("scenes_val")[:5]
    model = build_model(cfg).eval()
    figures = []
    for size in (1, 3):
        loader = build_detection_test_loader(
            dataset=records, mapper=SparingMapper(InferenceMapper(cfg)), batch_size=size
        )
        evaluator = FreeCPSemSegEvaluator("scenes_val", distributed=False)
        evaluator.reset()
        for images in loader:
            evaluate_images(model, images, evaluator)
        figures.append(evaluator.evaluate()["sem_seg"]["mIoU"])
    assert figures[0] == pytest.approx(figures[1], abs=0.5) and figures[0] > 10


def test_the_loader_gives_as_many_as_the_config_says():
    cfg = load_config("scenes/clearclip", ["TEST.IMS_PER_BATCH", "3"])
    loader = Trainer.build_test_loader(cfg, "scenes_val")
    assert len(next(iter(loader))) == 3 and len(loader) == 67
