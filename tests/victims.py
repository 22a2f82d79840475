"""Runs that are killed, stopped and crowded: a process that has imported everything once, and forks a run at a time.

python tests/victims.py        reads one order a line, answers with one line
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

from crowd import QUIET, ROOT, small_passes
from worlds import World

LIMIT = 240.0
"""Seconds after which a run that a test waits for has failed."""


@dataclass(frozen=True)
class Death:
    """When a run is killed by SIGKILL.

    Attributes:
        folder: In which files are written, such as `STORE/images`.
        write: With which beginning or end of a file's writing there the clock starts, counted from 1.
        delay: Seconds from then on.
    """

    folder: str
    write: int
    delay: float


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        code: Exit status; minus the signal if one killed it.
        said: What it printed.
        work: How many images each batch had that it began to draw or to encode.
    """

    code: int
    said: str
    work: list[int]


class Victims:
    """The forking process, from a test's side; what the runs print goes to a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._logs = folder, dict[int, Path]()
        self._server = subprocess.Popen(
            [sys.executable, __file__], cwd=folder, env={**os.environ, **QUIET, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _ask(self, **order: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, verb: str, overrides: Sequence[str], death: Death | None = None, **injuries: Any) -> int:
        """Starts a run; returns its process's number."""
        log = self._folder / f"{len(list(self._folder.iterdir()))}.log"
        pid = self._ask(
            do="start", verb=verb, overrides=list(overrides), death=vars(death) if death else None, log=str(log),
            injuries=injuries,
        )  # fmt: skip
        self._logs[pid] = log
        return pid

    def wait(self, pid: int) -> Ended:
        """Waits for a run's end."""
        code = self._ask(do="wait", pid=pid)
        log = self._logs[pid]
        return Ended(code, log.read_text(encoding="utf-8"), [*log.with_suffix(".work").read_bytes()])

    def run(self, verb: str, overrides: Sequence[str], death: Death | None = None, **injuries: Any) -> Ended:
        """One run from its start to its end."""
        return self.wait(self.start(verb, overrides, death, **injuries))

    def close(self) -> None:
        """Ends the forking process; it outlives no test."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=LIMIT)
        self._server.stdout.close()


@contextmanager
def victims(folder: Path) -> Iterator[Victims]:
    """A forking process that ends with the block."""
    one = Victims(folder)
    try:
        yield one
    finally:
        one.close()


class Moments:
    """Random moments to die at: when some file's writing begins or ends, or up to 6 ms later.

    Args:
        folder: In which files are written.
        count: How many moments there are to be.
        seed: Of what is random.
    """

    def __init__(self, folder: Path, count: int, seed: int) -> None:
        self._folder, self._left, self._chance = folder, count, random.Random(seed)

    def next(self, files: int) -> Death:
        """The next moment; `files` are still to be written, and shall not be done before the moments are."""
        most = max(1, 2 * files // (self._left + 3))
        self._left -= 1
        return Death(str(self._folder), self._chance.randint(1, most), self._chance.random() * 0.006)


def whole_files(store: Path) -> dict[str, bytes]:
    """What a store holds, without ledgers and without what a killed process has left half-written."""
    found = [p for p in sorted(store.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in found if not p.name.endswith("costs.jsonl")}


def features(store: Path) -> dict[tuple[str, str, str], list[bytes]]:
    """Every stored feature's bytes by its folder, thing and view; one each, if nothing is there twice."""
    from safetensors import safe_open

    found: dict[tuple[str, str, str], list[bytes]] = {}
    for path in sorted(store.glob("features/*/*/*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            header, values = json.loads(file.metadata()["lgclip"]), file.get_tensor("features")
        for row, thing in zip(values, header["ids"], strict=True):
            for value, view in zip(row, header["views"], strict=True):
                found.setdefault((path.parent.name, thing, view), []).append(value.tobytes())
    return found


def busy(world: World, *overrides: str) -> list[str]:
    """A run in a world with many small batches."""
    sizes = ["diffuser.batch_size=3", "encoder.batch_size=3", "prompts_per_class=4", "images_per_prompt=5"]
    return [*world.generating(), *sizes, *overrides]


def alive(session: int) -> list[int]:
    """The processes of a session that run; a run has one of its own, and a sweep's job too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended
            continue
        if int(own) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def until(what: Callable[[], object], seconds: float = LIMIT) -> bool:
    """Waits for something to become true; returns whether it has."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# What follows runs in the forking process and in the runs.


def _serve() -> None:
    import diffusers.pipelines.auto_pipeline  # noqa: F401
    import open_clip  # noqa: F401
    import tqdm

    import lgclip.diffuser.brush
    import lgclip.drawing
    import lgclip.encoder.open_clip
    import lgclip.report
    import lgclip.tracking  # noqa: F401

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
    """A run, to its end."""
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
            _die(Death(**order["death"]))
        for name, value in order["injuries"].items():
            INJURIES[name](value)
        from worlds import call

        if not any(one.startswith("trainer.devices=") for one in order["overrides"]):  # which are no forks of this one
            small_passes({"lgclip.drawing.CPU_IMAGES": 3, "lgclip.data.CPU_ROWS": 3})  # as `busy`: many, each whole
        call(order["verb"], *order["overrides"])
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


def _die(death: Death) -> None:
    """Has SIGKILL sent to this process by a thread, a while after a certain write has begun or ended."""
    left, place = [death.write], {"tempfile.mkstemp": 0, "os.rename": 1}  # where an event tells of which file

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event in place and str(arguments[place[event]]).startswith(death.folder):
            left[0] -= 1
            if left[0] == 0:
                threading.Timer(death.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(hear)


def _count_work(log: int) -> None:
    """Writes down how large each batch is that is begun: a byte each, which no kill takes back."""
    from lgclip.drawing import Drawing
    from lgclip.encoding import Encoding

    for stage in (Drawing, Encoding):

        def counted(self: Any, batch: Any, *rest: Any, _step: Any = stage.predict_step) -> None:
            ids = batch if isinstance(batch, list) else batch.ids
            os.write(log, bytes([len(ids)]))
            _step(self, batch, *rest)

        stage.predict_step = counted  # pyright: ignore[reportAttributeAccessIssue]


def _limit_files(size: int) -> None:
    """No file may grow beyond so many bytes: to a program this looks as a full disk does."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _pause(path: str) -> None:
    """Waits for a file: those that wait for it start together."""
    while not Path(path).exists():
        time.sleep(0.002)


def _slow(seconds: float) -> None:
    """Every batch takes so much longer, which leaves time to do something to a run at work."""
    from lgclip.drawing import Drawing
    from lgclip.encoding import Encoding

    for stage in (Drawing, Encoding):

        def slowly(self: Any, *batch: Any, _step: Any = stage.predict_step) -> None:
            time.sleep(seconds)
            _step(self, *batch)

        stage.predict_step = slowly  # pyright: ignore[reportAttributeAccessIssue]


INJURIES = {"limit_files": _limit_files, "starts_with": _pause, "slow": _slow}

if __name__ == "__main__":
    _serve()
