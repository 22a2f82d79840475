"""Tests whole runs with `executor=ray`: the files of one process, policies for bad images, signals, errors."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from factories import Sandbox, evaluate_run, make_encoder, read_store, run_command
from multiprocess_runs import QUIET_ENVIRONMENT, RUN_FIELDS, read_features
from ray_clusters import SETTINGS, LocalCluster, ray_environment

from lgclip.datasets.embedded import Shapes
from lgclip.encoder.precision import decided
from lgclip.stages import ray_cluster
from lgclip.stages.ray_cluster import probe, software_versions
from lgclip.stages.ray_executor import RayExecutor

pytest_plugins = ("run_fixtures",)
ROOT = Path(__file__).parents[2]
RAY = pytest.mark.filterwarnings("ignore::ResourceWarning")
CLASSES = (0, 7, 19)
PER_CLASS = 7


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """Starts a cluster of two workers, and returns its address."""
    with ray_environment(SETTINGS):
        cluster = LocalCluster(nodes=2)
        try:
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture
def on_ray(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns the overrides of a run on the cluster, with small shards."""
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    return ["executor=ray", "executor.shard=4"]


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates a folder of images of three classes of the small world; one of the images is cut."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), "test")


def make_shapes(root: Path, split: str) -> Path:
    data = Shapes(split=split)
    for label in CLASSES:
        folder = root / data.class_names[label].replace(" ", "_")
        folder.mkdir(parents=True)
        places = [place for place, other in enumerate(data.labels) if other == label][:PER_CLASS]
        for place in places:
            data.image(place).save(folder / f"{place}.png")
    damaged = max(root.rglob("*.png"))
    damaged.write_bytes(damaged.read_bytes()[:200])
    return root


def images_in(store: Path) -> dict[str, bytes]:
    """Returns the images of a store by name, from files and shards: the names of shards are random."""
    images = {name.rpartition("/")[2]: data for name, data in read_store(store).items() if name.endswith(".png")}
    for shard in store.glob("images/*/shards/*.tar"):
        with tarfile.open(shard) as file:
            for member in file.getmembers():
                content = file.extractfile(member)
                assert content is not None
                assert member.name not in images
                images[member.name] = content.read()
    return images


def files_of(store: Path) -> dict[str, bytes]:
    """Returns the files of a store, without measured times and shards."""
    names = ("towers.json", ".tar", "manifest.json")
    return {
        name: data for name, data in read_store(store).items() if not name.endswith(names) and "/shards/" not in name
    }


def results_of(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in RUN_FIELDS}


def counts_of(result: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(stage["stage"], stage["computed"], stage["reused"]) for stage in result["stages"]]


@RAY
@pytest.mark.slow
@pytest.mark.multiprocess
def test_run_gives_the_files_of_one_process(on_ray: list[str], shapes_folder: Path, tmp_path: Path) -> None:
    """Compares prompts of the small language model, images, features, and an image that cannot be read."""
    run = [
        "dataset=folder", f"dataset.root={shapes_folder}", "prompts_per_class=3", "images_per_prompt=2",
        "diffuser.steps=2", "on_bad_image=skip", "logger=none", "trainer.accelerator=cpu",
    ]  # fmt: skip
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    first = evaluate_run(run, tmp_path / "run", f"paths.store={alone}")
    second = evaluate_run(run, tmp_path / "ray", f"paths.store={shared}", *on_ray)
    assert files_of(shared) == files_of(alone)
    assert len(images_in(shared)) == 18
    assert results_of(second) == results_of(first)
    assert len(first["skipped"]) == 1
    assert counts_of(second) == counts_of(first)
    stages = {stage["stage"]: stage for stage in second["stages"]}
    # Eighteen images are one pass, which one worker makes.
    assert (stages["images"]["device"], stages["images"]["devices"]) == ("cpu", 1)
    known = {stage["stage"]: stage["tokens"] for stage in first["stages"]}
    assert stages["prompts"]["tokens"] == known["prompts"]
    # The same command again computes nothing, and needs no cluster.
    os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
    third = evaluate_run(run, tmp_path / "again", f"paths.store={shared}", *on_ray)
    assert [computed for _, computed, _ in counts_of(third)[:-1]] == [0, 0, 0]


@RAY
@pytest.mark.slow
@pytest.mark.multiprocess
def test_captions_and_shards_are_those_of_one_process(
    on_ray: list[str], shapes_folder: Path, empty_sandbox: Sandbox, tmp_path: Path
) -> None:
    train = make_shapes(tmp_path / "train", "train")
    run = [
        "dataset=folder", f"dataset.root={shapes_folder}", f"dataset.train_root={train}", "llm=tiny_captioner",
        "prompts_per_class=7", "on_bad_image=skip", f"diffuser.model={empty_sandbox.diffuser}", "diffuser.size=32",
        "diffuser.steps=2", "trainer.accelerator=cpu", "paths.images=tar", "workers=1",
    ]  # fmt: skip
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    run_command("generate", *run, f"paths.store={alone}", f"hydra.run.dir={tmp_path / 'run'}", "workers=0")
    run_command("generate", *run, f"paths.store={shared}", f"hydra.run.dir={tmp_path / 'ray'}", *on_ray)
    captions = {name for name in files_of(alone) if name.startswith("captions/")}
    assert captions
    assert files_of(shared) == files_of(alone)
    assert images_in(shared) == images_in(alone)
    assert len(images_in(alone)) == 2 * (3 * PER_CLASS - 1)
    assert (next(shared.glob("images/*/shards")) / "manifest.json").exists()
    assert all(shard.with_suffix(".safetensors").exists() for shard in shared.glob("images/*/shards/*.tar"))


@RAY
@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(("image_format", "suffix"), [("png", ".png"), ("jpeg-95", ".jpg")])
def test_images_that_are_not_stored_have_the_features_of_one_process(
    image_format: str, suffix: str, on_ray: list[str], empty_sandbox: Sandbox, tmp_path: Path
) -> None:
    stores = {"alone": [], "shared": [*on_ray, "rerun=true"]}
    results = {}
    for name, overrides in stores.items():
        sandbox = replace(empty_sandbox, store=tmp_path / name)
        sizes = ["paths.images=sheet", "images_per_prompt=3", "diffuser.batch_size=2", "encoder.batch_size=4"]
        sizes.append(f"diffuser.image_format={image_format}")
        results[name] = evaluate_run(sandbox, tmp_path / f"{name}_run", *sizes, *overrides)
    assert files_of(tmp_path / "shared") == files_of(tmp_path / "alone")
    thumbnails = images_in(tmp_path / "alone")
    assert len(thumbnails) == 2 * 3 * 4, "an image and its inputs"
    assert {Path(name).suffix for name in thumbnails} == {".json", suffix}
    assert images_in(tmp_path / "shared") == thumbnails
    assert results["shared"]["metrics"] == results["alone"]["metrics"]
    assert counts_of(results["shared"]) == counts_of(results["alone"])


@RAY
@pytest.mark.slow
@pytest.mark.multiprocess
def test_unreadable_image_is_an_error_after_all_others(on_ray: list[str], shapes_folder: Path, tmp_path: Path) -> None:
    run = [
        "dataset=folder", f"dataset.root={shapes_folder}", "method=clip_text", "logger=none", "trainer.accelerator=cpu",
        f"encoder.model={make_encoder(tmp_path / 'encoder')}", "scales=multi",
    ]  # fmt: skip
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    with pytest.raises(SystemExit):
        evaluate_run(run, tmp_path / "run", *on_ray, f"paths.store={shared}")
    result = evaluate_run(run, tmp_path / "again", *on_ray, "on_bad_image=skip", f"paths.store={shared}")
    assert len(result["skipped"]) == 1
    assert [computed for _, computed, _ in counts_of(result)[:-1]] == [0]
    # With several views an image, files end elsewhere, but each feature has the same bytes.
    evaluate_run(run, tmp_path / "local", "on_bad_image=skip", f"paths.store={alone}")
    features = read_features(alone)
    stored = read_features(shared)
    assert stored.keys() == features.keys()
    for key, vectors in features.items():
        assert stored[key].keys() == vectors.keys()
        assert all(torch.equal(stored[key][name], vector) for name, vector in vectors.items())


@RAY
@pytest.mark.slow
@pytest.mark.multiprocess
def test_model_that_differs_on_the_cluster_is_an_error(
    on_ray: list[str], fresh_sandbox: Sandbox, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    # As on a machine of other hardware: the workers have the precision of the processor, this process another.
    monkeypatch.setattr("lgclip.diffuser.pipeline.decided", lambda precision: "bf16")
    monkeypatch.setattr("lgclip.encoder.precision.has_bf16_units", lambda: True)
    assert decided("auto") == "bf16"
    with pytest.raises(SystemExit):
        run_command("generate", *fresh_sandbox.generate_overrides(), f"hydra.run.dir={tmp_path / 'run'}", *on_ray)
    assert "set precision=fp32 or bf16" in " ".join(capfd.readouterr().err.split())
    assert not images_in(fresh_sandbox.store)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Creates a folder whose path is short enough for the names of sockets."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_interrupt_stops_run_and_cluster_and_the_next_run_goes_on(
    fresh_sandbox: Sandbox, short_folder: Path, tmp_path: Path
) -> None:
    """Runs as a user does on one machine: Ray is started, stopped by Ctrl-C with its processes, and started again."""
    command = [
        sys.executable, str(ROOT / "generate.py"), *fresh_sandbox.generate_overrides(), "executor=ray",
        "images_per_prompt=30", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    environment = {
        **os.environ, **QUIET_ENVIRONMENT, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(short_folder),
    }  # fmt: skip
    settings: dict[str, Any] = {
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }
    process = subprocess.Popen(command, start_new_session=True, **settings)
    deadline = time.monotonic() + 120
    while not images_in(fresh_sandbox.store) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 130, output
    assert "stopped by SIGINT; what is stored stays" in output
    before = images_in(fresh_sandbox.store)
    assert 0 < len(before) < 270
    completed = subprocess.run(command, timeout=240, check=False, **settings)
    assert completed.returncode == 0, completed.stdout
    assert "270 images of 3 classes" in completed.stdout
    after = images_in(fresh_sandbox.store)
    assert len(after) == 270
    assert before.items() <= after.items()
    # Nothing of Ray is left, and it printed nothing.
    assert processes_of(short_folder) == []
    assert "ray" not in completed.stdout.replace(str(tmp_path), "")


def processes_of(folder: Path) -> list[str]:
    """Returns the command lines of the processes that use a folder of Ray."""
    deadline = time.monotonic() + 10
    while True:
        lines = [
            command.replace(b"\0", b" ").decode()
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if str(folder).encode() in (command := read_command(path))
        ]
        if not lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.2)


def read_command(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_ray_is_imported_where_it_starts() -> None:
    modules = "lgclip.experiment, lgclip.stages.ray_executor, lgclip.stages.ray_worker"
    code = f"import sys, {modules}; assert 'lightning' in sys.modules; assert 'ray' not in sys.modules"
    environment = {**os.environ, **QUIET_ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def error_of(capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    with pytest.raises(SystemExit):
        run_command("generate", *overrides)
    return " ".join(capsys.readouterr().err.split())


def test_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    message = error_of(capsys, "executor=ray", f"hydra.run.dir={tmp_path}")
    assert "executor=ray: Ray is not installed: pip install 'lgclip[ray]', or use executor=local" in message


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("trainer=ddp", "trainer.strategy=ddp"),
        ("trainer=multi_node", "trainer.strategy=ddp"),
        ("trainer.devices=4", "trainer.devices=4"),
        ("trainer.devices=[0,1]", "trainer.devices=[0, 1]"),
    ],
)
def test_several_processes_of_the_trainer_are_an_error(
    override: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = error_of(capsys, "executor=ray", override, f"hydra.run.dir={tmp_path}")
    assert f"executor=ray and {named}: Ray distributes the stages" in message


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "executor=ray: no cluster at RAY_ADDRESS=127.0.0.1:1 (ConnectionRefusedError"),
        ("ray://127.0.0.1:10001", "RAY_ADDRESS=ray://127.0.0.1:10001: a run is a driver of the cluster"),
    ],
)
def test_wrong_address_is_an_error_before_work(
    address: str,
    words: str,
    fresh_sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    overrides = [*fresh_sandbox.generate_overrides(), "executor=ray", f"hydra.run.dir={tmp_path / 'run'}"]
    assert words in error_of(capsys, *overrides)
    assert not read_store(fresh_sandbox.store)


def test_other_versions_and_unshared_stores_are_named(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    versions = software_versions()
    assert probe(versions, str(marker)) == ""
    assert "does not see the store; name a folder that all machines share" in probe(versions, str(tmp_path / "none"))
    message = probe({**versions, "lgclip": "0.0.1 (1.1.1)"}, str(marker))
    assert f"has lgclip {versions['lgclip']} and not 0.0.1 (1.1.1); install" in message


@pytest.mark.parametrize(("name", "value"), [("shard", 0), ("cpus", -1), ("gpus", -0.5), ("actors", 0)])
def test_impossible_settings_are_rejected(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"executor.{name}={value}: it must be at least"):
        RayExecutor(**{name: value})
