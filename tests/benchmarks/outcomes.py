"""Runs pytest and notes every test as it begins and as it ends: to kill it loses no result.

    python tests/benchmarks/outcomes.py FILE ARGUMENTS...

FILE gets lines of JSON, which gpu_report.py reads; the arguments are pytest's.
"""

import json
import sys
from pathlib import Path

import pytest


class Outcomes:
    """A plugin. With pytest-xdist its process hears of the tests of all workers."""

    def __init__(self, file: Path):
        self.file = file
        file.write_text("")

    def note(self, **values: object) -> None:
        """Add a line."""
        with self.file.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self.note(test=nodeid, outcome="begun")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test, its set-up or its tear-down has ended."""
        if report.when != "call" and report.passed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        self.note(
            test=report.nodeid,
            outcome=report.outcome,
            seconds=report.duration,
            message=crash.message if crash else report.longreprtext,
            properties=report.user_properties,
        )


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())  # as python -m pytest has it
    sys.exit(pytest.main(sys.argv[2:], plugins=[Outcomes(Path(sys.argv[1]))]))
