"""A server of S3 on this machine."""

import logging
import uuid
from collections.abc import Iterator

import fsspec
import pytest


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Its endpoint, on a port of its own; file systems of this session find it."""
    pytest.importorskip("s3fs", reason="no s3fs: pip install 'freecp_d2[s3]'")
    moto = pytest.importorskip("moto.server", reason="no moto: pip install 'moto[s3]' flask")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket; processes that a test starts find the server, too."""
    for key, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(key, value)
    bucket = uuid.uuid4().hex
    fsspec.filesystem("s3", use_listings_cache=False).call_s3("create_bucket", Bucket=bucket)
    return f"s3://{bucket}"
