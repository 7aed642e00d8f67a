"""The web page as a Hugging Face Space; README.md says how it becomes one.

Variables of the Space: FREECP_CONFIG, a name of freecp_d2.list_configs(), by default
scenes/clearclip, whose weights come with the library; clip/clearclip downloads those for
photographs.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from freecp import openmp_settings

LOCK = Path(__file__).with_name("requirements-detectron2.lock")


def provide_detectron2() -> None:
    """Unpack detectron2 where there is none.

    No requirements.txt can name it: PyPI has it for CPython 3.10 alone, and to build it wants torch
    in place before.
    """
    if find_spec("detectron2") is not None:
        return
    folder = tempfile.mkdtemp(prefix="detectron2_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--python-version=3.10", "--target", folder, "-r", str(LOCK)]
    subprocess.run(command, check=True)
    sys.path.append(folder)


def arguments() -> list[str]:
    """Of `freecp web`: a Space is reached at port 7860 under the names in SPACE_HOST."""
    names = os.environ.get("SPACE_HOST", "").split(",")
    allowed = [option for name in names if name for option in ("--allow-host", name)]
    host = "0.0.0.0" if allowed else "127.0.0.1"
    config = os.environ.get("FREECP_CONFIG", "scenes/clearclip")
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    return ["--config-file", config, "--host", host, "--port", port, *allowed]


if __name__ == "__main__":
    os.environ.update(openmp_settings())
    provide_detectron2()

    from freecp_d2.cli.web import main

    main(arguments(), "app.py")
