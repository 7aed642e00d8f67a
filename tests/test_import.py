"""What `import freecp_d2` costs beside Detectron2 and open_clip, which it stands on."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORTS = """
import sys
import detectron2.data, detectron2.engine, detectron2.modeling, open_clip
beneath = set(sys.modules)
import freecp_d2
print(*set(sys.modules) - beneath)
"""


def test_the_import_costs_no_more_than_what_it_stands_on():
    """Nothing heavy that those do not load, and a tenth of their time at most."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-X", "importtime", "-c", IMPORTS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    more = {name.partition(".")[0] for name in run.stdout.split()}
    assert "freecp_d2" in more
    heavy = {"cv2", "gradio", "jinja2", "matplotlib", "pycocotools", "scipy", "skimage", "sympy"}
    assert not heavy & more, "import it where it is used"
    rows = [line.split("|") for line in run.stderr.splitlines() if line.startswith("import time:")]
    total = sum(int(own.partition(":")[2]) for own, _, _ in rows[1:])
    (cost,) = (int(cumulative) for _, cumulative, name in rows[1:] if name == " freecp_d2")
    assert cost < 0.1 * total


ROOMS = (
    *(
        "cli",
        "export",
        "robustness",
        "labelling",
        "evaluation",
        "video",
        "predictor",
        "segmenter",
        "inputs",
        "ranking",
        "meta_arch",
        "config",
    ),
    *("presence", "separability"),
    *("segmentation", "scores", "refinement", "propagation", "purify", "merging", "words"),
    *("extensions", "background", "relations", "decorrelation"),
    *("adapters", "encoding", "affinity", "purification", "synonyms"),
    *("clip", "cuda_graphs", "ops", "sliding_window", "transfers", "timing", "data", "coco"),
    *("distributed", "overlay", "fonts"),
    *(
        "ranks",
        "heartbeat",
        "workers",
        "progress",
        "errors",
        "memory",
        "index",
        "stopping",
        "files",
    ),
    *("journal", "locks"),
)
"""Data flows one way: no room imports from one to its left."""


def rooms_imported_by(file: Path) -> set[str]:
    """The rooms of freecp_d2 that a module's relative imports lead to."""
    package = file.relative_to(ROOT).parts[:-1]
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            targets = (
                [module[1]] if node.module and len(module) > 1 else [n.name for n in node.names]
            )
            rooms |= {target for target in targets if target in ROOMS}
    return rooms


def test_data_flows_one_way():
    package = ROOT / "freecp_d2"
    modules = [path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()]
    rooms = {name for name in modules if name.isidentifier() and not name.startswith("__")}
    assert rooms - {"configs"} == set(ROOMS)
    arrows = 0
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0].removesuffix(".py")
        if room != "__init__":
            for other in rooms_imported_by(file) - {room}:
                assert ROOMS.index(other) > ROOMS.index(room), f"{file} imports {other}"
                arrows += 1
    assert arrows > 60
