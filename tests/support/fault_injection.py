"""Runs commands that are killed, stopped or concurrent, forked from a process that has imported everything once.

python tests/support/fault_injection.py        reads one order a line, answers with one line
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from factories import Sandbox
from multiprocess_runs import QUIET_ENVIRONMENT, ROOT, set_small_passes

LIMIT = 240.0
"""Seconds after which a run that a test waits for has failed."""


@dataclass(frozen=True)
class KillPoint:
    """Defines when a run is killed by SIGKILL.

    Attributes:
        folder: In which files are written, such as `STORE/images`.
        write: With which beginning or end of a file's writing there the clock starts, counted from 1.
        delay: Seconds from then on.
    """

    folder: str
    write: int
    delay: float


@dataclass(frozen=True)
class RunExit:
    """Describes how a run ended.

    Attributes:
        code: Exit status; minus the signal if one killed it.
        output: What it printed.
        work: How many images each batch had that it began to draw or to encode.
    """

    code: int
    output: str
    work: list[int]


class RunServer:
    """Controls the forking process; the output of runs goes to a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._logs = dict[int, Path]()
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
        self._server = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, env={**os.environ, **QUIET_ENVIRONMENT, "PYTHONPATH": path},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _ask(self, **order: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, verb: str, overrides: Sequence[str], death: KillPoint | None = None, **injuries: Any) -> int:
        """Starts a run; returns its process id."""
        log = self._folder / f"{len(list(self._folder.iterdir()))}.log"
        pid = self._ask(
            do="start", verb=verb, overrides=list(overrides), death=vars(death) if death else None, log=str(log),
            injuries=injuries,
        )  # fmt: skip
        self._logs[pid] = log
        return pid

    def wait(self, pid: int) -> RunExit:
        """Waits for a run to end."""
        code = self._ask(do="wait", pid=pid)
        log = self._logs[pid]
        return RunExit(code, log.read_text(encoding="utf-8"), [*log.with_suffix(".work").read_bytes()])

    def run(self, verb: str, overrides: Sequence[str], death: KillPoint | None = None, **injuries: Any) -> RunExit:
        """Runs a command to its end."""
        return self.wait(self.start(verb, overrides, death, **injuries))

    def close(self) -> None:
        """Stops the forking process."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=LIMIT)
        self._server.stdout.close()


@contextmanager
def start_run_server(folder: Path) -> Iterator[RunServer]:
    """Starts a forking process and stops it at the end of the block."""
    processes = RunServer(folder)
    try:
        yield processes
    finally:
        processes.close()


class KillPoints:
    """Draws random kill points: when the writing of some file begins or ends, or up to 6 ms later.

    Args:
        folder: In which files are written.
        count: How many moments there are to be.
        seed: Of what is random.
    """

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self._folder = folder
        self._left = count
        self._chance = random.Random(seed)

    def next(self, files: int) -> KillPoint:
        """Returns the next kill point; `files` still have to be written, more than kill points remain."""
        most = max(1, 2 * files // (self._left + 3))
        self._left -= 1
        return KillPoint(str(self._folder), self._chance.randint(1, most), self._chance.random() * 0.006)


def committed_files(store: Path) -> dict[str, bytes]:
    """Returns the content of a store without cost logs and temporary files of killed processes."""
    paths = [p for p in sorted(store.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in paths if not p.name.endswith("costs.jsonl")}


def read_feature_bytes(store: Path) -> dict[tuple[str, str, str], list[bytes]]:
    """Returns the bytes of every stored feature by folder, item and view; one each if nothing is duplicated."""
    from safetensors import safe_open

    features_by_key: dict[tuple[str, str, str], list[bytes]] = {}
    for path in sorted(store.glob("features/*/*/*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            header = json.loads(file.metadata()["lgclip"])
            values = file.get_tensor("features")
        for row, item in zip(values, header["ids"], strict=True):
            for value, view in zip(row, header["views"], strict=True):
                features_by_key.setdefault((path.parent.name, item, view), []).append(value.tobytes())
    return features_by_key


def many_batch_overrides(sandbox: Sandbox, *overrides: str) -> list[str]:
    """Returns the overrides of a run with many small batches."""
    sizes = ["diffuser.batch_size=3", "encoder.batch_size=3", "prompts_per_class=4", "images_per_prompt=5"]
    return [*sandbox.generate_overrides(), *sizes, *overrides]


def session_processes(session: int) -> list[int]:
    """Returns the running processes of a session; every run and every job of a sweep has its own."""
    process_ids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, group = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended
            continue
        if int(group) == session and state != "Z":
            process_ids.append(int(stat.parent.name))
    return process_ids


def wait_until(condition: Callable[[], object], seconds: float = LIMIT) -> bool:
    """Waits for a condition to become true; returns whether it has."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# What follows runs in the forking process and in the runs.


def _serve() -> None:
    import diffusers.pipelines.auto_pipeline  # noqa: F401
    import open_clip  # noqa: F401
    import tqdm

    tqdm.tqdm.monitor_interval = 0  # its thread would not survive a fork
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(order["pid"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _run(order)
        print(json.dumps(answer), flush=True)


def _run(order: Mapping[str, Any]) -> NoReturn:
    """Runs a command to its end."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and hands that on
    log = Path(order["log"])
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), stream)
    signal.alarm(int(LIMIT))
    code: Any = 1
    try:
        _count_work(os.open(log.with_suffix(".work"), os.O_WRONLY | os.O_CREAT, 0o600))
        if order["death"]:
            _schedule_kill(KillPoint(**order["death"]))
        for name, value in order["injuries"].items():
            FAULTS[name](value)
        from factories import run_command

        if not any(
            override.startswith("trainer.devices=") for override in order["overrides"]
        ):  # which are no forks of this one
            set_small_passes(
                {"lgclip.stages.images.CPU_IMAGES": 3, "lgclip.stages.streams.CPU_ROWS": 3}
            )  # as `busy`: many, each whole
        run_command(order["verb"], *order["overrides"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _schedule_kill(death: KillPoint) -> None:
    """Sends SIGKILL to this process from a thread, some time after a certain write has begun or ended."""
    # where an event tells of which file
    left = [death.write]
    place = {"tempfile.mkstemp": 0, "os.rename": 1}

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in place and str(arguments[place[event]]).startswith(death.folder):
            left[0] -= 1
            if left[0] == 0:
                threading.Timer(death.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(hear)


def _count_work(log: int) -> None:
    """Records the size of each batch that begins, a byte each, which no kill removes."""
    from lgclip.stages.features import FeatureExtractionStage
    from lgclip.stages.images import ImageGenerationStage

    for stage in (ImageGenerationStage, FeatureExtractionStage):

        def counted(self: Any, batch: Any, *rest: Any, _step: Any = stage.predict_step) -> None:
            ids = batch if isinstance(batch, list) else batch.ids
            os.write(log, bytes([len(ids)]))
            _step(self, batch, *rest)

        stage.predict_step = counted  # pyright: ignore[reportAttributeAccessIssue]


def _limit_files(size: int) -> None:
    """Limits the size of files, which looks like a full disk to a program."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _pause(path: str) -> None:
    """Waits for a file, so that several processes start together."""
    while not Path(path).exists():
        time.sleep(0.002)


def _slow_writes(seconds: float) -> None:
    """Delays every batch, which leaves time to interfere with a running process."""
    from lgclip.stages.features import FeatureExtractionStage
    from lgclip.stages.images import ImageGenerationStage

    for stage in (ImageGenerationStage, FeatureExtractionStage):

        def slowly(self: Any, *batch: Any, _step: Any = stage.predict_step) -> None:
            time.sleep(seconds)
            _step(self, *batch)

        stage.predict_step = slowly  # pyright: ignore[reportAttributeAccessIssue]


FAULTS = {"limit_files": _limit_files, "starts_with": _pause, "slow": _slow_writes}

if __name__ == "__main__":
    _serve()
