"""The files around the code: pins and citation agree with what they are about."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_pre_commit_runs_the_locked_ruff():
    (locked,) = re.findall(r"^ruff==(\S+)", (ROOT / "requirements.lock").read_text(), re.M)
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"].split()[:2] for hook in repo["hooks"]] == [
        ["ruff", "check"],
        ["ruff", "format"],
    ]
    for hook in repo["hooks"]:
        assert hook["additional_dependencies"] == [f"ruff=={locked}"]


def test_the_citation_names_the_paper_and_the_software():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert "version" not in citation, "the version stands in freecp_d2/__init__.py alone"
    (paper,) = citation["references"]
    assert paper["title"] in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert len(paper["authors"]) == 7
