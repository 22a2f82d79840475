"""Tests runs with an alignment: its pool, what the result says, and the classifier that keeps it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import NAMES, FirstRun, Sandbox, build_overrides, evaluate_run, make_image_folder, read_csv
from torch.nn.functional import normalize

import lgclip
from lgclip.cli.main import main
from lgclip.reporting.data_exposure import conclusions, exposure
from lgclip.reporting.export_features import export_features
from lgclip.reporting.run_classifier import classifier_of
from lgclip.reporting.run_folder import Run

pytestmark = pytest.mark.slow

pytest_plugins = ("run_fixtures",)

POOL = 40


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of unlabelled images; its sub-folders have other names than the classes."""
    return make_image_folder(
        tmp_path_factory.mktemp("pool") / "unsorted", ("one place", "another"), per_class=POOL // 2
    )


@pytest.fixture(scope="module")
def aligned(world: Sandbox, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("aligned") / "run"
    return folder, evaluate_run(world, folder, "align=pool", f"align.images={pool}", "align.shares=equal")


def test_the_pool_is_encoded_without_labels(aligned: tuple[Path, Any], pool: Path) -> None:
    folder, result = aligned
    stage = next(stage for stage in result["stages"] if stage["stage"] == "features pool")
    assert stage["computed"] == POOL
    seen = result["seen"]
    assert seen["lgclip"]["label"] == f"names + {POOL} unlabelled"
    assert seen["lgclip"]["unlabelled_from"] == str(pool)
    assert result["predictor"]["lgclip"]["alignment"]["images"] == POOL
    assert (folder / "alignment.safetensors").is_file()


def test_predictions_match_numpy(aligned: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = aligned
    export_features(folder, tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as arrays:
        real = arrays["real"][:, 0]
        synthetic = arrays["synthetic"][:, :, 0]
        pool_mean = arrays["pool_mean"]
        offset = arrays["offset"]
    run = Run.read(folder)
    classifier = classifier_of(folder)
    center = synthetic.mean(axis=(0, 1))
    # With 5 images that count as evidence for no offset.
    np.testing.assert_allclose(offset, POOL / (POOL + 5) * (pool_mean - center), atol=1e-6)
    centered = synthetic - center
    centered /= np.linalg.norm(centered, axis=2, keepdims=True)
    prototypes = centered.mean(axis=1)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    moved = real - center - offset
    expected = (moved / np.linalg.norm(moved, axis=1, keepdims=True)) @ prototypes.T
    assert expected.argmax(axis=1).tolist() == run.predictions.prediction.tolist()
    np.testing.assert_allclose(classifier.scorer()(torch.from_numpy(real)), expected, atol=1e-5)


def test_classifier_predicts_as_the_run(aligned: tuple[Path, Any], world: Sandbox, tmp_path: Path) -> None:
    folder, _ = aligned
    saved = classifier_of(folder).save(tmp_path / "aligned.lgclip")
    classifier = lgclip.load(saved, overrides=[f"paths.store={world.store}", "trainer.accelerator=cpu"])
    names = [prediction.label for prediction in classifier.classify(world.synthetic_images)]
    rows = read_csv(folder / "predictions.csv")
    assert names == [classifier.class_names[int(row["prediction"])] for row in rows]
    assert "prototypes" not in classifier_tensors(saved), "an aligned classifier has no linear head"


def classifier_tensors(saved: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(saved / "classifier.safetensors")


@pytest.mark.parametrize("rule", ["mean", "gda", "knn"])
def test_exported_scores_are_those_of_the_classifier(world: Sandbox, pool: Path, tmp_path: Path, rule: str) -> None:
    classifier = lgclip.build(
        NAMES, llm="template",
        overrides=[*build_overrides(world), "align=pool", f"align.images={pool}", f"prototype={rule}"],
    )  # fmt: skip
    assert classifier.alignment is not None
    summary = classifier.export(tmp_path / "aligned.onnx")
    assert summary.max_difference is not None
    assert summary.max_difference < 1e-4


def test_added_classes_keep_the_alignment(world: Sandbox, pool: Path) -> None:
    overrides = [*build_overrides(world), "align=pool", f"align.images={pool}"]
    classifier = lgclip.build(NAMES[:2], llm="template", overrides=overrides)
    assert classifier.alignment is not None
    offset = classifier.alignment.offset
    classifier.add(NAMES[2])
    together = lgclip.build(NAMES, llm="template", overrides=overrides)
    assert together.support is not None
    assert classifier.support is not None
    torch.testing.assert_close(classifier.support.features, together.support.features)
    assert classifier.alignment.offset is offset
    center = classifier.support.features.mean(dim=0)
    assert classifier.references.support is not None
    torch.testing.assert_close(
        classifier.references.support.features, normalize(classifier.support.features - center, dim=1)
    )
    classifier.drop(classifier.image_ids[0][:12])
    assert list(classifier.classify(world.synthetic_images))


def test_stored_alignment_gives_the_same_predictions(aligned: tuple[Path, Any], world: Sandbox, tmp_path: Path) -> None:
    folder, result = aligned
    again = evaluate_run(world, tmp_path / "run", "align=file", f"align.path={folder}")
    assert again["metrics"] == result["metrics"]
    assert again["seen"] == result["seen"]
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (folder / "predictions.csv").read_bytes()


def test_the_evaluated_images_make_it_transductive(world: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(world, tmp_path / "run", "align=pool", "align.images=test")
    assert result["seen"]["lgclip"]["label"] == "names + 12 test images"
    assert not any(stage["stage"] == "features pool" for stage in result["stages"]), "they are encoded already"
    rows = {row.stage: row for row in exposure(Run.read(tmp_path / "run").result)}
    assert rows["alignment"].unlabelled
    assert rows["alignment"].test_images


def test_audit_names_the_alignment(aligned: tuple[Path, Any]) -> None:
    rows = exposure(Run.read(aligned[0]).result)
    row = next(row for row in rows if row.stage == "alignment")
    assert (row.real_labels, row.test_images, row.unlabelled) == (False, False, True)
    assert "unlabelled real images in the predictions of lgclip: yes, by alignment" in conclusions(rows, "lgclip")


def test_comparison_keeps_what_was_seen_apart(
    aligned: tuple[Path, Any], first_run: FirstRun, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["compare", str(aligned[0]), str(first_run.folder), "--format", "csv"])
    output = capsys.readouterr().out
    assert "names + unlabelled" in output
    assert "data seen" in output.splitlines()[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("align=pool",), "align.images=training: dataset=folder has no training split"),
        (("align=pool", "align.images=nowhere"), "align.images=nowhere: choose training, test, or a folder"),
        (("align=file", "align.path=nowhere"), "nowhere: no such file; a run with align=pool writes"),
        (("align=pool", "align.images=test", "align.least=500", "align.limit=null"), "align.least=500"),
    ],
    ids=["no-training", "no-folder", "no-file", "too-few"],
)
def test_wrong_pools_are_named(
    world: Sandbox, tmp_path: Path, overrides: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate_run(world, tmp_path / "run", *overrides)
    assert message in capsys.readouterr().err


def test_empty_folder_is_named(world: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        evaluate_run(world, tmp_path / "run", "align=pool", f"align.images={tmp_path / 'empty'}")
    assert "no image in it or its sub-folders" in capsys.readouterr().err


def test_too_few_images_are_named_before_anything_is_generated(
    fresh_sandbox: Sandbox, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate_run(fresh_sandbox, tmp_path / "run", "align=pool", f"align.images={pool}", "align.least=41")
    assert f"{POOL} unlabelled images, and align.least=41" in capsys.readouterr().err
    assert not (fresh_sandbox.store / "images").exists()


def test_a_classifier_cannot_use_test_images(world: Sandbox) -> None:
    with pytest.raises(ValueError, match="nothing is evaluated; give a folder"):
        lgclip.build(NAMES, llm="template", overrides=[*build_overrides(world), "align=pool", "align.images=test"])


def test_damaged_alignment_of_a_classifier_is_named(aligned: tuple[Path, Any], tmp_path: Path) -> None:
    saved = classifier_of(aligned[0]).save(tmp_path / "aligned.lgclip")
    record = json.loads((saved / "classifier.json").read_text(encoding="utf-8"))
    assert record["alignment"]["images"] == POOL
