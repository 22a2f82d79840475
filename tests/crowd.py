"""Runs of several processes, started as a cluster starts them: each finds its rank in its environment.

python tests/crowd.py ORDERS    imports the libraries once, and forks the processes of one run after another from there
"""

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import safe_open
from worlds import tree

from lgclip.feature_store import FeatureStore

ROOT = Path(__file__).parents[1]
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
PASSES = {"lgclip.drawing.CPU_IMAGES": 2, "lgclip.data.CPU_ROWS": 8, "lgclip.data.ROWS_PER_BATCH": 3}
"""What a pass takes in the runs of a crowd, so that a few things are shared among all of its processes."""

LIMIT = 240.0
"""Seconds after which the processes of a run are killed."""

LIBRARIES = (
    "lightning.pytorch.callbacks", "torchmetrics", "open_clip", "transformers.models.clip", "transformers.models.llama",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "lgclip.cli", "lgclip.encoder.open_clip",
)  # fmt: skip


@dataclass(frozen=True)
class Order:
    """A run of several processes.

    Attributes:
        script: What each of them runs, below the project.
        arguments: Its command line.
        ranks: How many there are.
        folder: Where each leaves what it printed, `said-RANK.txt`.
    """

    script: str
    arguments: Sequence[str]
    ranks: int
    folder: str


def free_port() -> int:
    """A port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def crowd(orders: Sequence[Order], listed: Path) -> None:
    """Runs the orders one after another; each process of each must end well."""
    listed.write_text(json.dumps([asdict(order) for order in orders]), encoding="utf-8")
    finished([started([sys.executable, str(Path(__file__)), str(listed)])], LIMIT * len(orders))


def started(command: Sequence[str], environment: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
    """A process in a session of its own, with all that it starts."""
    return subprocess.Popen(**_piped(command, environment), start_new_session=True)


def _piped(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    env = {**os.environ, **QUIET, **environment}
    return {"args": command, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def finished(processes: "Sequence[subprocess.Popen[str]]", limit: float = LIMIT, status: int = 0) -> list[str]:
    """What each process printed once it has ended, all with one exit status; none is left behind."""
    try:
        said = [process.communicate(timeout=limit)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()
    assert [process.returncode for process in processes] == [status] * len(processes), "\n".join(said)[-6000:]
    return said


def features(store: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Every feature of a store by its key, its thing and its view, as a `FeatureStore` gives it."""
    found = {}
    for spelt in sorted((store / "features").rglob("inputs.json")):
        inputs = json.loads(spelt.read_text(encoding="utf-8"))
        one = FeatureStore(store, inputs["encoder"], inputs["source"])
        ids, views = set[str](), set[str]()
        for chunk in spelt.parent.glob("*.safetensors"):
            with safe_open(chunk, framework="pt") as file:
                header = json.loads(file.metadata()["lgclip"])
            ids, views = ids | set(header["ids"]), views | set(header["views"])
        order = sorted(views)
        taken = one.take(sorted(ids), order)
        found[one.key] = {f"{a}/{v}": taken[i, j] for i, a in enumerate(sorted(ids)) for j, v in enumerate(order)}
    return found


COUNTED = {"stages", "cost", "config", "choices", "run_key", "git_commit"}
"""What a result says of how it came about, not of what it found."""


def outcome(store: Path, folder: Path) -> dict[str, Any]:
    """Everything that a run found, features as bytes; two runs that found the same have equal outcomes."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "images": {name: data for name, data in tree(store / "images").items() if name.endswith(".png")},
        "features": {
            key: {thing: value.numpy().tobytes() for thing, value in rows.items()}
            for key, rows in features(store).items()
        },
        "files": {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))},
        "result": {key: value for key, value in result.items() if key not in COUNTED},
    }


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compares two outcomes part by part, and names what differs."""
    for part, own in wanted.items():
        assert found[part].keys() == own.keys(), f"{part}: {sorted(found[part].keys() ^ own.keys())}"
        apart = {name: (found[part][name], value) for name, value in own.items() if found[part][name] != value}
        assert not apart, f"{part}: {sorted(apart)}\n{apart!s:.3000}"


def forked(ranks: int, folder: Path, work: Callable[[], object]) -> None:
    """Does the same work in several processes, which know their ranks; each must end well.

    What they print goes to `said-RANK.txt` in the folder. One that is not done in time is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            _become(folder / f"said-{rank}.txt", {**environment, "LOCAL_RANK": str(rank)}, work)
        pids.append(pid)
    ended: dict[int, int] = {}
    until = time.monotonic() + LIMIT
    while len(ended) < len(pids):
        for pid in set(pids) - ended.keys():
            if time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    if any(ended.values()):
        said = [path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("said-*.txt"))]
        raise SystemExit("\n".join([f"{folder}: exit statuses {[ended[pid] for pid in pids]}", *said]))


def _become(said: Path, environment: Mapping[str, str], work: Callable[[], object]) -> NoReturn:
    """One process of a run; it never returns to what it was forked from."""
    code = 1
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def small_passes(sizes: Mapping[str, int]) -> None:
    """Has passes of this process take less than usual.

    Args:
        sizes: As `PASSES`.
    """
    for place, size in sizes.items():
        module, _, name = place.rpartition(".")
        setattr(importlib.import_module(module), name, size)


def _called(order: Order) -> None:
    sys.argv = [str(ROOT / order.script), *order.arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def main(listed: Path) -> None:
    """Runs the orders of a file; the first that fails ends it."""
    for library in LIBRARIES:
        importlib.import_module(library)
    torch.set_num_threads(1)
    small_passes(PASSES)
    for order in (Order(**one) for one in json.loads(listed.read_text(encoding="utf-8"))):
        forked(order.ranks, Path(order.folder), partial(_called, order))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
