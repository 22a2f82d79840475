"""Tests runs killed at any moment: they resume without loss or duplicates, repeating one batch at most."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from factories import Sandbox, read_tree
from fault_injection import (
    KillPoints,
    RunServer,
    committed_files,
    many_batch_overrides,
    read_feature_bytes,
    start_run_server,
)

from lgclip.cli.store.gc import collect

pytest_plugins = ("run_fixtures",)

KILLS = 10
SENTENCES = 3
IMAGES = 3 * 4 * 9
REAL = 12
MANY = "images_per_prompt=9"
DRAWN_AT_ONCE = 3
ENCODED_AT_ONCE = 3


@pytest.fixture(scope="module")
def run_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunServer]:
    with start_run_server(tmp_path_factory.mktemp("run-server")) as processes:
        yield processes


def evaluate_overrides(sandbox: Sandbox, folder: Path) -> list[str]:
    return many_batch_overrides(
        sandbox, MANY, f"encoder.model={sandbox.encoder}", "logger=none", f"hydra.run.dir={folder}"
    )


@pytest.fixture(scope="module")
def reference_run(
    run_server: RunServer, empty_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sandbox, Path]:
    """Returns sandbox and folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("unharmed")
    sandbox = replace(empty_sandbox, store=folder / "store")
    ended = run_server.run("evaluate", evaluate_overrides(sandbox, folder / "run"))
    assert ended.code == 0, ended.output
    assert len([name for name in committed_files(sandbox.store) if name.endswith(".png")]) == IMAGES
    return sandbox, folder / "run"


def remove_temporary(store: Path) -> set[str]:
    """Returns the content of a store after `lgclip store gc`."""
    list(collect(store, yes=True, now=time.time_ns() + 2 * 3600 * 10**9))
    return {name for name in read_tree(store) if not name.endswith("costs.jsonl")}


@pytest.mark.multiprocess
def test_repeatedly_killed_generation_completes(
    run_server: RunServer, reference_run: tuple[Sandbox, Path], tmp_path: Path
) -> None:
    sandbox, _ = reference_run
    store = tmp_path / "store"
    command = [*many_batch_overrides(replace(sandbox, store=store), MANY), f"hydra.run.dir={tmp_path / 'run'}"]
    expected = {name: data for name, data in committed_files(sandbox.store).items() if not name.startswith("features")}
    done = 0
    begun = 0
    counts: list[int] = []
    moments = KillPoints(store / "images", KILLS, seed=0)
    for _ in range(KILLS):
        ended = run_server.run("generate", command, moments.next(IMAGES - done))
        assert ended.code == -9, ended.output
        stored = committed_files(store)
        assert stored.items() <= expected.items(), "what is there is whole and right"
        now = sum(name.endswith(".png") for name in stored)
        begun = begun + sum(ended.work)
        assert sum(ended.work) - (now - done) <= DRAWN_AT_ONCE
        done = now
        counts.append(done)
    # The last kill may come when everything is written; it may not come later than that.
    assert any(0 < count < IMAGES for count in counts)
    last = run_server.run("generate", command)
    assert last.code == 0, last.output
    assert sum(last.work) == IMAGES - done
    assert begun + sum(last.work) <= IMAGES + KILLS * DRAWN_AT_ONCE
    assert committed_files(store) == expected
    assert remove_temporary(store) == expected.keys()


@pytest.mark.multiprocess
def test_repeatedly_killed_encoding_completes(
    run_server: RunServer, reference_run: tuple[Sandbox, Path], tmp_path: Path
) -> None:
    sandbox, first = reference_run
    store = tmp_path / "store"
    for part in ("prompts", "images"):
        shutil.copytree(sandbox.store / part, store / part)
    command = evaluate_overrides(replace(sandbox, store=store), tmp_path / "run")
    expected = read_feature_bytes(sandbox.store)
    done = 0
    begun = 0
    counts: list[int] = []
    moments = KillPoints(store / "features", KILLS, seed=1)
    for _ in range(KILLS):
        ended = run_server.run("evaluate", command, moments.next((len(expected) - done) // ENCODED_AT_ONCE))
        assert ended.code == -9, ended.output
        stored = read_feature_bytes(store)
        assert stored.items() <= expected.items(), "what is there is whole and right"
        begun += sum(ended.work)
        assert sum(ended.work) - (len(stored) - done) <= ENCODED_AT_ONCE
        done = len(stored)
        counts.append(done)
    # The last kill may come when everything is encoded, before the result is written.
    assert any(0 < count < len(expected) for count in counts)
    assert not (tmp_path / "run" / "result.json").exists()
    last = run_server.run("evaluate", command)
    assert last.code == 0, last.output
    assert sum(last.work) == len(expected) - done == SENTENCES + IMAGES + REAL - done
    assert begun + sum(last.work) <= len(expected) + KILLS * ENCODED_AT_ONCE
    assert read_feature_bytes(store) == expected, "each once, bit by bit"
    left = remove_temporary(store)
    assert not [name for name in left if "/." in name]
    for name in ("predictions.csv", "per_class.csv", "diagnostics.csv", "prototypes.png"):
        assert (tmp_path / "run" / name).read_bytes() == (first / name).read_bytes()
