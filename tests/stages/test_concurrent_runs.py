"""Tests several processes on one store, with and without locks: all succeed, and nothing is stored twice."""

import hashlib
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from factories import Sandbox
from fault_injection import (
    LIMIT,
    ROOT,
    committed_files,
    many_batch_overrides,
    read_feature_bytes,
    start_run_server,
    wait_until,
)

from lgclip.store.cost_log import lines_of

pytest_plugins = ("run_fixtures",)

CROWD = 4
GET = """
import json, os, sys
from pathlib import Path
from lgclip.datasets import layout

class Open:
    def __init__(self, path): pass
    def __enter__(self): return self
    def __exit__(self, *error): pass

url, checksum, root, locked = sys.argv[1:]
if locked == "no":
    layout.FileLock = Open
wanted = layout.Tree("birds", "its page", (layout.Archive(url, "birds/list.txt", checksum),), ("list.txt",), ("birds",))
print("ready", flush=True)
sys.stdin.readline()
try:
    print(wanted.place(root, True))
except ValueError as error:
    print("refused", error)
"""
HOLD = """
import sys, time
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_concurrent_runs_share_one_store(empty_sandbox: Sandbox, tmp_path: Path) -> None:
    alone = replace(empty_sandbox, store=tmp_path / "alone")
    shared = replace(empty_sandbox, store=tmp_path / "shared")
    (tmp_path / "run-server").mkdir()

    def command(sandbox: Sandbox, folder: Path) -> list[str]:
        return many_batch_overrides(
            sandbox, f"encoder.model={sandbox.encoder}", "logger=none", f"hydra.run.dir={folder}"
        )

    with start_run_server(tmp_path / "run-server") as run_server:
        assert run_server.run("evaluate", command(alone, tmp_path / "run")).code == 0
        gate = tmp_path / "gate"
        pids = [
            run_server.start("evaluate", command(shared, tmp_path / str(n)), starts_with=str(gate))
            for n in range(CROWD)
        ]
        gate.touch()
        ended = [run_server.wait(pid) for pid in pids]
    assert [process.code for process in ended] == [0] * CROWD, [process.output for process in ended]
    expected = committed_files(alone.store)
    files = committed_files(shared.store)
    images = {
        name: data for name, data in expected.items() if name.endswith((".png", ".json")) and "towers" not in name
    }
    assert {name: files.get(name) for name in images} == images
    assert files.keys() - features_of(files) == expected.keys() - features_of(expected)
    assert read_feature_bytes(shared.store) == read_feature_bytes(alone.store), "each once, bit by bit"
    assert not list(shared.store.rglob(".*")), "nothing half-written is left"
    for cost_log in shared.store.rglob("*costs.jsonl"):
        assert 1 <= len(lines_of(cost_log)) <= CROWD
        assert 2 * len(lines_of(cost_log)) == len(cost_log.read_text().splitlines()), "a start and an end each"
    for n in range(CROWD):
        for name in ("predictions.csv", "per_class.csv", "diagnostics.csv", "prototypes.png"):
            assert (tmp_path / str(n) / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def features_of(files: dict[str, bytes]) -> set[str]:
    return {name for name in files if name.endswith(".safetensors")}


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Serves an archive from this machine; yields its address and checksum."""
    folder = tmp_path / "served"
    (folder / "birds").mkdir(parents=True)
    for n in range(200):
        (folder / "birds" / f"{n}.txt").write_text(f"bird {n}\n" * 300)
    (folder / "birds" / "list.txt").write_text("all of them\n")
    with tarfile.open(folder / "birds.tgz", "w:gz") as tar:
        tar.add(folder / "birds", "birds")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(folder)))
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    digest = hashlib.sha256((folder / "birds.tgz").read_bytes()).hexdigest()
    yield f"http://127.0.0.1:{server.server_address[1]}/birds.tgz", f"sha256:{digest}"
    server.shutdown()
    server.server_close()
    thread.join()


def fetch_concurrently(archive: tuple[str, str], root: Path, locked: str, count: int) -> list[str]:
    """Returns the outputs of processes that request one data set at the same moment."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", GET, *archive, str(root), locked], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(count)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    ended = [process.communicate("go\n", timeout=LIMIT) for process in processes]
    assert [process.returncode for process in processes] == [0] * count, ended
    return [text.strip() for text, _ in ended]


@pytest.mark.slow
@pytest.mark.parametrize("locked", ["yes", "no"])
def test_concurrent_downloads_are_complete(archive: tuple[str, str], tmp_path: Path, locked: str) -> None:
    root = tmp_path / "data"
    outputs = fetch_concurrently(archive, root, locked, CROWD)
    place = str(root / "birds")
    if locked == "yes":
        assert outputs == [place] * CROWD
    else:  # without a lock one may be in another's way: it says so, and what is there is never wrong
        assert all(output == place or output.startswith("refused") for output in outputs)
        assert fetch_concurrently(archive, root, locked, 1) == [place]
    generated, served = (sorted((folder / "birds").iterdir()) for folder in (root, tmp_path / "served"))
    assert [(p.name, p.read_bytes()) for p in generated] == [(p.name, p.read_bytes()) for p in served]


@pytest.mark.multiprocess
def test_lock_of_a_killed_process_is_released(archive: tuple[str, str], tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    lock = root / ".download.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    waiting = subprocess.Popen(
        [sys.executable, "-c", GET, *archive, str(root), "yes"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert waiting.stdin is not None
    assert waiting.stdout is not None
    waiting.stdout.readline()
    waiting.stdin.write("go\n")
    waiting.stdin.flush()
    time.sleep(0.5)
    assert waiting.poll() is None, "it waits for the one that is at work"
    holder.kill()
    holder.communicate()
    assert wait_until(lambda: waiting.poll() is not None, 20)
    assert waiting.communicate()[0].strip() == str(root / "birds")
    assert (root / "birds" / "list.txt").is_file()
