"""The tensors of a TorchScript archive: none of its code is run, no name in it is looked up."""

import pickle
import re
import zipfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CLASS = re.compile(
    r"^class (\w+)\(Module\):\n((?:  __(?:parameters|buffers)__ = \[.*\]\n)*)", re.M
)


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str


class _Tensor(NamedTuple):
    """The arguments of `torch._utils._rebuild_tensor_v2`."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    hooks: Any


class _Module:
    """What stands for a module: its attributes. A subclass stands for a class of the archive."""

    name: str
    attributes: dict[str, Any]

    def __setstate__(self, attributes: Any) -> None:
        if not isinstance(attributes, dict):
            raise pickle.UnpicklingError(f"{self.name} is restored by code of its own")
        self.attributes = attributes


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the pickle; nothing is imported."""
        if module.split(".")[0] == "__torch__":
            return type(name, (_Module,), {"name": f"{module}.{name}"})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _Tensor(*arguments)  # the class itself could be altered
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return lambda *_: None  # attributes that are no tensors
        raise pickle.UnpicklingError(f"{module}.{name} is neither a module nor a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _device, _length = pid
        return _Storage(dtype, key)


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether a zip is what `torch.jit.save` writes; `torch.save` writes no constants."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_state_dict(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """What `torch.jit.load(...).state_dict()` would give, on the CPU.

    The pickle in the archive is read by an unpickler that knows modules, tensors and plain values,
    and puts inert objects of this file in their place. Which attributes are parameters or buffers
    is read from the text of the archive's code; where a class does not mark its buffers, as old
    archives do not, each of its tensors counts.

    Raises:
        pickle.UnpicklingError: the archive holds something else, or modules that are restored by
            code.
        Exception: of any kind, where it is damaged.
    """
    (pickled,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name))
    folder = pickled.removesuffix("data.pkl")
    with archive.open(pickled) as file:
        root = _Unpickler(file).load()
    if not isinstance(root, _Module):
        raise pickle.UnpicklingError(f"{type(root).__name__} in place of a module")
    declared = _declared_tensors(archive, f"{folder}code/")
    storages: dict[_Storage, Tensor] = {}
    state = {}
    for key, tensor in _tensors_of(root, declared, ""):
        storage = tensor.storage
        if storage not in storages:
            content = bytearray(archive.read(f"{folder}data/{storage.key}"))
            storages[storage] = torch.frombuffer(content, dtype=storage.dtype)
        state[key] = storages[storage].as_strided(tensor.size, tensor.stride, tensor.offset)
    return state


def _tensors_of(
    module: _Module, declared: dict[str, set[str]], prefix: str
) -> Iterator[tuple[str, _Tensor]]:
    names = declared.get(module.name)
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _tensors_of(value, declared, f"{prefix}{name}.")
        elif isinstance(value, _Tensor) and (names is None or name in names):
            yield f"{prefix}{name}", value


def _declared_tensors(archive: zipfile.ZipFile, folder: str) -> dict[str, set[str]]:
    """Class -> names of its parameters and buffers, of those classes that mark their buffers."""
    declared = {}
    for file in archive.namelist():
        if file.startswith(folder) and file.endswith(".py"):
            module = file.removeprefix(folder).removesuffix(".py").replace("/", ".")
            for name, marks in _CLASS.findall(archive.read(file).decode()):
                if "__buffers__" in marks:
                    declared[f"{module}.{name}"] = set(re.findall(r'"([^"]*)"', marks))
    return declared
