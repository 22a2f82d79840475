"""`lgclip store gc`: it takes away what no named run needs, and nothing that one does."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from custody_stores import DAY, age, entries, files
from PIL import Image
from worlds import FirstRun, World, judge, made, picture_folder, tree

from lgclip.diffuser.folder import ImageFolder
from lgclip.identity import key_of
from lgclip.inventory import HOUR, MANIFEST, Kind
from lgclip.retention import ELSEWHERE, collect
from lgclip.runs import RunError
from lgclip.verification import verify

pytest_plugins = ("run_fixtures",)


def fault_instead(image: Path) -> None:
    """A drawn image that could not be used, as the store tells of it."""
    with Image.open(image) as opened:
        about = json.loads(opened.info["lgclip"])
    image.unlink()
    image.with_suffix(".fault.json").write_text(json.dumps({"fault": "flat", **about}))


NOTHING = {"prompts": 0, "images": 0, "features": 0}


def test_nothing_goes_of_a_store_that_is_whole(world: World) -> None:
    age(world.store, 400)
    before = tree(world.store)
    assert list(collect(world.store, yes=True)) == [f"{world.store}: 0 files, 0 bytes deleted"]
    assert tree(world.store) == before


def test_what_a_named_run_needs_stays_and_the_rest_goes(world: World, first_run: FirstRun, tmp_path: Path) -> None:
    other = judge(world, tmp_path / "other", "seed=1", "prompts_per_class=4")
    assert made(other)["images"] == 12
    age(world.store, 3)
    list(verify(world.store, manifest=True))
    before = tree(world.store)

    told = list(collect(world.store, keep=[first_run.folder]))
    assert tree(world.store) == before, "nothing goes without yes"
    assert told[-1].endswith("would go; --yes deletes them")
    said = list(collect(world.store, keep=[first_run.folder], yes=True))
    assert said[:-1] == told[:-1]
    assert said[-1].endswith(" deleted")
    assert len(files(world.store, Kind.IMAGE)) == 9
    assert entries(world.store) == entries(first_run.world.store)
    list(verify(world.store))

    again = judge(world, tmp_path / "again")
    assert made(again) == NOTHING
    assert again["metrics"] == first_run.result["metrics"]


def test_what_is_kept_of_many_runs_is_all_of_each(world: World, tmp_path: Path) -> None:
    """Faults that stand in place of images, other scales, another order of prompts, a sweep by its folder."""
    ways = {"0": ["scales=multi"], "1": ["seed=1", "prompt_order_seed=2", "prompt_pool=4"], "2": ["method=clip_text"]}
    fault_instead(files(world.store, Kind.IMAGE)[0])
    ways["3"] = ["diffuser.retries=1"]
    for name, overrides in ways.items():
        judge(world, tmp_path / "sweep" / name, *overrides)
    assert len(files(world.store, Kind.MARKER)) == 1
    age(world.store, 3)
    list(collect(world.store, keep=[tmp_path / "sweep"], yes=True))
    assert len(files(world.store, Kind.MARKER)) == 1
    for name, overrides in ways.items():
        assert set(made(judge(world, tmp_path / "again" / name, *overrides)).values()) == {0}


def test_what_is_young_stays(world: World, tmp_path: Path, first_run: FirstRun) -> None:
    judge(world, tmp_path / "other", "seed=1")
    before = tree(world.store)
    list(collect(world.store, keep=[first_run.folder], yes=True))
    assert tree(world.store) == before, "a run may be at work on it"
    age(world.store, 3)
    list(collect(world.store, older_than=4, yes=True))
    assert tree(world.store) == before
    list(collect(world.store, older_than=2.5, yes=True))
    assert tree(world.store) == {}


def test_what_changes_between_the_look_and_the_deletion_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from lgclip import retention

    delete = retention._delete

    def late(items: Sequence[Any]) -> list[Any]:
        for item in items:
            item.path.touch()
        return delete(items)

    age(world.store, 3)
    monkeypatch.setattr(retention, "_delete", late)
    before = tree(world.store)
    assert list(collect(world.store, older_than=2, yes=True))[-1].endswith("0 files, 0 bytes deleted")
    assert tree(world.store) == before


def test_temporary_files_go_after_an_hour_and_those_of_an_import_after_a_day(world: World) -> None:
    left = world.store / "images" / ".abc.png.a1b2c3_4"
    importing = world.store / ".import.a1b2c3_4" / ".in.tar.unpacking" / "x"
    importing.parent.mkdir(parents=True)
    for path in (left, importing, world.store / "tmpa1b2c3_4"):
        path.write_text("x")
        os.utime(path, (0, 0))  # what they hold may be old
    list(collect(world.store, yes=True))
    assert left.exists()
    assert importing.exists()
    now = time.time_ns()
    (first, second, said) = collect(world.store, yes=True, now=now + HOUR + HOUR // 60)
    assert "left by an interrupted run" in first
    assert "left by an interrupted run" in second
    assert said.endswith("2 files, 2 bytes deleted")
    assert importing.exists()
    list(collect(world.store, yes=True, now=now + DAY + HOUR))
    assert not importing.exists()


def test_features_go_when_their_images_are_gone_and_with_them_what_tells_of_both(world: World) -> None:
    features = len(files(world.store, Kind.FEATURES))
    list(verify(world.store, manifest=True))
    shutil.rmtree(next((world.store / "images").iterdir()))
    age(world.store, 3)
    said = list(collect(world.store, yes=True))
    assert "features of images that are gone" in said[0]
    assert "nothing is left that it tells of" in said[1]
    left = files(world.store, Kind.FEATURES)
    assert 0 < len(left) < features
    assert len(files(world.store, Kind.INPUTS)) == len({path.parent for path in left})
    assert "images/" in (world.store / MANIFEST).read_text(), "what went in another way is still told"


def test_features_of_images_that_lie_elsewhere_stay(world: World, tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "drawn")
    assert key_of(ImageFolder(str(root)).inputs()) == ELSEWHERE
    overrides = ("diffuser=folder", f"diffuser.root={root}", "prompts_per_class=1")
    given = [one for one in world.evaluating() if not one.startswith("diffuser.")]
    judge([*given, *overrides], tmp_path / "run")
    age(world.store, 3)
    before = tree(world.store)
    list(collect(world.store, yes=True))
    assert tree(world.store) == before
    list(collect(world.store, keep=[tmp_path / "run"], yes=True))
    assert files(world.store, Kind.IMAGE) == []
    assert len(files(world.store, Kind.FINDINGS)) == 1
    assert set(made(judge([*given, *overrides], tmp_path / "again")).values()) == {0}


def test_a_run_that_cannot_be_read_stops_it(world: World, first_run: FirstRun, tmp_path: Path) -> None:
    age(world.store, 3)
    before = tree(world.store)
    for keep in (tmp_path / "none", tmp_path):
        with pytest.raises(RunError, match="no finished run"):
            list(collect(world.store, keep=[first_run.folder, keep], yes=True))
    with pytest.raises(ValueError, match="at least 0 days"):
        list(collect(world.store, older_than=-1, yes=True))
    with pytest.raises(ValueError, match="at least 0 days"):
        list(collect(world.store, older_than=float("nan"), yes=True))
    assert tree(world.store) == before


def test_a_run_whose_model_has_changed_stops_it(first_run: FirstRun, world: World, tmp_path: Path) -> None:
    """Its features would not be found under what its config leads to now."""
    encoder = tmp_path / "encoder"
    shutil.copytree(world.encoder, encoder)
    judge(replace(world, encoder=encoder), tmp_path / "run")
    (encoder / "more.txt").write_text("another model")
    age(world.store, 3)
    before = tree(world.store)
    with pytest.raises(RunError, match="not what it was"):
        list(collect(world.store, keep=[tmp_path / "run"], yes=True))
    shutil.rmtree(encoder)
    with pytest.raises(ValueError, match="no such"):
        list(collect(world.store, keep=[tmp_path / "run"], yes=True))
    assert tree(world.store) == before
