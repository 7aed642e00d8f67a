"""configs/generate.py: what is checked in is what it writes."""

import shutil
from pathlib import Path

import pytest

from freecp_d2 import get_config
from freecp_d2.clip.methods import BASE_METHODS
from freecp_d2.data.benchmarks import BENCHMARKS
from freecp_d2.data.benchmarks.protocols import PAPER

METHODS = [name.lower() for name, cls in BASE_METHODS if cls.__module__.startswith("freecp_d2.")]
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def generate(load_script):
    return load_script(CONFIGS / "generate.py")


def below(root: Path) -> dict[str, str]:
    """The files of the benchmarks and of clip/, and what is in them."""
    files = (path for folder in ("clip", *BENCHMARKS) for path in (root / folder).iterdir())
    return {path.relative_to(root).as_posix(): path.read_text() for path in files}


def test_what_is_checked_in_is_what_the_table_gives(generate):
    there = {name: text for name, text in below(CONFIGS).items() if not name.endswith("/base.yaml")}
    assert there == generate.config_files()


def test_every_base_method_has_its_configs(generate):
    assert sorted(generate.METHODS) == sorted(METHODS)
    for method in METHODS:
        for benchmark, layout in BENCHMARKS.items():
            ours, alone = (get_config(f"{benchmark}/{method}{end}") for end in ("", "_base"))
            assert ours.MODEL.CLIP.METHOD == alone.MODEL.CLIP.METHOD == method
            assert ours.DATASETS.TEST == alone.DATASETS.TEST == (layout.dataset,)
            assert ours.MODEL.FREECP.ENABLED and not alone.MODEL.FREECP.ENABLED
            assert alone.MODEL.FREECP.PROTOCOL == ("paper" if method in PAPER else "same")


def test_files_are_written_anew_and_old_ones_go(generate, tmp_path, monkeypatch, capsys):
    shutil.copytree(CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(generate, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs/voc21/clearclip.yaml").write_text("changed")
    (tmp_path / "configs/voc20/gem_base.yaml").unlink()
    (tmp_path / "configs/clip/of_another_time.yaml").write_text("VERSION: 2")
    generate.main()
    assert below(tmp_path / "configs") == below(CONFIGS)
    assert f"{len(generate.config_files())} files" in capsys.readouterr().out
