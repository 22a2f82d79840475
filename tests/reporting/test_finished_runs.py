"""Tests that the same command copies its finished run where nothing has changed, and computes where anything has."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from factories import FirstRun, Sandbox, evaluate_run, read_tree, run_command

from lgclip.cli.store.gc import collect
from lgclip.cli.store.inventory import amount
from lgclip.experiment import Experiment
from lgclip.reporting import finished_runs
from lgclip.runtime import hub

pytestmark = pytest.mark.slow

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]
HEAVY = (
    "torch", "lightning", "open_clip", "timm", "diffusers", "transformers", "torchvision", "torchmetrics.functional",
    "matplotlib", "wandb", "scipy.signal",
)  # fmt: skip


def computes(sandbox: Sandbox, folder: Path, *overrides: str) -> bool:
    """Runs `evaluate.py`, and returns whether it evaluated anything."""
    count = 0
    evaluate = Experiment.evaluate

    def counted(self: Experiment, logger: object = False) -> object:
        nonlocal count
        count += 1
        return evaluate(self, logger)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Experiment, "evaluate", counted)
        evaluate_run(sandbox, folder, "rerun=false", *overrides)
    return count > 0


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def finished(sandbox: Sandbox, tmp_path: Path) -> Path:
    """Returns the folder of a finished run whose store and images are this test's own."""
    shutil.copytree(sandbox.synthetic_images, tmp_path / "images")
    assert computes(sandbox, tmp_path / "finished", f"dataset.root={tmp_path / 'images'}")
    return tmp_path / "finished"


def repeats(sandbox: Sandbox, finished: Path, *overrides: str) -> bool:
    """Returns whether the command of a finished run copies it."""
    root = finished.parent
    return not computes(sandbox, root / "again", f"dataset.root={root / 'images'}", *overrides)


def test_same_command_copies_its_run(sandbox: Sandbox, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert repeats(sandbox, finished)
    again = finished.parent / "again"
    first, second = (
        {name: data for name, data in read_tree(folder).items() if not name.startswith(".hydra")}
        for folder in (finished, again)
    )
    assert first == second
    assert {"result.json", "predictions.csv", "prototypes.png"} <= set(second)
    output = capsys.readouterr().out
    assert "top-1" in output
    assert f"{again}\nnothing has changed since {finished}: its result; rerun=true computes it again" in output
    assert f"lgclip report {again}" in output


def test_own_folder_is_not_copied(sandbox: Sandbox, finished: Path) -> None:
    before = read_tree(finished)
    assert not computes(sandbox, finished, f"dataset.root={finished.parent / 'images'}")
    assert read_tree(finished) == before


def test_rerun_computes(sandbox: Sandbox, finished: Path) -> None:
    assert not repeats(sandbox, finished, "rerun=true")


def _change_pixel(finished: Path, sandbox: Sandbox) -> None:
    image = next((finished.parent / "images").rglob("*.png"))
    stat = image.stat()
    other = next(path for path in (finished.parent / "images").rglob("*.png") if path.parent != image.parent)
    image.write_bytes(other.read_bytes())
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a program does that restores times


def _add_image(finished: Path, sandbox: Sandbox) -> None:
    image = next((finished.parent / "images").rglob("*.png"))
    shutil.copy(image, image.with_name("another.png"))


def _remove_features(finished: Path, sandbox: Sandbox) -> None:
    next(sandbox.store.glob("features/*/*/*.safetensors")).unlink()


def _remove_image(finished: Path, sandbox: Sandbox) -> None:
    next(sandbox.store.glob("images/*/*/*.png")).unlink()


def _change_result(finished: Path, sandbox: Sandbox) -> None:
    path = finished / "predictions.csv"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")


def _remove_run(finished: Path, sandbox: Sandbox) -> None:
    shutil.rmtree(finished)


def _damage_record(finished: Path, sandbox: Sandbox) -> None:
    (record,) = [
        path
        for path in (finished.parent / "cache" / "lgclip-runs").glob("*.json")
        if json.loads(path.read_text(encoding="utf-8"))["folder"] == str(finished)
    ]
    record.write_text("{", encoding="utf-8")


@pytest.mark.parametrize(
    "change",
    [_change_pixel, _add_image, _remove_features, _remove_image, _change_result, _remove_run, _damage_record],
)
def test_changed_input_computes(change: Callable[[Path, Sandbox], None], sandbox: Sandbox, finished: Path) -> None:
    change(finished, sandbox)
    assert not repeats(sandbox, finished)
    # The run is remembered as it is now.
    assert repeats(sandbox, finished)


def test_records_of_deleted_runs_are_garbage(sandbox: Sandbox, finished: Path) -> None:
    records = finished.parent / "cache" / "lgclip-runs"
    assert computes(sandbox, finished.parent / "other", f"dataset.root={finished.parent / 'images'}", "seed=1")
    assert len(list(records.glob("*.json"))) == 2
    # A record that cannot be read belongs to nobody knows which run.
    (records / "damaged.json").write_text("{", encoding="utf-8")
    shutil.rmtree(finished)
    size = next(path for path in finished_runs.lapsed_records()).stat().st_size
    (line, total) = list(collect(sandbox.store))
    assert line == f"{records}: {amount(1, size)}, records of runs that are gone; --yes deletes them"
    assert total == f"{sandbox.store}: {amount(0, 0)} would go"
    assert len(list(records.glob("*.json"))) == 3
    list(collect(sandbox.store, yes=True))
    assert len(list(records.glob("*.json"))) == 2
    assert not computes(sandbox, finished.parent / "again", f"dataset.root={finished.parent / 'images'}", "seed=1")


@pytest.mark.parametrize("override", ["seed=1", "prototype=knn", "prompts_per_class=2", "logger=csv"])
def test_other_config_computes(override: str, sandbox: Sandbox, finished: Path) -> None:
    assert not repeats(sandbox, finished, override)


@pytest.mark.parametrize("override", ["workers=1", "workers=auto"])
def test_number_of_workers_is_no_other_config(override: str, sandbox: Sandbox, finished: Path) -> None:
    assert repeats(sandbox, finished, override)


def test_changed_weights_compute(sandbox: Sandbox, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "encoder"
    shutil.copytree(sandbox.encoder, copy)
    assert not repeats(sandbox, finished, f"encoder.model={copy}"), "another path is another config"
    assert repeats(sandbox, finished, f"encoder.model={copy}")
    config = copy / "open_clip_config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    assert not repeats(sandbox, finished, f"encoder.model={copy}")


def test_changed_program_computes(sandbox: Sandbox, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repeats(sandbox, finished)
    monkeypatch.setenv("LGCLIP_MAX_IMAGE_PIXELS", "1000000")
    assert not repeats(sandbox, finished)


def test_installed_package_is_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = finished_runs._program()
    assert finished_runs._program() == before
    (tmp_path / "newer-2.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert finished_runs._program() != before


def test_moved_branch_computes(sandbox: Sandbox, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model by a branch: its commit is asked for again, as a run itself does."""
    monkeypatch.setattr(hub, "_ANSWERS", {("owner/name", "main", "model"): "a" * 40})
    commits = {"owner/name": "a" * 40}
    monkeypatch.setattr(hub, "commit_of", lambda repo, revision, kind: commits[repo])
    assert not repeats(sandbox, finished, "rerun=true")
    assert repeats(sandbox, finished)
    commits["owner/name"] = "b" * 40
    assert not repeats(sandbox, finished)


def test_unreachable_hub_computes(sandbox: Sandbox, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> NoReturn:
        raise hub.HubError("no network")

    monkeypatch.setattr(hub, "_ANSWERS", {("owner/name", "main", "model"): "a" * 40})
    assert not repeats(sandbox, finished, "rerun=true")
    monkeypatch.setattr(hub, "commit_of", unreachable)
    assert not repeats(sandbox, finished)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_several_processes_compute(
    name: str, sandbox: Sandbox, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process may see the record of a run that another does not see yet."""
    monkeypatch.setenv(name, "2")
    monkeypatch.setattr(Experiment, "_setup", property(lambda _: (_ for _ in ()).throw(ValueError("computes"))))
    with pytest.raises(ValueError, match="computes"):
        repeats(sandbox, finished)


def test_warnings_are_repeated(sandbox: Sandbox, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("method=clip_text", "diffuser.steps=3")
    assert not repeats(sandbox, finished, *overrides)
    assert not computes(sandbox, finished.parent / "third", f"dataset.root={finished.parent / 'images'}", *overrides)
    assert "no effect on method=clip_text" in capsys.readouterr().err


def test_other_files_in_the_folder_are_not_copied(sandbox: Sandbox, tmp_path: Path) -> None:
    """A run's folder may hold notes, and folders of other runs; only what a run has written is copied."""
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "notes.txt").write_text("mine", encoding="utf-8")
    assert computes(sandbox, outer, "seed=3")
    assert computes(sandbox, outer / "inner", "seed=4")
    assert not computes(sandbox, outer / "again", "seed=3")
    copied = {name for name in read_tree(outer / "again") if not name.startswith(".hydra")}
    assert copied == {
        "result.json",
        "per_class.csv",
        "predictions.csv",
        "diagnostics.csv",
        "prototypes.png",
        "evaluate.log",
    }
    # Another run lies in the folder by now, and its images in the same folder of the store.
    assert not computes(sandbox, outer, "seed=3")


def test_warnings_of_other_runs_stay_theirs(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shared"
    assert computes(sandbox, folder, "method=clip_text", "diffuser.steps=3")
    assert computes(sandbox, folder)
    capsys.readouterr()
    assert not computes(sandbox, tmp_path / "again")
    assert "no effect" not in capsys.readouterr().err


def test_too_many_files_compute(sandbox: Sandbox, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished_runs, "_MAX_FILES", 3)
    assert not repeats(sandbox, finished, "seed=1"), "it has nine images"
    assert not repeats(sandbox, finished, "seed=1")


def test_read_only_cache_is_no_error(sandbox: Sandbox, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError("read-only")

    monkeypatch.setattr(finished_runs, "write_json", refuse)
    assert not repeats(sandbox, finished, "seed=1", "rerun=true")
    assert (finished.parent / "again" / "result.json").is_file()


def test_job_of_a_sweep_keeps_its_place(sandbox: Sandbox, finished: Path, tmp_path: Path) -> None:
    root = finished.parent
    sweep = tmp_path / "sweep"
    evaluate = [
        *sandbox.evaluate_overrides(), f"dataset.root={root / 'images'}", f"hydra.sweep.dir={sweep}",
        "hydra.sweeper.params=null", "prompts_per_class=2,3", "-m",
    ]  # fmt: skip
    run_command("evaluate", *evaluate)
    result = json.loads((sweep / "1" / "result.json").read_text(encoding="utf-8"))
    assert result["sweep"]["job"] == 1
    first = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert first["sweep"] is None
    assert {**result, "sweep": None} == first, "the job with three prompts is the run before, copied"


def _script(code: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import json, runpy, sys\n"
        f"sys.argv = ['evaluate.py', *{list(overrides)!r}]\n"
        f"runpy.run_path({str(ROOT / 'evaluate.py')!r}, run_name='__main__')\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\n"
    )
    return subprocess.run([sys.executable, "-c", code + program], capture_output=True, text=True, check=True)


def test_repeated_run_imports_nothing_heavy(first_run: FirstRun, tmp_path: Path) -> None:
    overrides = (*first_run.sandbox.evaluate_overrides(), f"hydra.run.dir={tmp_path / 'run'}")
    # A computed run whose results are stored needs neither models nor pictures. matplotlib is torchmetrics' own.
    computed = _script("", *overrides, "rerun=true")
    assert set(json.loads(computed.stdout.splitlines()[-1])) <= {"torch", "lightning", "matplotlib"}
    repeated = _script("", *overrides, f"hydra.run.dir={tmp_path / 'again'}", "rerun=false")
    assert "nothing has changed since" in repeated.stdout
    assert json.loads(repeated.stdout.splitlines()[-1]) == []


def test_first_line_comes_before_hydra_composes(first_run: FirstRun, tmp_path: Path) -> None:
    """On a terminal, a line says what is loaded; in a file there is none."""
    import pty

    overrides = (*first_run.sandbox.evaluate_overrides(), f"hydra.run.dir={tmp_path / 'run'}")
    command = [sys.executable, str(ROOT / "evaluate.py"), *overrides]
    assert "loading" not in subprocess.run(command, capture_output=True, text=True, check=True).stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert os.read(ours, 4096).startswith(b"loading the config and the data set")
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait() == 0
    os.close(ours)
