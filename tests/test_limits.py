"""A full disk, a store that must not be written, odd paths: one clear error, what is stored stays, and on it goes."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from victims import Ended, Victims, busy, features, victims, whole_files
from worlds import World

from lgclip.ledger import Line, append, lines_of
from lgclip.whole import WriteError, refusal, write_json, write_whole

pytest_plugins = ("run_fixtures",)

QUOTED = "Bilder & ümläut, 日本 100%=x"


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with victims(tmp_path_factory.mktemp("victims")) as one:
        yield one


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk in memory of its own; called again with other options it is mounted anew, with what is on it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        options = f"remount,{options}" if folder.is_mount() else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("only root may mount a disk")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", folder], check=True)


def refused(ended: Ended, *said: str) -> str:
    """The one line that a run ended with."""
    assert ended.code == 1, ended.said
    assert "Traceback" not in ended.said
    message = ended.said.rpartition("error: ")[2]
    assert len(message.splitlines()) == 1, ended.said
    for part in said:
        assert part in message
    return message


def evaluating(world: World, folder: Path, *overrides: str) -> list[str]:
    # Hydra's own copies of the config would be the first files that are too large.
    return busy(
        world, f"encoder.model={world.encoder}", "logger=none", f"hydra.run.dir={folder}", "hydra.output_subdir=null",
        *overrides,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("override", "folder"), [("diffuser.size=64", "images"), ("encoder.batch_size=60", "features")]
)
def test_files_that_cannot_grow_are_one_error_and_the_run_goes_on_when_they_can(
    forked: Victims, fresh_world: World, tmp_path: Path, override: str, folder: str
) -> None:
    command = evaluating(fresh_world, tmp_path / "run", override)
    message = refused(forked.run("evaluate", command, limit_files=6000), "File too large", "paths.store=DIR")
    assert message.startswith(str(fresh_world.store / folder))
    assert not list(fresh_world.store.rglob(".*")), "nothing half-written is left"
    before = whole_files(fresh_world.store)
    assert any(name.startswith("prompts") for name in before)
    ended = forked.run("evaluate", command)
    assert ended.code == 0, ended.said
    assert before.items() <= whole_files(fresh_world.store).items()


def test_a_run_folder_that_cannot_take_its_files_is_one_error(
    forked: Victims, fresh_world: World, tmp_path: Path
) -> None:
    command = [*fresh_world.evaluating(), f"hydra.run.dir={tmp_path / 'run'}"]
    refused(forked.run("evaluate", command, limit_files=1000), "File too large", "hydra.run.dir=DIR")
    assert not fresh_world.store.exists() or not whole_files(fresh_world.store)


def test_a_full_disk_is_one_error_and_with_more_room_the_run_goes_on(
    forked: Victims, empty_world: World, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    world = replace(empty_world, store=disk("size=256k") / "store")
    command = evaluating(world, tmp_path / "run")
    message = refused(forked.run("evaluate", command), "No space left on device", "make room")
    assert str(world.store / "images") in message
    assert not list(world.store.rglob(".*")), "nothing half-written is left"
    before = whole_files(world.store)
    drawn = [name for name in before if name.endswith(".png")]
    assert 0 < len(drawn) < 60
    disk("size=16m")
    ended = forked.run("evaluate", command)
    assert ended.code == 0, ended.said
    assert sum(ended.work) == (60 - len(drawn)) + 3 + 60 + 12, "what is stored is not made again"
    after = whole_files(world.store)
    assert before.items() <= after.items()
    other = replace(empty_world, store=tmp_path / "store")
    assert forked.run("evaluate", evaluating(other, tmp_path / "other")).code == 0
    assert features(world.store) == features(other.store)


def test_a_store_that_must_not_be_written_is_one_error(
    forked: Victims, empty_world: World, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    world = replace(empty_world, store=disk("size=16m") / "store")
    world.store.mkdir()
    disk("ro")
    command = evaluating(world, tmp_path / "run")
    refused(forked.run("evaluate", command), f"store {world.store}: Read-only file system", "paths.store=DIR")
    disk("rw")
    assert forked.run("generate", [*busy(world), f"hydra.run.dir={tmp_path / 'drawn'}"]).code == 0
    before = whole_files(world.store)
    disk("ro")
    refused(forked.run("evaluate", command), f"store {world.store}: Read-only file system", "paths.store=DIR")
    assert whole_files(world.store) == before


def test_a_folder_in_the_store_that_must_not_be_written_is_one_error_that_names_it(
    forked: Victims, empty_world: World, tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    world = replace(empty_world, store=tmp_path / "store")
    world.store.mkdir()
    (world.store / "images").symlink_to(disk("ro"))
    message = refused(
        forked.run("evaluate", evaluating(world, tmp_path / "run")), "Read-only file system", "paths.store=DIR"
    )
    assert message.startswith(str(world.store / "images"))
    disk("rw")
    assert forked.run("evaluate", evaluating(world, tmp_path / "run")).code == 0


def test_paths_with_spaces_and_letters_of_any_script_work_for_everything(
    forked: Victims, empty_world: World, tmp_path: Path
) -> None:
    """Two devices: Lightning starts the second by the command line, with the run's folder in it."""
    root = tmp_path / QUOTED
    for part in ("pictures", "encoder", "diffuser"):
        shutil.copytree(empty_world.pictures.parent / part, root / part)
    world = World(root / "pictures", root / "encoder", root / "diffuser", root / "store")
    quoted = [
        f"{name}='{value}'" if str(root) in value else override
        for override in evaluating(world, root / "the run", "trainer.devices=2", "trainer.strategy=ddp")
        for name, _, value in [override.partition("=")]
    ]
    ended = forked.run("evaluate", quoted)
    assert ended.code == 0, ended.said
    assert (root / "the run" / "result.json").is_file()
    assert {path.name for path in root.iterdir()} == {"pictures", "encoder", "diffuser", "store", "the run"}
    assert [path.name for path in tmp_path.iterdir() if path.name not in (QUOTED, "home")] == []


def test_a_path_that_lacks_its_quotes_is_answered_with_them(forked: Victims, fresh_world: World) -> None:
    ended = forked.run("generate", [*fresh_world.generating(), f"paths.store=/tmp/{QUOTED}"])
    assert ended.code == 1
    assert "needs quotes of its own" in ended.said
    assert "Traceback" not in ended.said


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"a": 1})
    for error, reason in (
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("I/O error: File too large (os error 27)"), "File too large"),
    ):
        with pytest.raises(WriteError, match=f"file.json: {reason}; make room"), write_whole(tmp_path / "file.json"):
            raise error
    for other in (OSError(2, "No such file", "elsewhere"), RuntimeError("mine"), PermissionError(13, "no", "/a/b")):
        with pytest.raises(type(other)) as raised, write_whole(tmp_path / "file.json"):
            raise other
        assert raised.value is other, "what is read to write it is another matter"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert refusal(OSError("no number")) is None


def test_a_ledger_line_that_a_full_disk_cut_spoils_no_other(tmp_path: Path) -> None:
    line, path = Line(10, "image", 5.0, "cpu", 1), tmp_path / "costs.jsonl"
    append(path, line)
    append(path, line)
    os.truncate(path, path.stat().st_size - 20)
    append(path, line)
    assert lines_of(path) == [line, line]
