"""Tests complete runs with a store on S3: a second machine computes nothing, and faults change no byte."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import NAMES, FirstRun, Sandbox, computed_counts, evaluate_run, read_arrays, read_store
from object_stores import S3Server, cut_upload, on_machine, slow, unavailable
from run_comparison import results
from store_maintenance import files_of_kind

from lgclip.cli.store.inventory import Kind
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_classifier import classifier_of
from lgclip.reporting.run_folder import Run
from lgclip.store.root import root_of
from lgclip.store.shard_index import read_listing
from lgclip.training.student.train import StudentTraining

pytest_plugins = ("object_store_fixtures", "run_fixtures")
pytestmark = pytest.mark.usefixtures("own_caches")

URL = "s3://prototypes/team"
NOTHING = {"prompts": 0, "images": 0, "features": 0}


def remote_sandbox(sandbox: Sandbox) -> list[str]:
    """Returns the overrides of an evaluation whose store is on S3."""
    return [part for part in sandbox.evaluate_overrides() if not part.startswith("paths.store")] + [
        f"paths.store={URL}"
    ]


def generated(store: Path) -> dict[str, bytes]:
    """Returns the bytes of every image in a store by id."""
    content = {path.stem: path.read_bytes() for path in files_of_kind(store, Kind.IMAGE)}
    for shard in files_of_kind(store, Kind.SHARD):
        content |= {name: member.read_bytes() for name, _, member in read_listing(shard).members(shard)}
    return content


def others(store: Path) -> dict[str, bytes]:
    """Returns the entries of a store but its images, and what says how fast this machine is."""
    return {
        name: data
        for name, data in read_store(store).items()
        if not name.endswith((".png", ".tar", "towers.json")) and "/shards/" not in name
    }


@pytest.mark.slow
def test_second_machine_computes_nothing(
    s3: S3Server, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overrides = remote_sandbox(first_run.sandbox)
    result = evaluate_run(overrides, tmp_path / "run 1")
    assert result["config"]["paths"]["store"] == URL
    assert computed_counts(result) == computed_counts(first_run.result)
    store = root_of(URL)
    assert generated(store) == generated(first_run.sandbox.store)
    assert others(store) == others(first_run.sandbox.store)
    before = s3.objects()
    on_machine("second", monkeypatch, tmp_path)
    s3.requests.clear()
    again = evaluate_run(overrides, tmp_path / "run 2")
    assert computed_counts(again) == NOTHING
    assert results(tmp_path / "run 2") == results(tmp_path / "run 1")
    # Nothing is written, and the shard is downloaded for the contact sheet alone.
    assert s3.counts()["PUT"] == 0
    assert sum(request.endswith(".tar") for request in s3.requests) == 1
    assert s3.objects() == before
    # What is asked of a run afterwards finds its entries by the URL.
    on_machine("third", monkeypatch, tmp_path)
    restored = restore_run(Run.read(tmp_path / "run 2"))
    assert all(stream.missing() == [] for stream in restored.streams.values())
    run_command_of_store(tmp_path)


def run_command_of_store(tmp_path: Path) -> None:
    from lgclip.cli.main import main

    assert main(["store", "features", str(tmp_path / "run 2"), str(tmp_path / "features.npz")]) == 0
    assert read_arrays(tmp_path / "features.npz")


@pytest.mark.slow
def test_faults_change_no_byte(
    s3: S3Server, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.faults = [
        unavailable("LIST"),
        unavailable("PUT", "/prompts/"),
        cut_upload("/shards/"),
        slow("PUT", "/features/", seconds=0.3),
        unavailable("PUT", "/features/", code="ServiceUnavailable", status="503 Service Unavailable"),
    ]
    overrides = remote_sandbox(first_run.sandbox)
    result = evaluate_run(overrides, tmp_path / "run 1")
    assert s3.faults == []
    assert computed_counts(result) == computed_counts(first_run.result)
    on_machine("second", monkeypatch, tmp_path)
    s3.faults = [unavailable("GET", "/prompts/"), slow("GET", "/features/", seconds=0.3), unavailable("LIST", "")]
    again = evaluate_run(overrides, tmp_path / "run 2")
    assert s3.faults == []
    assert computed_counts(again) == NOTHING
    assert results(tmp_path / "run 2") == results(tmp_path / "run 1")
    assert others(root_of(URL)) == others(first_run.sandbox.store)


@pytest.mark.slow
def test_run_that_loses_its_store_goes_on_later(
    s3: S3Server,
    first_run: FirstRun,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    overrides = remote_sandbox(first_run.sandbox)
    refused = unavailable("PUT", "/shards/", code="AccessDenied", status="403 Forbidden")
    s3.faults = [refused, refused, refused]
    with pytest.raises(SystemExit):
        evaluate_run(overrides, tmp_path / "run")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: s3://prototypes/team: no rights to write to it")
    s3.faults = []
    # On the same machine nothing is made again; what it had kept is uploaded.
    result = evaluate_run(overrides, tmp_path / "run")
    assert computed_counts(result) == {**computed_counts(first_run.result), "prompts": 0, "images": 0}
    on_machine("second", monkeypatch, tmp_path)
    assert computed_counts(evaluate_run(overrides, tmp_path / "run 2")) == NOTHING


@pytest.mark.slow
def test_wrong_store_is_found_before_work(
    s3: S3Server, first_run: FirstRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = [part for part in first_run.sandbox.evaluate_overrides() if not part.startswith("paths.store")]

    def error_of(*overrides: str) -> str:
        with pytest.raises(SystemExit) as raised:
            evaluate_run(local, tmp_path / "run", *overrides)
        if isinstance(raised.value.code, str):
            return raised.value.code
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "there is no bucket 'absent'" in error_of("paths.store=s3://absent/team")
    message = "error: paths.images=files: an object store holds images in shards of 1,000"
    assert error_of(f"paths.store={URL}", "paths.images=files").startswith(message)
    s3.faults = [unavailable("PUT", ".writable", code="AccessDenied", status="403 Forbidden")]
    assert "no rights to write to it" in error_of(f"paths.store={URL}")
    assert s3.objects() == {}
    printed = error_of("paths.store=s3://user:verysecretvalue@prototypes/team")
    assert "paths.store" in printed
    assert "verysecretvalue" not in printed


@pytest.mark.slow
@pytest.mark.multiprocess
def test_repeated_run_connects_to_nothing(s3: S3Server, first_run: FirstRun, tmp_path: Path) -> None:
    overrides = [*remote_sandbox(first_run.sandbox), f"hydra.run.dir={tmp_path / 'run'}"]
    code = (
        "import sys; from lgclip.cli.main import evaluate; evaluate(); "
        "print([name for name in ('torch', 's3fs', 'fsspec', 'botocore') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *overrides]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    s3.requests.clear()
    completed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert completed.stdout.strip().splitlines()[-1] == "[]"
    assert s3.requests == []


@pytest.mark.slow
def test_training_goes_on_elsewhere(
    s3: S3Server, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overrides = [
        *remote_sandbox(first_run.sandbox), "method=student", "student.backbone=test_resnet", "student.image_size=32",
        "student.epochs=2", "student.batch_size=4", "student.select_on=last", "student.checkpoint_every=1",
    ]  # fmt: skip

    def lost(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StudentTraining, "save", lost)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            evaluate_run(overrides, tmp_path / "lost")
    assert [name for name in s3.objects("team/students") if name.endswith("/last.safetensors")]
    on_machine("second", monkeypatch, tmp_path)
    s3.requests.clear()
    result = evaluate_run(overrides, tmp_path / "run 1")
    assert [request for request in s3.requests if request.startswith("GET") and "/checkpoints/" in request]
    # The checkpoint has served, and the result is in its place.
    key = result["student"]["key"]
    assert sorted(s3.objects("team/students")) == [
        f"team/students/{key}/{n}" for n in ("model.safetensors", "student.json")
    ]
    on_machine("third", monkeypatch, tmp_path)
    again = evaluate_run(overrides, tmp_path / "run 2")
    assert set(computed_counts(again).values()) == {0}
    assert again["metrics"] == result["metrics"]
    on_machine("fourth", monkeypatch, tmp_path)
    assert classifier_of(tmp_path / "run 2").class_names == NAMES


@pytest.mark.slow
def test_store_of_the_environment_may_be_a_url(
    s3: S3Server, first_run: FirstRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LGCLIP_HOME", URL)
    sandbox = replace(first_run.sandbox, store=tmp_path / "unused")
    overrides = [part for part in sandbox.evaluate_overrides() if not part.startswith("paths.store")]
    result = evaluate_run(overrides, tmp_path / "run")
    assert result["config"]["paths"]["store"] == URL
    assert [name for name in s3.objects() if name.endswith(".tar")]
