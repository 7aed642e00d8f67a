"""A base method that reads the words, in a model that encodes images without words."""

import pytest
import torch
from detectron2.modeling import build_model

from freecp_d2 import FreeCP, load_config
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import draw_scene
from freecp_d2.purify import class_maps

WORDS = Vocabulary((("sky",), ("sand",), ("river", "lake"), ("dog",)))
OTHERS = Vocabulary((("lawn",), ("road",)), ("sky", "mountain"))


def scenes_model(*opts: object) -> FreeCP:
    options = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", "", *opts]
    return build_model(load_config("scenes/resclip", options))


@pytest.fixture(scope="module")
def model() -> FreeCP:
    return scenes_model("MODEL.CLIP.RESCLIP.USE_SFR", True, "MODEL.FREECP.BATCH_SIZE", 3)


def image(number: int, height: int = 224, width: int = 288) -> dict:
    pixels = torch.from_numpy(draw_scene(number).image.transpose(2, 0, 1).copy())
    return {"image": pixels[:, :height, :width]}


@pytest.mark.parametrize("base", [False, True])
def test_encoded_once_and_segmented_into_any_words(base, model):
    x = [image(120), image(7, 200, 260)]
    encoded = model.encode(x, base)
    segment = model.segment_base if base else model.segment
    for vocabulary in (WORDS, OTHERS, WORDS):
        model.set_vocabulary(vocabulary)
        model.enabled = not base
        results = segment(encoded, model.words)
        for result, expected in zip(results, model(x), strict=True):
            torch.testing.assert_close(result["sem_seg"], expected["sem_seg"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("base", [False, True])
def test_a_batch_of_images_is_its_images(base, model):
    model.enabled = not base
    model.set_vocabulary(WORDS)
    x = [image(120), image(7, 200, 260), image(31)]
    together = model(x)
    for one, result in zip(x, together, strict=True):
        (alone,) = model([one])
        torch.testing.assert_close(result["sem_seg"], alone["sem_seg"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("base", [False, True])
def test_the_words_change_more_than_the_first_reading_shows(base, model):
    """The second reading is another than RCS alone, and maps are made of the second."""
    plain = scenes_model("MODEL.FREECP.ENABLED", not base)
    plain.set_vocabulary(WORDS)
    model.enabled = not base
    model.set_vocabulary(WORDS)
    x = [image(120)]
    difference = (plain(x)[0]["sem_seg"] - model(x)[0]["sem_seg"]).abs().max()
    assert difference > 0.01
    (batch, *_) = plain.encode(x, base).batches
    assert batch.reread is None and batch.patches_for(plain.words.text) is batch.patches
    if not base:
        maps = [
            class_maps(m.encode(x), m.words.to(m.device), ["sky"], m.head, m.encoder)[0]
            for m in (plain, model)
        ]
        assert (maps[0] - maps[1]).abs().max() > 0.01
