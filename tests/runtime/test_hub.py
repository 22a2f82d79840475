"""Tests the hub's real client against a local server or none."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
from factories import HUB_COMMIT, put_in_hub_cache
from huggingface_hub import constants

from lgclip.runtime.hub import HubError, cached, commit_of, download, hub_errors


@pytest.fixture(autouse=True)
def no_memory() -> None:
    commit_of.cache_clear()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Serves a hub that answers each request with `status`, `headers` and `body`."""
    answer: dict[str, Any] = {"status": 200, "headers": {}, "body": "{}", "asked": []}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer["asked"].append(self.path)
            self.send_response(answer["status"])
            for name, value in {"Content-Type": "application/json", **answer["headers"]}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer["body"].encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", url)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield answer
        server.shutdown()


def test_commit_resolves_to_itself() -> None:
    assert commit_of("owner/name", HUB_COMMIT) == HUB_COMMIT


def test_branch_is_resolved_by_the_hub(served: dict[str, Any]) -> None:
    served["body"] = f'{{"id": "owner/name", "sha": "{HUB_COMMIT}"}}'
    assert commit_of("owner/name", "v2") == commit_of("owner/name", "v2") == HUB_COMMIT
    assert served["asked"].count("/api/models/owner/name/revision/v2") == 1


@pytest.mark.parametrize("revision", [None, "v2", "refs/pr/1"])
def test_resolved_branch_is_known_without_a_network(
    revision: str | None, served: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    served["body"] = f'{{"id": "owner/name", "sha": "{HUB_COMMIT}"}}'
    assert commit_of("owner/name", revision) == HUB_COMMIT
    commit_of.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert commit_of("owner/name", revision) == HUB_COMMIT
    assert not cached("owner/name", revision), "its files are not there yet"
    with pytest.raises(HubError, match="no copy in its cache"):
        commit_of("owner/name", "v3")


def test_cache_that_cannot_be_written_is_no_error(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the place of a folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    served["body"] = f'{{"id": "owner/name", "sha": "{HUB_COMMIT}"}}'
    assert commit_of("owner/name", "v2") == HUB_COMMIT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (403, {}, "accept the license at https://huggingface.co/owner/name and log in"),
        (403, {"X-Error-Code": "GatedRepo"}, "accept the license at https://huggingface.co/owner/name"),
        (401, {"X-Error-Code": "GatedRepo"}, "accept the license at https://huggingface.co/owner/name"),
        (401, {}, "not on the hub, or private"),
        (404, {"X-Error-Code": "RepoNotFound"}, "not on the hub, or private"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "no such revision"),
    ],
)
def test_denied_access_explains_the_fix(
    served: dict[str, Any], status: int, headers: dict[str, str], message: str, tmp_path: Path
) -> None:
    served |= {"status": status, "headers": headers}
    with pytest.raises(HubError, match=f"'owner/name': .*{message}"):
        commit_of("owner/name")


def test_denied_access_ignores_cached_copies(
    served: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    put_in_hub_cache(tmp_path, "owner/name")
    served |= {"status": 403}
    with pytest.raises(HubError, match="license"):
        commit_of("owner/name")


def test_offline_uses_the_cached_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"cannot be reached .* encoder=tiny"):
        commit_of("owner/name")
    put_in_hub_cache(tmp_path, "owner/name")
    assert commit_of("owner/name") == HUB_COMMIT


def test_cached_copy_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert not cached("owner/name")
    snapshot = put_in_hub_cache(tmp_path, "owner/name")
    assert not cached("owner/name"), "a folder without a file is no copy"
    (snapshot / "config.json").write_text("{}")
    assert cached("owner/name")
    assert cached("owner/name", HUB_COMMIT)
    assert not cached("owner/name", "v2")
    assert not cached("owner/name", kind="dataset")


def test_downloaded_files_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the client looks into its cache by itself, as for a branch, or not, as that of 1.32 for a commit."""
    snapshot = put_in_hub_cache(tmp_path, "owner/name")
    (snapshot / "config.json").write_text("{}")
    requests: list[bool] = []

    def fetch(*_: str, local_files_only: bool = False, **__: object) -> str:
        requests.append(local_files_only)
        if not local_files_only:
            raise ConnectionError
        return str(snapshot)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for revision in (None, HUB_COMMIT):
        assert download("owner/name", revision, ["*.json"]) == snapshot
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert download("owner/name", HUB_COMMIT, ["*.json"]) == snapshot
    assert requests == [False, True]


def test_refusal_is_not_answered_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: str, local_files_only: bool = False, **__: object) -> str:
        assert not local_files_only
        raise PermissionError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(PermissionError):
        download("owner/name", HUB_COMMIT, ["*.json"])


def test_invalid_repository_name_is_detected() -> None:
    with pytest.raises(HubError, match=r"'a/b/c': neither a folder here nor a name of the hub"):
        commit_of("a/b/c")


def test_other_errors_propagate() -> None:
    with pytest.raises(OSError, match="disk"), hub_errors("owner/name"):
        raise OSError("disk full")


def wrapped() -> None:
    """Wraps the hub's error in an OSError, as Transformers does."""
    try:
        raise ConnectionError("no route")
    except ConnectionError as error:
        raise OSError("can't load the model") from error


def test_wrapped_hub_error_is_found() -> None:
    with pytest.raises(HubError, match="cannot be reached"), hub_errors("owner/name"):
        wrapped()
