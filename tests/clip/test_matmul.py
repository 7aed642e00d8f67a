"""Products by oneDNN, and in bfloat16 around a block: threads, exceptions, the encoder."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import open_clip
import pytest
import torch
import torch.nn.functional as F

from freecp_d2.clip import DenseCLIP, blocks, loading, matmul
from freecp_d2.clip.loading import precision_on
from freecp_d2.clip.matmul import bf16_matmul, linear, multiplies_in_bf16

CPU = torch.device("cpu")


def in_bf16(wanted: bool):
    return bf16_matmul(wanted, CPU)


def switch() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture(autouse=True)
def put_back():
    before = switch()
    yield
    assert switch() == before and matmul._running == {True: 0, False: 0} and not matmul._queue


def test_it_is_put_back_after_an_exception():
    before = switch()
    with pytest.raises(RuntimeError, match="broken"), in_bf16(True):
        assert switch() == "bf16"
        raise RuntimeError("broken")
    assert switch() == before
    with in_bf16(False):
        assert switch() == before


def test_what_the_process_had_set_comes_back():
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        with in_bf16(True), in_bf16(True):
            assert switch() == "bf16"
        assert switch() == "ieee"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_threads_that_want_the_same_run_together():
    barrier = threading.Barrier(3, timeout=30)

    def block(wanted: bool) -> str:
        with in_bf16(wanted):
            barrier.wait()
            return switch()

    for wanted in (True, False):
        with ThreadPoolExecutor(3) as pool:
            assert set(pool.map(block, [wanted] * 3)) == {"bf16" if wanted else switch()}


def test_threads_that_want_it_otherwise_wait():
    before, seen, inside = switch(), [], threading.Event()

    def exact() -> None:
        inside.wait(30)
        with in_bf16(False):
            seen.append(switch())

    thread = threading.Thread(target=exact)
    thread.start()
    with in_bf16(True):
        inside.set()
        thread.join(0.2)
        assert thread.is_alive() and not seen
        assert switch() == "bf16"
    thread.join(30)
    assert seen == [before]


def test_blocks_of_one_thread_are_nested():
    before = switch()
    with in_bf16(False):
        with in_bf16(True):
            assert switch() == "bf16"
            with in_bf16(False), in_bf16(False):
                assert switch() == before
            assert switch() == "bf16"
        assert switch() == before
        with pytest.raises(KeyError), in_bf16(True):
            raise KeyError
        assert switch() == before
    with bf16_matmul(True, torch.device("cuda")):
        assert switch() == before


def test_a_nested_block_that_is_interrupted_while_it_waits(monkeypatch):
    def interrupted(predicate):
        monkeypatch.undo()
        raise KeyboardInterrupt

    with in_bf16(False):
        monkeypatch.setattr(matmul._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt), in_bf16(True):
            pass
        assert matmul._running == {True: 0, False: 1}


def test_nobody_waits_for_those_who_come_later():
    """While one thread is inside, one of the other kind waits, and a third comes after it."""
    order, inside, waiting = [], threading.Event(), threading.Event()

    def exact() -> None:
        inside.wait(30)
        waiting.set()
        with in_bf16(False):
            order.append("exact")

    def late() -> None:
        waiting.wait(30)
        while len(matmul._queue) < 1:
            pass
        with in_bf16(True):
            order.append("late")

    threads = [threading.Thread(target=exact), threading.Thread(target=late)]
    for thread in threads:
        thread.start()
    with in_bf16(True):
        inside.set()
        while len(matmul._queue) < 2:
            pass
        assert order == []
    for thread in threads:
        thread.join(30)
    assert order == ["exact", "late"]


def test_many_threads_of_both_kinds_see_what_they_want():
    before = switch()

    def block(index: int) -> bool:
        wanted = index % 3 == 0
        with in_bf16(wanted):
            return switch() == ("bf16" if wanted else before)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(block, range(3000)))


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 96, "layers": 4, "width": 256, "head_width": 64, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1}
    return open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)


def rounding_linear(x, weight, bias=None):
    """`linear` as a CPU with AMX has it."""
    if switch() == "bf16":
        x, weight = x.bfloat16().float(), weight.bfloat16().float()
    return F.linear(x, weight, bias)


@pytest.fixture
def amx(monkeypatch):
    if not multiplies_in_bf16():
        for module in (matmul, blocks):
            monkeypatch.setattr(module, "linear", rounding_linear)


@pytest.mark.parametrize("method", ["clearclip", "gem", "sclip"])
def test_features_are_near_those_of_float32_and_not_the_same(model, method, amx):
    x = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    exact, rounded = (DenseCLIP(model, method, bf16_matmul=wanted)(x) for wanted in (False, True))
    for name in ("patches", "cls"):
        difference = (getattr(exact, name) - getattr(rounded, name)).abs().max()
        assert 1e-5 < difference < 1e-2, name
    assert 1e-6 < (exact.attention - rounded.attention).abs().max() < 1e-3
    encoder = DenseCLIP(model, method, bf16_matmul=True)
    assert encoder.encode_patches(x)[0].equal(encoder.encode_patches(x)[0])
    torch.testing.assert_close(encoder.encode_cls(x), rounded.cls, atol=1e-2, rtol=0)
    assert not encoder.encode_cls(x).equal(DenseCLIP(model, method).encode_cls(x))
    assert not encoder.encode_patches(x)[0].equal(DenseCLIP(model, method).encode_patches(x)[0])


def test_an_exact_encoder_in_another_thread_stays_exact(model, amx):
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    exact, rounded = DenseCLIP(model), DenseCLIP(model, bf16_matmul=True)
    expected = [exact(x).patches, rounded(x).patches]
    assert not expected[0].equal(expected[1])
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit((exact, rounded)[i % 2], x) for i in range(24)]
        assert all(run.result().patches.equal(expected[i % 2]) for i, run in enumerate(runs))


@pytest.mark.parametrize(
    ("precision", "device", "rounds", "expected"),
    [
        ("auto", "cpu", True, "bf16_matmul"),
        ("auto", "cpu", False, "fp32"),
        ("auto", "cuda:1", True, "fp16"),
        ("auto", "meta", True, "fp32"),
        ("bf16_matmul", "cpu", True, "bf16_matmul"),
        ("fp32", "cpu", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
    ],
)
def test_precision_on_a_device(precision, device, rounds, expected, monkeypatch):
    monkeypatch.setattr(loading, "multiplies_in_bf16", lambda: rounds)
    assert precision_on(precision, device) == expected


def test_precisions_that_are_refused(monkeypatch):
    monkeypatch.setattr(loading, "multiplies_in_bf16", lambda: False)
    with pytest.raises(ValueError, match="is bf16_matmul, and the device multiplies float32 as it"):
        precision_on("bf16_matmul", "cpu")
    with pytest.raises(ValueError, match="is bf16_matmul, and the device is cuda; choose fp32"):
        precision_on("bf16_matmul", "cuda")
    with pytest.raises(ValueError, match="PRECISION is 'int8'; choose one of auto, fp32"):
        precision_on("int8", "cpu")


@pytest.mark.parametrize(("product", "rounds"), [(rounding_linear, True), (F.linear, False)])
def test_whether_products_are_rounded_is_tried(product, rounds, monkeypatch):
    monkeypatch.setattr(matmul, "linear", product)
    assert multiplies_in_bf16.__wrapped__() == rounds


def test_a_cpu_with_amx_multiplies_in_bf16_and_one_without_bfloat16_does_not():
    capabilities = torch.cpu.get_capabilities()
    if capabilities.get("amx_bf16"):
        assert multiplies_in_bf16()
    elif capabilities["architecture"] == "x86_64" and not capabilities.get("avx512_bf16"):
        assert not multiplies_in_bf16()


VERBOSE = """
import torch
from freecp_d2.clip.matmul import bf16_matmul, linear
x = torch.ones(64, 64)
with torch.no_grad():
    for wanted in (False, True):
        with bf16_matmul(wanted, x.device):
            linear(x, x, x[0])
"""


def test_onednn_is_told_that_it_may_round():
    """By its own log: of the two products the second alone allows bfloat16."""
    run = subprocess.run(
        [sys.executable, "-c", VERBOSE],
        env=os.environ | {"ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    products = [line for line in run.stdout.splitlines() if "64ic64oc64" in line]
    assert ["fpmath:bf16" in line for line in products] == [False, True]


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (7,)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs_but_for_rounding(shape, bias):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*s, 7, generator=generator) for s in ((*shape[:-1],), (11,)))
    offset = torch.randn(11, generator=generator) if bias else None
    expected = F.linear(x, weight, offset)
    for dtype in (torch.float32, torch.bfloat16):
        of_dtype = [None if t is None else t.to(dtype) for t in (x, weight, offset)]
        with torch.no_grad():
            found = linear(*of_dtype)
        assert found.dtype == dtype and found.shape == expected.shape
        rounding = 1e-5 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(found.float(), expected, atol=rounding, rtol=0)


def test_linear_has_gradients_where_they_are_wanted():
    weight = torch.ones(2, 3, requires_grad=True)
    linear(torch.ones(1, 3), weight).sum().backward()
    assert weight.grad.equal(torch.ones(2, 3))
