"""Confusion matrices and the pairs of classes that are confused, against loops."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from freecp_d2.evaluation.metrics import NoClass, confusion_matrix, worst_confusions

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


@settings(deadline=None)
@given(st.data())
def test_the_confusion_matrix_is_that_of_a_loop(data):
    """Of any integer types, tensors and arrays; ids of no class are named."""
    count = data.draw(st.sampled_from([2, 5, 255, 256, 300]))
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.int32, np.int64]))
    most = np.iinfo(dtype).max
    ignore = data.draw(st.sampled_from([None, 0, 1, 255, 4000]))
    ids = st.integers(0, min(count - 1, most))
    if ignore is not None:
        ids |= st.just(min(ignore, most))
    ids |= st.sampled_from([-1, 254, count, 300]).filter(
        lambda i: np.iinfo(dtype).min <= i <= most and data.draw(st.integers(0, 9)) == 0
    )
    size = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    truth = data.draw(arrays(dtype, size, elements=ids))
    kind = data.draw(st.sampled_from([np.uint8, np.int32, np.int64]))
    most = min(count - 1, np.iinfo(kind).max)
    predicted = data.draw(arrays(kind, size, elements=st.integers(0, most)))
    before = predicted.copy(), truth.copy()
    if data.draw(st.booleans()):
        arguments = torch.from_numpy(predicted), torch.from_numpy(truth)
    else:
        arguments = predicted, truth
    foreign = [int(i) for i in truth.flat if not (0 <= i < count or i == ignore)]
    if foreign:
        with pytest.raises(NoClass) as caught:
            confusion_matrix(*arguments, count, ignore)
        assert caught.value.id == min(foreign)
    else:
        expected = np.zeros((count, count), dtype=np.int64)
        for p, t in zip(predicted.flat, truth.flat, strict=True):
            if t != ignore:
                expected[p, t] += 1
        np.testing.assert_array_equal(confusion_matrix(*arguments, count, ignore), expected)
    np.testing.assert_array_equal(predicted, before[0])
    np.testing.assert_array_equal(truth, before[1])
