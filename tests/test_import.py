"""What `import freecp_d2` costs beside Detectron2 and open_clip, which it stands on."""

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
