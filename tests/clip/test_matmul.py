"""Products in bfloat16 around a block: threads, exceptions, and what the encoder makes of it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import open_clip
import pytest
import torch

from freecp_d2.clip import DenseCLIP, loading, matmul
from freecp_d2.clip.loading import precision_on
from freecp_d2.clip.matmul import bf16_matmul, has_bf16_units

needs_units = pytest.mark.skipif(not has_bf16_units(), reason="this CPU has no bfloat16 units")


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


@needs_units
@pytest.mark.parametrize("method", ["clearclip", "gem", "sclip"])
def test_features_are_near_those_of_float32_and_not_the_same(model, method):
    x = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    exact, rounded = (DenseCLIP(model, method, bf16_matmul=wanted)(x) for wanted in (False, True))
    for name in ("patches", "cls"):
        cosine = (getattr(exact, name) * getattr(rounded, name)).sum(-1)
        assert 1 - 1e-4 < cosine.min() < 1 - 1e-9, name
    assert 1e-8 < (exact.attention - rounded.attention).abs().max() < 1e-4
    encoder = DenseCLIP(model, method, bf16_matmul=True)
    assert encoder.encode_patches(x)[0].equal(encoder.encode_patches(x)[0])
    torch.testing.assert_close(encoder.encode_cls(x), rounded.cls, atol=1e-2, rtol=0)
    assert not encoder.encode_cls(x).equal(DenseCLIP(model, method).encode_cls(x))
    assert not encoder.encode_patches(x)[0].equal(DenseCLIP(model, method).encode_patches(x)[0])


@needs_units
def test_an_exact_encoder_in_another_thread_stays_exact(model):
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    exact, rounded = DenseCLIP(model), DenseCLIP(model, bf16_matmul=True)
    expected = [exact(x).patches, rounded(x).patches]
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit((exact, rounded)[i % 2], x) for i in range(24)]
        assert all(run.result().patches.equal(expected[i % 2]) for i, run in enumerate(runs))


@pytest.mark.parametrize(
    ("precision", "device", "units", "expected"),
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
def test_precision_on_a_device(precision, device, units, expected, monkeypatch):
    monkeypatch.setattr(loading, "has_bf16_units", lambda: units)
    assert precision_on(precision, device) == expected


def test_precisions_that_are_refused(monkeypatch):
    monkeypatch.setattr(loading, "has_bf16_units", lambda: False)
    with pytest.raises(ValueError, match="is bf16_matmul, and the device has no units for bfl"):
        precision_on("bf16_matmul", "cpu")
    with pytest.raises(ValueError, match="is bf16_matmul, and the device is cuda; choose fp32"):
        precision_on("bf16_matmul", "cuda")
    with pytest.raises(ValueError, match="PRECISION is 'int8'; choose one of auto, fp32"):
        precision_on("int8", "cpu")


@pytest.mark.parametrize(
    ("capabilities", "units"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"bf16": True}, True)]
    + [({"avx512_f": True, "avx512_bf16": False}, False)],
)
def test_units_are_what_torch_says(capabilities, units, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_bf16_units() == units
