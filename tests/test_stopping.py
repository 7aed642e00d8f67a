"""Signals that wait for the work at hand."""

import os
import signal
import sys
import time

import pytest

from freecp_d2.stopping import Stop, stopping


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_is_noted_and_the_second_ends(number, code):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    done = []
    with pytest.raises(KeyboardInterrupt), stopping() as stop:
        assert stop.signal is None and stop.exit_code == 0
        os.kill(os.getpid(), number)
        done.append("the work at hand")
        assert (stop.signal, stop.exit_code) == (number, code)
        os.kill(os.getpid(), number)  # of the same Ctrl-C
        time.sleep(1.1)
        os.kill(os.getpid(), number)
        done.append("more")
    assert done == ["the work at hand"]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_a_signal():
    assert Stop().exit_code == 0


def test_the_command_that_goes_on_can_be_run_as_it_stands(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["projects/demo.py", "--a"])
    stop = Stop(signal.SIGTERM)
    said = stop.sentence("demo.py", ["--words", "a dog,a cat"])
    assert said == (
        "demo.py: stopped by SIGTERM; go on with: python projects/demo.py --words 'a dog,a cat'"
    )
    assert stop.sentence("freecp label", ["--x"]).endswith("go on with: freecp label --x")
