import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.interpreter import InterpreterBuilder, tl

from freecp_d2 import ops
from freecp_d2.clip import blocks
from freecp_d2.ops.mean_attention import mean_attention_composite, mean_attention_triton

GPU = torch.cuda.is_available()
# (B, heads, T, d): tiles that are full or not, one or several, of every kind of head.
SHAPES = [(2, 3, 70, 16), (1, 2, 64, 64), (2, 1, 5, 8), (3, 2, 33, 80), (1, 2, 65, 96)]
SHAPES += [(1, 12, 66, 64), (2, 2, 130, 128), (1, 1, 40, 200), (1, 1, 1, 1)]
HALVES = [torch.float16, torch.bfloat16]
# A GPU makes a float32 product of three of TF32, which leaves 2^-21 of each: of logits of about 10.
ATOL = 1e-5 if GPU else 1e-6


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """Triton's interpreter keeps bfloat16 as integers and multiplies matrices of them as such."""
    product = InterpreterBuilder.create_dot

    def create_dot(self, a, b, *args):
        if a.dtype.scalar == tl.bfloat16:
            a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
        return product(self, a, b, *args)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture(params=["composite", "triton", *(["cuda"] if GPU else [])])
def add(request):
    """Every implementation: called with tensors on the CPU it changes the record there."""
    functions = {"composite": mean_attention_composite, "triton": mean_attention_triton}
    function = functions.get(request.param, ops.mean_attention)
    device = "cuda" if GPU and request.param != "composite" else "cpu"

    def call(query: Tensor, key: Tensor, record: Tensor) -> None:
        there = record.to(device)
        function(query.to(device), key.to(device), there)
        record.copy_(there)

    return call


def projected(batch: int, heads: int, length: int, dim: int, dtype=torch.float32, scale=1.5):
    """Queries, keys and values as `project_qkv` gives them: views of one (B, T, 3, heads, d)."""
    generator = torch.Generator().manual_seed(0)
    qkv = scale * torch.randn(batch, length, 3, heads, dim, generator=generator)
    return qkv.to(dtype).permute(2, 0, 3, 1, 4).unbind(0)


def record_for(query: Tensor) -> Tensor:
    batch, _, length, _ = query.shape
    return torch.rand(batch, length, length, generator=torch.Generator().manual_seed(1))


def reference(query: Tensor, key: Tensor) -> np.ndarray:
    query, key = query.double().numpy(), key.double().numpy()
    mean = np.zeros((query.shape[0], query.shape[2], query.shape[2]))
    for b, h in np.ndindex(query.shape[:2]):
        for i, q in enumerate(query[b, h]):
            logits = np.array([q @ k for k in key[b, h]]) / len(q) ** 0.5
            weights = np.exp(logits - logits.max())
            mean[b, i] += weights / weights.sum() / query.shape[1]
    return mean


@pytest.mark.parametrize("shape", SHAPES)
def test_definition(add, shape):
    query, key, _ = projected(*shape)
    record = record_for(query)
    expected = record.numpy() + reference(query, key)
    add(query, key, record)
    np.testing.assert_allclose(record, expected, rtol=0, atol=ATOL)


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_exact_in_what_it_is_given(add, shape, dtype):
    """Logits are not rounded to half precision, as the weights of `recorded_attention` are."""
    query, key, _ = projected(*shape, dtype=dtype)
    record = record_for(query)
    expected = record.numpy() + reference(query, key)
    add(query, key, record)
    np.testing.assert_allclose(record, expected, rtol=0, atol=2 * ATOL)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_adds_what_recorded_attention_adds(add, shape, dtype):
    qkv = projected(*shape, dtype=dtype)
    record, expected = record_for(qkv[0]), record_for(qkv[0])
    blocks.recorded_attention(qkv, expected)
    add(*qkv[:2], record)
    # Half: a logit of up to 16 and a weight of up to 1 are rounded.
    atol = ATOL if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(record, expected, rtol=0, atol=atol)


def test_rows_sum_to_one_and_large_logits_do_not_overflow(add):
    query, key, _ = projected(2, 3, 70, 16, scale=20)
    record = torch.zeros(2, 70, 70)
    add(query, key, record)
    # Of logits of about 1000 a GPU may keep one more bit before it takes their power.
    atol = 1e-4 if GPU else 1e-6
    torch.testing.assert_close(record.sum(dim=2), torch.ones(2, 70), rtol=0, atol=atol)
    assert record.min() >= 0


@pytest.mark.parametrize("shape", [(2, 3, 70, 16), (1, 2, 33, 80)])
def test_strides_do_not_matter_and_nothing_else_is_written(add, shape):
    query, key, _ = projected(*shape)
    expected = record_for(query)
    add(query.contiguous(), key.contiguous(), expected)
    wide = torch.full((shape[0], shape[2] + 2, 2 * shape[2]), -1.0)
    record = wide[:, 1:-1, ::2].mT
    record.copy_(record_for(query))
    add(query.mT.contiguous().mT, key, record)
    assert torch.equal(record, expected)
    record.fill_(-1)
    assert (wide == -1).all()


def test_nan_goes_through_to_its_row_or_image(add):
    query, key, _ = (x.clone() for x in projected(3, 2, 10, 16))
    query[0, 1, 4, 3], key[1, 0, 2, 5] = torch.nan, torch.nan
    record = torch.zeros(3, 10, 10)
    add(query, key, record)
    broken = record.isnan()
    assert broken[0, 4].all() and broken[1].all() and broken.sum() == 110


def test_no_images(add):
    query, key, _ = projected(0, 2, 5, 8)
    add(query, key, torch.zeros(0, 5, 5))


@pytest.mark.parametrize("shape", SHAPES[:3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
def test_opcheck(device, shape, dtype):
    query, key, _ = (x.to(device) for x in projected(*shape, dtype=dtype))
    args = (query, key, record_for(query).to(device))
    torch.library.opcheck(torch.ops.freecp.mean_attention.default, args)


@pytest.mark.parametrize("device", ["meta", "fake cuda"])
def test_other_devices_know_the_result(device):
    with FakeTensorMode():
        device = device.removeprefix("fake ")
        query, record = torch.zeros(2, 3, 5, 8, device=device), torch.zeros(2, 5, 5, device=device)
        ops.mean_attention(query, query, record)
        assert record.shape == (2, 5, 5) and record.device.type == device


def test_gradients_pass_by_the_record():
    query, key, value = (x.requires_grad_() for x in projected(1, 2, 5, 8))
    record = torch.zeros(1, 5, 5)
    ops.mean_attention(query, key, record)
    assert not record.requires_grad


class Calls(TorchDispatchMode):
    """Notes the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_cuda_takes_the_operator_and_copies_nothing(monkeypatch):
    """Two records, of queries and keys as they lie; and the values by PyTorch's own attention."""
    # On tensors that are not there PyTorch takes it apart.
    monkeypatch.setattr(blocks.F, "scaled_dot_product_attention", lambda *qkv: qkv)
    with FakeTensorMode():
        qkv = torch.zeros(2, 785, 3, 12, 64, device="cuda", dtype=torch.float16)
        qkv = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        records = [torch.zeros(2, 785, 785, device="cuda") for _ in range(2)]
        with Calls() as calls:
            attended = blocks.recorded_attention(qkv, *records)
    assert attended == qkv
    assert set(calls.names) <= {"device", "mean_attention"}
    assert calls.names.count("mean_attention") == 2


def test_heads_one_by_one_stay_as_they_were_on_cuda():
    with FakeTensorMode():
        qkv = torch.zeros(1, 20, 3, 2, 8, device="cuda").permute(2, 0, 3, 1, 4).unbind(0)
        record, heads = (torch.zeros(1, *n, 20, 20, device="cuda") for n in ((), (2,)))
        with Calls() as calls:
            blocks.recorded_attention(qkv, record, head_record=heads)
    assert "mean_attention" not in calls.names and "_softmax" in calls.names


@pytest.mark.parametrize(
    ("query", "key", "record", "message"),
    [
        ((2, 5, 8), (2, 5, 8), (2, 5, 5), r"query must be .*\(B, heads, T, d\), got"),
        ((1, 2, 5, 8), (1, 2, 6, 8), (1, 5, 5), "query .* and key .* differ"),
        ((1, 2, 5, 8), (1, 2, 5, 8), (1, 5, 6), r"record must be .*\(B, T, T\), got"),
        ((1, 2, 5, 8), (1, 2, 5, 8), (2, 5, 5), r"queries .* need a record \(1, 5, 5\)"),
    ],
)
def test_bad_shapes(query, key, record, message):
    with pytest.raises(ValueError, match=f"^mean_attention: {message}"):
        ops.mean_attention(torch.zeros(query), torch.zeros(key), torch.zeros(record))


def test_bad_dtypes():
    query, record = torch.zeros(1, 2, 5, 8), torch.zeros(1, 5, 5)
    with pytest.raises(ValueError, match="^mean_attention: query .* and key .*float16.* differ"):
        ops.mean_attention(query, query.half(), record)
    with pytest.raises(ValueError, match="of float32, got torch.float64"):
        ops.mean_attention(query, query, record.double())
