"""Progress bars where nobody watches."""

import re

import pytest

from freecp_d2.progress import progress


@pytest.mark.parametrize(("images", "updates"), [(7, 7), (200, 20), (1000, 20)])
def test_the_progress_is_updated_twenty_times(images, updates, capsys):
    assert list(progress(range(images), desc="mine", unit="image")) == list(range(images))
    _, err = capsys.readouterr()
    assert len(re.findall(r"mine: +\d+%", err)) <= updates + 2
    assert len(re.findall(r"mine: +\d+%", err)) >= updates
    assert "\n" not in err.rstrip("\n")
