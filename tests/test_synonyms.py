"""Names that do not fit an image, against plain loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from freecp_d2 import FreeCPPredictor
from freecp_d2.config import configured_descriptions
from freecp_d2.data.scenes import draw_scene
from freecp_d2.inputs import as_vocabulary
from freecp_d2.purification import PurificationHead
from freecp_d2.synonyms import check_synonym_threshold, fitting_names

OPTS = ["MODEL.CLIP.TEXT_CACHE", ""]
SYNONYMS = [["sky", "cloud", "mushroom"], ["sand", "beach", "barrel"], ["lawn", "carpet", "sofa"]]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 7), st.floats(0.01, 0.9))
def test_names_by_plain_loops(seed, windows, queries, threshold):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.random((windows, queries, 2, 3), dtype=np.float32))
    patches = torch.from_numpy(rng.normal(size=(windows, 6, 4)).astype(np.float32))
    text = F.normalize(torch.from_numpy(rng.normal(size=(queries, 4)).astype(np.float32)), dim=1)
    kept = rng.random((windows, queries)) < 0.6
    query_class = sorted(rng.integers(0, 3, queries).tolist())
    expected = [True] * queries
    for label in set(query_class):
        names = [
            q
            for q in range(queries)
            if query_class[q] == label and any(kept[w, q] for w in range(windows))
        ]
        region = [0.0] * 4
        for w in range(windows):
            for cell in range(6):
                values = [float(maps[w, q].flatten()[cell]) for q in names if kept[w, q]]
                weight = max(values, default=0.0)
                region = [
                    r + weight * float(p) for r, p in zip(region, patches[w, cell], strict=True)
                ]
        length = math.sqrt(sum(r * r for r in region)) or 1.0
        logits = {
            q: 5 * sum(float(t) * r / length for t, r in zip(text[q], region, strict=True))
            for q in names
        }
        total = sum(math.exp(value) for value in logits.values())
        p = {q: math.exp(value) / total for q, value in logits.items()}
        if any(abs(value - threshold) < 1e-5 for value in p.values()):
            return
        for q in names:
            expected[q] = len(names) == 1 or p[q] > threshold or p[q] == max(p.values())
    cut = windows // 2
    parts = [slice(0, cut), slice(cut, windows)]
    fits = fitting_names(
        [maps[part] for part in parts],
        [patches[part] for part in parts],
        kept,
        text,
        query_class,
        5.0,
        threshold,
    )
    assert fits.tolist() == expected


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_the_threshold_is_a_probability(threshold):
    with pytest.raises(ValueError, match="MODEL.FREECP.SYNONYM_THRESHOLD is"):
        check_synonym_threshold(threshold)


def result_of(threshold: float, images: list, vocabulary=SYNONYMS):
    opts = [*OPTS, "MODEL.FREECP.SYNONYM_THRESHOLD", str(threshold)]
    predictor = FreeCPPredictor("scenes/clearclip", opts)
    return predictor(images, vocabulary, scores_map=True)


def test_off_changes_no_bit_and_on_no_class_goes():
    images = [draw_scene(seed).image for seed in (118, 120, 7)]
    plain = FreeCPPredictor("scenes/clearclip", OPTS)(images, SYNONYMS, scores_map=True)
    off, on = result_of(0.0, images), result_of(0.1, images)
    changed = False
    for one, other, third in zip(plain, off, on, strict=True):
        assert np.array_equal(one.scores_map, other.scores_map)
        assert one.removed == third.removed
        assert (third.scores_map <= one.scores_map).all()
        changed |= not np.array_equal(one.scores_map, third.scores_map)
    assert changed
    single = [[name] for name, *_ in SYNONYMS]
    for one, other in zip(
        result_of(0.0, images, single), result_of(1.0, images, single), strict=True
    ):
        assert np.array_equal(one.scores_map, other.scores_map)


def test_images_are_filtered_one_by_one():
    """What a batch of several images gives is what each gives alone."""
    images = [draw_scene(seed).image for seed in (118, 120, 7)]
    together = result_of(0.4, images)
    for image, expected in zip(images, together, strict=True):
        (alone,) = result_of(0.4, [image])
        torch.testing.assert_close(
            torch.from_numpy(alone.scores_map), torch.from_numpy(expected.scores_map)
        )


def test_a_head_has_the_threshold_of_its_config():
    cfg = FreeCPPredictor("scenes/clearclip", [*OPTS, "MODEL.FREECP.SYNONYM_THRESHOLD", "0.25"]).cfg
    assert PurificationHead(cfg).synonym_threshold == 0.25


def test_an_evaluation_filters_as_a_call_does():
    """There windows are encoded as they are asked for, and once."""
    opts = [*OPTS, "MODEL.FREECP.SYNONYM_THRESHOLD", "0.4"]
    predictor = FreeCPPredictor("scenes/clearclip", opts)
    image = draw_scene(120).image
    expected = predictor(image, SYNONYMS, scores_map=True).scores_map
    model = predictor._segmenter.model
    model.set_vocabulary(as_vocabulary(SYNONYMS), configured_descriptions(predictor.cfg))
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    (result,) = model([{"image": pixels, "file_name": "scene"}])
    torch.testing.assert_close(result["sem_seg"].numpy(), expected)
