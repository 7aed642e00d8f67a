"""Several arrays by one upload, and several tensors by one transfer."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from freecp_d2 import transfers


@given(
    st.lists(
        st.sampled_from(
            [
                np.array([True, False, True]),
                np.zeros((0, 2), dtype=np.float32),
                np.arange(3),
                np.arange(12, dtype=np.float32).reshape(3, 4).T,
                np.full((1, 1), 2**40),
                np.array([], dtype=np.int64),
            ]
        )
    )
)
def test_one_upload_is_all_arrays(arrays):
    uploaded = transfers.to_device(arrays, torch.device("cpu"))
    for tensor, array in zip(uploaded, arrays, strict=True):
        assert tensor.equal(torch.from_numpy(array)) and tensor.is_contiguous()
    if arrays:
        assert len({tensor.untyped_storage().data_ptr() for tensor in uploaded}) == 1


def test_tensors_come_to_the_host_in_their_shapes():
    tensors = [
        torch.tensor([[True, False]]),
        torch.arange(6).view(3, 2).T,
        torch.zeros(2, 0, 3),
        torch.tensor([float("nan"), -2.5]),
    ]
    for array, tensor in zip(transfers.to_host(tensors), tensors, strict=True):
        assert array.dtype == np.float32 and array.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(array, tensor.float().numpy())


def test_a_tensor_keeps_its_dtype():
    tensor = torch.arange(5, dtype=torch.uint8)
    assert transfers.upload(tensor, torch.device("cpu")) is tensor
    assert transfers.upload(tensor, torch.device("meta")).dtype == torch.uint8
