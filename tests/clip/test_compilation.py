"""A compiled encoder is the encoder."""

import logging

import open_clip
import pytest
import torch

from freecp_d2.clip import DenseCLIP, blocks, compilation
from freecp_d2.clip.compilation import compiled


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    torch.manual_seed(0)
    vision = {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1}
    return open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)


def assert_same(found, expected):
    for name in ("patches", "cls", "attention"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0, msg=name
        )


def test_features_of_any_batch_and_two_sizes(model, caplog):
    caplog.set_level(logging.INFO, "freecp_d2.clip.compilation")
    plain, fast = DenseCLIP(model), DenseCLIP(model, compile=True)
    x = torch.randn(3, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    torch._dynamo.utils.counters.clear()
    for images in (x, x[:2], x.repeat(2, 1, 1, 1)):
        assert_same(fast(images), plain(images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for images in (x[:1], x[:, :, :64]):
        assert_same(fast(images), plain(images))
    torch.testing.assert_close(fast.encode_cls(x), plain.encode_cls(x), atol=1e-5, rtol=0)
    said = [record for record in caplog.records if record.name == compilation.__name__]
    assert [record.args for record in said] == [(25,), (17,)]


def test_a_method_that_reads_much_of_the_trunk(model):
    plain, fast = (
        DenseCLIP(model, "resclip", rcs_blocks=(0, 1), compile=value) for value in (False, True)
    )
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert_same(fast(x), plain(x))


def test_weights_are_constants_of_it(model):
    fast = DenseCLIP(model, compile=True)
    graphs = []
    torch._dynamo.reset()

    def count(graph, inputs):
        graphs.append(len(inputs))
        return graph

    x = torch.randn(2, 3, 64, 64)
    with pytest.MonkeyPatch.context() as patch:
        compile = torch.compile
        patch.setattr(torch, "compile", lambda function: compile(function, backend=count))
        fast = DenseCLIP(model, compile=True)
    fast(x)
    assert graphs and max(graphs) <= 2, "the tokens, and how many windows there are"


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"COMPILE needs a C\+\+ compiler, and there is no no-su"):
        compiled(torch.relu)


@pytest.mark.parametrize("by_head", [True, False])
def test_attention_by_head_is_a_proper_operator(by_head):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(2, 5, 3, 4, 8, generator=generator).permute(2, 0, 3, 1, 4)
    records = [torch.ones(2, 5, 5)]
    head_record = torch.ones(2, 4, 5, 5) if by_head else None
    with torch.no_grad():
        torch.library.opcheck(
            blocks._attention_by_head, (query, key, value, records, head_record, 0.5)
        )
