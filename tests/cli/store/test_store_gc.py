"""Tests `lgclip store gc`: it removes what no kept run needs and nothing else."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import (
    NAMES,
    FirstRun,
    Sandbox,
    build_in,
    computed_counts,
    evaluate_run,
    make_image_folder,
    read_tree,
)
from PIL import Image
from store_maintenance import DAY, files_of_kind, make_older, read_entries

from lgclip.cli.store.gc import ELSEWHERE, collect
from lgclip.cli.store.inventory import HOUR, MANIFEST, Kind
from lgclip.cli.store.verify import verify
from lgclip.diffuser.image_folder import ImageFolder
from lgclip.reporting.run_folder import RunError
from lgclip.store.keys import content_key

pytest_plugins = ("run_fixtures",)


def fault_instead(image: Path) -> None:
    """Replaces a generated image by the marker of a fault."""
    with Image.open(image) as opened:
        about = json.loads(opened.info["lgclip"])
    image.unlink()
    image.with_suffix(".fault.json").write_text(json.dumps({"fault": "flat", **about}))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The records of runs are no part of a store.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


NOTHING = {"prompts": 0, "images": 0, "features": 0}


def test_gc_keeps_a_complete_store(sandbox: Sandbox) -> None:
    make_older(sandbox.store, 400)
    before = read_tree(sandbox.store)
    assert list(collect(sandbox.store, yes=True)) == [f"{sandbox.store}: 0 files, 0 bytes deleted"]
    assert read_tree(sandbox.store) == before


@pytest.mark.slow
def test_gc_keeps_what_classifiers_were_built_from(
    empty_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = replace(empty_sandbox, store=tmp_path / "store")
    saved = build_in(sandbox, NAMES)
    saved.save(tmp_path / "kept.zip")
    before = read_tree(sandbox.store)
    build_in(sandbox, [*NAMES, "black square"]).save(tmp_path / "other.lgclip")
    make_older(sandbox.store, 3)
    list(collect(sandbox.store, keep=[tmp_path / "kept.zip"], yes=True))
    names = read_tree(sandbox.store).keys()
    assert {name for name in before if name.endswith((".png", ".json"))} <= names
    assert {name for name in names if name.endswith(".png")} == {name for name in before if name.endswith(".png")}
    # What it was built from is all there: nothing can be generated.
    with monkeypatch.context() as patches:
        patches.setattr("lgclip.stages.runner.Stages.prepare", lambda self: pytest.fail("something is missing"))
        assert build_in(sandbox, NAMES).image_ids == saved.image_ids
    with pytest.raises(ValueError, match="none of its images is there"):
        list(collect(sandbox.store, keep=[tmp_path / "other.lgclip"], yes=True))


def test_gc_keeps_entries_of_kept_runs(sandbox: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    other_result = evaluate_run(sandbox, tmp_path / "other", "seed=1", "prompts_per_class=4")
    assert computed_counts(other_result)["images"] == 12
    make_older(sandbox.store, 3)
    list(verify(sandbox.store, manifest=True))
    before = read_tree(sandbox.store)

    lines = list(collect(sandbox.store, keep=[first_run.folder]))
    assert read_tree(sandbox.store) == before, "nothing goes without yes"
    assert lines[-1].endswith("would go; --yes deletes them")
    messages = list(collect(sandbox.store, keep=[first_run.folder], yes=True))
    assert messages[:-1] == lines[:-1]
    assert messages[-1].endswith(" deleted")
    assert len(files_of_kind(sandbox.store, Kind.IMAGE)) == 9
    assert read_entries(sandbox.store) == read_entries(first_run.sandbox.store)
    list(verify(sandbox.store))

    again = evaluate_run(sandbox, tmp_path / "again")
    assert computed_counts(again) == NOTHING
    assert again["metrics"] == first_run.result["metrics"]


@pytest.mark.slow
def test_gc_keeps_all_entries_of_many_runs(sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks retention with faults instead of images, other scales, another prompt order and a sweep folder."""
    ways = {"0": ["scales=multi"], "1": ["seed=1", "prompt_order_seed=2", "prompt_pool=4"], "2": ["method=clip_text"]}
    fault_instead(files_of_kind(sandbox.store, Kind.IMAGE)[0])
    ways["3"] = ["diffuser.retries=1"]
    for name, overrides in ways.items():
        evaluate_run(sandbox, tmp_path / "sweep" / name, *overrides)
    assert len(files_of_kind(sandbox.store, Kind.MARKER)) == 1
    make_older(sandbox.store, 3)
    list(collect(sandbox.store, keep=[tmp_path / "sweep"], yes=True))
    assert len(files_of_kind(sandbox.store, Kind.MARKER)) == 1
    for name, overrides in ways.items():
        assert set(computed_counts(evaluate_run(sandbox, tmp_path / "again" / name, *overrides)).values()) == {0}


def test_gc_keeps_recent_entries(sandbox: Sandbox, tmp_path: Path, first_run: FirstRun) -> None:
    evaluate_run(sandbox, tmp_path / "other", "seed=1")
    before = read_tree(sandbox.store)
    list(collect(sandbox.store, keep=[first_run.folder], yes=True))
    assert read_tree(sandbox.store) == before, "a run may be at work on it"
    make_older(sandbox.store, 3)
    list(collect(sandbox.store, older_than=4, yes=True))
    assert read_tree(sandbox.store) == before
    list(collect(sandbox.store, older_than=2.5, yes=True))
    assert read_tree(sandbox.store) == {}


def test_gc_keeps_entries_changed_before_deletion(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    from lgclip.cli.store import gc as retention

    delete = retention._delete

    def late(items: Sequence[Any]) -> list[Any]:
        for item in items:
            item.path.touch()
        return delete(items)

    make_older(sandbox.store, 3)
    monkeypatch.setattr(retention, "_delete", late)
    before = read_tree(sandbox.store)
    assert list(collect(sandbox.store, older_than=2, yes=True))[-1].endswith("0 files, 0 bytes deleted")
    assert read_tree(sandbox.store) == before


def test_gc_removes_old_temporary_files(sandbox: Sandbox) -> None:
    left = sandbox.store / "images" / ".abc.png.a1b2c3_4"
    importing = sandbox.store / ".import.a1b2c3_4" / ".in.tar.unpacking" / "x"
    importing.parent.mkdir(parents=True)
    for path in (left, importing, sandbox.store / "tmpa1b2c3_4"):
        path.write_text("x")
        os.utime(path, (0, 0))  # what they hold may be old
    list(collect(sandbox.store, yes=True))
    assert left.exists()
    assert importing.exists()
    now = time.time_ns()
    (first, second, total) = collect(sandbox.store, yes=True, now=now + HOUR + HOUR // 60)
    assert "left by an interrupted run" in first
    assert "left by an interrupted run" in second
    assert total.endswith("2 files, 2 bytes deleted")
    assert importing.exists()
    list(collect(sandbox.store, yes=True, now=now + DAY + HOUR))
    assert not importing.exists()


def test_gc_removes_features_with_their_images(sandbox: Sandbox) -> None:
    features = len(files_of_kind(sandbox.store, Kind.FEATURES))
    list(verify(sandbox.store, manifest=True))
    shutil.rmtree(next((sandbox.store / "images").iterdir()))
    make_older(sandbox.store, 3)
    lines = list(collect(sandbox.store, yes=True))
    assert "features of images that are gone" in lines[0]
    assert "nothing is left that it lists" in lines[1]
    left = files_of_kind(sandbox.store, Kind.FEATURES)
    assert 0 < len(left) < features
    assert len(files_of_kind(sandbox.store, Kind.INPUTS)) == len({path.parent for path in left})
    assert "images/" in (sandbox.store / MANIFEST).read_text(), "what went in another way is still told"


def test_gc_keeps_features_of_external_images(sandbox: Sandbox, tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "drawn")
    assert content_key(ImageFolder(str(root)).inputs()) == ELSEWHERE
    overrides = ("diffuser=folder", f"diffuser.root={root}", "prompts_per_class=1")
    arguments = [override for override in sandbox.evaluate_overrides() if not override.startswith("diffuser.")]
    evaluate_run([*arguments, *overrides], tmp_path / "run")
    make_older(sandbox.store, 3)
    before = read_tree(sandbox.store)
    list(collect(sandbox.store, yes=True))
    assert read_tree(sandbox.store) == before
    list(collect(sandbox.store, keep=[tmp_path / "run"], yes=True))
    assert files_of_kind(sandbox.store, Kind.IMAGE) == []
    assert len(files_of_kind(sandbox.store, Kind.UNREADABLE)) == 1
    assert set(computed_counts(evaluate_run([*arguments, *overrides], tmp_path / "again")).values()) == {0}


def test_gc_stops_at_unreadable_runs(sandbox: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    make_older(sandbox.store, 3)
    before = read_tree(sandbox.store)
    for run in (tmp_path / "none", tmp_path):
        with pytest.raises(RunError, match="no finished run"):
            list(collect(sandbox.store, keep=[first_run.folder, run], yes=True))
    with pytest.raises(ValueError, match="at least 0 days"):
        list(collect(sandbox.store, older_than=-1, yes=True))
    with pytest.raises(ValueError, match="at least 0 days"):
        list(collect(sandbox.store, older_than=float("nan"), yes=True))
    assert read_tree(sandbox.store) == before


def test_gc_stops_at_runs_with_changed_models(first_run: FirstRun, sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks a changed model: the features would not be found under the key of the current config."""
    encoder = tmp_path / "encoder"
    shutil.copytree(sandbox.encoder, encoder)
    evaluate_run(replace(sandbox, encoder=encoder), tmp_path / "run")
    (encoder / "more.txt").write_text("another model")
    make_older(sandbox.store, 3)
    before = read_tree(sandbox.store)
    with pytest.raises(RunError, match="not what it was"):
        list(collect(sandbox.store, keep=[tmp_path / "run"], yes=True))
    shutil.rmtree(encoder)
    with pytest.raises(ValueError, match="no such"):
        list(collect(sandbox.store, keep=[tmp_path / "run"], yes=True))
    assert read_tree(sandbox.store) == before
