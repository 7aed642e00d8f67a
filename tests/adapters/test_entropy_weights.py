"""Certainty and the weighted mean by their formulas; mirrored views by mirrored images."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from freecp_d2 import FreeCPPredictor, get_config, presence
from freecp_d2.adapters import Views, certainty, configured_views
from freecp_d2.adapters.entropy_weights import unmirrored, weighted_merge
from freecp_d2.clip import DenseFeatures
from freecp_d2.data.scenes import draw_scene
from freecp_d2.inputs import as_vocabulary
from freecp_d2.merging import merge_windows
from freecp_d2.segmenter import build_model
from freecp_d2.sliding_window import upsample, windows_of

WORDS = ["sky", "sand", "river", "mountain", "snow", "dog", "lawn", "road"]
ON = ("MODEL.FREECP.ADAPTER", "entropy_weights", "MODEL.FREECP.OUTPUT", "sem_seg")
SCALES_AND_SETS = (
    *("MODEL.FREECP.ENTROPY_WEIGHTS.SCALES", "(0.5, 1.25)"),
    *("MODEL.FREECP.ENTROPY_WEIGHTS.TEMPLATE_SETS", "2"),
)


def test_certainty_is_one_less_renyis_entropy():
    random = np.random.default_rng(0)
    p = random.dirichlet(np.ones(5), size=(2, 3))
    expected = [
        [1 - math.log(sum(x**0.5 for x in row)) / 0.5 / math.log(5) for row in rows] for rows in p
    ]
    np.testing.assert_allclose(certainty(torch.from_numpy(p), dim=2).numpy(), expected)
    even, sure = torch.full((4,), 0.25), torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert certainty(even, 0) == pytest.approx(0, abs=1e-6) and certainty(sure, 0) == 1


def test_the_mean_is_weighted_at_every_pixel():
    random = torch.Generator().manual_seed(0)
    windows = windows_of(0, (20, 30), 16, 7)
    maps = [torch.rand(len(windows), 4, 3, 3, generator=random)]
    weights = [torch.rand(len(windows), 3, 3, generator=random)]
    kept = torch.rand(len(windows), 4, generator=random).numpy() < 0.6
    kept[:, 2] = False
    merged, queries = weighted_merge(windows, maps, kept, weights, (20, 30))
    assert queries.tolist() == [0, 1, 3]
    total, weight = torch.zeros(4, 20, 30), torch.zeros(20, 30)
    for i, w in enumerate(windows):
        share = upsample(weights[0][i][None], w.size)[0]
        weight[w.rows, w.columns] += share
        for c in range(4):
            if kept[i, c]:
                large = upsample(maps[0][i, c][None], w.size)[0]
                total[c, w.rows, w.columns] += share * large
    torch.testing.assert_close(merged, (total / weight)[queries], atol=1e-4, rtol=0)
    even, _ = weighted_merge(windows, maps, kept, [torch.ones_like(weights[0])], (20, 30))
    plain, _ = merge_windows(windows, maps, kept, (20, 30))
    torch.testing.assert_close(even, plain)


def scores(predictor: FreeCPPredictor, image: np.ndarray) -> np.ndarray:
    return predictor(image, WORDS, scores_map=True).scores_map


def test_a_mirrored_image_has_the_mirrored_result():
    # Windows that lie alike from both sides, and nothing that a mirror changes but CLIP.
    alike = ("MODEL.FREECP.STRIDE", "64", "MODEL.FREECP.BOX_FULL_EXTENT", "True")
    alike += ("MODEL.FREECP.AMBIGUITY", "False")
    image = draw_scene(120).image
    mirrored = image[:, ::-1].copy()
    differences = []
    for opts in ((*ON, *alike), alike):
        predictor = FreeCPPredictor(get_config("scenes/clearclip", opts))
        there, back = scores(predictor, image), scores(predictor, mirrored)[:, :, ::-1]
        differences.append(np.abs(there - back).max())
    assert differences[0] < 1e-3 and differences[1] > 0.1


def test_each_row_of_patches_is_turned_round():
    patches = torch.arange(6.0).view(1, 6, 1)
    attention = 10 * patches + patches.transpose(1, 2)
    seen = DenseFeatures(patches, torch.ones(1, 1), attention, (2, 3))
    turned = torch.tensor([2.0, 1, 0, 5, 4, 3])
    back = unmirrored(seen)
    assert back.patches.flatten().equal(turned) and back.reread is None
    assert back.attention[0].equal(10 * turned[:, None] + turned)
    back = unmirrored(replace(seen, reread=lambda text: patches + text))
    assert back.patches_for(torch.tensor(7.0)).flatten().equal(turned + 7)


def test_scales_and_template_sets_are_windows_more():
    cfg = get_config(
        "scenes/clearclip",
        [*ON, *SCALES_AND_SETS],
    )
    model = build_model(cfg)
    model.set_vocabulary(as_vocabulary(WORDS))
    image = torch.from_numpy(draw_scene(120).image).permute(2, 0, 1)
    told = []
    encoded = model.encode([{"image": image}], windows_done=lambda *counts: told.append(counts))
    sizes = [b.windows[0].size for b in encoded.batches for _ in b.windows]
    assert len(sizes) == 2 * (3 + 1 + len(windows_of(0, (224, 288), 179, 45)))
    assert told[-1] == (len(sizes), len(sizes)) and encoded.num_windows == len(sizes)
    assert set(sizes) == {(224, 224), (224, 288), (179, 179)}
    grids = {b.windows[0].size: b.grid for b in encoded.batches}
    patch = model.encoder.patch_size[0]
    assert grids[224, 288] == (112 // patch, 144 // patch)
    assert grids[179, 179] == (224 // patch, 224 // patch)
    assert model.words.text_views.shape == (2, *model.words.text.shape)
    (result,) = model.segment(encoded, model.words)
    assert result["sem_seg"].isfinite().all() and result["sem_seg"].max() <= 1
    one = replace(model.words, text_views=model.words.text[None])
    (other,) = model.segment(encoded, one)
    assert not torch.equal(result["sem_seg"], other["sem_seg"])


@pytest.mark.parametrize("more", [(), SCALES_AND_SETS])
def test_all_that_is_merged_is_weighted(more, monkeypatch):
    """Class maps and what `erasing` paints over, of classes that all stay, are the scores."""
    stays = ("MODEL.FREECP.REDUNDANCY", "False", "MODEL.FREECP.AMBIGUITY", "False")
    predictor = FreeCPPredictor(get_config("scenes/clearclip", [*ON, *stays, *more]))
    image = draw_scene(120).image
    expected = scores(predictor, image)
    assert expected.max() <= 1
    maps = predictor.class_maps(predictor.encode(image), WORDS, WORDS).refined
    np.testing.assert_allclose(maps, expected, atol=1e-5)
    painted = []
    monkeypatch.setattr(
        presence, "dependency", lambda image, maps, *_: painted.append(maps) or torch.eye(len(maps))
    )
    predictor.presence(image, WORDS, score="erasing")
    np.testing.assert_allclose(painted[0].numpy(), expected, atol=1e-5)


def test_the_sets_have_all_templates_between_them():
    model = build_model(get_config("scenes/clearclip", ON))
    names = ["sky", "wheat field"]
    whole = Views(template_sets=1).texts(names, model.text_encoder)
    assert torch.equal(whole[0], model.text_encoder.encode(_sentences(names)))
    each = get_config("scenes/clearclip", [*ON, "MODEL.FREECP.ENTROPY_WEIGHTS.TEMPLATE_SETS", "80"])
    assert configured_views(each).texts(names, model.text_encoder).shape[:2] == (80, 2)
    halves = Views(template_sets=2).texts(names, model.text_encoder)
    assert torch.nn.functional.cosine_similarity(halves.sum(dim=0), whole[0]).min() > 0.999


def _sentences(names):
    from freecp_d2.clip.text import template_sentences

    return template_sentences(names)


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (("MODEL.FREECP.ENTROPY_WEIGHTS.SCALES", "(0.0, 1.0)"), "SCALES is"),
        (("MODEL.FREECP.ENTROPY_WEIGHTS.TEMPLATE_SETS", "81"), "TEMPLATE_SETS is 81"),
        (("MODEL.FREECP.AFFINITY_PROVIDER", "TimmViT"), "set one of them"),
    ],
)
def test_bad_options_are_named(opts, said):
    with pytest.raises(ValueError, match=said):
        configured_views(get_config("scenes/clearclip", [*ON, *opts]))
