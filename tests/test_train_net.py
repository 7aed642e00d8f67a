"""train_net.py as it is called, on a few scenes that a file of the test's own registers."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from freecp_d2 import add_freecp_config
from freecp_d2.cli import evaluate

ROOT = Path(__file__).parents[1]
CONFIG = "scenes/clearclip"
CONFIGS = [*ROOT.glob("configs/*/*.yaml"), *ROOT.glob("projects/CamVid/configs/*.yaml")]

REGISTER = """
from pathlib import Path
from detectron2.data import DatasetCatalog, MetadataCatalog
from freecp_d2 import FreeCP
from freecp_d2.data.scenes.catalog import CLASSES, load_scenes

folder = Path(__file__).parent / "few"
DatasetCatalog.register("few_scenes", lambda: load_scenes(folder, range(3)))
MetadataCatalog.get("few_scenes").set(
    stuff_classes=list(CLASSES), ignore_label=255, evaluator_type="sem_seg"
)

forward = FreeCP.forward

def noted(self, inputs):
    results = forward(self, inputs)
    with folder.with_name("outputs.txt").open("a") as file:
        file.writelines(f"{sorted({'sem_seg', 'label_map'} & r.keys())}\\n" for r in results)
    return results

FreeCP.forward = noted
"""


def start(folder: Path, name: str, *args: str, dataset: str = "few_scenes") -> subprocess.Popen:
    """A call of train_net.py that writes to `folder`/`name`; its ranks are processes on the CPU."""
    command = [sys.executable, "train_net.py", "--register", str(folder / "register.py")]
    command += ["--config-file", CONFIG, "--eval-only", "--coco-predictions", *args]
    command += ["DATASETS.TEST", f"('{dataset}',)", "OUTPUT_DIR", str(folder / name)]
    command += ["MODEL.CLIP.TEXT_CACHE", str(folder / "text"), "MODEL.DEVICE", "cpu"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(run: subprocess.Popen, folder: Path, name: str) -> tuple[dict, str, str]:
    """results.json, and what was printed, to stdout and to stderr."""
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err[-3000:]
    return json.loads((folder / name / "results.json").read_text()), out, err


def evaluated(folder: Path, name: str, *args: str) -> tuple[dict, str, str]:
    return finish(start(folder, name, *args), folder, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train_net")
    (folder / "register.py").write_text(REGISTER)
    return folder


@pytest.fixture(scope="module")
def base(folder) -> tuple[dict, str, str]:
    return evaluated(folder, "base", "MODEL.FREECP.ENABLED", "False")


@pytest.fixture(scope="module")
def purified(folder, base) -> tuple[dict, str, str]:
    return evaluated(folder, "purified", "--compare-with", str(folder / "base" / "results.json"))


def test_two_ranks_give_the_results_of_one(folder, purified):
    """Also where two jobs of two ranks run at once, which a port in common would mix."""
    one, *_ = purified
    runs = {name: start(folder, name, "--num-gpus", "2") for name in ("two", "two_more")}
    for name, run in runs.items():
        two, *_ = finish(run, folder, name)
        assert "World size: 2" in (folder / name / "log.txt").read_text()
        assert two.pop("seconds_per_image")["encode"] > 0
        config = two.pop("config")
        assert config.pop("OUTPUT_DIR") == str(folder / name)
        expected = {key: one[key] for key in one if key not in ("seconds_per_image", "config")}
        assert two == expected
        assert config == {key: one["config"][key] for key in config}
        for file in ("per_class.csv", "sem_seg_predictions.json"):
            assert (folder / name / file).read_bytes() == (folder / "purified" / file).read_bytes()
        pictures = [
            re.findall(r"data:image[^\"]+", (folder / run / "report.html").read_text())
            for run in ("purified", name)
        ]
        assert pictures[0] == pictures[1] and len(pictures[0]) == 2 * 3 * 4


def test_the_model_gives_label_maps(folder, base, purified):
    """Not a score of every class at every pixel, which takes memory and time."""
    outputs = (folder / "outputs.txt").read_text().splitlines()
    assert len(outputs) >= 6 and set(outputs) == {"['label_map']"}


def test_results_and_the_table_row(base, purified):
    for (results, printed, _), method in ((base, "clearclip"), (purified, "clearclip + FreeCP")):
        miou = results["metrics"]["mIoU"]
        assert 0 < miou < 100 and results["images"] == 3
        assert results["enabled"] == method.endswith("FreeCP")
        rows = [line.split("|")[1:-1] for line in printed.splitlines() if "| few_scenes" in line]
        cells = [[cell.strip() for cell in row] for row in rows]
        shown = method if results["enabled"] else f"{method} (protocol same)"
        assert cells == [["few_scenes", shown, "3", f"{miou:.2f}", "-", "-"]]
    assert base[0]["metrics"] != purified[0]["metrics"]
    assert "purification" not in base[0]
    assert purified[0]["purification"].keys() == {"truth", "redundancy", "ambiguity"}


def test_little_is_printed_and_all_is_logged(folder, base, purified):
    """Detectron2's log of environment, config and model stays in log.txt; so does its progress."""
    for (_, out, err), name in ((base, "base"), (purified, "purified")):
        # Updates of a progress bar are one line.
        lines = [line for line in (out + err).splitlines() if "%|" not in line]
        assert len(lines) < 20 and not re.search(r"\bd2\.|detectron2\]", out)
        assert f"report.html: {folder / name}" in out
        assert "few_scenes, 3 images: mIoU" in out  # of freecp_d2's logger
        assert "DeprecationWarning" not in err and "FutureWarning" not in err
        logged = (folder / name / "log.txt").read_text()
        for said in (
            "Environment info",
            "Running with full config",
            "DenseCLIP",
            "copypaste: mIoU",
        ):
            assert said in logged


def test_the_progress_has_an_eta(purified):
    """One line, of few updates where nobody watches."""
    _, _, err = purified
    bars = re.findall(r"few_scenes: +\d+%[^\r\n]*", err)
    assert "| 0/3 [" in bars[0] and "| 3/3 [" in bars[-1]
    assert re.search(r"1/3 \[\d\d:\d\d<\d\d:\d\d,", bars[1])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sem_seg_file_name", "nowhere.png", "1 of 3 ground-truth files are missing.*nowhere.png"),
        ("sem_seg_file_name", None, "has no sem_seg_file_name"),
        ("file_name", "", "has no file_name"),
        (None, None, "it has no images"),
    ],
)
def test_the_data_set_is_checked_before_weights_are_loaded(
    folder, refuse, monkeypatch, key, value, said
):
    def build_model(cfg):
        raise AssertionError("the model was built")

    monkeypatch.setattr(evaluate.Trainer, "build_model", build_model)
    records = DatasetCatalog.get("few_scenes")
    records = [*records[:2], {**records[2], key: value}] if key else []
    DatasetCatalog.register("spoilt", lambda: records)
    MetadataCatalog.get("spoilt").set(stuff_classes=["a"], evaluator_type="sem_seg")
    weights = ("MODEL.CLIP.PRETRAINED", str(folder / "no_weights.safetensors"))
    try:
        assert re.search(f"spoilt: .*{said}", refuse("DATASETS.TEST", "('spoilt',)", *weights))
    finally:
        DatasetCatalog.pop("spoilt")
        MetadataCatalog.pop("spoilt")


@pytest.mark.parametrize("enabled", ["True", "False"])
def test_a_vocabulary_of_another_size_is_refused(folder, refuse, enabled):
    """Three words for 41 classes; with a scored background they would be four."""
    for text in ("cat\ndog\ncar\n", "background, sky\ncat\ndog\ncar\n"):
        words = folder / "words.txt"
        words.write_text(text)
        opts = ["MODEL.FREECP.VOCABULARY", str(words), "MODEL.FREECP.ENABLED", enabled]
        said = refuse(*opts)
        assert re.search(r"few_scenes: the vocabulary has [34] classes \(.*cat.*has 41 \(", said)
        assert "MODEL.FREECP.VOCABULARY" in said


@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (["MODEL.WEIGHTS", "model.pth"], "MODEL.WEIGHTS is 'model.pth'"),
        (["DATASETS.TEST", "('few_scene',)"], "no data set 'few_scene'; did you mean few_scenes"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["DATASETS.TEST", "('coco_2017_val',)"], "evaluator_type is 'coco'"),
        (["OUTPUT_DIR", "/proc/nowhere"], "/proc/nowhere: cannot be written"),
        (["OUTPUT_DIR", "train_net.py"], "train_net.py: cannot be written"),
        (["MODEL.NOPE", "1"], "MODEL.NOPE"),
        (["MODEL.NOPE"], "odd length"),
        (["MODEL.FREECP.PROTOCOL", "mine"], "MODEL.FREECP.PROTOCOL is 'mine'"),
    ],
)
def test_wrong_configs_end_with_one_line(refuse, opts, said):
    assert said in refuse(*opts)


def test_missing_data_is_said_before_weights_are_loaded(refuse):
    data, weights = "('voc_2012_val_21_sem_seg',)", "/nowhere.safetensors"
    said = refuse("DATASETS.TEST", data, "MODEL.CLIP.PRETRAINED", weights)
    assert "voc_2012_val_21_sem_seg: there is no" in said
    assert weights in refuse("MODEL.CLIP.PRETRAINED", weights)


def test_a_base_of_another_kind_ends_with_one_line(folder, refuse):
    file = folder / "words.json"
    file.write_text('["cat"]')
    assert "words.json: not the results.json" in refuse("--compare-with", str(file))


def test_a_package_that_is_not_there_is_said(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    file = "projects/PlugAndPlay/huggingface_clip.py"
    said = refuse("--register", file)
    assert said == (
        f"train_net.py: --register {file}: a Hugging Face CLIP needs transformers: "
        "pip install 'freecp_d2[transformers]'"
    )


@pytest.fixture
def refuse(folder, monkeypatch):
    """The one line that a call ends with which cannot be evaluated; in this process."""
    monkeypatch.chdir(ROOT)
    script = runpy.run_path(str(ROOT / "train_net.py"))
    if "few_scenes" not in DatasetCatalog.list():
        runpy.run_path(str(folder / "register.py"))

    def refuse(*args: str) -> str:
        options = [arg for arg in args[:2] if arg.startswith("--")] and list(args[:2])
        fixed = ["DATASETS.TEST", "('few_scenes',)", "OUTPUT_DIR", str(folder / "refused")]
        fixed += ["MODEL.CLIP.TEXT_CACHE", str(folder / "text"), "MODEL.DEVICE", "cpu"]
        call = ["--config-file", CONFIG, "--eval-only", *options, *fixed, *args[len(options) :]]
        with pytest.raises(SystemExit) as error:
            evaluate.run(script["parse_args"](call))
        said = str(error.value)
        assert said.startswith("train_net.py: ") and "\n" not in said
        return said

    yield refuse
    DatasetCatalog.pop("few_scenes")
    MetadataCatalog.pop("few_scenes")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--config-file", CONFIG], "use --eval-only"),
        (["--eval-only"], "--config-file"),
        (["--eval-only", "--config-file", CONFIG, "--num-machines", "2"], "--dist-url"),
    ],
)
def test_wrong_calls_end_with_one_line(args, said):
    with pytest.raises(SystemExit, match=said) as error:
        runpy.run_path(str(ROOT / "train_net.py"))["parse_args"](args)
    assert "\n" not in str(error.value)


def test_every_job_has_a_port_and_a_token_of_its_own():
    parse = runpy.run_path(str(ROOT / "train_net.py"))["parse_args"]
    jobs = [parse(["--eval-only", "--config-file", CONFIG]) for _ in range(2)]
    assert [job.dist_url for job in jobs] == ["auto", "auto"]
    assert jobs[0].job != jobs[1].job


def test_ranks_of_another_job_write_nothing(folder, refuse, monkeypatch):
    """The token is compared before the first file is written."""
    output = folder / "strangers"
    monkeypatch.setattr(comm, "all_gather", lambda token: [token, "another"])
    assert "belong to another job" in refuse("OUTPUT_DIR", str(output))
    assert not output.exists()


@pytest.mark.parametrize("config", sorted(CONFIGS), ids=lambda path: path.stem)
def test_configs_have_no_unknown_keys(config):
    cfg = get_cfg()
    add_freecp_config(cfg)
    cfg.merge_from_file(str(config))
    assert cfg.MODEL.META_ARCHITECTURE == "FreeCP"
