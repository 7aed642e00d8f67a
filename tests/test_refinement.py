"""Maps refined in strips are those refined at once, and memory is bounded."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from freecp_d2 import FreeCPPredictor, ops, refinement
from freecp_d2.data.benchmarks.protocols import UNREFINED, Refinement
from freecp_d2.data.scenes import CLASSES, draw_scene
from freecp_d2.propagation import propagate
from freecp_d2.refinement import refined_strips
from freecp_d2.sliding_window import upsample

SIZE = (60, 11)


@pytest.fixture(scope="module")
def arguments() -> tuple:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 6, 7, generator=generator)
    image = torch.rand(3, 20, 15, generator=generator)
    return maps, image, torch.randn(3, 4, generator=generator), SIZE


def joined(arguments: tuple, how: Refinement) -> torch.Tensor:
    strips = list(refined_strips(*arguments, how))
    rows = [list(range(SIZE[0]))[part] for part, _ in strips]
    assert sum(rows, []) == list(range(SIZE[0]))
    return torch.cat([strip for _, strip in strips], dim=1)


def whole(arguments: tuple, how: Refinement) -> torch.Tensor:
    """What is asked for, without strips."""
    maps, image, text, size = arguments
    if how.tlp_grid:
        maps = propagate(maps, image, text, size, how.tlp_grid)
    maps = upsample(maps, size)
    guide = upsample(image, size)
    return ops.pamr(guide[None], maps[None], how.pamr_steps, how.pamr_dilations)[0]


@pytest.mark.parametrize(
    "how",
    [
        UNREFINED,
        Refinement(1, (1,)),
        Refinement(2, (1, 2)),
        Refinement(3, (20,)),
        Refinement(tlp_grid=20),
        Refinement(2, (2,), tlp_grid=9),
    ],
)
def test_strips_change_nothing(how, arguments, monkeypatch):
    """Also with rows above and below that a strip's halo does not reach."""
    expected = whole(arguments, how)
    (_, found), *others = refined_strips(*arguments, how)
    assert not others
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    for values in (1, 3 * 11 * 4, 19 * 11 * 5):
        monkeypatch.setattr(refinement, "STRIP_VALUES", values)
        monkeypatch.setattr(refinement, "REFINED_VALUES", values)
        torch.testing.assert_close(joined(arguments, how), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("height", [60, 600])
def test_memory_does_not_grow_with_the_height(height, arguments, monkeypatch):
    sizes = []

    def pamr(guide, maps, *others):
        sizes.append((guide.shape[2:], maps.shape))
        return ops.pamr(guide, maps, *others)

    monkeypatch.setattr(refinement, "pamr", pamr)
    monkeypatch.setattr(refinement, "REFINED_VALUES", 2 * 20 * 11)
    strips = [part for _, part in refined_strips(*arguments[:3], (height, 11), Refinement(2, (3,)))]
    # Six rows, as many as the halo, and the halo on either side: not all maps at once.
    assert max(strip.shape[1] for strip in strips) == 6 and len(strips) == height // 6
    assert max(guide[0] for guide, _ in sizes) == 18
    assert max(maps.numel() for _, maps in sizes) == 2 * 18 * 11


def test_a_strip_has_at_least_the_rows_of_its_halo(arguments, monkeypatch):
    """Otherwise most of the work would be thrown away."""
    monkeypatch.setattr(refinement, "REFINED_VALUES", 1)
    strips = [part for _, part in refined_strips(*arguments, Refinement(3, (2, 5)))]
    assert [strip.shape[1] for strip in strips] == [15, 15, 15, 15]


def test_the_range_of_every_map_stays(arguments):
    found = joined(arguments, Refinement(10, (8, 16)))
    large = upsample(arguments[0], SIZE).flatten(1)
    low, high = large.amin(1)[:, None, None], large.amax(1)[:, None, None]
    assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()
    assert found.std() < large.std()


def test_dilations_beyond_the_image_take_its_border(arguments):
    far, further = (joined(arguments, Refinement(1, (d,))) for d in (60, 6000))
    assert far.equal(further)
    assert not far.equal(joined(arguments, replace(UNREFINED, pamr_steps=1, pamr_dilations=(30,))))


@pytest.mark.parametrize("refine", ["pamr", "tlp"])
def test_classes_that_were_removed_from_a_scene_do_not_come_back(refine):
    opts = ["MODEL.DEVICE", "cpu"]
    usual = FreeCPPredictor("scenes/clearclip", opts=opts)
    predictor = FreeCPPredictor("scenes/clearclip", opts=[*opts, "MODEL.FREECP.REFINE", refine])
    for seed in (0, 2):
        image = draw_scene(seed).image
        before, after = usual(image, list(CLASSES)), predictor(image, list(CLASSES))
        removed = {item.name for item in after.removed}
        assert removed == {item.name for item in before.removed} and len(removed) > 20
        names = {after.class_names[label] for label in np.unique(after.label_map)}
        assert names and not names & removed
        assert (after.label_map != before.label_map).mean() > 0.01
