"""Provides sandboxes that are built once a session, and the first run in one of them."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from factories import FirstRun, Sandbox, evaluate_run, make_diffuser, make_encoder, make_image_folder


@pytest.fixture(scope="session")
def empty_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Creates models and images with an empty store; tests that write take `sandbox` or `fresh_sandbox`."""
    root = tmp_path_factory.mktemp("world")
    return Sandbox(
        synthetic_images=make_image_folder(root / "pictures"),
        encoder=make_encoder(root / "encoder"),
        diffuser=make_diffuser(root / "diffuser"),
        store=root / "store",
    )


@pytest.fixture(scope="session")
def first_run(empty_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """Runs `evaluate.py` from an empty store: method lgclip, three prompts per class, one scale."""
    folder = tmp_path_factory.mktemp("first")
    sandbox = replace(empty_sandbox, store=folder / "store")
    return FirstRun(sandbox, folder / "run", evaluate_run(sandbox, folder / "run"))


@pytest.fixture
def sandbox(first_run: FirstRun, tmp_path: Path) -> Sandbox:
    """Copies the sandbox whose store holds the results of the first run."""
    shutil.copytree(first_run.sandbox.store, tmp_path / "store")
    return replace(first_run.sandbox, store=tmp_path / "store")


@pytest.fixture
def fresh_sandbox(empty_sandbox: Sandbox, tmp_path: Path) -> Sandbox:
    """Returns a sandbox whose store does not exist yet."""
    return replace(empty_sandbox, store=tmp_path / "store")


@pytest.fixture(scope="module")
def world(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Copies the store of the first run for a module that adds to it: other tests count what is in it."""
    store = tmp_path_factory.mktemp("world") / "store"
    shutil.copytree(first_run.sandbox.store, store)
    return replace(first_run.sandbox, store=store)
