"""The operators one after the other, against maps recorded from the published code."""

import pytest
import torch

from freecp_d2 import ops


@pytest.mark.parametrize("case", ["maskclip", "sclip", "clearclip", "clearclip_background", "gem"])
def test_refined_maps(run, vectors, cases, case):
    recorded = vectors(case)
    attention = recorded["attention"][None, :-1, 1:, 1:].mean(1)
    classes = slice(cases[case]["num_background"], None)
    normalized = recorded["normalized"][:, classes]
    mask = run(ops.box_mask, normalized)
    refined = run(ops.refine, run(ops.sinkhorn_affinity, attention), normalized, mask)
    torch.testing.assert_close(refined, recorded["refined"][:, classes], rtol=0, atol=1e-4)
