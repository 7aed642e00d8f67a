"""The pairs of classes that are confused, against a loop over all cells."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from freecp_d2.evaluation.metrics import worst_confusions

SQUARES = st.integers(1, 6).flatmap(
    lambda k: arrays(np.int64, (k, k), elements=st.integers(0, 5) | st.integers(0, 2**40))
)


@given(SQUARES, st.integers(0, 40))
def test_the_worst_confusions_are_those_of_a_loop(confusion, count):
    names = [f"class {i}" for i in range(len(confusion))]
    cells = [
        (int(confusion[predicted, truth]), truth, predicted)
        for truth in range(len(names))
        for predicted in range(len(names))
        if truth != predicted and confusion[predicted, truth]
    ]
    cells.sort(key=lambda cell: (-cell[0], cell[1:]))
    before = confusion.copy()
    assert worst_confusions(confusion, names, count) == [
        {
            "truth": names[truth],
            "predicted": names[predicted],
            "pixels": pixels,
            "share": 100 * pixels / int(confusion[:, truth].sum()),
        }
        for pixels, truth, predicted in cells[:count]
    ]
    np.testing.assert_array_equal(confusion, before)
