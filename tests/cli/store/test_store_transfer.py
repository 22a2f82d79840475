"""Tests `lgclip store push` and `pull`: complete stores, what a run needs, and interruptions."""

from dataclasses import replace
from pathlib import Path

import pytest
from factories import NAMES, FirstRun, Sandbox, build_in, computed_counts, evaluate_run, read_store
from object_stores import S3Server, unavailable
from store_maintenance import files_of_kind

import lgclip
from lgclip.cli.main import main
from lgclip.cli.store.inventory import Kind
from lgclip.cli.store.pack import unpack
from lgclip.cli.store.transfer import pull, push
from lgclip.cli.store.verify import verify
from lgclip.store import remote, tar_shards
from lgclip.store.object_store import ObjectError
from lgclip.store.root import StoreError, root_of

pytest_plugins = ("object_store_fixtures", "run_fixtures")
pytestmark = pytest.mark.usefixtures("own_caches")

URL = "s3://prototypes/team"


def on_machine(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Continues on another machine, which has an empty cache at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    remote._mirror.cache_clear()
    remote._used.clear()
    tar_shards.shards_in.cache_clear()


def in_files(store: Path) -> dict[str, bytes]:
    """Returns the entries of a store, with its images as files."""
    if files_of_kind(store, Kind.SHARD):
        list(unpack(store))
    return read_store(store)


@pytest.mark.slow
def test_pushed_store_is_pulled_elsewhere(
    s3: S3Server, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = first_run.sandbox.store
    before = read_store(source)
    (line,) = push(source, URL)
    assert line.startswith("s3://prototypes/team: ")
    assert line.endswith(" moved, 0 were there")
    assert read_store(source) == before
    # Images go in shards, and the copy that was made for it is gone.
    assert len([name for name in s3.objects() if name.endswith(".tar")]) == 1
    assert not files_of_kind(root_of(URL), Kind.SHARD)
    objects = s3.objects()
    (line,) = push(source, URL)
    assert " 0 files, 0 bytes moved, " in line
    assert s3.objects() == objects
    on_machine("second", monkeypatch, tmp_path)
    target = tmp_path / "target"
    (line,) = pull(target, URL)
    assert line.endswith(" moved, 0 were there")
    list(verify(target))
    (line,) = pull(target, URL)
    assert ": 0 files, 0 bytes moved, " in line
    assert in_files(target) == before
    again = evaluate_run(replace(first_run.sandbox, store=target), tmp_path / "run")
    assert set(computed_counts(again).values()) == {0}


@pytest.mark.slow
def test_only_what_a_run_needs_is_moved(
    s3: S3Server, sandbox: Sandbox, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    result = evaluate_run(sandbox, more, "seed=1")
    assert computed_counts(result)["images"] > 0
    list(push(sandbox.store, URL, [first_run.folder]))
    on_machine("second", monkeypatch, tmp_path)
    list(pull(tmp_path / "second store", URL))
    assert in_files(tmp_path / "second store").keys() < in_files(sandbox.store).keys()
    again = evaluate_run(replace(sandbox, store=tmp_path / "second store"), tmp_path / "again")
    assert set(computed_counts(again).values()) == {0}
    # And the other way round: all is there, and one run is taken.
    list(push(sandbox.store, URL))
    on_machine("third", monkeypatch, tmp_path)
    list(pull(tmp_path / "third store", URL, [more]))
    third = replace(sandbox, store=tmp_path / "third store")
    assert in_files(third.store).keys() < in_files(sandbox.store).keys()
    assert set(computed_counts(evaluate_run(third, tmp_path / "again 2", "seed=1")).values()) == {0}


@pytest.mark.slow
def test_what_a_classifier_was_built_from_is_moved(
    s3: S3Server, empty_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sandbox = replace(empty_sandbox, store=tmp_path / "store")
    build_in(sandbox, NAMES).save(tmp_path / "three.lgclip")
    build_in(sandbox, [*NAMES, "black square"])
    list(push(sandbox.store, URL, [tmp_path / "three.lgclip"]))
    prompts = b"".join(data for name, data in s3.objects("team/prompts").items() if "/costs/" not in name)
    assert b"green ring" in prompts
    assert b"black square" not in prompts
    list(push(sandbox.store, URL))
    on_machine("second", monkeypatch, tmp_path)
    target = replace(sandbox, store=tmp_path / "target")
    list(pull(target.store, URL, [tmp_path / "three.lgclip"]))
    count = len(files_of_kind(target.store, Kind.PROMPTS))
    assert len(NAMES) < count < len(files_of_kind(sandbox.store, Kind.PROMPTS))
    # Nothing can be generated: what the classifier is built from is all there.
    monkeypatch.setattr("lgclip.stages.runner.Stages.prepare", lambda self: pytest.fail("something is missing"))
    again = build_in(target, NAMES)
    assert again.image_ids == lgclip.load(tmp_path / "three.lgclip").image_ids
    with pytest.raises(ValueError, match="none of its images is there"):
        list(push(target.store, URL, [saved_of_four(sandbox, tmp_path)]))


def saved_of_four(sandbox: Sandbox, tmp_path: Path) -> Path:
    """Saves a classifier of which one class is not in the other stores."""
    return build_in(sandbox, [*NAMES, "black square"]).save(tmp_path / "four.lgclip")


@pytest.mark.slow
def test_only_some_places_are_moved(s3: S3Server, first_run: FirstRun, tmp_path: Path) -> None:
    list(push(first_run.sandbox.store, URL, only=["prompts/"]))
    assert {name.split("/")[1] for name in s3.objects()} == {".writable", "prompts"}
    list(push(first_run.sandbox.store, URL))
    list(pull(tmp_path / "target", URL, only=["features"]))
    assert {name.split("/")[0] for name in read_store(tmp_path / "target")} == {"features"}
    with pytest.raises(StoreError, match="holds nothing of that"):
        list(pull(tmp_path / "target", URL, only=["students/"]))


@pytest.mark.slow
def test_interrupted_push_goes_on(
    s3: S3Server, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for part in ("/features/", ".tar"):
        s3.faults = [unavailable("PUT", part, code="AccessDenied", status="403 Forbidden")]
        with pytest.raises(ObjectError, match="no rights to write"):
            list(push(first_run.sandbox.store, URL))
    list(push(first_run.sandbox.store, URL))
    assert len([name for name in s3.objects() if name.endswith(".tar")]) == 1
    on_machine("second", monkeypatch, tmp_path)
    s3.faults = [unavailable("GET", ".tar", code="AccessDenied", status="403 Forbidden")]
    with pytest.raises(ObjectError, match="no rights to read"):
        list(pull(tmp_path / "target", URL))
    list(pull(tmp_path / "target", URL))
    assert in_files(tmp_path / "target") == read_store(first_run.sandbox.store)


@pytest.mark.slow
def test_faulty_file_is_not_moved(s3: S3Server, sandbox: Sandbox, tmp_path: Path) -> None:
    path = files_of_kind(sandbox.store, Kind.PROMPTS)[0]
    path.write_text("{}")
    with pytest.raises(StoreError, match="Nothing was moved"):
        list(push(sandbox.store, URL))
    assert s3.objects() == {}


@pytest.mark.slow
def test_commands_name_their_way_out(
    s3: S3Server, first_run: FirstRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(first_run.sandbox.store)
    assert main(["store", "push", URL, "--store", store]) == 0
    assert "moved" in capsys.readouterr().out
    assert main(["store", "pull", URL, "--store", str(tmp_path / "target")]) == 0
    capsys.readouterr()

    def error_of(*arguments: str) -> str:
        assert main(["store", *arguments]) == 1
        return capsys.readouterr().err.strip()

    expected = f"error: lgclip store verify works on a folder, not on {URL}: copy it by lgclip store pull {URL} --store"
    assert error_of("verify", "--store", URL).startswith(expected)
    for action in ("gc", "pack", "unpack"):
        assert "works on a folder" in error_of(action, "--store", URL)
    assert "name an object store" in error_of("push", str(tmp_path), "--store", store)
    assert "there is no bucket 'absent'" in error_of("pull", "s3://absent/x", "--store", str(tmp_path / "target"))
    assert "holds nothing of that" in error_of("pull", f"{URL}/none", "--store", str(tmp_path / "target"))
    assert "holds no store" in error_of("push", URL, "--store", str(tmp_path / "none"))
