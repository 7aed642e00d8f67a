"""`freecp`: its help does not wait for torch, and its subcommands are the scripts' code."""

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

ROOT = Path(__file__).parents[2]

CHEAP = """
import sys
import freecp

try:
    freecp.main({argv})
finally:
    loaded = {{"torch", "detectron2", "freecp_d2", "numpy"}} & sys.modules.keys()
    print("loaded:", *sorted(loaded), file=sys.stderr)
"""


@pytest.fixture
def freecp(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("freecp")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["--help"], 0, "segment"),
        ([], 2, "required: COMMAND"),
        (["labels"], 2, "invalid choice: 'labels'"),
        (["--nope"], 2, "required: COMMAND"),
    ],
)
def test_help_and_mistakes_load_nothing(argv, code, said):
    start = perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", CHEAP.format(argv=argv)], cwd=ROOT, capture_output=True, text=True
    )
    assert perf_counter() - start < 2
    assert run.returncode == code and said in run.stdout + run.stderr
    assert "loaded:" == run.stderr.strip().splitlines()[-1].strip()
    assert "Traceback" not in run.stderr


def test_the_readme_has_all_subcommands(freecp):
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if "| `freecp " in line]
    assert {row.split("`")[1] for row in rows} == {f"freecp {name}" for name in freecp.SUBCOMMANDS}


def test_a_subcommand_gets_the_rest_of_the_line(freecp, monkeypatch):
    """And its exit code is that of `freecp`; what torch reads is set before."""
    monkeypatch.setattr(os, "environ", {})
    for name, (module, _) in freecp.SUBCOMMANDS.items():
        calls: list = []
        module = importlib.import_module(module)
        assert list(inspect.signature(module.main).parameters) == ["argv", "prog"]
        monkeypatch.setattr(module, "main", lambda *args, calls=calls: calls.append(args) or 3)
        assert freecp.main([name, "--help", "-x", "a b"]) == 3
        assert calls == [(["--help", "-x", "a b"], f"freecp {name}")]
    assert os.environ == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}


@pytest.mark.parametrize(
    ("given", "set"),
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "7"}),
    ],
)
def test_how_threads_wait_is_the_users_choice(freecp, monkeypatch, given, set):
    monkeypatch.setattr(os, "environ", given)
    assert freecp.openmp_settings() == set


@pytest.mark.parametrize(
    "name", ["segment", "tag", "web", "evaluate", "label", "export", "rank", "prepare"]
)
def test_subcommands_have_help(freecp, capsys, name):
    with pytest.raises(SystemExit) as error:
        freecp.main([name, "--help"])
    assert not error.value.code
    assert capsys.readouterr().out.startswith(f"usage: freecp {name} ")


def test_evaluate_needs_no_task_and_a_config(freecp, monkeypatch, capsys):
    """FreeCP has no other; train_net.py wants --eval-only, as Detectron2's scripts do."""
    from freecp_d2.cli import evaluate

    ran: list = []
    monkeypatch.setattr(evaluate, "launch_by", lambda args, run: ran.append(args) or 0)
    freecp.main(["evaluate", "--config-file", "scenes/clearclip", "OUTPUT_DIR", "x"])
    (args,) = ran
    assert args.eval_only and args.opts == ["OUTPUT_DIR", "x"] and args.prog == "freecp evaluate"
    with pytest.raises(SystemExit, match="^freecp evaluate: name a config: --config-file scenes"):
        freecp.main(["evaluate"])
