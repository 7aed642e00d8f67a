"""The mutants of a few lines, and a whole run on a project of two files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''"""Docstring."""

def area(width: int = 3, *, height: float = 0.5, log=None) -> float:
    """2 > 1 is no code."""
    if width < 0 and not height:
        raise ValueError(f"{width + 1} < 0")
    assert width > 0
    return round(width * height, ndigits=2)
'''
CODE = '''
def larger(a, b):
    """A number of at least both."""
    if a < b:
        return b
    return a
'''
TEST = """
from freecp_d2.code import larger

def test_larger():
    assert larger(1, 2) == 2 and larger(3, 2) == 3
"""


@pytest.fixture(scope="module")
def run(load_script):
    return load_script(Path(__file__).with_name("run.py"))


def test_the_mutants_of_a_function(run):
    mutants = run.mutants_of("x.py", SOURCE)
    changes = [mutant.name.rsplit(": ", 1)[1] for mutant in mutants]
    assert sorted(changes) == sorted(
        [
            *("3 -> 4", "0.5 -> 1.0"),
            "width < 0 and not height -> not (width < 0 and (not height))",
            "width < 0 and not height -> width < 0 or not height",
            *("width < 0 -> width <= 0", "0 -> 1", "not height -> height"),
            "round(width * height, ndigits=2) -> round(width * height)",
            *("width * height -> width / height", "2 -> 3"),
        ]
    )
    lines = SOURCE.splitlines()
    for mutant in mutants:
        changed = mutant.source.splitlines()
        assert len(changed) == len(lines)
        assert sum(a != b for a, b in zip(changed, lines, strict=True)) == 1
        compile(mutant.source, "x.py", "exec")
    assert len({mutant.name for mutant in mutants}) == len(mutants)


def test_samples_are_the_same_again_and_grow(run):
    mutants = run.mutants_of("x.py", SOURCE)
    small, large = (run.sample_of(mutants, size, 0) for size in (3, 6))
    assert len(small) == 3 and {m.name for m in small} < {m.name for m in large}
    assert run.sample_of(mutants[::-1], 3, 0) == small[::-1]
    assert run.sample_of(mutants, 0, 0) == mutants
    assert run.sample_of(mutants, 6, 1) != large


def test_every_target_and_its_tests_are_there(run):
    for file, tests in run.TARGETS.items():
        for path in (file, *(test.split("::")[0] for test in tests)):
            assert (ROOT / path).exists(), path


def test_equivalent_mutants_are_told_with_a_reason(run):
    known = json.loads(run.EQUIVALENT.read_text())
    files = {name.split(":")[0] for name in known}
    mutants = [m for file in files for m in run.mutants_of(file, (ROOT / file).read_text())]
    assert files <= run.TARGETS.keys() and known.keys() <= {mutant.name for mutant in mutants}
    assert all(len(reason.split()) > 3 for reason in known.values())


def test_a_run_tells_who_survives(tmp_path):
    """`<=` for `<` gives the same numbers; what returns the smaller one is noticed."""
    for name, content in {
        "freecp_d2/__init__.py": "",
        "freecp_d2/code.py": CODE,
        "tests/test_code.py": TEST,
        "train_net.py": "",
        "pyproject.toml": "",
        "configs/x": "",
        "projects/x": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    program = (
        "import runpy, sys; run = runpy.run_path(sys.argv[1]); "
        "run['main'].__globals__['TARGETS'] = {'freecp_d2/code.py': ['tests/test_code.py']}; "
        "run['main'].__globals__['LIBRARIES'] = ('pytest', 'hypothesis'); "
        "sys.exit(run['main'](['--root', sys.argv[2]]))"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).with_name("run.py")), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    survived = [line for line in done.stdout.splitlines() if line.startswith("survived: ")]
    assert [line.rsplit(": ", 1)[1] for line in survived] == ["a < b -> a <= b"]
    assert "| freecp_d2/code.py | 2 | 1 | 0 | 1 |" in done.stdout
    assert "\n1 of 2 mutants survive" in done.stdout
    assert (tmp_path / "freecp_d2/code.py").read_text() == CODE

    (tmp_path / "tests/test_code.py").write_text(TEST.replace("== 2", "== 5"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 1 and "fail without any mutant" in done.stderr
