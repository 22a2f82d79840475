"""Tests runs that encode images as they are generated and do not store them (`paths.images=none` and `sheet`)."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import FirstRun, Sandbox, computed_counts, evaluate_run, run_command
from PIL import Image
from run_comparison import assert_same_run
from store_maintenance import files_of_kind, make_older

from lgclip.cli.main import main
from lgclip.cli.store.gc import collect
from lgclip.cli.store.inventory import Kind
from lgclip.cli.store.verify import verify
from lgclip.diffuser.base import GeneratedBatch
from lgclip.diffuser.sampling_loop import SamplingPipeline
from lgclip.reporting.dashboard.page import write_page
from lgclip.reporting.leakage_audit import audit, audit_text
from lgclip.reporting.run_folder import Run
from lgclip.store.shard_index import read_listing
from lgclip.types import Fault, Prompt

pytestmark = pytest.mark.slow

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]
NOTHING = {"prompts": 0, "images": 0, "features": 0}


@pytest.fixture(scope="module")
def discarded_once(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """Runs the first run's command with `paths.images=none`, in an empty store."""
    folder = tmp_path_factory.mktemp("discarded")
    sandbox = replace(first_run.sandbox, store=folder / "store")
    return FirstRun(sandbox, folder / "run", evaluate_run(sandbox, folder / "run", "paths.images=none"))


@pytest.fixture(scope="module")
def sheet_once(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """Runs it with `paths.images=sheet`, and six images a class."""
    folder = tmp_path_factory.mktemp("sheet")
    sandbox = replace(first_run.sandbox, store=folder / "store")
    overrides = ("paths.images=sheet", "images_per_prompt=2")
    return FirstRun(sandbox, folder / "run", evaluate_run(sandbox, folder / "run", *overrides))


def test_features_equal_those_of_stored_images(discarded_once: FirstRun, first_run: FirstRun, tmp_path: Path) -> None:
    assert discarded_once.result["metrics"] == first_run.result["metrics"]
    assert computed_counts(discarded_once.result) == {**computed_counts(first_run.result), "features": 3 + 12}
    assert not files_of_kind(discarded_once.sandbox.store, Kind.IMAGE)
    assert not files_of_kind(discarded_once.sandbox.store, Kind.SHARD)
    assert_same_run(discarded_once.folder, first_run.folder, tmp_path)


def test_second_run_computes_nothing(discarded_once: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgclip.diffuser.pipeline.Diffuser.load", None)
    result = evaluate_run(discarded_once.sandbox, tmp_path / "run", "paths.images=none")
    assert computed_counts(result) == NOTHING
    assert result["metrics"] == discarded_once.result["metrics"]


def test_finished_run_is_copied(discarded_once: FirstRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*discarded_once.sandbox.evaluate_overrides(), "paths.images=none"]
    run_command("evaluate", *overrides, f"hydra.run.dir={tmp_path / 'first'}")
    capsys.readouterr()
    run_command("evaluate", *overrides, f"hydra.run.dir={tmp_path / 'second'}")
    assert "rerun=true" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [
        ("scales=multi", "diffuser.batch_size=3", "encoder.batch_size=4"),
        ("method=fusion", "selection=text", "scales=multi"),
        ("prompts_per_class=2", "images_per_prompt=3", "prompt_order_seed=1", "prompt_pool=3"),
    ],
)
def test_views_batches_and_selection(first_run: FirstRun, tmp_path: Path, overrides: Sequence[str]) -> None:
    for name in ("files", "none"):
        sandbox = replace(first_run.sandbox, store=tmp_path / name)
        evaluate_run(sandbox, tmp_path / f"{name}_run", f"paths.images={name}", *overrides)
    assert_same_run(tmp_path / "none_run", tmp_path / "files_run", tmp_path)


@pytest.mark.multiprocess
def test_two_processes_give_the_same_features(first_run: FirstRun, tmp_path: Path) -> None:
    for devices in (1, 2):
        store = tmp_path / f"store{devices}"
        overrides = replace(first_run.sandbox, store=store).evaluate_overrides()
        # 48 images: more than one group of 32 rows, of which each process gets some.
        sizes = ["prompts_per_class=4", "images_per_prompt=4", "diffuser.batch_size=4", "paths.images=sheet"]
        devices_overrides = [f"trainer.devices={devices}", "trainer=ddp", f"hydra.run.dir={tmp_path / str(devices)}"]
        command = [sys.executable, str(ROOT / "evaluate.py"), *overrides, *sizes, *devices_overrides]
        subprocess.run(command, check=True, timeout=300, capture_output=True)
    assert_same_run(tmp_path / "2", tmp_path / "1", tmp_path)


def test_stored_images_are_encoded_from_the_store(sandbox: Sandbox, tmp_path: Path) -> None:
    before = len(files_of_kind(sandbox.store, Kind.IMAGE))
    result = evaluate_run(sandbox, tmp_path / "run", "paths.images=none", "scales=multi", "prompts_per_class=4")
    assert computed_counts(result)["images"] == 3, "the nine of the first run are there"
    assert len(files_of_kind(sandbox.store, Kind.IMAGE)) == before
    evaluate_run(sandbox, tmp_path / "files", "scales=multi", "prompts_per_class=4")
    assert_same_run(tmp_path / "run", tmp_path / "files", tmp_path)


def test_interrupted_run_continues(first_run: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = replace(first_run.sandbox, store=tmp_path / "store")
    generate = SamplingPipeline.generate
    calls: list[str] = []

    def fail_later(self: SamplingPipeline, prompts: Sequence[Prompt], *rest: object) -> GeneratedBatch:
        calls.append(prompts[0].text)
        if len(calls) == 3:
            raise RuntimeError("the device is gone")
        return generate(self, prompts, *rest)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(SamplingPipeline, "generate", fail_later)
    # Passes of one image, as those of a large model on a CPU are.
    monkeypatch.setattr("lgclip.stages.images.CPU_IMAGES", 1)
    sizes = ("paths.images=none", "diffuser.batch_size=1", "encoder.batch_size=1")
    monkeypatch.setattr("lgclip.stages.direct_encoding.CPU_ROWS", 1)
    with pytest.raises(RuntimeError, match="device is gone"):
        evaluate_run(sandbox, tmp_path / "first", *sizes)
    result = evaluate_run(sandbox, tmp_path / "run", *sizes)
    assert computed_counts(result)["images"] == 8, "the first image was encoded and stored, the second was waiting"
    assert result["metrics"].keys() == first_run.result["metrics"].keys()


def test_faulty_images_are_generated_again(
    first_run: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt at an image counts; an image whose attempts all fail is reported, as with files."""
    generate = SamplingPipeline.generate
    attempts_of: Counter[int] = Counter()

    def flawed(self: SamplingPipeline, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> GeneratedBatch:
        batch = generate(self, prompts, seed, attempts)
        faults = list(batch.faults)
        for index, (prompt, attempt) in enumerate(zip(prompts, attempts, strict=True)):
            attempts_of[prompt.class_index] += 1
            is_lost = prompt.class_index == 2 and prompt.text.startswith("a drawing")
            if is_lost or (prompt.class_index == 1 and attempt == 0):
                faults[index] = Fault.BLACK
        return GeneratedBatch(batch.pixels, faults)

    monkeypatch.setattr(SamplingPipeline, "generate", flawed)
    results = {}
    for name in ("files", "none"):
        sandbox = replace(first_run.sandbox, store=tmp_path / name)
        results[name] = evaluate_run(sandbox, tmp_path / f"{name}_run", f"paths.images={name}")
    assert results["none"]["metrics"] == results["files"]["metrics"]
    assert results["none"]["missing_images"] == results["files"]["missing_images"]
    markers = {path.name for path in files_of_kind(tmp_path / "none", Kind.MARKER)}
    assert markers == {path.name for path in files_of_kind(tmp_path / "files", Kind.MARKER)}
    assert markers
    assert_same_run(tmp_path / "none_run", tmp_path / "files_run", tmp_path)


def test_sheet_shows_the_first_images(sheet_once: FirstRun, first_run: FirstRun, tmp_path: Path) -> None:
    (shard,) = files_of_kind(sheet_once.sandbox.store, Kind.SHARD)
    assert len(read_listing(shard).ids) == 3 * 4, "four a class"
    full = evaluate_run(replace(first_run.sandbox, store=tmp_path / "s"), tmp_path / "full", "images_per_prompt=2")
    assert full["metrics"] == sheet_once.result["metrics"]
    with (
        Image.open(sheet_once.folder / "prototypes.png") as sheet,
        Image.open(tmp_path / "full/prototypes.png") as all_,
    ):
        # Images of 32 pixels are their own thumbnails: the sheets agree as far as the smaller one reaches.
        assert sheet.width < all_.width
        corner = (0, 40, sheet.width - 12, sheet.height)
        np.testing.assert_array_equal(np.asarray(sheet.crop(corner)), np.asarray(all_.crop(corner)))


def test_store_keeps_features_without_images(sheet_once: FirstRun, tmp_path: Path) -> None:
    store = sheet_once.sandbox.store
    assert list(verify(store))[-1].endswith("0 damaged") or "damaged" not in list(verify(store))[-1]
    make_older(store, 30)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    for keep in ([], [sheet_once.folder]):
        printed = list(collect(store, keep=keep, yes=True))
        assert "0 files" in printed[-1], printed
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_reports_do_without_images(discarded_once: FirstRun, sheet_once: FirstRun, tmp_path: Path) -> None:
    for run in (discarded_once, sheet_once):
        report = audit(Run.read(run.folder))
        assert report["duplicates"] is None
        assert "were not stored" in audit_text(report)
        json.dumps(report)
        write_page([run.folder], tmp_path / "page.html", reference=None, title="", images=4)
        assert "Pictures of" not in (tmp_path / "page.html").read_text(encoding="utf-8"), "no picture was lost"


def test_saved_classifier_is_the_same(first_run: FirstRun, tmp_path: Path) -> None:
    for name in ("files", "none"):
        sandbox = replace(first_run.sandbox, store=tmp_path / name)
        evaluate_run(sandbox, tmp_path / f"{name}_run", f"paths.images={name}", "save_classifier=true")
    photos = str(first_run.sandbox.synthetic_images)
    tables = []
    for name in ("files", "none"):
        out = tmp_path / f"{name}.csv"
        assert main(["classify", str(tmp_path / f"{name}_run/classifier"), photos, "-o", str(out)]) == 0
        tables.append(out.read_bytes())
    assert tables[0] == tables[1]


def test_plan_counts_features(discarded_once: FirstRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*discarded_once.sandbox.evaluate_overrides(), "plan=true", f"hydra.run.dir={tmp_path}"]
    run_command("evaluate", *overrides, "paths.images=none")
    planned = capsys.readouterr().out
    run_command("evaluate", *overrides, "paths.images=files")
    stored = capsys.readouterr().out
    assert [line.split()[-1] for line in planned.splitlines() if line.startswith("images")] == ["0"], planned
    assert [line.split()[-1] for line in stored.splitlines() if line.startswith("images")] == ["9"], stored


@pytest.mark.parametrize(
    ("command", "overrides", "reason"),
    [
        ("generate", ("paths.images=none",), "paths.images=none stores no image, and generate.py only generates"),
        ("evaluate", ("paths.images=sheet", "method=student"), "method=student trains on them"),
        ("evaluate", ("paths.images=zip",), "paths.images=zip: choose files, tar, sheet, none"),
        ("train", ("paths.images=none", "method=student"), "trains on them: choose files or tar"),
    ],
)
def test_what_needs_images_is_refused_early(
    fresh_sandbox: Sandbox,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    overrides: Sequence[str],
    reason: str,
) -> None:
    with pytest.raises(SystemExit):
        run_command(command, *fresh_sandbox.evaluate_overrides(), *overrides, f"hydra.run.dir={tmp_path / 'run'}")
    assert reason in capsys.readouterr().err
    assert not (fresh_sandbox.store / "prompts").exists()
