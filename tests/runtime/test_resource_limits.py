"""Tests full disks, read-only stores and unusual paths: one clear error, and the run can be resumed."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from factories import Sandbox
from fault_injection import (
    RunExit,
    RunServer,
    committed_files,
    many_batch_overrides,
    read_feature_bytes,
    start_run_server,
)

from lgclip.store.atomic import WriteError, atomic_write, refusal, write_json
from lgclip.store.cost_log import Line, append, lines_of

pytest_plugins = ("run_fixtures",)

QUOTED = "Bilder & ümläut, 日本 100%=x"


@pytest.fixture(scope="module")
def run_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunServer]:
    with start_run_server(tmp_path_factory.mktemp("run-server")) as processes:
        yield processes


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk in memory; a second call remounts it with other options and the same content."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        options = f"remount,{options}" if folder.is_mount() else options
        completed = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False
        )
        if completed.returncode:
            pytest.skip("only root may mount a disk")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def rejection_message(ended: RunExit, *parts: str) -> str:
    """Returns the single error line of a run."""
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    message = ended.output.rpartition("error: ")[2]
    assert len(message.splitlines()) == 1, ended.output
    for part in parts:
        assert part in message
    return message


def evaluate_overrides(sandbox: Sandbox, folder: Path, *overrides: str) -> list[str]:
    # Hydra's own copies of the config would be the first files that are too large.
    return many_batch_overrides(
        sandbox,
        f"encoder.model={sandbox.encoder}",
        "logger=none",
        f"hydra.run.dir={folder}",
        "hydra.output_subdir=null",
        *overrides,
    )


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("override", "folder"), [("diffuser.size=64", "images"), ("encoder.batch_size=60", "features")]
)
def test_file_size_limit_is_recoverable(
    run_server: RunServer, fresh_sandbox: Sandbox, tmp_path: Path, override: str, folder: str
) -> None:
    command = evaluate_overrides(fresh_sandbox, tmp_path / "run", override)
    message = rejection_message(
        run_server.run("evaluate", command, limit_files=6000), "File too large", "paths.store=DIR"
    )
    assert message.startswith(str(fresh_sandbox.store / folder))
    assert not list(fresh_sandbox.store.rglob(".*")), "nothing half-written is left"
    before = committed_files(fresh_sandbox.store)
    assert any(name.startswith("prompts") for name in before)
    ended = run_server.run("evaluate", command)
    assert ended.code == 0, ended.output
    assert before.items() <= committed_files(fresh_sandbox.store).items()


@pytest.mark.multiprocess
def test_unwritable_run_folder_is_one_error(run_server: RunServer, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    command = [*fresh_sandbox.evaluate_overrides(), f"hydra.run.dir={tmp_path / 'run'}"]
    message = rejection_message(
        run_server.run("evaluate", command, limit_files=1000), "File too large", "hydra.run.dir=DIR"
    )
    assert message.startswith(str(tmp_path / "run" / ".hydra" / "config.yaml"))
    assert not fresh_sandbox.store.exists() or not committed_files(fresh_sandbox.store)


@pytest.mark.multiprocess
def test_full_disk_is_recoverable(
    run_server: RunServer, empty_sandbox: Sandbox, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    sandbox = replace(empty_sandbox, store=disk("size=256k") / "store")
    command = evaluate_overrides(sandbox, tmp_path / "run")
    message = rejection_message(run_server.run("evaluate", command), "No space left on device", "make room")
    assert str(sandbox.store / "images") in message
    assert not list(sandbox.store.rglob(".*")), "nothing half-written is left"
    before = committed_files(sandbox.store)
    generated = [name for name in before if name.endswith(".png")]
    assert 0 < len(generated) < 60
    disk("size=16m")
    ended = run_server.run("evaluate", command)
    assert ended.code == 0, ended.output
    assert sum(ended.work) == (60 - len(generated)) + 3 + 60 + 12, "stored results are reused"
    after = committed_files(sandbox.store)
    assert before.items() <= after.items()
    other_sandbox = replace(empty_sandbox, store=tmp_path / "store")
    assert run_server.run("evaluate", evaluate_overrides(other_sandbox, tmp_path / "other")).code == 0
    assert read_feature_bytes(sandbox.store) == read_feature_bytes(other_sandbox.store)


@pytest.mark.multiprocess
def test_read_only_store_is_one_error(
    run_server: RunServer, empty_sandbox: Sandbox, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    sandbox = replace(empty_sandbox, store=disk("size=16m") / "store")
    sandbox.store.mkdir()
    disk("ro")
    command = evaluate_overrides(sandbox, tmp_path / "run")
    rejection_message(
        run_server.run("evaluate", command), f"store {sandbox.store}: Read-only file system", "paths.store=DIR"
    )
    disk("rw")
    assert run_server.run("generate", [*many_batch_overrides(sandbox), f"hydra.run.dir={tmp_path / 'drawn'}"]).code == 0
    before = committed_files(sandbox.store)
    disk("ro")
    rejection_message(
        run_server.run("evaluate", command), f"store {sandbox.store}: Read-only file system", "paths.store=DIR"
    )
    assert committed_files(sandbox.store) == before


@pytest.mark.multiprocess
def test_read_only_store_folder_is_named(
    run_server: RunServer, empty_sandbox: Sandbox, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    sandbox = replace(empty_sandbox, store=tmp_path / "store")
    sandbox.store.mkdir()
    (sandbox.store / "images").symlink_to(disk("ro"))
    message = rejection_message(
        run_server.run("evaluate", evaluate_overrides(sandbox, tmp_path / "run")),
        "Read-only file system",
        "paths.store=DIR",
    )
    assert message.startswith(str(sandbox.store / "images"))
    disk("rw")
    assert run_server.run("evaluate", evaluate_overrides(sandbox, tmp_path / "run")).code == 0


@pytest.mark.multiprocess
def test_unicode_paths_with_spaces_work(run_server: RunServer, empty_sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks two devices: Lightning starts the second from the command line with the run's folder in it."""
    root = tmp_path / QUOTED
    for part in ("pictures", "encoder", "diffuser"):
        shutil.copytree(empty_sandbox.synthetic_images.parent / part, root / part)
    sandbox = Sandbox(root / "pictures", root / "encoder", root / "diffuser", root / "store")
    quoted = []
    for override in evaluate_overrides(sandbox, root / "the run", "trainer.devices=2", "trainer.strategy=ddp"):
        for name, _, value in [override.partition("=")]:
            quoted.append(f"{name}='{value}'" if str(root) in value else override)
    ended = run_server.run("evaluate", quoted)
    assert ended.code == 0, ended.output
    assert (root / "the run" / "result.json").is_file()
    assert {path.name for path in root.iterdir()} == {"pictures", "encoder", "diffuser", "store", "the run"}
    assert [path.name for path in tmp_path.iterdir() if path.name not in (QUOTED, "home")] == []


@pytest.mark.multiprocess
def test_unquoted_path_suggests_quotes(run_server: RunServer, fresh_sandbox: Sandbox) -> None:
    ended = run_server.run("generate", [*fresh_sandbox.generate_overrides(), f"paths.store=/tmp/{QUOTED}"])
    assert ended.code == 1
    assert "needs quotes of its own" in ended.output
    assert "Traceback" not in ended.output


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": 1})
    for error, reason in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("I/O error: File too large (os error 27)"), "File too large"),
    ):
        with pytest.raises(WriteError, match=f"file.json: {reason}; make room"), atomic_write(tmp_path / "file.json"):
            raise error
    for other_error in (
        OSError(2, "No such file", "elsewhere"),
        RuntimeError("mine"),
        PermissionError(13, "no", "/a/b"),
    ):
        with pytest.raises(type(other_error)) as raised, atomic_write(tmp_path / "file.json"):
            raise other_error
        assert raised.value is other_error, "what is read to write it is another matter"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert refusal(OSError("no number")) is None


@pytest.mark.slow
def test_truncated_cost_line_is_ignored(tmp_path: Path) -> None:
    line = Line(10, "image", 5.0, "cpu", 1)
    path = tmp_path / "costs.jsonl"
    append(path, line)
    append(path, line)
    os.truncate(path, path.stat().st_size - 20)
    append(path, line)
    assert lines_of(path) == [line, line]
