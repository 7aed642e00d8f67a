"""CUDA graphs: what is captured, and, where there is no GPU, with a capture that runs anew."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_leaves

from freecp_d2 import FreeCP, cuda_graphs, load_config
from freecp_d2.cuda_graphs import MAX_GRAPHS, Captured, Graphed
from freecp_d2.data import Vocabulary
from freecp_d2.data.scenes import draw_scene
from freecp_d2.purification import stages

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"


@pytest.fixture
def captures(monkeypatch):
    """What was captured; on a CPU a replay runs the function on the tensors of the capture."""
    seen = []
    on_cuda = cuda_graphs.capture

    def capture(function, args):
        seen.append(args)
        if CUDA:
            return on_cuda(function, args)
        static = [value.clone() if isinstance(value, torch.Tensor) else value for value in args]
        inputs = [value for value in static if isinstance(value, torch.Tensor)]
        outputs = function(*static)

        def replay():
            time.sleep(1e-4)  # for other threads
            pairs = zip(tree_leaves(outputs), tree_leaves(function(*static)), strict=True)
            for old, new in pairs:
                if isinstance(old, torch.Tensor):
                    old.copy_(new)

        return Captured(replay, inputs, outputs)

    monkeypatch.setattr(cuda_graphs, "capture", capture)
    return seen


def powers(x, exponent, y):
    return {"sum": x + y, "parts": (x**exponent, None)}


def tensor(*values):
    return torch.tensor(values, device=DEVICE, dtype=torch.float32)


def test_a_graph_for_every_shape_type_and_constant(captures):
    graphed = Graphed(powers)
    for values in ((1, 2), (3, 4), (5, 6)):
        found = graphed(tensor(*values), 2, tensor(1, 1))
        assert found["sum"].tolist() == [value + 1 for value in values]
        assert found["parts"][0].tolist() == [value**2 for value in values]
        assert found["parts"][1] is None
    assert len(captures) == 1
    assert graphed(tensor(2, 3), 3, tensor(0, 0))["parts"][0].tolist() == [8, 27]
    assert graphed(tensor(2, 3, 4), 2, tensor(0, 0, 0))["sum"].tolist() == [2, 3, 4]
    assert graphed(tensor(2, 3).double(), 2, tensor(0, 0).double())["sum"].dtype == torch.float64
    assert len(captures) == 4
    graphed(tensor(2, 3), 3, tensor(0, 0))
    assert len(captures) == 4


def test_results_stay_when_it_runs_again(captures):
    graphed = Graphed(powers)
    first = graphed(tensor(1), 2, tensor(1))
    graphed(tensor(5), 2, tensor(5))
    assert first["sum"].tolist() == [2] and first["parts"][0].tolist() == [1]


def test_the_graph_that_waited_longest_goes(captures):
    graphed = Graphed(powers)
    for exponent in range(MAX_GRAPHS):
        graphed(tensor(2), exponent, tensor(0))
    graphed(tensor(2), 0, tensor(0))  # is used again, so that the next is the oldest
    graphed(tensor(2), MAX_GRAPHS, tensor(0))
    assert len(captures) == MAX_GRAPHS + 1
    graphed(tensor(2), 0, tensor(0))
    assert len(captures) == MAX_GRAPHS + 1
    graphed(tensor(2), 1, tensor(0))
    assert len(captures) == MAX_GRAPHS + 2


def test_threads_do_not_mix_what_they_give(captures):
    graphed = Graphed(powers)
    with ThreadPoolExecutor(8) as pool:
        runs = pool.map(lambda i: graphed(tensor(*[i] * 500), 2, tensor(*[0] * 500)), range(200))
        for index, found in enumerate(runs):
            assert found["sum"].unique().tolist() == [index]
    assert len(captures) == 1


@pytest.fixture
def made_up_gpus(monkeypatch):
    """Streams and captures that do nothing; the devices of the captures' streams."""
    underway, seen = threading.Lock(), []

    class Stream(nullcontext):
        def __init__(self, device):
            super().__init__()
            self.device = device

        def wait_stream(self, stream):
            pass

    @contextmanager
    def graph(graph, stream=None, capture_error_mode="global"):
        assert underway.acquire(blocking=False), "two captures at a time"
        time.sleep(0.1)
        seen.append(stream and stream.device)
        yield
        underway.release()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    for name, value in (("stream", lambda s: s), ("device", Stream), ("graph", graph)):
        monkeypatch.setattr(torch.cuda, name, value)
    return seen


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_captures_are_on_their_device_and_one_at_a_time(made_up_gpus):
    """Those of encoder and head, by threads that share a model, and those of a second GPU."""
    graphed = [Graphed(powers), Graphed(powers)]

    def run(index: int):
        with FakeTensorMode():
            x = torch.empty(3, device=f"cuda:{index}")
            return graphed[index](x, 2, x)["sum"].device

    with ThreadPoolExecutor(2) as pool:
        devices = list(pool.map(run, range(2)))
    assert devices == [torch.device("cuda", index) for index in range(2)]
    assert sorted(map(str, made_up_gpus)) == ["cuda:0", "cuda:1"]


def model_of(compile: bool, **opts):
    keys = {"MODEL.DEVICE": DEVICE, "MODEL.FREECP.COMPILE": compile, "MODEL.CLIP.PRECISION": "fp32"}
    keys |= {"MODEL.FREECP.WINDOW": 96, "MODEL.FREECP.STRIDE": 48, "INPUT.MIN_SIZE_TEST": 128}
    model = FreeCP(load_config("scenes/clearclip", [x for pair in keys.items() for x in pair]))
    model.set_vocabulary(Vocabulary.from_names(["sky", "lawn", "dog", "road", "sand"]))
    return model.eval()


def test_a_model_of_graphs_is_the_model(captures):
    """To the bit, for images of two sizes, and two sets of words."""
    plain, graphed = model_of(False), model_of(True)
    for seed, size in enumerate(((128, 160), (160, 128), (128, 160))):
        image = torch.from_numpy(draw_scene(seed, *size).image.copy()).permute(2, 0, 1)
        for names in (["sky", "lawn", "dog"], ["road", "sand"]):
            for model in (plain, graphed):
                model.set_vocabulary(Vocabulary.from_names(names))
            (expected,), (found,) = (model([{"image": image}]) for model in (plain, graphed))
            assert found["sem_seg"].equal(expected["sem_seg"])
            for key in ("kept", "kept_redundancy", "consistency"):
                assert found[key].equal(expected[key])
    functions = {args[0].ndim for args in captures}
    assert functions == {3}, "tokens, and patches"
    # One of the blocks for windows of 96x96 in a batch of six, and one of steps 2 to 5 for each
    # number of classes.
    assert len(captures) == 3


@pytest.mark.skipif(CUDA, reason="there is a GPU")
def test_without_cuda_it_is_refused():
    graphed = Graphed(stages.normalize)
    with pytest.raises(ValueError, match=r"FREECP\.COMPILE makes CUDA graphs, .* on cpu; set it"):
        graphed(torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"FREECP\.COMPILE makes CUDA graphs"):
        model_of(True)([{"image": torch.zeros(3, 128, 160)}])
