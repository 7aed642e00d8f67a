"""That a job counts with its own ranks only."""

import argparse
import json
from pathlib import Path

import pytest
from detectron2.utils import comm

from freecp_d2.distributed import job_token, require_one_job
from freecp_d2.ranks import launch


def arguments(**other) -> argparse.Namespace:
    options = {"num_machines": 1, "machine_rank": 0, "num_gpus": 2, "config_file": "", "opts": []}
    return argparse.Namespace(**{**options, **other})


def test_a_job_on_one_machine_has_a_token_of_its_own():
    assert len({job_token(arguments()) for _ in range(3)}) == 3


def test_machines_of_one_job_agree(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("VERSION: 2\n")
    several = {"num_machines": 2, "config_file": str(config)}
    first, second = (job_token(arguments(**several, machine_rank=rank)) for rank in (0, 1))
    assert first == second
    others = [arguments(**several, opts=["SEED", "1"]), arguments(**several | {"num_gpus": 4})]
    assert len({first, *map(job_token, others)}) == 3
    config.write_text("VERSION: 2\nSEED: 1\n")
    assert job_token(arguments(**several)) != first


def test_one_process_is_a_job():
    require_one_job("a", 1)
    with pytest.raises(ValueError, match="2 were started"):
        require_one_job("a", 2)


def _rank(folder: Path, tokens: tuple[str, ...], ranks: int) -> None:
    rank = comm.get_rank()
    try:
        require_one_job(tokens[rank], ranks)
        said = None
    except ValueError as error:
        said = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("tokens", "ranks", "said"),
    [
        (("a", "a"), 2, [None, None]),
        (("a", "b"), 2, ["1 of 2 ranks belong to another job"] * 2),
        (("a", "a"), 3, ["3 were started by this one"] * 2),
    ],
)
def test_all_ranks_see_a_stranger(tmp_path, monkeypatch, tokens, ranks, said):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the ranks: one GPU would not do
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launch(_rank, (tmp_path, tokens, ranks), ranks=2) == 0
    for rank, expected in enumerate(said):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert (found is None) == (expected is None)
        assert expected is None or (expected in found and "\n" not in found)
