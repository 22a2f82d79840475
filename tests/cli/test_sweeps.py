"""Tests that sweeps resume, lose no job, and run every job as it would run alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
from factories import Sandbox, computed_counts, evaluate_run, read_csv, read_tree, run_command
from omegaconf import OmegaConf

from lgclip.cli import main as cli
from lgclip.cli import sweeps
from lgclip.diffuser.pipeline import Diffuser
from lgclip.methods.zero_shot import ZeroShot
from lgclip.reporting.sweep_summary import summarize
from lgclip.runtime import versions
from lgclip.runtime.run_key import run_key
from lgclip.runtime.signals import Stopped

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]
GRID = ("prompts_per_class=1,2", "scales=single,multi")


def sweep(sandbox: Sandbox, folder: Path | None, *overrides: str) -> None:
    where = [] if folder is None else [f"hydra.sweep.dir={folder}"]
    run_command("evaluate", *sandbox.evaluate_overrides(), *where, *overrides, "-m")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the results of a sweep's jobs by folder name."""
    return {path.parent.name: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*/result.json"))}


@pytest.fixture
def nothing_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(self: ZeroShot) -> NoReturn:
        raise AssertionError("a job was run")

    monkeypatch.setattr(ZeroShot, "_fit", fit)


@pytest.mark.slow
def test_repeated_sweep_runs_nothing(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    sweep(sandbox, tmp_path / "sweep", *GRID)
    before = {name: data for name, data in read_tree(tmp_path / "sweep").items() if not name.endswith(".log")}
    assert len(results(tmp_path / "sweep")) == 4
    capsys.readouterr()
    request.getfixturevalue("nothing_is_judged")
    sweep(sandbox, tmp_path / "sweep", *GRID)
    stdout = capsys.readouterr().out
    assert "was started before: 4 of 4 jobs have a result" in stdout
    assert [f"job {n}: finished before" in stdout for n in range(4)] == [True] * 4
    assert "4 finished" in stdout
    after = {name: data for name, data in read_tree(tmp_path / "sweep").items() if not name.endswith(".log")}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {Path(name).name for name in changed} <= {"hydra.yaml", "multirun.yaml"}


@pytest.mark.slow
def test_repeated_sweep_finds_its_folder(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep(sandbox, None, "prompts_per_class=1,2", "scales=single")
    (folder,) = {path.parent for path in tmp_path.glob("multirun/*/*/sweep.json")}
    (folder / "1" / "result.json").unlink()
    time.sleep(1.1)  # a sweep's folder is named by the second
    sweep(sandbox, None, "prompts_per_class=1,2", "scales=single")
    assert results(folder).keys() == {"0", "1"}
    sweep(sandbox, None, "prompts_per_class=1,3", "scales=single")
    time.sleep(1.1)
    sweep(sandbox, None, "prompts_per_class=1,2", "scales=single", "rerun=true")
    assert len(list(tmp_path.glob("multirun/*/*/sweep.json"))) == 3, "another grid and a rerun have their own"


@pytest.mark.slow
def test_failed_job_alone_is_repeated(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        sweep(sandbox, tmp_path / "sweep", "scales=single", "prompts_per_class=1,0,2")
    assert str(end.value.code).startswith("error: 1 job failed")
    captured = capsys.readouterr()
    assert "job 1 failed: prompts_per_class=0: it must be an integer of at least 1" in captured.err
    assert results(tmp_path / "sweep").keys() == {"0", "2"}
    failed = json.loads((tmp_path / "sweep" / "1" / "failed.json").read_text("utf-8"))
    assert "prompts_per_class=0" in failed["overrides"]
    assert failed["error"].startswith("ValueError: prompts_per_class=0")
    assert "Traceback" in failed["trace"]
    table = read_csv(tmp_path / "sweep" / "summary.csv")
    assert [row["status"] for row in table] == ["finished", "failed", "finished"]
    assert table[1]["error"] == failed["error"]
    with pytest.raises(SystemExit):
        sweep(sandbox, tmp_path / "sweep", "scales=single", "prompts_per_class=1,0,2")
    captured = capsys.readouterr()
    assert "job 0: finished before" in captured.out
    assert "job 1 failed" in captured.err


def test_mistake_in_a_part_is_named_as_in_a_single_run(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "encoder.batch_size=0: it must be at least 1"
    with pytest.raises(SystemExit):
        sweep(sandbox, tmp_path / "sweep", "scales=single", "prompts_per_class=1", "encoder.batch_size=0")
    assert f"job 0 failed: {message}\n" in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "sweep" / "0" / "failed.json").read_text("utf-8"))["error"] == f"ValueError: {message}"
    )


def test_error_after_a_signal_is_no_failure(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks a job whose library turns the stop into an error, as when another device ends first."""

    def lose_device(self: Diffuser, device: object) -> NoReturn:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Stopped as error:
            raise RuntimeError("a device is lost") from error
        raise AssertionError("the signal was ignored")

    monkeypatch.setattr(Diffuser, "load", lose_device)
    with pytest.raises(SystemExit) as end:
        sweep(sandbox, tmp_path / "sweep", "scales=single", "prompts_per_class=5,6", f"paths.store={tmp_path / 'new'}")
    assert end.value.code == 128 + signal.SIGTERM
    assert not list((tmp_path / "sweep").rglob("failed.json"))


@pytest.mark.slow
def test_successful_retry_removes_the_failure(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks a job with an unchanged config that fails once, as after a power cut."""
    load = Diffuser.load

    def cut(self: Diffuser, device: object) -> NoReturn:
        raise RuntimeError("power cut")

    monkeypatch.setattr(Diffuser, "load", cut)
    with pytest.raises(SystemExit):
        sweep(sandbox, tmp_path / "sweep", "scales=single", "prompts_per_class=3,4")
    assert results(tmp_path / "sweep").keys() == {"0"}
    monkeypatch.setattr(Diffuser, "load", load)
    sweep(sandbox, tmp_path / "sweep", "scales=single", "prompts_per_class=3,4")
    assert results(tmp_path / "sweep").keys() == {"0", "1"}
    assert not list((tmp_path / "sweep").rglob("failed.json"))


@pytest.mark.slow
def test_glob_choices_form_a_sweep(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        sweep(sandbox, tmp_path / "sweep", "scales=glob(*, exclude=[multi,ten,official_code])", "prompts_per_class=1")
    assert len(results(tmp_path / "sweep")) == 2
    assert capsys.readouterr().out.count("finished before") == 2


def test_impossible_grid_values_are_rejected(sandbox: Sandbox, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        sweep(sandbox, tmp_path / "sweep", "seed=interval(0,1)")
    assert end.value.code == 1
    assert not (tmp_path / "sweep" / "sweep.json").exists()


@pytest.mark.slow
def test_rerun_repeats_finished_jobs(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(sandbox, tmp_path / "sweep", "prompts_per_class=1", "scales=single")
    first = results(tmp_path / "sweep")
    sweep(sandbox, tmp_path / "sweep", "prompts_per_class=1", "scales=single", "rerun=true")
    assert "finished before" not in capsys.readouterr().out
    again = results(tmp_path / "sweep")
    assert again["0"]["metrics"] == first["0"]["metrics"]
    assert again["0"]["run_key"] == first["0"]["run_key"], "that it is run again is no part of what it is"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["STORE_SCHEMA", "RESULT_SCHEMA", "CODE_VERSION"])
def test_changed_version_repeats_finished_jobs(
    version: str, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(sandbox, tmp_path / "sweep", "prompts_per_class=1", "scales=single")
    monkeypatch.setattr(versions, version, 1000)
    sweep(sandbox, tmp_path / "sweep", "prompts_per_class=1", "scales=single")
    assert "finished before" not in capsys.readouterr().out


@pytest.mark.slow
def test_other_sweep_in_the_same_folder_is_rejected(sandbox: Sandbox, tmp_path: Path) -> None:
    sweep(sandbox, tmp_path / "sweep", "prompts_per_class=1", "scales=single")
    before = read_tree(tmp_path / "sweep")
    with pytest.raises(SystemExit) as end:
        sweep(sandbox, tmp_path / "sweep", "prompts_per_class=2", "scales=single")
    assert "holds another sweep, of 1 jobs" in str(end.value.code)
    assert read_tree(tmp_path / "sweep") == before


@pytest.mark.multiprocess
def test_killed_sweep_resumes_with_the_next_job(sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [
        sys.executable,
        "evaluate.py",
        *sandbox.evaluate_overrides(),
        f"hydra.sweep.dir={folder}",
        "prompts_per_class=1,2,3,4",
        "scales=single",
        "-m",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not (folder / "1" / "result.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {name: data for name, data in read_tree(folder).items() if name.endswith("result.json")}
    assert 2 <= len(finished) < 4
    text, failed = summarize(folder)
    assert "unfinished" in text
    assert failed == 0
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert results(folder).keys() == {"0", "1", "2", "3"}
    after = read_tree(folder)
    assert {name: after[name] for name in finished} == finished, "what was finished was not touched"
    assert [row["status"] for row in read_csv(folder / "summary.csv")] == ["finished"] * 4


@pytest.mark.slow
def test_summary_is_rebuilt_from_folders(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(sandbox, tmp_path / "sweep", *GRID)
    written = (tmp_path / "sweep" / "summary.csv").read_text("utf-8")
    (tmp_path / "sweep" / "summary.csv").unlink()
    (tmp_path / "sweep" / "sweep.json").unlink()
    capsys.readouterr()
    message, failed = summarize(tmp_path / "sweep")
    assert "4 finished" in message
    assert failed == 0
    spent = [stage["seconds"] for result in results(tmp_path / "sweep").values() for stage in result["stages"]]
    assert f"spent {sum(spent):.1f} s" in message
    assert cli.main(["compare", str(tmp_path / "sweep"), "--by", "prompts_per_class", "--columns", "scales"]) == 0
    assert f"spent {sum(spent):.1f} s" in capsys.readouterr().out
    assert (tmp_path / "sweep" / "summary.csv").read_text("utf-8") == written
    table = read_csv(tmp_path / "sweep" / "summary.csv")
    assert [(row["prompts_per_class"], row["scales"]) for row in table] == [
        ("1", "single"), ("1", "multi"), ("2", "single"), ("2", "multi")
    ]  # fmt: skip
    for row, result in zip(table, results(tmp_path / "sweep").values(), strict=True):
        assert float(row["top1"]) == pytest.approx(result["metrics"]["top1"], abs=1e-6)
    evaluate_run(sandbox, tmp_path / "alone" / "0", "prompts_per_class=1")
    for place in ("nothing", "alone"):
        with pytest.raises(ValueError, match="holds no sweep"):
            summarize(tmp_path / place)


@pytest.mark.multiprocess
def test_devices_of_a_job_share_its_config(sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks that processes that Lightning starts from `sys.argv`, here the entire sweep, run this job's config."""
    two = ["trainer.devices=2", "trainer.strategy=ddp"]
    command = [
        sys.executable, "evaluate.py", *sandbox.evaluate_overrides(), *two, f"hydra.sweep.dir={tmp_path / 'sweep'}",
        "prompts_per_class=1,2", "scales=single", "-m",
    ]  # fmt: skip
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.count("method ") == 2, "a table a job, not one a process"
    for name, result in results(tmp_path / "sweep").items():
        alone = evaluate_run(sandbox, tmp_path / f"alone {name}", f"prompts_per_class={int(name) + 1}")
        assert (result["metrics"], result["baselines"]) == (alone["metrics"], alone["baselines"])


@pytest.mark.multiprocess
def test_devices_with_different_configs_stop(sandbox: Sandbox, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    arguments = [
        *sandbox.evaluate_overrides(),
        "trainer.devices=2",
        "trainer.strategy=ddp",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    group = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "evaluate.py", *arguments, f"prompts_per_class={rank + 1}"],
            cwd=ROOT, env={**group, "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in processes:
        _, output = process.communicate(timeout=300)
        assert process.returncode == 1, output
        assert "error: processes [1] of 2 have another config than process 0" in output
    assert not (tmp_path / "run" / "result.json").exists()


def test_run_key_covers_what_a_result_depends_on() -> None:
    kwargs = OmegaConf.create({"workers": 0, "seed": 0, "rerun": False, "encoder": {"model": "a"}})
    key = run_key(kwargs)
    assert key == run_key(OmegaConf.create({"encoder": {"model": "a"}, "rerun": True, "seed": 0}))
    assert key == run_key(OmegaConf.create({**kwargs, "workers": "auto"}))
    assert key != run_key(OmegaConf.create({"encoder": {"model": "b"}, "rerun": False, "seed": 0}))
    assert key != run_key(OmegaConf.create({**kwargs, "more": None}))


def test_changed_docstring_repeats_nothing(tmp_path: Path) -> None:
    """Compares the run key of the package with that of a copy with another docstring in every module."""
    copy = shutil.copytree(
        ROOT / "lgclip", tmp_path / "copy" / "lgclip", ignore=shutil.ignore_patterns("weights", "__pycache__")
    )
    changed = 0
    for path in copy.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"""', '"""Corrected. ', 1), encoding="utf-8")
        changed += '"""' in text
    assert changed > 100
    compute = (
        "from omegaconf import OmegaConf; import lgclip; from lgclip.runtime.run_key import run_key; "
        "print(lgclip.__file__, run_key(OmegaConf.create({'seed': 0})))"
    )
    files = set()
    keys = set()
    for folder in (ROOT, copy.parent):
        completed = subprocess.run(
            [sys.executable, "-c", compute], cwd=folder, capture_output=True, text=True, check=True
        )
        file, key = completed.stdout.split()
        files.add(file)
        keys.add(key)
    assert len(files) == 2
    assert len(keys) == 1


def test_objective_can_use_synthetic_images_only(sandbox: Sandbox, tmp_path: Path) -> None:
    chosen = ["calibration=leave_one_out", "objective=leave_one_out"]
    result = evaluate_run(sandbox, tmp_path / "run", *chosen)
    cfg = OmegaConf.create({"objective": "leave_one_out"})
    assert sweeps.objective(cfg, result) == result["predictor"]["lgclip"]["leave_one_out"]
    assert computed_counts(result)["images"] == 0
