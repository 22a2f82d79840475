"""Tests runs that skipped images: tools that read them, and several processes and workers on one store."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corrupted_images import CORRUPTIONS, FULL_IMAGE, encode_image, make_corrupted_folder
from factories import Sandbox, evaluate_run, read_arrays, read_csv, read_store
from image_folders import evaluate_folder, make_release_folder
from PIL import Image
from run_factories import write_run

from lgclip.batches import ImageBatch
from lgclip.cli.store.archive import export
from lgclip.cli.store.gc import used_by
from lgclip.cli.store.verify import verify
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.unreadable import ReadableSubset, UnreadableImages
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.encoder.views import SharedViews
from lgclip.reporting.comparison.results import ComparisonError, MethodResult
from lgclip.reporting.comparison.significance import compare_with_run
from lgclip.reporting.dashboard.collect import collect
from lgclip.reporting.export_features import export_features
from lgclip.reporting.leakage_audit import audit
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run, RunError
from lgclip.stages.features import FeatureExtractionStage
from lgclip.stages.streams import Stream, Streams, _ImageViews, _stack
from lgclip.store.cost_log import COST_LOG, lines_of
from lgclip.store.features import FeatureStore
from lgclip.types import Unread

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]
GOOD = 3 * FULL_IMAGE


@pytest.fixture
def corrupted_sandbox(sandbox: Sandbox, tmp_path: Path) -> Sandbox:
    """Returns a sandbox with prompts and generated images whose test images include every corruption."""
    make_corrupted_folder(tmp_path / "pictures")
    return replace(sandbox, synthetic_images=tmp_path / "pictures")


def test_batch_separates_skipped_images() -> None:
    readable = [_ImageViews("a", torch.zeros(2, 3, 4, 4)), _ImageViews("c", torch.ones(2, 3, 4, 4))]
    unread = Unread("b", "b.png", "it is empty")
    batch = _stack([readable[0], unread, readable[1]])
    assert (batch.ids, list(batch.unread)) == (["a", "c"], [unread])
    assert torch.equal(batch.views, torch.stack([item.views for item in readable]))
    assert _stack([unread, unread]).views.shape == (0, 0, 3, 0, 0)
    assert ImageBatch(["a"], batch.views[:1]).unread == ()


def test_unreadable_synthetic_image_is_an_error(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {}, {})
    stream = Stream("synthetic", ["a"], [0], ("full",), store, load=lambda index: pytest.fail(f"{index} is loaded"))
    encoder = OpenClip("tiny:encoder")
    stage = FeatureExtractionStage(encoder, Streams([stream], 1, SharedViews(encoder, SquareCrops()), 2))
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image \(it is empty\); `lgclip store verify"):
        stage._note(0, [Unread("a", "a.png", "it is empty")])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_reports_know_skipped_images(
    corrupted_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_run(corrupted_sandbox, tmp_path / "run", "on_bad_image=skip")
    run = Run.read(tmp_path / "run")
    kept_prompts = [int(row["index"]) for row in read_csv(run.folder / "predictions.csv")]
    assert len(run.predictions.label) == GOOD
    # The first line is the sandbox's own run: all folders of images share one store.
    *_, encoding = lines_of(corrupted_sandbox.store / "features" / run.result.store["real"] / COST_LOG)
    assert encoding.count == GOOD, "what could not be read was not encoded"
    opened = restore_run(run)
    assert isinstance(opened.dataset, ReadableSubset)
    assert list(opened.dataset.places) == kept_prompts
    export_features(run.folder, tmp_path / "features.npz")
    arrays = read_arrays(tmp_path / "features.npz")
    assert arrays["real"].shape[0] == GOOD
    np.testing.assert_array_equal(arrays["real_labels"], run.predictions.label)
    duplicates = audit(run)["duplicates"]
    assert (duplicates["test_images"], {pair["test"] for pair in duplicates["pairs"]} <= set(kept_prompts)) == (
        GOOD,
        True,
    )

    page = collect([run.folder], title="", reference=None, images=2)
    provenance = dict(page["runs"][0]["provenance"])
    assert provenance["test images that could not be read"].startswith(
        f"{len(CORRUPTIONS)} of {GOOD + len(CORRUPTIONS)}: "
    )
    assert page["thumbs"]
    assert not [note for note in page["notes"] if "not shown" in note]

    assert "0 faults" in list(verify(corrupted_sandbox.store))[-1]
    assert used_by([run.folder], corrupted_sandbox.store, full=True).features
    assert list(export(corrupted_sandbox.store, tmp_path / "part.tar", [run.folder]))
    assert list(export(corrupted_sandbox.store, tmp_path / "whole.tar"))

    for path in corrupted_sandbox.synthetic_images.rglob("1_*"):
        path.unlink()
    assert restore_run(run).dataset.ids == opened.dataset.ids, "what was bad has been moved away"
    (corrupted_sandbox.synthetic_images / "red star" / "3.png").write_bytes(encode_image("PNG", seed=5))
    with pytest.raises(
        RunError, match=rf"evaluated {GOOD} of {GOOD + len(CORRUPTIONS)} images, the data set now has 7"
    ):
        restore_run(run)


def skipping(*places: int) -> dict[str, object]:
    """Returns the fields of the result of a run on 12 images plus skipped ones."""
    return {
        "images_in_dataset": 12 + len(places),
        "skipped": [
            {"index": index, "id": "i", "file": "x", "class": 0, "name": "n", "reason": "y"} for index in places
        ],
    }


def write_skipping_run(folder: Path, *places: int) -> Run:
    """Writes a run on 12 images that skipped those at some indices."""
    write_run(folder, extra=skipping(*places))
    lines = (folder / "predictions.csv").read_text(encoding="utf-8").splitlines()
    remaining = [index for index in range(12 + len(places)) if index not in places]
    body = [",".join([str(index), *line.split(",")[1:]]) for index, line in zip(remaining, lines[1:], strict=True)]
    (folder / "predictions.csv").write_text("\n".join([lines[0], *body, ""]), encoding="utf-8")
    return Run.read(folder)


def test_runs_with_other_skipped_images_are_not_compared(tmp_path: Path) -> None:
    first, repeated, different, none = (
        write_skipping_run(tmp_path / str(index), *out) for index, out in enumerate([(3,), (3,), (4,), ()])
    )
    (comparison,) = compare_with_run([MethodResult(repeated)], MethodResult(first))
    assert comparison.test["difference"] == 0
    with pytest.raises(
        ComparisonError, match=r"images left out as unreadable, 1 \(first \[3\]\) and 1 \(first \[4\]\)"
    ):
        compare_with_run([MethodResult(different)], MethodResult(first))
    with pytest.raises(ComparisonError, match=r"images left out as unreadable, 1 \(first \[3\]\) and none"):
        compare_with_run([MethodResult(none)], MethodResult(first))
    page = collect([first.folder, repeated.folder, different.folder], title="", reference=None, images=0)
    predictions = [run["evaluation_key"] for run in page["runs"]]
    assert predictions[0] == predictions[1] != predictions[2]
    assert [row["reason"] is None for row in page["comparisons"]] == [True, False]


def test_predictions_of_skipped_images_are_rejected(tmp_path: Path) -> None:
    write_run(tmp_path / "run", extra=skipping(3))
    with pytest.raises(RunError, match="is incomplete"):
        Run.read(tmp_path / "run").predictions  # noqa: B018


def in_processes(sandbox: Sandbox, folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Evaluates on two processes with two decoding workers each."""
    two = ["trainer.devices=2", "trainer.strategy=ddp", "workers=2", "encoder.batch_size=2"]
    command = [
        sys.executable,
        "evaluate.py",
        *sandbox.evaluate_overrides(),
        f"hydra.run.dir={folder}",
        *two,
        *overrides,
    ]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_interrupted_run_skips_the_same_images(
    corrupted_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate_run(
        replace(corrupted_sandbox, store=tmp_path / "other"), tmp_path / "whole", "on_bad_image=skip"
    )
    add = UnreadableImages.add
    calls = []

    def cut(findings: UnreadableImages, reasons: dict[str, str]) -> None:
        calls.append(reasons)
        if len(calls) > 2:
            raise RuntimeError("power cut")
        add(findings, reasons)

    monkeypatch.setattr(UnreadableImages, "add", cut)
    with pytest.raises(RuntimeError, match="power cut"):
        evaluate_run(corrupted_sandbox, tmp_path / "cut", "on_bad_image=skip", "encoder.batch_size=2")
    monkeypatch.setattr(UnreadableImages, "add", add)
    read = set[str]()

    def watched(path: Path) -> Image.Image:
        read.add(path.name)
        return read_image(path)

    monkeypatch.setattr("lgclip.datasets.folder.read_image", watched)
    result = evaluate_run(corrupted_sandbox, tmp_path / "run", "on_bad_image=skip", "encoder.batch_size=3")
    assert len([name for name in read if name.startswith("1_")]) == len(CORRUPTIONS) - sum(map(len, calls[:2]))
    assert (result["skipped"], result["metrics"]) == (expected["skipped"], expected["metrics"])
    predictions = (tmp_path / "whole" / "predictions.csv").read_bytes()
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == predictions


@pytest.mark.slow
def test_two_processes_skip_the_same_images(corrupted_sandbox: Sandbox, tmp_path: Path) -> None:
    alone = evaluate_run(replace(corrupted_sandbox, store=tmp_path / "other"), tmp_path / "one", "on_bad_image=skip")
    completed = in_processes(corrupted_sandbox, tmp_path / "raise")
    assert completed.returncode == 1, completed.stderr
    error = next(line for line in completed.stderr.splitlines() if line.startswith("error: "))
    assert error.startswith(f"error: {len(CORRUPTIONS)} of {GOOD + len(CORRUPTIONS)} images of pictures: ")
    assert [entry["file"] for entry in alone["skipped"] if entry["file"] not in error] == []
    assert not (tmp_path / "raise" / "result.json").exists()
    assert not [name for name in read_store(corrupted_sandbox.store) if "/." in name], "half-written files"

    completed = in_processes(corrupted_sandbox, tmp_path / "two", "on_bad_image=quarantine")
    assert completed.returncode == 0, completed.stderr
    assert f"{GOOD} of {GOOD + len(CORRUPTIONS)} images, {len(CORRUPTIONS)} could not be read" in completed.stdout
    result = json.loads((tmp_path / "two" / "result.json").read_text(encoding="utf-8"))
    for key in ("skipped", "n", "images_in_dataset", "metrics", "baselines"):
        assert result[key] == alone[key]
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(list((tmp_path / "two" / "quarantine").iterdir())) == 1 + len(CORRUPTIONS)


def test_unreadable_prototype_is_skipped_and_named(
    fresh_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_release_folder(tmp_path / "root")
    bad = make_corrupted_folder(tmp_path / "bad")
    for index, name in enumerate(("bomb", "html")):
        (root / "red star" / f"{index}_red star.jpg").write_bytes(bad[name].read_bytes())
    result = evaluate_folder(fresh_sandbox, root, tmp_path / "run", "prompts_per_class=2", "images_per_prompt=2")
    assert [entry["faults"] for entry in result["missing_images"]] == [["unreadable"]] * 2
    out = capsys.readouterr().out
    for index, words in enumerate(("it has more than 400,000,000 pixels", "it is a web page")):
        assert f"{index}_red star.jpg cannot be read as an image ({words}" in out
