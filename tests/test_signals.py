"""Asked to stop, or robbed of a device, a run ends within seconds with all that it started, and can be gone on with."""

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
from victims import LIMIT, QUIET, ROOT, Ended, Victims, alive, busy, features, until, victims, whole_files
from worlds import World, made

from lgclip.stopping import Stopped, heed, stoppable

pytest_plugins = ("run_fixtures",)

SOON = 60.0
"""Seconds after which the last device of the last job is gone, on a machine that is busy with other things too."""

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    with victims(tmp_path_factory.mktemp("victims")) as one:
        yield one


@pytest.fixture(scope="module")
def unharmed(forked: Victims, empty_world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with the store of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("unharmed")
    world = replace(empty_world, store=folder / "store")
    assert forked.run("evaluate", evaluating(world, folder / "run")).code == 0
    return world


def evaluating(world: World, folder: Path, *overrides: str) -> list[str]:
    return busy(world, f"encoder.model={world.encoder}", "logger=none", f"hydra.run.dir={folder}", *overrides)


def some(folder: Path, pattern: str, least: int = 1) -> Callable[[], bool]:
    return lambda: len([*folder.rglob(pattern)]) >= least


def stopped(ended: Ended, number: int) -> None:
    """It has said one line, and no more."""
    assert ended.code == 128 + number, ended.said
    assert "Traceback" not in ended.said, ended.said
    assert "error" not in ended.said.lower()
    (line,) = [line for line in ended.said.splitlines() if line.startswith("stopped by")]
    assert line == Stopped(number).told


@BOTH
@pytest.mark.parametrize(("at", "pattern", "least"), [("images", "*.png", 1), ("features", "*.safetensors", 2)])
def test_a_run_that_is_asked_to_stop_says_one_line_and_can_be_gone_on_with(
    forked: Victims, unharmed: World, tmp_path: Path, number: signal.Signals, at: str, pattern: str, least: int
) -> None:
    world = replace(unharmed, store=tmp_path / "store")
    command = evaluating(world, tmp_path / "run", "workers=2")
    pid = forked.start("evaluate", command, slow=0.1)
    # The first file of features is of sentences; with the second the workers are there.
    assert until(some(world.store / at, pattern, least))
    assert len(alive(pid)) >= (1 if at == "images" else 2), "with the workers and what starts them"
    os.kill(pid, number)
    stopped(forked.wait(pid), number)
    assert until(lambda: not alive(pid), SOON), "no worker is left"
    assert not (tmp_path / "run" / "result.json").exists()
    if number == signal.SIGTERM:
        before = whole_files(world.store)
        assert forked.run("evaluate", command).code == 0
        assert before.items() <= whole_files(world.store).items()
        assert features(world.store) == features(unharmed.store)


def test_a_key_press_reaches_workers_too_and_still_is_one_line(
    forked: Victims, unharmed: World, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C to the whole group."""
    world = replace(unharmed, store=tmp_path / "store")
    pid = forked.start("evaluate", evaluating(world, tmp_path / "run", "workers=2"), slow=0.1)
    # As above: a Python that only starts says more than a line.
    assert until(some(world.store / "features", "*.safetensors", 2))
    os.killpg(pid, signal.SIGINT)
    stopped(forked.wait(pid), signal.SIGINT)
    assert until(lambda: not alive(pid), SOON)


LONG = ("diffuser.steps=150", "diffuser.batch_size=1", "trainer.strategy=ddp")


@pytest.mark.parametrize("victim", ["first", "last"])
def test_if_one_of_three_devices_dies_the_others_end_within_seconds(
    forked: Victims, fresh_world: World, tmp_path: Path, victim: str
) -> None:
    command = [*busy(fresh_world, *LONG, "trainer.devices=3"), f"hydra.run.dir={tmp_path / 'run'}"]
    pid = forked.start("generate", command)
    assert until(some(fresh_world.store / "images", "*.png"))
    others = [one for one in alive(pid) if one != pid]
    assert len(others) == 2
    os.kill(pid if victim == "first" else others[-1], signal.SIGKILL)
    assert until(lambda: not alive(pid), SOON), "Lightning looks every 5 seconds"
    assert forked.wait(pid).code != 0


def test_a_device_that_waits_for_another_in_a_collective_can_be_stopped_too(
    forked: Victims, fresh_world: World, tmp_path: Path
) -> None:
    """No Python runs in a process that waits there, so no handler does."""
    command = [*busy(fresh_world, *LONG, "trainer.devices=2"), f"hydra.run.dir={tmp_path / 'run'}"]
    two_passes_each = ("images_per_prompt=12", "prompts_per_class=1", "diffuser.steps=50")
    pid = forked.start("generate", [*command, *two_passes_each])
    assert until(some(fresh_world.store / "images", "*.png"))
    (other,) = [one for one in alive(pid) if one != pid]
    os.kill(other, signal.SIGSTOP)
    time.sleep(4)  # until the first has drawn its share
    os.kill(pid, signal.SIGTERM)
    stopped(forked.wait(pid), signal.SIGTERM)
    os.kill(other, signal.SIGCONT)
    assert until(lambda: not alive(pid), SOON)


def test_a_sweep_that_is_stopped_ends_its_job_on_several_devices_and_goes_on(
    forked: Victims, fresh_world: World, tmp_path: Path
) -> None:
    sizes = ("images_per_prompt=1", "prompts_per_class=2", "scales=single", "trainer.devices=2")
    command = [*evaluating(fresh_world, tmp_path, *LONG, *sizes), f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m"]
    pid = forked.start("evaluate", command)
    assert until(some(fresh_world.store / "images", "*.png"))
    (job,) = children(pid)
    assert len(alive(job)) == 2
    os.kill(pid, signal.SIGTERM)
    ended = forked.wait(pid)
    assert ended.code == 128 + signal.SIGTERM
    assert "Traceback" not in ended.said, ended.said
    assert until(lambda: not alive(job), SOON)
    assert not list((tmp_path / "sweep").rglob("failed.json"))
    drawn = len(list(fresh_world.store.rglob("*.png")))
    again = forked.run("evaluate", command)
    assert again.code == 0, again.said
    result = json.loads((tmp_path / "sweep" / "0" / "result.json").read_text(encoding="utf-8"))
    assert made(result)["images"] == 6 - drawn


def test_a_job_whose_sweep_was_killed_ends_too(forked: Victims, fresh_world: World, tmp_path: Path) -> None:
    sizes = ("prompts_per_class=2", "scales=single", "trainer.devices=2")
    command = [*evaluating(fresh_world, tmp_path, *LONG, *sizes), f"hydra.sweep.dir={tmp_path / 'sweep'}", "-m"]
    pid = forked.start("evaluate", command)
    assert until(some(fresh_world.store / "images", "*.png"))
    (job,) = children(pid)
    os.kill(pid, signal.SIGKILL)
    assert forked.wait(pid).code == -signal.SIGKILL
    assert until(lambda: not alive(job), SOON)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def python(code: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, **QUIET, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


MAIN = """
import ctypes, signal, sys, time
from lgclip import stopping
from lgclip.errors import plain_errors

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
        ("signal.signal(signal.SIGTERM, lambda *_: None); stopping.heed()", "time.sleep(60)", 6.0),
    ],
)
def test_whatever_the_process_is_at_it_stops(before: str, work: str, limit: float) -> None:
    with python(MAIN.format(before=before, work=work)) as process:
        assert process.stdout is not None
        process.stdout.readline()
        since = time.monotonic()
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=LIMIT)
    assert time.monotonic() - since < limit
    assert (process.returncode, said.strip()) == (143, Stopped(signal.SIGTERM).told)


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As nohup and a shell's `&` leave it."""
    ignored = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    with python(ignored + MAIN.format(before="", work="time.sleep(0.5)")) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT)
    assert process.returncode == 0


def test_what_was_set_before_is_set_again_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    known = os.environ.get("LGCLIP_STARTED_BY")
    with stoppable():
        assert os.environ["LGCLIP_STARTED_BY"] == str(os.getpid())
        assert signal.getsignal(signal.SIGTERM) != before[1]
    heed()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert os.environ.get("LGCLIP_STARTED_BY") == known
    with pytest.raises(ValueError, match="mine"), stoppable():
        raise ValueError("mine")
