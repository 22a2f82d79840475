"""Tests that a complete store on a read-only mount is usable, and that an incomplete one is refused before any work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from factories import FirstRun, Sandbox

from lgclip.store import root
from lgclip.store.root import StoreError, check_writable, open_root

pytest_plugins = ("run_fixtures",)

MOUNT = 'mount -o bind,ro "$1" "$1" && shift && exec "$@"'
"""Shell command that makes a folder read-only and runs a program, in a mount namespace of its own."""


def run_read_only(sandbox: Sandbox, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs `evaluate.py` with the store on a read-only mount; skips the test where there can be none."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("there is no unshare")
    namespace = [unshare, "--mount", "sh", "-c", MOUNT, "sh", str(sandbox.store)]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounts are not allowed here")
    script = str(Path(__file__).parents[2] / "evaluate.py")
    command = [sys.executable, script, *sandbox.evaluate_overrides(), f"hydra.run.dir={folder}", *overrides]
    return subprocess.run([*namespace, *command], capture_output=True, text=True, check=False, cwd=folder.parent)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_complete_store_is_usable_read_only(first_run: FirstRun, sandbox: Sandbox, tmp_path: Path) -> None:
    completed = run_read_only(sandbox, tmp_path / "run")
    assert completed.returncode == 0, completed.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"] == first_run.result["metrics"]
    assert "could not be written" not in completed.stderr + completed.stdout


@pytest.mark.slow
@pytest.mark.multiprocess
def test_incomplete_read_only_store_is_refused_before_any_work(sandbox: Sandbox, tmp_path: Path) -> None:
    completed = run_read_only(sandbox, tmp_path / "run", "prompts_per_class=4")
    assert completed.returncode == 1
    (line,) = [line for line in completed.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: store {sandbox.store}: Read-only file system; name a folder that can be written")
    assert "prompts:" not in completed.stderr, "no stage has started"


def test_empty_store_is_checked_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(root, "NamedTemporaryFile", refuse)
    with pytest.raises(StoreError, match="Read-only file system; name a folder that can be written"):
        open_root(tmp_path / "store")
    (tmp_path / "store" / "prompts").mkdir()
    assert open_root(tmp_path / "store") == tmp_path / "store"
    with pytest.raises(StoreError, match="Read-only file system"):
        check_writable(tmp_path / "store")


def test_path_that_is_no_text_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"\\udcff': its path is no text in UTF-8"):
        open_root(f"{tmp_path}/store\udcff")
    monkeypatch.setenv("LGCLIP_HOME", f"{tmp_path}/store\udcff")
    with pytest.raises(StoreError, match="its path is no text in UTF-8"):
        open_root(None)
    assert not list(tmp_path.iterdir())
