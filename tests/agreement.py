"""How near each base method is to its published code: vectors, worst difference, label maps.

    OMP_NUM_THREADS=1 python tests/agreement.py [OPTIONS OF PYTEST]

Runs the tests that hold the vectors of encoders and protocols, and notes what they compare with a
tensor that was recorded: by torch.testing.assert_close the largest difference, by == or equal the
share of entries that are equal. Prints Markdown; README and docs/base_methods.md have it from here.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from tabulate import tabulate
from torch import Tensor
from torch.overrides import TorchFunctionMode

TESTS = Path(__file__).resolve().parent
FOLDERS = {"reference": TESTS / "data" / "reference"} | {
    folder.name: folder
    for folder in sorted((TESTS / "data" / "base_methods").iterdir())
    if folder.is_dir()
}
"""Whose vectors -> where they are; FreeCP's own code for "reference"."""
OTHERS = {
    ("clearclip", "MaskCLIP"): "maskclip",
    ("clearclip", "SCLIP"): "sclip",
    ("clearclip", "vanilla"): "vanilla",
    ("naclip", "csa"): "sclip",
    ("naclip", "vanilla"): "vanilla",
}
"""Folder, and what its code is told to be -> the base method, where that is not the folder's."""
FEATURES = "patch_features"
TOLERANCE = 1e-4
"""Comparisons that allow for more, such as those of half precision, do not count."""
COMPARISONS = (Tensor.eq, Tensor.ne, Tensor.equal, Tensor.__eq__, Tensor.__ne__, torch.equal)


@dataclass
class Agreement:
    """Of one base method.

    Attributes:
        vectors: (file, name) of the tensors that were compared.
        features, others: the largest difference of patch features, and of other numbers; None where
            none were compared.
        labels: the smallest share of equal entries of whole numbers, such as a label map; likewise.
    """

    vectors: set[tuple[str, str]] = field(default_factory=set)
    features: float | None = None
    others: float | None = None
    labels: float | None = None


class Recorder(TorchFunctionMode):
    """Knows the tensors of files of vectors by their memory, views of them too."""

    def __init__(self) -> None:
        super().__init__()
        self.load_file, self.assert_close = safetensors.torch.load_file, torch.testing.assert_close
        self.get_array = np.lib.npyio.NpzFile.__getitem__
        self.loaded: list[tuple[Tensor, str, tuple[str, str]]] = []
        self.methods: dict[str, Agreement] = {}

    def load(self, path: Any, *args: Any, **options: Any) -> dict[str, Tensor]:
        """As safetensors.torch.load_file."""
        tensors = self.load_file(path, *args, **options)
        for name, tensor in tensors.items():
            self._know(tensor, Path(path), name)
        return tensors

    def get(self, archive: Any, name: str) -> np.ndarray:
        """As NpzFile.__getitem__."""
        array = self.get_array(archive, name)
        self._know(torch.from_numpy(array), Path(archive.zip.filename), name)
        return array

    def compare(self, actual: Any, expected: Any, *args: Any, **options: Any) -> None:
        """As torch.testing.assert_close."""
        self.assert_close(actual, expected, *args, **options)
        if options.get("atol", 0) <= TOLERANCE and not options.get("rtol"):
            self._note(actual, expected)

    def _know(self, tensor: Tensor, file: Path, name: str) -> None:
        owners = [owner for owner, folder in FOLDERS.items() if file.parent == folder]
        case = _cases(file.parent).get(file.stem) if owners else None
        if case is not None:
            self.loaded.append((tensor, _method(owners[0], case), (str(file), name)))

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run it; note what it compares."""
        if function in COMPARISONS and len(args) == 2:
            with torch._C.DisableTorchFunctionSubclass():
                self._note(*args)
        return function(*args, **(kwargs or {}))

    def _note(self, actual: Any, expected: Any) -> None:
        if not (isinstance(actual, Tensor) and isinstance(expected, Tensor)):
            return
        known = self._vector(expected) or self._vector(actual)
        if known is None or actual.shape != expected.shape or not actual.numel():
            return
        method, vector = known
        agreement = self.methods.setdefault(method, Agreement())
        agreement.vectors.add(vector)
        if expected.is_floating_point():
            worst = (actual.double() - expected.double()).abs().max().item()
            kind = "features" if vector[1].startswith(FEATURES) else "others"
            setattr(agreement, kind, max(getattr(agreement, kind) or 0.0, worst))
        else:
            share = (actual == expected).double().mean().item()
            agreement.labels = share if agreement.labels is None else min(agreement.labels, share)

    def _vector(self, tensor: Tensor) -> tuple[str, tuple[str, str]] | None:
        where = tensor.data_ptr() if tensor.device.type == "cpu" else 0
        for loaded, method, vector in self.loaded:
            if loaded.data_ptr() <= where < loaded.data_ptr() + loaded.nbytes:
                return method, vector
        return None


class Plugin:
    """Records while a test runs."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        """Around each test."""
        with self.recorder:
            yield


@cache
def _cases(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "cases.json").read_text())


def _method(owner: str, case: dict[str, Any]) -> str:
    if owner == "reference":
        return case["method"]
    told = case.get("model_type") or case.get("attn_strategy")
    return OTHERS.get((owner, str(told)), owner)


def table(methods: dict[str, Agreement]) -> str:
    """Markdown."""
    rows = [
        (
            *(name, len(a.vectors)),
            *("-" if worst is None else f"{worst:.1e}" for worst in (a.features, a.others)),
            "-" if a.labels is None else f"{100 * a.labels:.2f} %",
        )
        for name, a in sorted(methods.items())
    ]
    headers = ("base method", "vectors", "features, worst", "others, worst", "labels equal")
    align = ("left", *["right"] * 4)
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def main() -> int:
    """Run the tests, print the table; the exit code is pytest's."""
    recorder = Recorder()
    safetensors.torch.load_file = recorder.load
    torch.testing.assert_close = recorder.compare
    np.lib.npyio.NpzFile.__getitem__ = lambda archive, name: recorder.get(archive, name)
    files = "test_base_protocols*.py", "ops/test_pamr.py", "test_propagation.py"
    tests = [str(file) for name in files for file in sorted(TESTS.glob(name))]
    tests.insert(0, str(TESTS / "clip"))
    code = pytest.main(
        ["-q", "-p", "no:cacheprovider", *tests, *sys.argv[1:]], plugins=[Plugin(recorder)]
    )
    print(f"\n{table(recorder.methods)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
