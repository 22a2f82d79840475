"""Tests a pipeline named by its id: loaded from the hub's cache at a commit, or one plain error."""

import json
import shutil
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from factories import HUB_COMMIT, make_diffuser, put_in_hub_cache
from hub_server import use_hub_address
from huggingface_hub import constants

from lgclip.diffuser.pipeline import Diffuser
from lgclip.runtime.hub import HubError, commit_of
from lgclip.types import Prompt, TargetClass

CPU = torch.device("cpu")
RING = [Prompt(TargetClass(0, "green ring"), "a photo of a green ring.", 0)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates an empty hub cache for the test."""
    commit_of.cache_clear()
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def generated(model: str, **settings: Any) -> np.ndarray:
    return Diffuser(model, steps=2, guidance=3.0, size=32, **settings).load(CPU)(RING, 0)


def test_cached_pipeline_uses_its_commit(tmp_path: Path, cache: Path) -> None:
    folder = make_diffuser(tmp_path / "model")
    snapshot = put_in_hub_cache(cache, "owner/name")
    shutil.copytree(folder, snapshot, dirs_exist_ok=True)
    inputs: Any = Diffuser("owner/name").inputs()
    assert inputs["diffuser"]["model"] == f"owner/name@{HUB_COMMIT}"
    np.testing.assert_array_equal(generated("owner/name"), generated(str(folder)))
    np.testing.assert_array_equal(generated("owner/name", revision=HUB_COMMIT), generated(str(folder)))


def test_missing_pipeline_names_the_offline_setting() -> None:
    with pytest.raises(HubError, match=r"'owner/name': the hub cannot be reached .*diffuser=tiny"):
        generated("owner/name")
    with pytest.raises(HubError, match=r"'owner/name': the hub cannot be reached .*diffuser=tiny"):
        generated("owner/name", revision="f" * 40)  # whose commit need not be asked for


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets a hub address that nobody answers, as on a machine without a network that is not set to offline."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    use_hub_address(url, monkeypatch)


def test_refused_connection_is_one_line(cut_off: None) -> None:
    with pytest.raises(HubError, match=r"'owner/name': the hub cannot be reached .*diffuser=tiny"):
        generated("owner/name")


def test_cached_pipeline_needs_no_network(cut_off: None, tmp_path: Path, cache: Path) -> None:
    folder = make_diffuser(tmp_path / "model")
    shutil.copytree(folder, put_in_hub_cache(cache, "owner/name"), dirs_exist_ok=True)
    np.testing.assert_array_equal(generated("owner/name"), generated(str(folder)))


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Serves a hub that tells everyone a repository's commit but denies its files."""
    answer: dict[str, Any] = {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}, "asked": []}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer["asked"].append(self.path)
            reported = self.path.startswith("/api/models/")
            body = json.dumps({"id": "owner/name", "sha": HUB_COMMIT, "siblings": []}).encode() if reported else b""
            self.send_response(200 if reported else answer["status"])
            for name, value in {"Content-Length": str(len(body)), **({} if reported else answer["headers"])}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        use_hub_address(f"http://127.0.0.1:{server.server_address[1]}", monkeypatch)
        yield answer
        server.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "accept the license at https://huggingface.co/owner/name and log in"),
        (401, {"X-Error-Code": "GatedRepo"}, "accept the license at https://huggingface.co/owner/name and log in"),
        (403, {}, "accept the license at https://huggingface.co/owner/name and log in"),
        (401, {}, "not on the hub, or private: .*log in"),
    ],
)
def test_gated_repository_explains_access(
    gated: dict[str, Any], status: int, headers: dict[str, str], message: str
) -> None:
    gated |= {"status": status, "headers": headers}
    with pytest.raises(HubError, match=f"'owner/name': .*{message}"):
        generated("owner/name")
    assert any(f"/owner/name/resolve/{HUB_COMMIT}/model_index.json" in path for path in gated["asked"])
