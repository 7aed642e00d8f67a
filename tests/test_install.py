"""The wheel, installed into an empty folder, does what the README says, wherever one stands."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from PIL import Image

import freecp_d2
from freecp_d2.data.scenes import draw_scene

ROOT = Path(__file__).parents[1]
SOURCES = ("LICENSE", "README.md", "configs", "freecp.py", "freecp_d2", "pyproject.toml")
OPTS = ["MODEL.DEVICE", "cpu"]

LIBRARY = """
import sys
from pathlib import Path
import freecp_d2
from freecp_d2.data.scenes import draw_scene

assert Path(freecp_d2.__file__).parent == Path(sys.argv[1]) / "freecp_d2", freecp_d2.__file__
names = freecp_d2.list_configs()
assert "coco_stuff164k/clearclip" in names and len(names) > 80
assert freecp_d2.get_config("coco_stuff164k/clearclip").MODEL.FREECP.AMBIGUITY_THRESHOLD == 0.7
predictor = freecp_d2.FreeCPPredictor("scenes/clearclip", sys.argv[2:])
result = predictor(draw_scene(118).image, ["sky", "sand", "river", "dog"])
print(*result.label_map[::50, ::50].ravel())
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, since setuptools writes beside what it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", "--wheel-dir", folder, source)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--target", folder, wheel)
    return folder


def pip(command: str, *options: object) -> None:
    line = [sys.executable, "-m", "pip", "--disable-pip-version-check", command, "--no-deps"]
    run = subprocess.run(
        [*line, "--no-index", "--quiet", *map(str, options)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program of the installed library in an empty folder; what it printed."""

    def run(*command: object) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(installed)}
        done = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def test_the_wheel_holds_what_the_checkout_does(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    for folder, suffixes in (
        ("configs", (".yaml",)),
        ("freecp_d2", (".py", ".json", ".html", ".safetensors", ".typed")),
    ):
        there = [p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]
        prefix = "" if folder == "freecp_d2" else "freecp_d2/"
        assert there and {f"{prefix}{path.as_posix()}" for path in there} <= files
    assert {name.split("/")[0] for name in files} == {
        "freecp.py",
        "freecp_d2",
        f"freecp_d2-{freecp_d2.__version__}.dist-info",
    }
    assert wheel.stat().st_size < 20 * 2**20


def test_the_version_has_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "freecp_d2.__version__"}


def test_configs_and_the_small_clip_are_there(run, installed, tmp_path):
    """The label map is that of the checkout."""
    printed = run(sys.executable, "-W", "ignore", "-c", LIBRARY, installed, *OPTS)
    predictor = freecp_d2.FreeCPPredictor("scenes/clearclip", OPTS)
    result = predictor(draw_scene(118).image, ["sky", "sand", "river", "dog"])
    assert printed.split() == [str(label) for label in result.label_map[::50, ::50].ravel()]
    assert list(tmp_path.iterdir()) == []


def test_the_programs_run(run, installed, tmp_path):
    freecp = installed / "bin" / "freecp"
    start = perf_counter()
    assert all(name in run(freecp, "--help") for name in ("segment", "web", "evaluate", "prepare"))
    assert perf_counter() - start < 2
    assert "--verify" in run(sys.executable, "-m", "freecp_d2.data.prepare", "--help")
    Image.fromarray(draw_scene(118).image).save(tmp_path / "scene.png")
    run(
        *(freecp, "segment", "--config-file", "scenes/clearclip", "--vocabulary", "sky,sand,dog"),
        *("--input", "scene.png", "--output", "out", "--opts", *OPTS),
    )
    with Image.open(tmp_path / "out" / "labels" / "scene.png") as labels:
        assert labels.mode == "P" and len(np.unique(np.asarray(labels))) > 1
    assert {path.name for path in tmp_path.iterdir()} == {"scene.png", "out"}
