"""How many kernels an image launches, and how often the host waits, as a GPU would have it.

Counted by dispatch, on the CPU: every operator that is no view is a launch, and those of FreeCP are
as many as what is behind them on CUDA.
"""

from collections import Counter
from contextlib import contextmanager
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import InterpretedFunction

from freecp_d2 import FreeCP, load_config, ops, transfers
from freecp_d2.clip import blocks
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import CLASSES, draw_scene

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts in Triton's interpreter")

NOTHING = {"_unsafe_view", "empty", "empty_like", "new_empty", "device", "lift_fresh", "detach"}
"""Operators that are no views, and launch nothing."""

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim"}
"""Operators that make the host wait for a CUDA device."""

OPTIONS = ["MODEL.DEVICE", "cpu", "MODEL.FREECP.WINDOW", 384, "MODEL.FREECP.STRIDE", 112]
OPTIONS += ["MODEL.FREECP.REDUNDANCY_THRESHOLD", 0.05, "MODEL.FREECP.AMBIGUITY_THRESHOLD", 0.7]


class Launches(TorchDispatchMode):
    """Counts operators by name, apart while :attr:`encoding`; `waits` are host waits."""

    def __init__(self):
        super().__init__()
        self.head, self.encoder = Counter(), Counter()
        self.encoding, self.waits = False, []

    def add(self, name, count=1):
        (self.encoder if self.encoding else self.head)[name] += count

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean_index = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if boolean_index or name in WAITING:
            self.waits.append(name)
        if func.namespace == "freecp":
            self.add(name, kernels_on_cuda(name, args))
        elif not func.is_view and name not in NOTHING:
            self.add(name)
        return func(*args, **(kwargs or {}))


def kernels_on_cuda(name, args):
    """What an operator's launcher launches: Triton's kernels, and PyTorch's beside them."""
    launcher = getattr(import_module(f"freecp_d2.ops.{name}"), f"{name}_triton")
    kernels = []
    with pytest.MonkeyPatch.context() as patch, Launches() as beside:
        patch.setattr(InterpretedFunction, "run", lambda self, *_, **__: kernels.append(self))
        launcher(*args)
    return len(kernels) + beside.head.total()


@pytest.fixture
def model():
    """SceneCLIP with 171 classes: its 41, and more whose features are near to theirs."""
    torch.manual_seed(0)
    model = FreeCP(load_config("scenes/clearclip", OPTIONS)).eval()
    model.set_vocabulary(Vocabulary(tuple((name,) for name in CLASSES), ()), {})
    known = model.words
    index = torch.arange(171) % len(CLASSES)
    others = (index != torch.arange(171))[:, None]
    names = tuple((f"class {i}",) for i in range(171))

    def near(features):
        noise = torch.randn(171, features.shape[1]) * features.std()
        return F.normalize(features[index] + others * noise, dim=-1)

    text, descriptions = near(known.text), near(known.descriptions)
    model.words = type(known)(Vocabulary(names, ()), text, descriptions, torch.arange(171))
    return model


@pytest.fixture
def as_on_cuda(monkeypatch):
    """A function that runs another and gives what it launches."""
    launches = Launches()

    def patched(module, name, replacement):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, partial(replacement, original))

    def upload(original, *args):
        launches.add("upload")
        with _disable_current_modes():
            return original(*args)

    def download(original, tensors):
        launches.waits.append("to_host")
        launches.add("download")
        return original(tensors)

    def on_the_host(original, maps, **options):
        with _disable_current_modes():
            return original(maps, **options)

    monkeypatch.setattr(transfers, "is_accelerator", lambda device: True)
    patched(transfers, "upload", upload)
    patched(transfers, "to_host", download)
    patched(ops, "component_boxes", on_the_host)

    def fused(original, qkv, *records, **options):
        for record in records:
            ops.mean_attention(*qkv[:2], record)
        return F.scaled_dot_product_attention(*qkv)

    patched(blocks, "recorded_attention", fused)

    @contextmanager
    def encoding():
        outer, launches.encoding = launches.encoding, True
        yield
        launches.encoding = outer

    def count(model, inputs):
        for name in ("forward", "encode_dense", "encode_cls"):
            original = getattr(model.encoder, name)

            def inside(*args, original=original, **options):
                with encoding():
                    return original(*args, **options)

            monkeypatch.setattr(model.encoder, name, inside)
        with launches:
            return model(inputs), launches

    return count


def scene(index, height=448, width=597):
    return {"image": torch.from_numpy(draw_scene(index, height, width).image).permute(2, 0, 1)}


def test_launches_and_waits_of_an_image(model, as_on_cuda):
    """6 windows of an image of 448x597 with 171 classes, some of which are look-alikes."""
    (result,), launches = as_on_cuda(model, [scene(1000)])
    assert result["kept_redundancy"].sum() > 5 and len(result["ambiguous_losses"]) > 1
    assert launches.encoder["convolution"] == 2, "no crops"
    assert launches.head.total() <= 105
    # Before the crops, and for the result.
    assert launches.waits == 2 * ["to_host"]
    # Of the pixels; of what is known after each wait: groups and crops, and which classes stay.
    assert launches.head["upload"] == 3
    # Two for each of 5 blocks whose attention is recorded.
    assert launches.encoder["mean_attention"] == 10


def test_launches_and_waits_of_a_batch_of_images(model, as_on_cuda):
    """3 images of two sizes, whose 15 windows go through CLIP in 2 batches."""
    model.batch_size = 8
    images = [scene(1000), scene(1001), scene(1002, 384, 500)]
    results, launches = as_on_cuda(model, images)
    assert all(len(result["ambiguous_losses"]) for result in results)
    assert launches.waits == 2 * ["to_host"]
    assert launches.head["upload"] == len(images) + 2 + len(images)
    assert launches.head.total() <= 76 * len(images)


def test_launches_and_waits_of_a_base_method(model, as_on_cuda):
    """It waits for whether its features are finite, and uploads pixels and what windows cover."""
    model.enabled = False
    _, launches = as_on_cuda(model, [scene(1000)])
    assert launches.waits == ["to_host"]
    assert launches.head.total() <= 66
    assert launches.head["upload"] == 2
