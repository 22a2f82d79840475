"""Sweeps go on where they stopped, lose nothing, and run every job as it would run alone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from omegaconf import OmegaConf
from worlds import World, call, judge, made, rows, tree

from lgclip import cli, sweeps
from lgclip.diffuser.pipeline import Diffuser
from lgclip.methods.zero_shot import ZeroShot
from lgclip.summary import summarise
from lgclip.sweeps import run_key

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[1]
GRID = ("prompts_per_class=1,2", "scales=single,multi")


def sweep(world: World, folder: Path | None, *overrides: str) -> None:
    where = [] if folder is None else [f"hydra.sweep.dir={folder}"]
    call("evaluate", *world.evaluating(), *where, *overrides, "-m")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of a sweep's jobs, by their folder's name."""
    return {path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*/result.json"))}


@pytest.fixture
def nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(self: ZeroShot) -> NoReturn:
        raise AssertionError("a job was run")

    monkeypatch.setattr(ZeroShot, "_fit", fit)


def test_the_same_sweep_again_runs_nothing_and_says_so(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    sweep(world, tmp_path / "sweep", *GRID)
    before = {name: data for name, data in tree(tmp_path / "sweep").items() if not name.endswith(".log")}
    assert len(results(tmp_path / "sweep")) == 4
    capsys.readouterr()
    request.getfixturevalue("nothing_is_judged")
    sweep(world, tmp_path / "sweep", *GRID)
    said = capsys.readouterr().out
    assert "was begun before: 4 of 4 jobs have a result" in said
    assert [f"job {n}: finished before" in said for n in range(4)] == [True] * 4
    assert "4 finished" in said
    after = {name: data for name, data in tree(tmp_path / "sweep").items() if not name.endswith(".log")}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {Path(name).name for name in changed} <= {"hydra.yaml", "multirun.yaml"}


def test_without_a_folder_the_same_command_finds_the_sweep_that_it_began(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(world, None, "prompts_per_class=1,2", "scales=single")
    (folder,) = {path.parent for path in tmp_path.glob("multirun/*/*/sweep.json")}
    (folder / "1" / "result.json").unlink()
    time.sleep(1.1)  # a sweep's folder is named by the second
    sweep(world, None, "prompts_per_class=1,2", "scales=single")
    assert results(folder).keys() == {"0", "1"}
    sweep(world, None, "prompts_per_class=1,3", "scales=single")
    time.sleep(1.1)
    sweep(world, None, "prompts_per_class=1,2", "scales=single", "rerun=true")
    assert len(list(tmp_path.glob("multirun/*/*/sweep.json"))) == 3, "another grid and a rerun have their own"


def test_one_failed_job_loses_no_other_and_alone_is_run_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        sweep(world, tmp_path / "sweep", "scales=single", "prompts_per_class=1,0,2")
    assert str(end.value.code).startswith("error: 1 job failed")
    said = capsys.readouterr()
    assert "job 1 failed: prompts_per_class=0: it must be a whole number of at least 1" in said.err
    assert results(tmp_path / "sweep").keys() == {"0", "2"}
    failed = json.loads((tmp_path / "sweep" / "1" / "failed.json").read_text("utf-8"))
    assert "prompts_per_class=0" in failed["overrides"]
    assert failed["error"].startswith("ValueError: prompts_per_class=0")
    assert "Traceback" in failed["trace"]
    told = rows(tmp_path / "sweep" / "summary.csv")
    assert [row["status"] for row in told] == ["finished", "failed", "finished"]
    assert told[1]["error"] == failed["error"]
    with pytest.raises(SystemExit):
        sweep(world, tmp_path / "sweep", "scales=single", "prompts_per_class=1,0,2")
    said = capsys.readouterr()
    assert "job 0: finished before" in said.out
    assert "job 1 failed" in said.err


def test_a_job_that_failed_and_then_works_leaves_no_mark_of_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut of the drawing, say: the config is the same, and so the job is run again."""
    load = Diffuser.load

    def cut(self: Diffuser, device: object) -> NoReturn:
        raise RuntimeError("power cut")

    monkeypatch.setattr(Diffuser, "load", cut)
    with pytest.raises(SystemExit):
        sweep(world, tmp_path / "sweep", "scales=single", "prompts_per_class=3,4")
    assert results(tmp_path / "sweep").keys() == {"0"}
    monkeypatch.setattr(Diffuser, "load", load)
    sweep(world, tmp_path / "sweep", "scales=single", "prompts_per_class=3,4")
    assert results(tmp_path / "sweep").keys() == {"0", "1"}
    assert not list((tmp_path / "sweep").rglob("failed.json"))


def test_a_pattern_of_choices_is_a_sweep_like_any_other(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        sweep(world, tmp_path / "sweep", "scales=glob(*, exclude=[multi,ten,official_code])", "prompts_per_class=1")
    assert len(results(tmp_path / "sweep")) == 2
    assert capsys.readouterr().out.count("finished before") == 2


def test_values_that_no_grid_can_have_are_one_error(world: World, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        sweep(world, tmp_path / "sweep", "seed=interval(0,1)")
    assert end.value.code == 1
    assert not (tmp_path / "sweep" / "sweep.json").exists()


def test_rerun_runs_finished_jobs_again(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(world, tmp_path / "sweep", "prompts_per_class=1", "scales=single")
    first = results(tmp_path / "sweep")
    sweep(world, tmp_path / "sweep", "prompts_per_class=1", "scales=single", "rerun=true")
    assert "finished before" not in capsys.readouterr().out
    again = results(tmp_path / "sweep")
    assert again["0"]["metrics"] == first["0"]["metrics"]
    assert again["0"]["run_key"] == first["0"]["run_key"], "that it is run again is no part of what it is"


def test_other_code_runs_a_finished_job_again(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(world, tmp_path / "sweep", "prompts_per_class=1", "scales=single")
    monkeypatch.setattr(sweeps, "_code", lambda: "another")
    sweep(world, tmp_path / "sweep", "prompts_per_class=1", "scales=single")
    assert "finished before" not in capsys.readouterr().out


def test_another_sweep_in_the_same_folder_is_refused_and_nothing_is_lost(world: World, tmp_path: Path) -> None:
    sweep(world, tmp_path / "sweep", "prompts_per_class=1", "scales=single")
    before = tree(tmp_path / "sweep")
    with pytest.raises(SystemExit) as end:
        sweep(world, tmp_path / "sweep", "prompts_per_class=2", "scales=single")
    assert "holds another sweep, of 1 jobs" in str(end.value.code)
    assert tree(tmp_path / "sweep") == before


def test_killed_after_a_job_the_sweep_goes_on_with_the_next(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [
        sys.executable, "evaluate.py", *world.evaluating(), f"hydra.sweep.dir={folder}", "prompts_per_class=1,2,3,4",
        "scales=single", "-m",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (folder / "1" / "result.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {name: data for name, data in tree(folder).items() if name.endswith("result.json")}
    assert 2 <= len(finished) < 4
    text, failed = summarise(folder)
    assert "unfinished" in text
    assert failed == 0
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert results(folder).keys() == {"0", "1", "2", "3"}
    after = tree(folder)
    assert {name: after[name] for name in finished} == finished, "what was finished was not touched"
    assert [row["status"] for row in rows(folder / "summary.csv")] == ["finished"] * 4


def test_the_summary_is_rebuilt_from_the_folders(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(world, tmp_path / "sweep", *GRID)
    written = (tmp_path / "sweep" / "summary.csv").read_text("utf-8")
    (tmp_path / "sweep" / "summary.csv").unlink()
    (tmp_path / "sweep" / "sweep.json").unlink()
    capsys.readouterr()
    assert cli.main(["summary", str(tmp_path / "sweep")]) == 0
    said = capsys.readouterr().out
    assert "4 finished" in said
    spent = [stage["seconds"] for result in results(tmp_path / "sweep").values() for stage in result["stages"]]
    assert f"spent {sum(spent):.1f} s" in said
    assert (tmp_path / "sweep" / "summary.csv").read_text("utf-8") == written
    told = rows(tmp_path / "sweep" / "summary.csv")
    assert [(row["prompts_per_class"], row["scales"]) for row in told] == [
        ("1", "single"), ("1", "multi"), ("2", "single"), ("2", "multi")
    ]  # fmt: skip
    for row, result in zip(told, results(tmp_path / "sweep").values(), strict=True):
        assert float(row["top1"]) == pytest.approx(result["metrics"]["top1"], abs=1e-6)
    judge(world, tmp_path / "alone" / "0", "prompts_per_class=1")
    for place in ("nothing", "alone"):
        assert cli.main(["summary", str(tmp_path / place)]) == 1
        assert "holds no sweep" in capsys.readouterr().err


def test_two_devices_run_this_jobs_config_in_every_job(world: World, tmp_path: Path) -> None:
    """Lightning starts the other devices as `sys.argv`, which in a sweep is the whole sweep."""
    two = ["trainer.devices=2", "trainer.strategy=ddp"]
    command = [
        sys.executable, "evaluate.py", *world.evaluating(), *two, f"hydra.sweep.dir={tmp_path / 'sweep'}",
        "prompts_per_class=1,2", "scales=single", "-m",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("method ") == 2, "a table a job, not one a process"
    for name, found in results(tmp_path / "sweep").items():
        alone = judge(world, tmp_path / f"alone {name}", f"prompts_per_class={int(name) + 1}")
        assert (found["metrics"], found["beside"]) == (alone["metrics"], alone["beside"])


def test_devices_with_different_configs_all_stop(world: World, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [*world.evaluating(), "trainer.devices=2", "trainer.strategy=ddp", f"hydra.run.dir={tmp_path / 'run'}"]
    group = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "evaluate.py", *arguments, f"prompts_per_class={rank + 1}"],
            cwd=ROOT, env={**group, "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        _, said = process.communicate(timeout=100)
        assert process.returncode == 1, said
        assert "error: processes [1] of 2 have another config than process 0" in said
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_key_of_a_run_is_of_its_whole_config() -> None:
    given = OmegaConf.create({"seed": 0, "rerun": False, "encoder": {"model": "a"}})
    key = run_key(given)
    assert key == run_key(OmegaConf.create({"encoder": {"model": "a"}, "rerun": True, "seed": 0}))
    assert key != run_key(OmegaConf.create({"encoder": {"model": "b"}, "rerun": False, "seed": 0}))
    assert key != run_key(OmegaConf.create({**given, "more": None}))


def test_the_objective_can_be_of_synthetic_images_alone(world: World, tmp_path: Path) -> None:
    chosen = ["calibration=leave_one_out", "objective=leave_one_out"]
    result = judge(world, tmp_path / "run", *chosen)
    cfg = OmegaConf.create({"objective": "leave_one_out"})
    assert sweeps.objective(cfg, result) == result["judged_by"]["lgclip"]["leave_one_out"]
    assert made(result)["images"] == 0
