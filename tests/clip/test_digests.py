"""Hashes of weights, which are made once while the weights stay as they are."""

import gc
import hashlib

import pytest
import torch
from torch import nn

from freecp_d2.clip import digests
from freecp_d2.clip.digests import digest_of, hash_of_tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_digest_is_of_type_shape_and_bytes(dtype):
    tensor = torch.arange(6).view(2, 3).to(dtype).T
    raw = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    expected = hashlib.sha256(f"{dtype} (3, 2)\n".encode() + raw).digest()
    assert digest_of(tensor) == digest_of(tensor.clone()) == expected
    assert digest_of(tensor) != digest_of(tensor.reshape(2, 3))


def test_a_tensor_is_hashed_again_when_it_has_changed():
    weight = nn.Parameter(torch.zeros(3))
    first = digest_of(weight)
    with torch.no_grad():
        weight[1] = 1
    second = digest_of(weight)
    weight.data = torch.zeros(3)
    assert first != second and digest_of(weight) == first


def test_a_tensor_is_hashed_once(monkeypatch):
    made = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(digests.hashlib, "sha256", lambda *a: made.append(a) or sha256(*a))
    weights = [("a", torch.ones(2)), ("b", torch.ones(2))]
    first = hash_of_tensors(weights).hexdigest()
    count = len(made)
    assert hash_of_tensors(weights).hexdigest() == first and len(made) == count + 1
    assert hash_of_tensors(weights[::-1]).hexdigest() != first
    assert hash_of_tensors([("b", weights[0][1]), ("a", weights[1][1])]).hexdigest() != first


def test_what_is_gone_is_forgotten():
    gc.collect()
    before = len(digests._known)
    tensors = [torch.ones(i) for i in range(5)]
    for tensor in tensors:
        digest_of(tensor)
    assert len(digests._known) == before + 5
    del tensors, tensor
    gc.collect()
    assert len(digests._known) == before
