"""The pages of docs/ and the README do what they say.

Fenced blocks of `python`, `sh` and `bash` are run, each in a process of its own, top to bottom in
a copy of the repository. A fence's other words: `file=PATH` writes the block instead, and `no-test`
is for what needs a download or a data set. Those and indented commands are not run; their number
is kept below, and what they name must exist.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from freecp_d2 import add_freecp_config

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
COPIED = ("configs", "docs", "freecp_d2", "projects", "freecp.py", "train_net.py")
NOT_RUN = {
    "README.md": 2,
    "CONTRIBUTING.md": 1,
    "docs/adapters.md": 1,
    "docs/affinity.md": 1,
    "docs/clip_models.md": 1,
    "docs/data.md": 10,
    "docs/labelling.md": 1,
    "docs/labelling_at_scale.md": 3,
    "docs/my_images.md": 2,
    "docs/reproduce.md": 3,
    "docs/robustness.md": 1,
    "docs/thresholds.md": 1,
    "docs/weights.md": 1,
}
"""How many blocks of commands of a page nobody runs. Adding one is a decision: say so here."""
COMMANDS = {"python", "freecp", "make", "pip", "git", "export", "cd", ".", "mkdir", "bash", "curl"}
SHELLS = ("sh", "bash")


@dataclass(frozen=True)
class Block:
    """A block of a page: its first line, its language, the other words of the fence, its text."""

    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def is_run(self) -> bool:
        runnable = self.language in ("python", *SHELLS)
        return runnable and "no-test" not in self.words and self.file is None

    @property
    def file(self) -> str | None:
        return next((w.removeprefix("file=") for w in self.words if w.startswith("file=")), None)


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """Fenced blocks, and indented ones that begin with a command (language "indented")."""
    found: list[Block] = []
    lines = (ROOT / page).read_text(encoding="utf-8").split("\n")
    start = 0
    while start < len(lines):
        end = start + 1
        if lines[start].startswith("```"):
            while lines[end] != "```":
                end += 1
            language, *words = (*lines[start].removeprefix("```").split(), "")[:-1] or ("",)
            found.append(
                Block(start + 2, language, tuple(words), "\n".join(lines[start + 1 : end]))
            )
            end += 1
        elif lines[start].startswith("    ") and not lines[start - 1].strip():
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            text = "\n".join(line[4:] for line in lines[start:end])
            if text.split()[0] in COMMANDS:
                found.append(Block(start + 1, "indented", (), text))
        start = end
    return tuple(found)


def outputs(text: str) -> list[str]:
    """What a block says that it prints: the comment lines right below a line with a print."""
    comments = re.findall(r"^print\(.*\n((?:# .*(?:\n|$))+)", text, re.M)
    return [
        " ".join(comment.replace("\n# ", " ").removeprefix("# ").split()) for comment in comments
    ]


def not_run(page: str) -> list[Block]:
    return [
        block
        for block in blocks(page)
        if block.language == "indented" or (block.language in SHELLS and "no-test" in block.words)
    ]


def commands(text: str) -> list[list[str]]:
    """The words of every command line, without the assignments in front."""
    lines = text.replace("\\\n", " ").split("\n")
    split = [shlex.split(line, comments=True) for line in lines]
    return [re.sub(r"^(\w+=\S+ )+", "", shlex.join(words)).split() for words in split if words]


def commands_not_run() -> list[tuple[str, list[str]]]:
    return [
        (f"{page}:{block.line}", words)
        for page in PAGES
        for block in not_run(page)
        for words in commands(block.text)
    ]


def programs() -> dict[tuple[str, ...], set[str]]:
    """Program, as `python` takes it -> the flags that commands that are not run give it."""
    found: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for _, words in commands_not_run():
        if words[0] == "freecp":
            words = ["python", "freecp.py", *words[1:]]
        if words[0] == "python" and words[1] != "-c":
            size = 3 if words[1] in ("-m", "freecp.py") else 2
            flags = {word.split("=")[0] for word in words[size:] if word.startswith("--")}
            found[tuple(words[1:size])] |= flags
    return found


@pytest.fixture
def workplace(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A copy of what the pages use, and the environment that runs there."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "output")
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    freecp = python.with_name("freecp")
    freecp.write_text(f'#!/bin/sh\nexec {shlex.quote(str(python))} -m freecp "$@"\n')
    for program in (python, freecp):
        program.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "DETECTRON2_DATASETS"}
    environment |= {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    return tmp_path, environment


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.is_run for b in blocks(p))])
def test_the_blocks_run(page, workplace):
    folder, environment = workplace
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.file).write_text(block.text + "\n", encoding="utf-8")
        elif block.is_run:
            command = ["bash", "-euo", "pipefail", "-c", block.text]
            if block.language == "python":
                script = folder / f"{Path(page).stem}_line_{block.line}.py"
                script.write_text(block.text + "\n", encoding="utf-8")
                command = [sys.executable, str(script)]
            run = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
            )
            where = f"{page}, line {block.line}, exit status {run.returncode}"
            assert run.returncode == 0, f"{where}\n{run.stdout[-2000:]}\n{run.stderr[-4000:]}"
            for output in outputs(block.text):
                assert output in " ".join(run.stdout.split()), f"{where}\n{run.stdout[-2000:]}"


def test_blocks_have_a_language_and_few_are_not_run():
    for page in PAGES:
        for block in blocks(page):
            known = {"python", *SHELLS, "bibtex", "json", "yaml", "text", "indented"}
            assert block.language in known, f"{page}, line {block.line}: {block.language!r}"
    counts = {page: len(not_run(page)) for page in PAGES}
    assert {page: count for page, count in counts.items() if count} == NOT_RUN


@pytest.mark.parametrize("program", sorted(programs()), ids=" ".join)
def test_commands_that_are_not_run_have_these_flags(program):
    run = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", run.stdout))
    assert programs()[program] <= known


def test_commands_that_are_not_run_name_what_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    checked = 0
    for where, words in commands_not_run():
        if words[0] == "make":
            missing = {w for w in words[1:] if "=" not in w and not w.startswith("-")} - targets
            assert not missing, f"{where}: make has no target {missing}"
        for word in words:
            if re.match(r"(configs|projects|freecp_d2|docs|tests)/[^*<]+$", word):
                assert (ROOT / word).exists(), f"{where}: there is no {word}"
                checked += 1
    assert checked


@pytest.mark.parametrize("page", PAGES)
def test_keys_links_and_pictures_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    cfg = get_cfg()
    add_freecp_config(cfg)
    cfg.MODEL.CLIP.VALUEATTENTION = CfgNode({"TEMPERATURE": 1.0})  # of docs/own_base_method.md
    for key in re.findall(r"\b(?:MODEL|INPUT|DATASETS|DATALOADER)(?:\.[A-Z_\d]+)+\b", text):
        node = cfg
        for part in key.split("."):
            assert part in node, f"{page}: there is no config key {key}"
            node = node[part]
    for picture, target in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), f"{page}: there is no {target}"
        if picture:
            assert file.stat().st_size < 250_000, f"{page}: {target} is over 250 kB"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}
            assert anchor in anchors, f"{page}: {target} has no such heading"
