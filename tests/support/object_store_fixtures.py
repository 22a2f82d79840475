"""Provides servers of object stores to tests, and to each test the caches of a machine of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google_storage import GoogleServer, serve_google_storage
from object_stores import CONTENT, S3Server, serve_s3

from lgclip.store import remote


@pytest.fixture
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives a test the caches of a machine of its own, and forgets them after it."""
    # Not for every test: a plugin's fixtures are those of the session.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "machine"))
    yield
    remote._mirror.cache_clear()
    remote._used.clear()


@pytest.fixture
def s3(own_caches: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """Serves S3 for a test, with credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret-0123456789")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    # No request to the address from which a machine in the cloud gets its role.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with serve_s3() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.fixture
def google(own_caches: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleServer]:
    """Serves Google's storage for a test; it asks for no credentials."""
    with serve_google_storage() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Writes a file to upload."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path
