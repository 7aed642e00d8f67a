"""TorchScript archives: their tensors are those that torch reads, and nothing in them runs."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from freecp_d2.clip.torchscript import is_torchscript, read_state_dict

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # torch.jit is deprecated


class Parts(nn.Module):
    """Attributes of every kind, tensors of every layout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        whole = torch.rand(6, 5)
        self.turned = nn.Parameter(whole.T)
        self.corner = nn.Parameter(whole[2:4, 1:])
        self.short = nn.Parameter(torch.rand(3).half())
        self.register_buffer("scalar", torch.tensor(7))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("octets", torch.arange(3, dtype=torch.uint8))
        self.register_buffer("brain", torch.rand(3).bfloat16())
        self.register_buffer("precise", torch.rand(3).double())
        self.register_buffer("unset", None)
        self.tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.tied[1].weight = self.tied[0].weight
        self.block = nn.Sequential(nn.Conv2d(1, 1, 2), nn.BatchNorm2d(1))
        self.plain = torch.rand(2)
        self.integers, self.fractions, self.word = [1, 2], [0.5], "word"
        self.list, self.dict = [torch.rand(1)], {"key": torch.rand(1)}
        self.pair, self.device = (1, "a"), torch.device("cpu")

    def forward(self, x: Tensor) -> Tensor:
        return x + self.plain + self.list[0] + self.dict["key"] + self.integers[0]


class Touching(nn.Module):
    """Its forward creates a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file(self.path, True, 1)


class RestoredByCode(Touching):
    """And so does what restores it."""

    @torch.jit.export
    def __getstate__(self) -> tuple[str, Tensor, bool]:
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, Tensor, bool]) -> None:
        self.path = state[0]
        self.weight = state[1] + torch.from_file(state[0], True, 1)
        self.training = state[2]


class Touch:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("torchscript") / "parts.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Parts()).save(str(path))
    return path


def read(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        assert is_torchscript(archive)
        return read_state_dict(archive)


def rewritten(path: Path, replace) -> Path:
    """A copy whose records are what `replace(name, content)` makes of them; None leaves one out."""
    copy = path.with_name("copy.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            content = replace(name.partition("/")[2], source.read(name))
            if content is not None:
                target.writestr(name, content)
    return copy


def with_pickle(path: Path, content: bytes) -> Path:
    return rewritten(path, lambda name, old: content if name == "data.pkl" else old)


def test_the_tensors_are_those_of_torch(parts):
    expected, state = torch.jit.load(str(parts)).state_dict(), read(parts)
    assert list(state) == list(expected)
    assert "plain" not in state and len(state) == 19
    for key, value in expected.items():
        assert state[key].dtype == value.dtype and state[key].shape == value.shape
        assert state[key].equal(value)
    assert state["tied.1.weight"].data_ptr() == state["tied.0.weight"].data_ptr()


def test_an_archive_that_marks_no_buffers_gives_all_its_tensors(parts):
    def unmarked(name: str, content: bytes) -> bytes:
        return re.sub(rb"  __buffers__ = .*\n", b"", content) if name.endswith(".py") else content

    expected = torch.jit.load(str(parts))
    state = read(rewritten(parts, unmarked))
    assert set(state) == {*expected.state_dict(), "plain"}
    assert state["plain"].equal(expected.plain)


def test_a_state_dict_of_torch_is_no_archive(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        assert not is_torchscript(archive)


def test_code_that_restores_a_module_is_refused_and_not_run(tmp_path):
    touched, path = tmp_path / "touched", tmp_path / "w.pt"
    torch.jit.script(RestoredByCode(touched)).save(str(path))
    assert not touched.exists()
    with pytest.raises(pickle.UnpicklingError, match="RestoredByCode is restored by code"):
        read(path)
    assert not touched.exists()
    torch.jit.load(str(path))  # torch runs it
    assert touched.exists()


def test_code_beside_the_tensors_is_not_run(tmp_path):
    touched, path = tmp_path / "touched", tmp_path / "w.pt"
    torch.jit.script(Touching(touched)).save(str(path))
    assert read(path)["weight"].equal(torch.ones(2))
    assert not touched.exists()
    torch.jit.load(str(path))(torch.ones(1))
    assert touched.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("inside", [False, True])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(inside, protocol, parts, tmp_path):
    touched = tmp_path / "touched"
    evil = pickle.dumps(Touch(touched), protocol=protocol)
    content = evil
    if inside:  # as an attribute of a module
        content = b"c__torch__\nParts\n)\x81}(X\x01\x00\x00\x00a" + evil[:-1] + b"ub."
    path = with_pickle(parts, content)
    with pytest.raises(pickle.UnpicklingError, match="is neither a module nor a tensor"):
        read(path)
    assert not touched.exists()
    pickle.loads(evil)  # what an ordinary unpickler does
    assert touched.exists()


@pytest.mark.parametrize(
    "name",
    [
        *(b"builtins\neval", b"os\nsystem", b"torch\nload", b"torch._utils\n_rebuild_tensor"),
        *(b"__torch__evil\nsystem", b"collections\nCounter", b"torch.jit\nload"),
        b"evil\nFloatStorage",
    ],
)
def test_names_outside_modules_and_tensors_are_refused(name, parts):
    content = b"\x80\x02c" + name + b"\n."
    path = with_pickle(parts, content)
    with pytest.raises(pickle.UnpicklingError, match="is neither a module nor a tensor"):
        read(path)


@pytest.mark.parametrize("content", [b"N.", b"].", b"}.", b"K\x01."])
def test_a_pickle_without_a_module_is_refused(content, parts):
    path = with_pickle(parts, content)
    with pytest.raises(pickle.UnpicklingError, match="in place of a module"):
        read(path)


def test_one_archive_cannot_alter_how_the_next_is_read(parts):
    """BUILD with a pair sets attributes of whatever is on the stack, classes too."""
    expected = read(parts)
    for name in (b"torch._utils\n_rebuild_tensor_v2", b"__torch__\nParts", b"torch\nFloatStorage"):
        for attribute in (b"storage", b"__new__", b"__setstate__", b"attributes"):
            content = (
                b"\x80\x02c" + name + b"\nN}U" + bytes([len(attribute)]) + attribute + b"Ns\x86b."
            )
            with pytest.raises((pickle.UnpicklingError, AttributeError, TypeError)):
                read(with_pickle(parts, content))
    assert all(value.equal(expected[key]) for key, value in read(parts).items())


def test_a_tensor_that_its_storage_does_not_hold_is_refused(parts):
    path = rewritten(parts, lambda name, old: old[:8] if name == "data/0" else old)
    with pytest.raises(RuntimeError, match="out of bounds"):
        read(path)
