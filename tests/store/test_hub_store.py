"""Tests a store in a repository of the Hub, against a server of its HTTP API on this machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import READ_TOKEN, HubServer, Repository, serve_hub, use_hub
from huggingface_hub import constants
from test_mirror import check, fill, machine

from lgclip.store import remote
from lgclip.store.object_store import ObjectError
from lgclip.store.root import check_writable, open_root

pytest_plugins = ("object_store_fixtures",)
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with serve_hub() as server:
        use_hub(server, monkeypatch)
        repository = Repository(private=True)
        repository.commit({"README.md": b"a store"})
        server.repositories["me/store"] = repository
        yield server


@pytest.mark.parametrize("url", ["hf://datasets/me/store/team", "hf://me/store"])
def test_second_machine_has_every_entry(
    hub: HubServer, url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with machine("first", monkeypatch, tmp_path, url) as root:
        check_writable(root)
        fill(root)
        remote.push_pending()
    # Several files a commit: data, what describes it, and lines of logs and prompts.
    assert len(hub.repositories["me/store"].commits) == 1 + 3
    with machine("second", monkeypatch, tmp_path, url) as root:
        hub.requests.clear()
        check(root)
        assert not [request for request in hub.requests if request.startswith("POST")]
        checkpoint = root / "students" / ("0" * 32) / "checkpoints" / "last.safetensors"
        checkpoint.parent.mkdir(parents=True)
        checkpoint.write_bytes(b"state")
        remote.note_written(checkpoint)
        remote.push_pending()
        assert [name for name in hub.repositories["me/store"].files("main") if "checkpoints" in name]
        remote.discard_checkpoints(checkpoint.parents[1])
        assert not [name for name in hub.repositories["me/store"].files("main") if "checkpoints" in name]


def test_errors_are_one_line(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ObjectError, match=r"hf://me/absent: store 'me/absent': not on the hub, or private"):
        open_root("hf://me/absent")
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    root = open_root("hf://me/store")
    with pytest.raises(ObjectError, match="the hub refuses it: log in") as raised:
        check_writable(root)
    assert READ_TOKEN not in str(raised.value)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # a port where nothing listens
    with pytest.raises(ObjectError, match=r"name a folder, paths\.store=DIR"):
        open_root("hf://datasets/me/store")
