"""The head as a program beside the head itself; box masks and soft IoU beside the operators."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from freecp_d2 import ops
from freecp_d2.clip import DenseFeatures
from freecp_d2.export.check import load_program
from freecp_d2.export.encoder import SUFFIXES
from freecp_d2.export.head import (
    box_mask,
    component_labels,
    foreground,
    head_program,
    save_head,
    soft_iou,
)
from freecp_d2.purification import PurificationHead

GRID = 16, 13
FEATURES = 16
LOGIT_SCALE = 30.0
INPUTS = ["patches", "affinity", "text"]
OUTPUTS = ["refined", "consistency", "keep", "soft_iou"]


def saved(program, folder: Path, format: str, inputs: list[str], outputs: list[str]):
    """A program that was written and read again, as a function."""
    file = f"program{SUFFIXES[format]}"
    save_head(program, folder / file, format)
    entry = {"file": file, "inputs": inputs, "outputs": outputs}
    return load_program(folder, {"format": format, "programs": {"program": entry}}, "program")


class BothMasks(nn.Module):
    """Box masks without and with the full extent."""

    def forward(self, maps):
        return {"published": box_mask(maps, False), "full": box_mask(maps, True)}


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Format -> what boxes maps (1, C, *GRID)."""
    program = torch.export.export(
        BothMasks(), (torch.rand(1, 3, *GRID),), dynamic_shapes=({1: torch.export.Dim("classes")},)
    ).run_decompositions({})
    return {
        format: saved(
            program, tmp_path_factory.mktemp(format), format, ["maps"], ["published", "full"]
        )
        for format in SUFFIXES
    }


def spiral(turn: int) -> list[int]:
    """Rows of bits: a path of one pixel's width and as long as the grid allows, turned."""
    image = np.zeros(GRID, int)
    y, x, down, right = 0, 0, 0, 1
    while True:
        image[y, x] = 1
        for _ in range(2):
            ahead = [(y + down * i, x + right * i) for i in (1, 2)]
            inside = [0 <= a < GRID[0] and 0 <= b < GRID[1] for a, b in ahead]
            if inside[0] and not image[ahead[0]] and not (inside[1] and image[ahead[1]]):
                y, x = ahead[0]
                break
            down, right = right, -down
        else:
            break
    image = image[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1]
    return [int("".join(map(str, row)), 2) for row in image]


def rows(pattern: str) -> list[int]:
    """A pattern of "01" repeated over the grid, each row one step on."""
    lines = ((pattern * 20)[i : i + GRID[1]] for i in range(GRID[0]))
    return [int(line, 2) for line in lines]


images = st.lists(st.integers(0, 2 ** GRID[1] - 1), min_size=GRID[0], max_size=GRID[0])


@settings(max_examples=60, deadline=None)
@given(st.lists(images, min_size=1, max_size=4), st.integers(0, 2**31), st.sampled_from([0, 1, 3]))
@example([spiral(turn) for turn in range(4)], 0, 0)
@example([rows("100"), rows("1000"), rows("10"), rows("1100000")], 0, 0)  # diagonals
@example([[0] * GRID[0], [2 ** GRID[1] - 1] * GRID[0]], 0, 0)  # nothing, and everything
def test_the_box_mask_is_the_operators_bit_for_bit(masks, drawn, seed, power):
    bits = [[[row >> i & 1 for i in range(GRID[1])] for row in image] for image in drawn]
    generator = torch.Generator().manual_seed(seed)
    maps = torch.tensor(bits, dtype=torch.float32)[None]
    maps = maps * torch.rand(maps.shape, generator=generator) ** power  # 0: as drawn
    for format, run in masks.items():
        for mask, full_extent in zip(run(maps), (False, True), strict=True):
            assert torch.equal(mask, ops.box_mask(maps, full_extent=full_extent)), format


def test_the_threshold_of_every_peak_is_the_operators():
    values = torch.arange(256).view(16, 16)
    maps = values.clamp(max=torch.arange(256)[:, None, None]) / 255
    for of_map, above in zip(maps.numpy(), foreground(maps).numpy(), strict=True):
        quantised = (255 * of_map).astype(np.uint8)
        assert (above == (quantised > int(0.4 * int(quantised.max())))).all()


def test_components_are_numbered_by_their_last_pixel():
    drawn = ["1010001", "0100001", "0000000", "1100110"]
    inside = torch.tensor([[c == "1" for c in row] for row in drawn])
    expected = [[9, 0, 9, 0, 0, 0, 14], [0, 9, 0, 0, 0, 0, 14], [0] * 7, [23, 23, 0, 0, 27, 27, 0]]
    assert component_labels(inside[None])[0].tolist() == expected


def features_of(batch: int, queries: int, seed: int = 0):
    """Patches, attention and text that have something to do with each other."""
    torch.manual_seed(seed)
    text = F.normalize(torch.randn(queries, FEATURES), dim=-1)
    coarse = torch.randn(batch, queries, 4, 4)
    shares = F.interpolate(coarse, GRID, mode="bilinear").flatten(2).mT
    patches = F.normalize((4 * shares).softmax(dim=-1) @ text, dim=-1)
    return patches, (8 * patches @ patches.mT).softmax(dim=-1), text


def head_of(**options) -> PurificationHead:
    return PurificationHead(**({"redundancy_threshold": 0.2, "ambiguity_threshold": 0.7} | options))


CASES = {
    "published": ({}, 12, 0),
    "background": ({}, 12, 3),
    "more classes than patches": ({"redundancy_threshold": 0.01}, 220, 0),
    "full extent, true IoU": ({"box_full_extent": True, "consistency": "paper"}, 12, 0),
    "no redundancy": ({"redundancy": False}, 9, 1),
    "one class": ({}, 1, 0),
}


@pytest.mark.parametrize(
    ("case", "format"),
    [(case, "onnx") for case in CASES] + [("background", "torch"), ("background", "openvino")],
)
def test_the_program_is_the_head(tmp_path, case, format):
    options, queries, background = CASES[case]
    head = head_of(**options)
    program = head_program(head, LOGIT_SCALE, GRID, FEATURES, queries, background)
    run = saved(program, tmp_path, format, INPUTS, OUTPUTS)
    kept = 0
    for batch in (1, 3):
        patches, attention, text = features_of(batch, queries, batch)
        features = DenseFeatures(patches, patches[:, 0], attention, GRID)
        expected, _ = head.select(features, text, text, LOGIT_SCALE, background)
        refined, consistency, keep, iou = run(patches, attention, text)
        torch.testing.assert_close(refined, expected.refined, atol=5e-5, rtol=0)
        torch.testing.assert_close(consistency, expected.consistency, atol=5e-6, rtol=0)
        assert keep.dtype == torch.bool and torch.equal(keep, expected.kept)
        both = keep[:, :, None] & keep[:, None]
        torch.testing.assert_close(iou, ops.soft_iou(expected.refined) * both, atol=5e-5, rtol=0)
        kept += int(keep.sum())
    stay_all = case == "no redundancy"
    assert kept == 0 if case == "one class" else stay_all or 0 < kept < 4 * (queries - background)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A head of 4 classes as ONNX."""
    program = head_program(head_of(), LOGIT_SCALE, GRID, FEATURES, 4, 0)
    return saved(program, tmp_path_factory.mktemp("head"), "onnx", INPUTS, OUTPUTS)


def test_a_class_that_is_nowhere_has_a_map_of_zeros(exported):
    """0 / (0 + 1e-8), of which onnxscript's rewriting rules would make 0 / 0."""
    patches, attention, text = features_of(1, 4)
    patches = F.normalize(text[0] - text[3], dim=0).expand_as(patches).clone()
    patches[:, :40] = F.normalize(text[1] - text[3], dim=0)
    refined, consistency, keep, iou = exported(patches, attention, text)
    assert not refined[0, 3].any() and not keep[0, 3] and refined[0, 1].any()
    assert consistency.isfinite().all() and not iou[0, 3].any()


def test_nan_reaches_the_consistency(exported):
    patches, attention, text = features_of(2, 4)
    patches[1, 7, 3] = torch.nan
    _, consistency, keep, _ = exported(patches, attention, text)
    assert consistency[1].isnan().all() and not keep[1].any() and consistency[0].isfinite().all()


def test_soft_iou_of_maps_of_zeros_is_zero():
    maps = torch.rand(2, 4, *GRID)
    maps[:, 2] = 0
    keep = torch.tensor([[True, True, True, False], [True, False, False, False]])
    iou = soft_iou(maps, keep)
    expected = ops.soft_iou(maps) * (keep[:, :, None] & keep[:, None])
    torch.testing.assert_close(iou, expected, atol=1e-6, rtol=0)
    assert iou[0, 2, 2] == 0 and iou[0, 0, 0] == 1
