"""Tests that a stopped run, or one that lost a device, ends within seconds with its children and can be resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from factories import Sandbox, computed_counts
from fault_injection import (
    LIMIT,
    QUIET_ENVIRONMENT,
    ROOT,
    RunExit,
    RunServer,
    committed_files,
    many_batch_overrides,
    read_feature_bytes,
    session_processes,
    start_run_server,
    wait_until,
)

from lgclip.runtime.signals import LATEST, Stopped, restore_handlers, stoppable

pytest_plugins = ("run_fixtures",)

SOON = 60.0
"""Seconds after which the last device of the last job is gone, on a machine that is busy with other things too."""

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(scope="module")
def run_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunServer]:
    with start_run_server(tmp_path_factory.mktemp("run-server")) as processes:
        yield processes


@pytest.fixture(scope="module")
def reference_sandbox(
    run_server: RunServer, empty_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> Sandbox:
    """Returns a sandbox with the store of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("unharmed")
    sandbox = replace(empty_sandbox, store=folder / "store")
    assert run_server.run("evaluate", evaluate_overrides(sandbox, folder / "run")).code == 0
    return sandbox


def evaluate_overrides(sandbox: Sandbox, folder: Path, *overrides: str) -> list[str]:
    return many_batch_overrides(
        sandbox, f"encoder.model={sandbox.encoder}", "logger=none", f"hydra.run.dir={folder}", *overrides
    )


def has_files(folder: Path, pattern: str, least: int = 1) -> Callable[[], bool]:
    return lambda: len([*folder.rglob(pattern)]) >= least


def assert_stopped(ended: RunExit, number: int) -> None:
    """Checks that a run printed exactly one line."""
    assert ended.code == 128 + number, ended.output
    assert "Traceback" not in ended.output, ended.output
    assert "error" not in ended.output.lower()
    (line,) = [line for line in ended.output.splitlines() if line.startswith("stopped by")]
    assert line == Stopped(number).message


@pytest.mark.multiprocess
@BOTH
@pytest.mark.parametrize(("stage", "pattern", "least"), [("images", "*.png", 1), ("features", "*.safetensors", 2)])
def test_stopped_run_prints_one_line_and_resumes(
    run_server: RunServer,
    reference_sandbox: Sandbox,
    tmp_path: Path,
    number: signal.Signals,
    stage: str,
    pattern: str,
    least: int,
) -> None:
    sandbox = replace(reference_sandbox, store=tmp_path / "store")
    command = evaluate_overrides(sandbox, tmp_path / "run", "workers=2")
    pid = run_server.start("evaluate", command, slow=0.1)
    # The first file of features is of sentences; with the second the workers are there.
    assert wait_until(has_files(sandbox.store / stage, pattern, least))
    assert len(session_processes(pid)) >= (1 if stage == "images" else 2), "with the workers and what starts them"
    os.kill(pid, number)
    assert_stopped(run_server.wait(pid), number)
    assert wait_until(lambda: not session_processes(pid), SOON), "no worker is left"
    assert not (tmp_path / "run" / "result.json").exists()
    if number == signal.SIGTERM:
        before = committed_files(sandbox.store)
        assert run_server.run("evaluate", command).code == 0
        assert before.items() <= committed_files(sandbox.store).items()
        assert read_feature_bytes(sandbox.store) == read_feature_bytes(reference_sandbox.store)


@pytest.mark.multiprocess
def test_ctrl_c_with_workers_prints_one_line(run_server: RunServer, reference_sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks Ctrl-C, which a terminal sends to the process group."""
    sandbox = replace(reference_sandbox, store=tmp_path / "store")
    pid = run_server.start("evaluate", evaluate_overrides(sandbox, tmp_path / "run", "workers=2"), slow=0.1)
    # As above: a Python that only starts says more than a line.
    assert wait_until(has_files(sandbox.store / "features", "*.safetensors", 2))
    os.killpg(pid, signal.SIGINT)
    assert_stopped(run_server.wait(pid), signal.SIGINT)
    assert wait_until(lambda: not session_processes(pid), SOON)


LONG = ("diffuser.steps=150", "diffuser.batch_size=1", "trainer.strategy=ddp")


@pytest.mark.multiprocess
@pytest.mark.parametrize("victim", ["first", "last"])
def test_lost_device_stops_the_others(
    run_server: RunServer, fresh_sandbox: Sandbox, tmp_path: Path, victim: str
) -> None:
    command = [*many_batch_overrides(fresh_sandbox, *LONG, "trainer.devices=3"), f"hydra.run.dir={tmp_path / 'run'}"]
    pid = run_server.start("generate", command)
    assert wait_until(has_files(fresh_sandbox.store / "images", "*.png"))
    other_ids = [process_id for process_id in session_processes(pid) if process_id != pid]
    assert len(other_ids) == 2
    os.kill(pid if victim == "first" else other_ids[-1], signal.SIGKILL)
    assert wait_until(lambda: not session_processes(pid), SOON), "Lightning looks every 5 seconds"
    assert run_server.wait(pid).code != 0


@pytest.mark.multiprocess
def test_device_in_a_collective_can_be_stopped(run_server: RunServer, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks a process that waits in a collective, where no Python handler runs."""
    command = [*many_batch_overrides(fresh_sandbox, *LONG, "trainer.devices=2"), f"hydra.run.dir={tmp_path / 'run'}"]
    two_passes_each = ("images_per_prompt=12", "prompts_per_class=1", "diffuser.steps=50")
    pid = run_server.start("generate", [*command, *two_passes_each])
    assert wait_until(has_files(fresh_sandbox.store / "images", "*.png"))
    (other_id,) = [process_id for process_id in session_processes(pid) if process_id != pid]
    os.kill(other_id, signal.SIGSTOP)
    time.sleep(4)  # until the first has drawn its share
    os.kill(pid, signal.SIGTERM)
    assert_stopped(run_server.wait(pid), signal.SIGTERM)
    os.kill(other_id, signal.SIGCONT)
    assert wait_until(lambda: not session_processes(pid), SOON)


def sweep_command(sandbox: Sandbox, folder: Path, *sizes: str) -> list[str]:
    """Returns the arguments of a sweep of one long job."""
    return [*evaluate_overrides(sandbox, folder, *LONG, *sizes), f"hydra.sweep.dir={folder / 'sweep'}", "-m"]


def start_sweep(run_server: RunServer, sandbox: Sandbox, command: list[str]) -> tuple[int, int]:
    """Starts a sweep, waits for its first image, and returns the processes of the sweep and of its job."""
    pid = run_server.start("evaluate", command)
    assert wait_until(has_files(sandbox.store / "images", "*.png"))
    (job,) = child_processes(pid)
    return pid, job


@pytest.mark.multiprocess
def test_stopped_sweep_ends_multi_device_jobs(run_server: RunServer, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    sizes = ("images_per_prompt=1", "prompts_per_class=2", "scales=single", "trainer.devices=2")
    command = sweep_command(fresh_sandbox, tmp_path, *sizes)
    pid, job = start_sweep(run_server, fresh_sandbox, command)
    assert len(session_processes(job)) == 2
    os.kill(pid, signal.SIGTERM)
    ended = run_server.wait(pid)
    assert ended.code == 128 + signal.SIGTERM
    assert "Traceback" not in ended.output, ended.output
    assert wait_until(lambda: not session_processes(job), SOON)
    assert not list((tmp_path / "sweep").rglob("failed.json"))
    generated = len(list(fresh_sandbox.store.rglob("*.png")))
    again = run_server.run("evaluate", command)
    assert again.code == 0, again.output
    result = json.loads((tmp_path / "sweep" / "0" / "result.json").read_text(encoding="utf-8"))
    assert computed_counts(result)["images"] == 6 - generated


@pytest.mark.multiprocess
def test_job_ends_with_its_killed_sweep(run_server: RunServer, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    sizes = ("prompts_per_class=2", "scales=single", "trainer.devices=2")
    command = sweep_command(fresh_sandbox, tmp_path, *sizes)
    pid, job = start_sweep(run_server, fresh_sandbox, command)
    os.kill(pid, signal.SIGKILL)
    assert run_server.wait(pid).code == -signal.SIGKILL
    assert wait_until(lambda: not session_processes(job), SOON)


def child_processes(pid: int) -> list[int]:
    """Returns the child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def python(code: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **QUIET_ENVIRONMENT, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


MAIN = """
import ctypes, signal, sys, time
from lgclip.runtime import signals as stopping
from lgclip.cli.errors import plain_errors

def main():
    {before}
    print("at work", flush=True)
    {work}

plain_errors(main)()
"""


@pytest.mark.parametrize(
    ("before", "work", "limit"),
    [
        ("", "time.sleep(60)", 6.0),
        ("stopping.LATEST = 1.0", "ctypes.PyDLL(None).sleep(60)", 7.0),  # holds even Python's own lock
        ("stopping.LATEST = 1.0", "ctypes.CDLL(None).pause() or [ctypes.CDLL(None).sleep(60) for _ in range(9)]", 7.0),
        ("", "try: time.sleep(60)\n    except BaseException: raise RuntimeError('a library makes this of it')", 6.0),
        ("signal.signal(signal.SIGTERM, lambda *_: None); stopping.restore_handlers()", "time.sleep(60)", 6.0),
    ],
)
def test_signal_stops_any_work(before: str, work: str, limit: float) -> None:
    with python(MAIN.format(before=before, work=work)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        since = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=LIMIT)
    assert time.monotonic() - since < limit
    assert (process.returncode, output.strip()) == (143, Stopped(signal.SIGTERM).message)


STUCK = "import re; re.match('(a+)+$', 'a' * 60 + 'b')"


def watchdogs(pid: int) -> list[int]:
    """Returns the processes that watch another one."""
    matches = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if any(part.endswith(b"watchdog.py") for part in arguments) and str(pid).encode() in arguments:
            matches.append(int(path.parent.name))
    return matches


HELD = {
    # In a thread, as the replies of a server are read; the main thread waits for the interpreter.
    "regular expression in a thread": f"import threading; threading.Thread(target=lambda: exec({STUCK!r})).start()"
    "; time.sleep(60)",
    "lock in the main thread": "lock = ctypes.create_string_buffer(64); c = ctypes.PyDLL(None)"
    "; c.pthread_mutex_lock(lock); c.pthread_mutex_lock(lock)",
}
"""Work that holds the interpreter and never ends."""


def stop_held_interpreter(code: str, number: signal.Signals, limit: float) -> None:
    """Checks that a process that cannot run Python code ends in time, with one line and its watchdog."""
    with python(code) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.5)  # until it is at its work, and the watchdog at its own
        since = time.monotonic()
        process.send_signal(number)
        try:
            _, output = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert time.monotonic() - since < limit
    assert process.returncode == -signal.SIGKILL
    assert output.strip() == "stopped by force, since it did not react to a signal; what is stored stays"
    assert wait_until(lambda: not watchdogs(process.pid))


@BOTH
@pytest.mark.parametrize("work", HELD.values(), ids=HELD.keys())
def test_held_interpreter_is_stopped(work: str, number: signal.Signals) -> None:
    # A shell starts background jobs with SIGINT ignored, and the tests may be such a job.
    heeded = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = MAIN.format(before="", work=work).replace("def main", f"stopping.STUCK = 0.5\n{heeded}\n\ndef main")
    stop_held_interpreter(code, number, 3.0)


@pytest.mark.slow
def test_held_interpreter_is_stopped_within_its_grace_time() -> None:
    code = MAIN.format(before="", work=HELD["regular expression in a thread"])
    stop_held_interpreter(code, signal.SIGTERM, LATEST)


def test_regular_expression_in_the_main_thread_is_interrupted() -> None:
    with python(MAIN.format(before="", work=STUCK)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=LIMIT)
    assert (process.returncode, output.strip()) == (143, Stopped(signal.SIGTERM).message)


@pytest.mark.parametrize("work", ["pass", "sys.exit(3)", "raise ValueError('mine')", "import os; os._exit(0)",
                                  "import os; os.kill(os.getpid(), 9)"])  # fmt: skip
def test_watchdog_ends_with_its_process(work: str) -> None:
    # The time is for the watchdog to start.
    with python(MAIN.format(before="time.sleep(0.5)", work=work)) as process:
        process.communicate(timeout=LIMIT)
    assert wait_until(lambda: not watchdogs(process.pid))


def test_forked_process_keeps_no_watchdog() -> None:
    """Checks a forked process that outlives its parent, and whose signals are not its parent's."""
    work = (
        "import os\n    pid = os.fork()"
        "\n    if not pid: signal.signal(15, lambda *_: None); time.sleep(30); os._exit(0)"
        "\n    print(pid, flush=True); time.sleep(0.5); os.kill(pid, 15); time.sleep(0.5); print('still', flush=True)"
        "; os._exit(0)"
    )
    with python(MAIN.format(before="", work=work)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        child = int(process.stdout.readline())
        assert process.stdout.readline() == "still\n"
        try:
            assert wait_until(lambda: not watchdogs(process.pid))
        finally:
            os.kill(child, signal.SIGKILL)
    assert process.returncode == 0


def test_killed_watchdog_leaves_the_signals_working() -> None:
    with python(MAIN.format(before="stopping.LATEST = 1.0", work="ctypes.CDLL(None).sleep(60)")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert wait_until(lambda: watchdogs(process.pid))
        for pid in watchdogs(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=LIMIT)
    assert (process.returncode, output.strip()) == (143, Stopped(signal.SIGTERM).message)


def test_ignored_signal_stays_ignored() -> None:
    """Checks ignored signals, as nohup and a shell's `&` leave them."""
    ignored = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    with python(ignored + MAIN.format(before="", work="time.sleep(0.5)")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT)
    assert process.returncode == 0


@pytest.mark.slow
def test_signal_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    known = os.environ.get("LGCLIP_STARTED_BY")
    with stoppable():
        assert os.environ["LGCLIP_STARTED_BY"] == str(os.getpid())
        assert signal.getsignal(signal.SIGTERM) != before[1]
    restore_handlers()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert os.environ.get("LGCLIP_STARTED_BY") == known
    with pytest.raises(ValueError, match="mine"), stoppable():
        raise ValueError("mine")
