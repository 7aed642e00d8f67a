"""Vectors recorded from the published code, and the small CLIP they were recorded with."""

import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from platformdirs import user_cache_path

# Nothing is written to the cache of who runs the tests, but for matplotlib's list of fonts.
os.environ["MPLCONFIGDIR"] = os.environ.get("MPLCONFIGDIR", str(user_cache_path("matplotlib")))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="freecp_cache_")

# Without a GPU, Triton's kernels run in its interpreter. Triton reads this when it is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import open_clip
import pytest
from detectron2.utils.logger import setup_logger
from safetensors.torch import load_file
from torch import Tensor

from freecp_d2.clip import BASE_METHODS, DenseCLIP

REFERENCE = Path(__file__).parent / "data" / "reference"
CASES: dict[str, dict] = json.loads((REFERENCE / "cases.json").read_text())


def pytest_unconfigure() -> None:
    """The cache folder of the tests goes when they end, that of xdist's controller, too."""
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])


def loggers() -> list[logging.Logger]:
    """This package's."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("freecp_d2")]
    return [logging.getLogger(name) for name in names]


def reset_log() -> None:
    """As it is when this package is imported."""
    logging.disable(logging.NOTSET)
    logging.root.setLevel(logging.WARNING)
    for log in loggers():
        log.handlers, log.propagate, log.disabled = [], True, False
        log.setLevel(logging.NOTSET)
    setup_logger.cache_clear()


@pytest.fixture(autouse=True)
def log_of_a_test() -> Iterator[None]:
    """What a command line does to the log, in this process, ends with its test."""
    before = {log: (list(log.handlers), log.propagate, log.level) for log in loggers()}
    disabled = logging.root.manager.disable
    yield
    logging.disable(disabled)
    for log in loggers():
        log.handlers, log.propagate, level = before.get(log, ([], True, logging.NOTSET))
        log.setLevel(level)
    setup_logger.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def log_of_a_module() -> Iterator[None]:
    """A fixture of a module may run a command line, too; nothing of it reaches another module."""
    reset_log()
    yield
    reset_log()


@pytest.fixture(autouse=True)
def base_methods_as_before() -> Iterator[None]:
    """Base methods that a test registers are gone after it."""
    before = dict(BASE_METHODS)
    yield
    BASE_METHODS._obj_map = before


@pytest.fixture(scope="session")
def inputs() -> dict[str, Tensor]:
    """Normalised images (1,3,H,W), text and description features (15,32)."""
    return load_file(REFERENCE / "inputs.safetensors")


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], dict[str, Tensor]]:
    """The recorded tensors of a case."""
    return lambda case: load_file(REFERENCE / f"{case}.safetensors")


@pytest.fixture(scope="session")
def cases() -> dict[str, dict]:
    """What each case is."""
    return CASES


@pytest.fixture
def reference_clip() -> open_clip.CLIP:
    """The CLIP of the vectors. They hold no text tower: it keeps its seeded initialisation."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**json.loads((REFERENCE / "clip.json").read_text()))
    missing, unexpected = model.load_state_dict(
        load_file(REFERENCE / "clip.safetensors"), strict=False
    )
    assert not unexpected and not any(key.startswith("visual") for key in missing)
    return model


@pytest.fixture
def encoder(reference_clip: open_clip.CLIP) -> Callable[[str], DenseCLIP]:
    """The encoder of a case."""

    def build(case: str) -> DenseCLIP:
        options = {k: CASES[case][k] for k in ("gem_depth", "gaussian_std") if k in CASES[case]}
        return DenseCLIP(reference_clip, CASES[case]["method"], **options)

    return build


@pytest.fixture(scope="session")
def load_script() -> Callable[[Path], ModuleType]:
    """Imports a file that no package holds."""

    def load(file: Path) -> ModuleType:
        name = f"{file.parent.name}_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec and spec.loader
        # Dataclasses, and worker processes, look a module up by its name.
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def write_official(load_script: Callable[[Path], ModuleType]) -> Callable[..., dict]:
    """Writes a tiny folder in a benchmark's official layout; see tests/data/official_layouts.py."""
    return load_script(Path(__file__).parent / "data" / "official_layouts.py").write_official
