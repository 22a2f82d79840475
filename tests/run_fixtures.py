"""Worlds that are built once a session, and the first run in one of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from worlds import FirstRun, World, diffuser_folder, encoder_folder, judge, picture_folder


@pytest.fixture(scope="session")
def empty_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Models and pictures, nothing stored; tests that write take a `world` or `fresh_world`."""
    root = tmp_path_factory.mktemp("world")
    return World(
        pictures=picture_folder(root / "pictures"),
        encoder=encoder_folder(root / "encoder"),
        diffuser=diffuser_folder(root / "diffuser"),
        store=root / "store",
    )


@pytest.fixture(scope="session")
def first_run(empty_world: World, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """`evaluate.py` from an empty store: method lgclip, three prompts a class, one scale."""
    folder = tmp_path_factory.mktemp("first")
    world = replace(empty_world, store=folder / "store")
    return FirstRun(world, folder / "run", judge(world, folder / "run"))


@pytest.fixture
def world(first_run: FirstRun, tmp_path: Path) -> World:
    """A world whose store holds what the first run made; the test's own copy."""
    shutil.copytree(first_run.world.store, tmp_path / "store")
    return replace(first_run.world, store=tmp_path / "store")


@pytest.fixture
def fresh_world(empty_world: World, tmp_path: Path) -> World:
    """A world whose store is not there yet."""
    return replace(empty_world, store=tmp_path / "store")
