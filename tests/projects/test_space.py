"""The web page as a Hugging Face Space: its metadata, its requirements, and that it starts."""

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "projects" / "Space"
KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version"),
    *("app_file", "pinned", "license"),
}
"""Of huggingface.co/docs/hub/spaces-config-reference; the licence is that of any repository."""


@pytest.fixture
def app(load_script):
    return load_script(SPACE / "app.py")


def test_the_readme_begins_with_a_spaces_metadata():
    _, front, text = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata.keys() == KEYS and text.strip()
    assert metadata["sdk"] == "gradio" and (SPACE / metadata["app_file"]).is_file()
    lock = (ROOT / "requirements.lock").read_text()
    assert f"gradio=={metadata['sdk_version']} " in lock
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={metadata['python_version']}"
    assert metadata["license"].upper() == project["license"]


def test_the_requirements_are_the_projects():
    lines = (SPACE / "requirements.txt").read_text().splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["web"]]
    assert sorted(lines[1:]) == sorted([*named, "torch>=2.11", "torchvision"])


def test_detectron2_is_fetched_where_it_is_missing(app, monkeypatch):
    commands = []
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(app.subprocess, "run", lambda command, check: commands.append(command))
    app.provide_detectron2()
    assert not commands and not sys.path
    monkeypatch.setattr(app, "find_spec", lambda name: None)
    app.provide_detectron2()
    ((*_, option, folder, r, lock),) = commands
    assert option == "--target" and sys.path == [folder] and r == "-r"
    os.rmdir(folder)
    assert "--require-hashes" in commands[0] and "--no-deps" in commands[0]
    assert Path(lock) == SPACE / "requirements-detectron2.lock"


def test_it_is_served_to_the_spaces_names_alone(app, monkeypatch):
    for name in ("SPACE_HOST", "FREECP_CONFIG", "GRADIO_SERVER_PORT"):
        monkeypatch.delenv(name, raising=False)
    here = ["--config-file", "scenes/clearclip", "--host", "127.0.0.1", "--port", "7860"]
    assert app.arguments() == here
    monkeypatch.setenv("SPACE_HOST", "user-freecp.hf.space,freecp.example")
    monkeypatch.setenv("FREECP_CONFIG", "clip/clearclip")
    names = ["--allow-host", "user-freecp.hf.space", "--allow-host", "freecp.example"]
    there = ["--config-file", "clip/clearclip", "--host", "0.0.0.0", "--port", "7860"]
    assert app.arguments() == [*there, *names]


def test_the_folder_that_the_readme_makes_is_served(tmp_path):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'freecp_d2[web]'")
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    (copying,) = re.findall(r"```sh[^\n]*\n(cp .*?)```", text, re.S)
    target = tmp_path / "space"
    copying = copying.replace(" space", f" {target}")
    subprocess.run(["sh", "-ec", copying], cwd=ROOT, check=True)
    copied = {path.name for path in target.iterdir()}
    assert copied >= {"README.md", "app.py", "requirements.txt", "requirements-detectron2.lock"}
    assert copied >= {"freecp.py", "freecp_d2"}
    assert not any(path.is_symlink() for path in target.rglob("*"))
    cache = target / "freecp_d2" / "cli" / "web" / "__pycache__"
    shutil.rmtree(cache, ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        "SPACE_HOST": "user-freecp.hf.space",
        "GRADIO_SERVER_PORT": str(port),
    }
    command = [sys.executable, "app.py"]
    page = subprocess.Popen(command, cwd=target, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("Open ") for line in page.stdout)
        for name, status in (("user-freecp.hf.space", 200), ("evil.example", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("GET", "/config", headers={"Host": name})
            assert connection.getresponse().status == status
            connection.close()
        assert cache.is_dir(), "not the copied library was run"
        page.send_signal(signal.SIGTERM)
        assert page.wait(60) == 0
    finally:
        page.kill()
        page.wait()
