"""Files of the hub: the cache is read without a network, and silence does not last."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from freecp_d2.clip import hub
from freecp_d2.clip.hub import cached_file, why_unreachable


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server on this machine that answers every request with a status."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/timm/x/resolve/main/weights.safetensors"
        server.shutdown()


@pytest.mark.parametrize("status", [200, 401, 404, 429, 503])
def test_any_answer_is_one(status):
    with answering(status) as url:
        assert why_unreachable(url) is None


def test_a_closed_port_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in str(why_unreachable(f"http://127.0.0.1:{port}/x/y/resolve/main/z"))


def test_a_server_that_stays_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x/y/resolve/main/z"
        assert why_unreachable(url) is not None


def test_a_name_server_that_stays_silent_is_given_up(monkeypatch):
    done = threading.Event()

    def lookup(*_: object, **__: object) -> None:
        done.wait(5)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    why = why_unreachable("http://hub.invalid/x/y/resolve/main/z")
    done.set()
    assert why == "no answer within 0.2 seconds"


def test_an_unknown_host_is_said_once_and_nothing_is_tried_again(monkeypatch, caplog, capfd):
    lookups = []

    def lookup(host: str, *_: object, **__: object) -> None:
        lookups.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    why = why_unreachable("http://hub.invalid/x/y/resolve/main/z")
    assert why == "[Errno -2] Name or service not known" and len(lookups) == 1
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_offline_mode_is_a_reason(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    try:
        with answering(200) as url:
            assert "offline mode is enabled" in str(why_unreachable(url))
    finally:
        huggingface_hub.close_session()


def test_cached_files_are_found_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert cached_file("timm/x", ["a", "b"]) is None
    folder = tmp_path / "models--timm--x"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    assert cached_file("timm/x", ["a", "b"]) is None
    (snapshot / "b").write_text("")
    assert cached_file("timm/x", ["a", "b"]) == Path(snapshot / "b")
    (snapshot / "a").write_text("")
    assert cached_file("timm/x", ["a", "b"]) == Path(snapshot / "a")
    assert cached_file("timm/y", ["a", "b"]) is None
    known_missing = folder / ".no_exist" / ("0" * 40) / "c"
    known_missing.parent.mkdir(parents=True)
    known_missing.touch()
    assert cached_file("timm/x", ["c"]) is None
    assert cached_file("timm/x", ["c", "b"]) == Path(snapshot / "b")
