"""Presence scores against plain loops, what they cost nobody who asks for none, and errors."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from freecp_d2 import FreeCPPredictor
from freecp_d2.config import load_config
from freecp_d2.data.scenes.scene import draw_scene
from freecp_d2.presence import (
    MOST_PATCHES,
    NOT_THERE,
    PRESENCE_SCORES,
    dependency,
    erased_views,
    local_presence,
)
from freecp_d2.segmenter import Segmenter

OPTS = ["MODEL.DEVICE", "cpu", "MODEL.CLIP.TEXT_CACHE", ""]
WORDS = ["sky", "sand", ["river", "stream"], "mountain", "snow", "dog"]
IMAGE = draw_scene(120).image


@pytest.fixture(scope="module")
def predictor():
    return FreeCPPredictor("scenes/clearclip", OPTS)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize(("patches", "spread"), [(50, 0.0), (20, 1.0), (400, 0.02)])
def test_local_takes_the_fewest_patches_of_half_the_mass(patches, spread):
    """Near copies of one feature share the mass evenly, so that many patches are needed."""
    torch.manual_seed(0)
    features = F.normalize(unit(1, 1, 8) + spread * torch.randn(2, patches, 8), dim=-1)
    cls, text = unit(2, 8), unit(3, 8)
    counts = []
    expected = torch.zeros(2, 3)
    for b in range(2):
        for q in range(3):
            cosines = [float(x @ text[q]) for x in features[b]]
            weights = np.exp(np.array(cosines) / 0.02 - max(cosines) / 0.02)
            weights /= weights.sum()
            chosen, mass = [], 0.0
            for i in sorted(range(patches), key=lambda i: -weights[i]):
                if mass >= 0.5 or len(chosen) == 32:
                    break
                chosen.append(i)
                mass += weights[i]
            both = (features[b, chosen].mean(dim=0) + cls[b]) / 2
            expected[b, q] = both @ text[q] / both.norm()
            counts.append(len(chosen))
    torch.testing.assert_close(local_presence(features, cls, text), expected, atol=2e-3, rtol=0)
    if spread == 0.02:
        assert max(counts) == MOST_PATCHES
    if spread == 1.0:
        assert min(counts) < 4
        torch.testing.assert_close(local_presence(features, cls, text), expected)


def test_a_class_is_painted_over_by_the_mean_colour():
    image = torch.rand(3, 4, 5)
    maps = torch.zeros(2, 4, 5)
    maps[0, 1:3, 2] = 0.6
    maps[1, 0, 0] = 0.5  # not above
    views = erased_views(image, maps)
    assert torch.equal(views[0], image) and torch.equal(views[2], image)
    painted = image.clone()
    painted[:, 1:3, 2] = image.mean(dim=(1, 2))[:, None]
    assert torch.equal(views[1], painted)


def words_of(text: torch.Tensor, query_class: list[int], num_background: int) -> SimpleNamespace:
    return SimpleNamespace(
        text=text,
        num_background=num_background,
        query_class=torch.tensor(query_class),
        vocabulary=SimpleNamespace(classes=[()] * (max(query_class) + 1)),
    )


def test_dependency_is_a_difference_of_shares():
    """By an encoder whose feature is the mean colour of three areas of the image."""
    torch.manual_seed(1)
    text = unit(5, 3)
    words = words_of(text, [0, 1, 1, 2], num_background=1)

    def encode(images):
        return F.normalize(images[:, 0, :, ::4].mean(dim=1), dim=-1)

    encoder = SimpleNamespace(
        model=SimpleNamespace(visual=SimpleNamespace(image_size=(6, 12))),
        encode_cls=encode,
        logit_scale=20.0,
    )
    image = torch.rand(3, 6, 12)
    maps = (torch.rand(2, 6, 12) > 0.6).float()
    matrix = dependency(image, maps, torch.tensor([1, 2]), words, encoder)
    assert matrix.shape == (2, 2)
    shares = []
    for view in erased_views(image, maps):
        cosines = (text[1:] @ encode(view[None])[0]).tolist()
        logits = np.array([20 * max(cosines[1], cosines[2]), 20 * cosines[3]])
        shares.append(np.exp(logits) / np.exp(logits).sum())
    expected = np.stack([shares[0] - shares[1], shares[0] - shares[2]])
    np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(matrix.sum(dim=1).numpy(), 0, atol=1e-6)
    alone = dependency(image, maps[:1], torch.tensor([2]), words, encoder)
    assert alone.tolist() == [[0.0]]


def outputs_of(predictor, **options):
    segmenter: Segmenter = predictor._segmenter
    words = segmenter.words_of(WORDS, False)
    _, _, windows = segmenter.encode([IMAGE, IMAGE[40:]], base=False)
    return predictor._segmenter.model.segment(windows, words, **options), words, windows


def test_nothing_else_changes_a_bit(predictor):
    """With the scores or without them; and what is not asked for is not there."""
    plain, words, windows = outputs_of(predictor)
    also = {"presence": PRESENCE_SCORES, "separability": True}
    scored = predictor._segmenter.model.segment(windows, words, **also)
    for before, after in zip(plain, scored, strict=True):
        assert after.keys() - before.keys() == {"presence", "dependency", "patches"}
        for key, value in before.items():
            same = value == after[key] if key == "ambiguous_losses" else value.equal(after[key])
            assert same, key


def test_windows_that_are_encoded_only_now_are_read_several_times(predictor):
    plain, words, _ = outputs_of(predictor, presence=PRESENCE_SCORES, separability=True)
    segmenter = predictor._segmenter
    _, sources, _ = segmenter.encode([IMAGE, IMAGE[40:]], base=False)
    lazily = segmenter.model._encode_lazily(sources, False)
    again = segmenter.model.segment(lazily, words, presence=PRESENCE_SCORES, separability=True)
    for before, after in zip(plain, again, strict=True):
        assert before["patches"].features.equal(after["patches"].features)
        assert all(before["presence"][s].equal(after["presence"][s]) for s in PRESENCE_SCORES)


def test_scores_of_an_image(predictor):
    (first, second), words, windows = outputs_of(predictor, presence=PRESENCE_SCORES)
    for result in (first, second):
        assert list(result["presence"]) == list(PRESENCE_SCORES)
        assert result["presence"]["consistency"].equal(result["consistency"])
        ids, matrix = result["dependency"]
        kept = result["kept"].nonzero().flatten()
        assert ids.equal(kept) and matrix.shape == (len(kept), len(kept))
        erasing = result["presence"]["erasing"]
        assert erasing[ids].equal(matrix.diagonal())
        assert (erasing[~result["kept"]] == NOT_THERE).all()
        best = torch.full((len(WORDS),), -1.0)
        for batch in windows.batches:
            for i, window in enumerate(batch.windows):
                if (window.image == 0) == (result is first):
                    features = batch.features
                    local = local_presence(
                        features.patches[i : i + 1], features.cls[i : i + 1], words.text
                    )[0]
                    for query, of_class in enumerate(words.query_class.tolist()):
                        best[of_class] = max(best[of_class], local[query])
        torch.testing.assert_close(result["presence"]["local"], best)


def test_cosines_below_0_count(predictor):
    """A class of one name has the largest of its windows, whatever its sign."""
    model = predictor._segmenter.model
    words = predictor._segmenter.words_of(WORDS, False)
    words = replace(words, text=-words.text.mean(dim=0, keepdim=True).expand_as(words.text))
    _, _, windows = predictor._segmenter.encode([IMAGE], base=False)
    (values,) = model.score_presence(windows, words, "local")
    (batch,) = windows.batches
    expected = local_presence(batch.patches, batch.features.cls, words.text).amax(dim=0)[0]
    assert expected < 0
    torch.testing.assert_close(values, expected.expand(6))


@pytest.mark.parametrize("score", PRESENCE_SCORES)
def test_a_predictor_gives_one_score_with_and_without_a_segmentation(predictor, score):
    result = predictor(IMAGE, WORDS, presence=score)
    names = ["sky", "sand", "river", "mountain", "snow", "dog"]
    assert list(result.presence) == names
    assert predictor.presence(IMAGE, WORDS, score=score) == pytest.approx(result.presence, abs=1e-6)
    if score == "consistency":
        assert list(result.presence.values()) == result.consistency.tolist()
    behind = predictor(IMAGE, WORDS, background=True, presence=score)
    assert list(behind.presence) == names


@pytest.mark.parametrize(
    "opts",
    [
        ("MODEL.FREECP.ADAPTER", "bafta"),
        ("MODEL.FREECP.ADAPTER", "entropy_weights")
        + ("MODEL.FREECP.ENTROPY_WEIGHTS.TEMPLATE_SETS", "2"),
    ],
)
def test_it_is_by_the_same_words_with_an_adapter(opts):
    """That of an adapter is by what it makes of the words in this image."""
    for score in ("consistency", "local"):
        predictors = [FreeCPPredictor("scenes/clearclip", [*OPTS, *opts]) for _ in range(2)]
        plain = predictors[0](IMAGE, WORDS, presence=score).presence
        assert predictors[1].presence(IMAGE, WORDS, score=score) == pytest.approx(plain, abs=1e-6)


def test_the_base_method_gives_none(predictor):
    assert predictor.base(IMAGE, WORDS).presence == {}
    with pytest.raises(ValueError, match="a base method alone scores no presence"):
        predictor.base(IMAGE, WORDS, presence="local")
    with pytest.raises(ValueError, match="a base method alone scores no presence"):
        predictor.base.presence(IMAGE, WORDS)
    with pytest.raises(ValueError, match="is 'size'; choose one of consistency, local, erasing"):
        predictor(IMAGE, WORDS, presence="size")


def test_nan_names_the_file(predictor):
    model = predictor._segmenter.model
    words = predictor._segmenter.words_of(WORDS, False)
    image = {"image": torch.full((3, 224, 224), torch.nan), "file_name": "bad.png"}
    for score in ("consistency", "local"):
        with pytest.raises(ValueError, match=r"^bad\.png: NaN or infinity"):
            model.score_presence(model.encode([image]), words, score)


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["TEST.PRESENCE", "('area',)"], "the presence score is 'area'"),
        (["TEST.PRESENCE", "('local',)", "MODEL.FREECP.ENABLED", "False"], "ENABLED True"),
        (["TEST.SEPARABILITY", "True", "MODEL.FREECP.ENABLED", "False"], "^TEST.SEPARABILITY"),
    ],
)
def test_a_config_that_cannot_be(opts, said):
    with pytest.raises(ValueError, match=said):
        load_config("scenes/clearclip", [*OPTS, *opts])
