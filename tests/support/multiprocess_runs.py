"""Starts runs of several processes as a cluster does: each finds its rank in its environment.

python tests/support/multiprocess_runs.py ORDERS    imports the libraries once, then forks the processes of each run
after another
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
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

import torch
from factories import read_tree
from safetensors import safe_open

from lgclip.store.features import FeatureStore

ROOT = Path(__file__).parents[2]
QUIET_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
PASSES = {
    "lgclip.stages.images.CPU_IMAGES": 2,
    "lgclip.stages.streams.CPU_ROWS": 8,
    "lgclip.stages.streams.ROWS_PER_BATCH": 3,
}
"""What a pass takes in the runs of a crowd, so that a few things are shared among all of its processes."""

LIMIT = 240.0
"""Seconds after which the processes of a run are killed."""

LIBRARIES = (
    "lightning.pytorch.callbacks", "torchmetrics", "open_clip", "transformers.models.clip", "transformers.models.llama",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "lgclip.cli.main", "lgclip.encoder.open_clip",
)  # fmt: skip


@dataclass(frozen=True)
class ProcessOrder:
    """Describes a run of several processes.

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
    """Returns a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_orders(orders: Sequence[ProcessOrder], listed: Path) -> None:
    """Runs the orders one after another; each process of each must succeed."""
    listed.write_text(json.dumps([asdict(order) for order in orders]), encoding="utf-8")
    wait_for_processes([start_process([sys.executable, str(Path(__file__)), str(listed)])], LIMIT * len(orders))


def start_process(command: Sequence[str], environment: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
    """Starts a process in its own session."""
    return subprocess.Popen(**_piped(command, environment), start_new_session=True)


def _piped(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    env = {**os.environ, **QUIET_ENVIRONMENT, **environment}
    return {"args": command, "env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}


def wait_for_processes(
    processes: "Sequence[subprocess.Popen[str]]", limit: float = LIMIT, status: int = 0
) -> list[str]:
    """Returns the output of each process once all have ended with one exit status; kills what is left."""
    try:
        outputs = [process.communicate(timeout=limit)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()
    assert [process.returncode for process in processes] == [status] * len(processes), "\n".join(outputs)[-6000:]
    return outputs


def read_features(store: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Returns every feature of a store by its key, item and view, as a `FeatureStore` gives it."""
    features_by_key = {}
    for spelt in sorted((store / "features").rglob("inputs.json")):
        inputs = json.loads(spelt.read_text(encoding="utf-8"))
        feature_store = FeatureStore(store, inputs["encoder"], inputs["source"])
        ids = set[str]()
        views = set[str]()
        for chunk in spelt.parent.glob("*.safetensors"):
            with safe_open(chunk, framework="pt") as file:
                header = json.loads(file.metadata()["lgclip"])
            ids = ids | set(header["ids"])
            views = views | set(header["views"])
        order = sorted(views)
        features = feature_store.take(sorted(ids), order)
        features_by_key[feature_store.key] = {
            f"{a}/{v}": features[i, j] for (i, a), (j, v) in product(enumerate(sorted(ids)), enumerate(order))
        }
    return features_by_key


RUN_FIELDS = {"stages", "cost", "config", "choices", "run_key", "git_commit"}
"""What a result says of how it came about, not of what it found."""


def collect_outcome(store: Path, folder: Path) -> dict[str, Any]:
    """Returns everything that a run computed, with features as bytes; equal runs have equal outcomes."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {
        "images": {name: data for name, data in read_tree(store / "images").items() if name.endswith(".png")},
        "features": {
            key: {item: value.numpy().tobytes() for item, value in rows.items()}
            for key, rows in read_features(store).items()
        },
        "files": {path.name: path.read_bytes() for path in sorted(folder.glob("*.csv"))},
        "result": {key: value for key, value in result.items() if key not in RUN_FIELDS},
    }


def assert_same_outcome(actual: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Compares two outcomes part by part and names the differences."""
    for part, expected in reference.items():
        assert actual[part].keys() == expected.keys(), f"{part}: {sorted(actual[part].keys() ^ expected.keys())}"
        apart = {name: (actual[part][name], value) for name, value in expected.items() if actual[part][name] != value}
        assert not apart, f"{part}: {sorted(apart)}\n{apart!s:.3000}"


def run_in_ranks(ranks: int, folder: Path, work: Callable[[], object]) -> None:
    """Runs the same function in several processes with their ranks; each must succeed.

    What they print goes to `said-RANK.txt` in the folder. One that is not done in time is killed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            _run_rank(folder / f"said-{rank}.txt", {**environment, "LOCAL_RANK": str(rank)}, work)
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
        outputs = [path.read_text(errors="replace")[-3000:] for path in sorted(folder.glob("said-*.txt"))]
        raise SystemExit("\n".join([f"{folder}: exit statuses {[ended[pid] for pid in pids]}", *outputs]))


def _run_rank(log: Path, environment: Mapping[str, str], work: Callable[[], object]) -> NoReturn:
    """Runs one rank and never returns to the forking process."""
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
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


def set_small_passes(sizes: Mapping[str, int]) -> None:
    """Makes passes of this process smaller than usual.

    Args:
        sizes: As `PASSES`.
    """
    for place, size in sizes.items():
        module, _, name = place.rpartition(".")
        setattr(importlib.import_module(module), name, size)


def _call_script(order: ProcessOrder) -> None:
    sys.argv = [str(ROOT / order.script), *order.arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def main(listed: Path) -> None:
    """Runs the orders of a file; the first failure ends it."""
    for library in LIBRARIES:
        importlib.import_module(library)
    torch.set_num_threads(1)
    set_small_passes(PASSES)
    for order in (ProcessOrder(**fields) for fields in json.loads(listed.read_text(encoding="utf-8"))):
        run_in_ranks(order.ranks, Path(order.folder), partial(_call_script, order))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
