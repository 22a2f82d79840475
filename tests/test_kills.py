"""Killed at any moment, a run goes on as if nothing had been: nothing lost or doubled, a batch repeated at most."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from victims import Moments, Victims, busy, features, victims, whole_files
from worlds import World, tree

from lgclip.retention import collect

pytest_plugins = ("run_fixtures",)

KILLS = 20
SENTENCES, IMAGES, REAL = 3, 3 * 4 * 9, 12
MANY = "images_per_prompt=9"
DRAWN_AT_ONCE, ENCODED_AT_ONCE = 3, 3


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with victims(tmp_path_factory.mktemp("victims")) as one:
        yield one


def evaluating(world: World, folder: Path) -> list[str]:
    return busy(world, MANY, f"encoder.model={world.encoder}", "logger=none", f"hydra.run.dir={folder}")


@pytest.fixture(scope="module")
def unharmed(forked: Victims, empty_world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    """A run that nothing interrupts: its world, with its store, and its folder."""
    folder = tmp_path_factory.mktemp("unharmed")
    world = replace(empty_world, store=folder / "store")
    ended = forked.run("evaluate", evaluating(world, folder / "run"))
    assert ended.code == 0, ended.said
    assert len([name for name in whole_files(world.store) if name.endswith(".png")]) == IMAGES
    return world, folder / "run"


def cleaned(store: Path) -> set[str]:
    """What a store holds once `lgclip store gc` has taken away what killed runs have left."""
    list(collect(store, yes=True, now=time.time_ns() + 2 * 3600 * 10**9))
    return {name for name in tree(store) if not name.endswith("costs.jsonl")}


def test_drawing_that_is_killed_twenty_times_draws_what_it_would_have_drawn(
    forked: Victims, unharmed: tuple[World, Path], tmp_path: Path
) -> None:
    world, _ = unharmed
    store = tmp_path / "store"
    command = [*busy(replace(world, store=store), MANY), f"hydra.run.dir={tmp_path / 'run'}"]
    wanted = {name: data for name, data in whole_files(world.store).items() if not name.startswith("features")}
    there, begun, moments = 0, 0, Moments(store / "images", KILLS, seed=0)
    for _ in range(KILLS):
        ended = forked.run("generate", command, moments.next(IMAGES - there))
        assert ended.code == -9, ended.said
        found = whole_files(store)
        assert found.items() <= wanted.items(), "what is there is whole and right"
        now, begun = sum(name.endswith(".png") for name in found), begun + sum(ended.work)
        assert sum(ended.work) - (now - there) <= DRAWN_AT_ONCE
        there = now
    assert 0 < there < IMAGES
    last = forked.run("generate", command)
    assert last.code == 0, last.said
    assert sum(last.work) == IMAGES - there
    assert begun + sum(last.work) <= IMAGES + KILLS * DRAWN_AT_ONCE
    assert whole_files(store) == wanted
    assert cleaned(store) == wanted.keys()


def test_encoding_that_is_killed_twenty_times_encodes_what_it_would_have_encoded(
    forked: Victims, unharmed: tuple[World, Path], tmp_path: Path
) -> None:
    world, first = unharmed
    store = tmp_path / "store"
    for part in ("prompts", "images"):
        shutil.copytree(world.store / part, store / part)
    command = evaluating(replace(world, store=store), tmp_path / "run")
    wanted = features(world.store)
    there, begun, moments = 0, 0, Moments(store / "features", KILLS, seed=1)
    for _ in range(KILLS):
        ended = forked.run("evaluate", command, moments.next((len(wanted) - there) // ENCODED_AT_ONCE))
        assert ended.code == -9, ended.said
        found = features(store)
        assert found.items() <= wanted.items(), "what is there is whole and right"
        begun += sum(ended.work)
        assert sum(ended.work) - (len(found) - there) <= ENCODED_AT_ONCE
        there = len(found)
    assert 0 < there < len(wanted)
    assert not (tmp_path / "run" / "result.json").exists()
    last = forked.run("evaluate", command)
    assert last.code == 0, last.said
    assert sum(last.work) == len(wanted) - there == SENTENCES + IMAGES + REAL - there
    assert begun + sum(last.work) <= len(wanted) + KILLS * ENCODED_AT_ONCE
    assert features(store) == wanted, "each once, bit by bit"
    left = cleaned(store)
    assert not [name for name in left if "/." in name]
    for name in ("predictions.csv", "per_class.csv", "diagnostics.csv", "prototypes.png"):
        assert (tmp_path / "run" / name).read_bytes() == (first / name).read_bytes()
