"""Tests runs with a transductive rule: what is refined, what the result says, and any number of devices."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import NAMES, FirstRun, Sandbox, build_overrides, evaluate_run, make_image_folder, read_csv
from multiprocess_runs import QUIET_ENVIRONMENT, ROOT

import lgclip
from lgclip.cli.main import main
from lgclip.methods.calibration import Temperature
from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.stata import StatA
from lgclip.methods.transduction.tda import TDA
from lgclip.reporting.data_exposure import conclusions, exposure
from lgclip.reporting.export_features import export_features
from lgclip.reporting.run_classifier import classifier_of
from lgclip.reporting.run_folder import Run

pytestmark = pytest.mark.slow

pytest_plugins = ("run_fixtures",)

RULES = {
    "em": "EM", "inmap": "InMaP", "offset": "DomainOffset", "stata": "StatA", "tda": "TDA", "transclip": "TransCLIP",
    "zlap": "ZLaP",
}  # fmt: skip


@pytest.fixture(scope="module")
def refined(world: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("refined") / "run"
    return folder, evaluate_run(world, folder, "transduction=stata", "method=fusion")


def starting_pool(folder: Path, file: Path) -> UnlabeledPool:
    """Returns the pool of a fusion run from the arrays of `lgclip store features`."""
    export_features(folder, file)
    with np.load(file) as arrays:
        real = torch.from_numpy(arrays["real"][:, 0])
        means = torch.from_numpy(arrays["synthetic"][:, :, 0]).double().mean(dim=1)
        sentences = torch.from_numpy(arrays["text"]).double()
        places = torch.from_numpy(arrays["text_labels"])
    text = torch.zeros(len(NAMES), sentences.shape[1], dtype=torch.float64).index_add(0, places, sentences)
    unit = torch.nn.functional.normalize
    prototypes = 0.5 * unit(means, dim=1) + 0.5 * unit(text, dim=1)
    start = Run.read(folder).result.predictor["fusion"]["transduction"]["start_temperature"]
    scores = real.double() @ prototypes.T
    return UnlabeledPool(real, scores.float(), start["value"], unit(prototypes, dim=1).float())


def test_scores_are_refined_together(refined: tuple[Path, Any], tmp_path: Path) -> None:
    folder, result = refined
    pool = starting_pool(folder, tmp_path / "features.npz")
    rows = read_csv(folder / "predictions.csv")
    expected = StatA().refine(pool).softmax(dim=1)
    assert [int(row["prediction"]) for row in rows] == expected.argmax(dim=1).tolist()
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], expected.amax(dim=1), atol=1e-4)
    assert [int(row["inductive"]) for row in rows] == pool.scores.argmax(dim=1).tolist()
    assert next(iter(result["baselines"])) == "inductive"
    assert result["confidence"]["fitted_on"] == "transduction"


def test_inductive_baseline_is_the_run_without(refined: tuple[Path, Any], world: Sandbox, tmp_path: Path) -> None:
    plain = evaluate_run(world, tmp_path / "run", "method=fusion")
    assert refined[1]["baselines"]["inductive"] == plain["metrics"]
    assert refined[1]["baselines"]["clip_text"] == plain["baselines"]["clip_text"]


def test_result_and_audit_say_what_was_seen(refined: tuple[Path, Any]) -> None:
    folder, result = refined
    n = result["n"]
    assert result["seen"]["fusion"]["label"] == f"names + {n} test images"
    assert {name for name, seen in result["seen"].items() if seen["label"] == "names"} == set(result["baselines"])
    rows = exposure(Run.read(folder).result)
    row = next(row for row in rows if row.stage == "transduction")
    assert (row.decides, row.real_labels, row.test_images, row.unlabelled) == (True, False, True, True)
    assert "unlabelled real images in the predictions of fusion: yes, by transduction" in conclusions(rows, "fusion")


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_runs(world: Sandbox, tmp_path: Path, rule: str) -> None:
    result = evaluate_run(world, tmp_path / "run", f"transduction={rule}")
    described = result["predictor"]["lgclip"]["transduction"]
    assert described["part"] == RULES[rule]
    assert described["assumes_balanced"] == (rule == "inmap")
    assert result["paired"]["inductive"]["difference"] == pytest.approx(
        result["metrics"]["top1"] - result["baselines"]["inductive"]["top1"]
    )


def test_online_rule_gets_the_images_in_the_order_of_their_hashes(world: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    evaluate_run(world, folder, "transduction=tda", "method=fusion")
    pool = starting_pool(folder, tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as arrays:
        order = torch.from_numpy(np.argsort(arrays["real_ids"]))
    logits = torch.empty_like(pool.scores)
    logits[order] = TDA().refine(pool._replace(features=pool.features[order], scores=pool.scores[order]))
    rows = read_csv(folder / "predictions.csv")
    assert [int(row["prediction"]) for row in rows] == logits.argmax(dim=1).tolist()


def test_alignment_comes_first(world: Sandbox, tmp_path: Path) -> None:
    overrides = ("transduction=em", "align=pool", "align.images=test")
    result = evaluate_run(world, tmp_path / "run", *overrides)
    aligned = evaluate_run(world, tmp_path / "aligned", *overrides[1:])
    assert result["baselines"]["inductive"] == aligned["metrics"]
    assert result["predictor"]["lgclip"]["alignment"] == aligned["predictor"]["lgclip"]["alignment"]


def test_classifier_of_the_run_sees_one_image_at_a_time(
    refined: tuple[Path, Any], world: Sandbox, tmp_path: Path
) -> None:
    folder, result = refined
    classifier = classifier_of(folder)
    start = result["predictor"]["fusion"]["transduction"]["start_temperature"]
    assert classifier.temperature == Temperature(**start)
    rows = read_csv(folder / "predictions.csv")
    names = [prediction.label for prediction in classifier.classify(world.synthetic_images)]
    assert names == [classifier.class_names[int(row["inductive"])] for row in rows]


def test_one_image_per_class_starts_at_the_default_temperature(world: Sandbox, tmp_path: Path) -> None:
    """Checks that a temperature that could not be fitted does not make the start flat."""
    result = evaluate_run(world, tmp_path / "run", "transduction=stata", "prompts_per_class=1")
    start = result["predictor"]["lgclip"]["transduction"]["start_temperature"]
    assert start == {"value": 0.01, "fitted_on": "default"}


def test_shifted_sets_are_pools_of_their_own(world: Sandbox, tmp_path: Path) -> None:
    shifted = make_image_folder(tmp_path / "shifted", per_class=2)
    result = evaluate_run(
        world, tmp_path / "run", "transduction=stata",
        "+ood.sketch._target_=lgclip.datasets.folder.Folder", f"+ood.sketch.root={shifted}",
    )  # fmt: skip
    alone = evaluate_run(world, tmp_path / "alone", "transduction=stata", f"dataset.root={shifted}")
    assert result["ood"]["sketch"]["metrics"] == alone["metrics"]
    assert result["ood"]["sketch"]["baselines"]["inductive"] == alone["baselines"]["inductive"]


def test_student_is_refined_by_features_of_the_encoder(world: Sandbox, tmp_path: Path, first_run: FirstRun) -> None:
    student = ("method=student", "student.backbone=test_resnet", "student.image_size=32", "student.epochs=1")
    options = ("student.batch_size=4", "student.select_on=last", "student.validation=0")
    result = evaluate_run(world, tmp_path / "run", *student, *options, "transduction=stata")
    plain = evaluate_run(world, tmp_path / "plain", *student, *options)
    assert result["method"] == "student"
    assert result["baselines"]["inductive"] == plain["metrics"]


@pytest.mark.multiprocess
@pytest.mark.parametrize(("rule", "devices"), [("stata", 4), ("tda", 2)])
def test_result_is_equal_on_any_number_of_devices(world: Sandbox, tmp_path: Path, rule: str, devices: int) -> None:
    evaluate_run(world, tmp_path / "one", f"transduction={rule}")
    command = [
        sys.executable, "evaluate.py", *world.evaluate_overrides(), f"transduction={rule}",
        f"hydra.run.dir={tmp_path / 'several'}", f"trainer.devices={devices}", "trainer.strategy=ddp",
    ]  # fmt: skip
    environment = {**os.environ, **QUIET_ENVIRONMENT}
    completed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    predictions = [(tmp_path / run / "predictions.csv").read_bytes() for run in ("one", "several")]
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("transduction=stata", "transduction.alpha=0"), "transduction.alpha=0"),
        (("method=student", "transduction=stata", "membership=true"), "set transduction=none"),
    ],
    ids=["value", "membership"],
)
def test_wrong_settings_are_named(
    world: Sandbox, tmp_path: Path, overrides: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate_run(world, tmp_path / "run", *overrides)
    assert message in capsys.readouterr().err


def test_classifier_of_names_has_no_pool(world: Sandbox) -> None:
    with pytest.raises(ValueError, match="a classifier sees one at a time: set transduction=none"):
        lgclip.build(NAMES, llm="template", overrides=[*build_overrides(world), "transduction=stata"])


def test_comparison_keeps_transductive_results_apart(
    refined: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["compare", str(refined[0]), "--by", "method", "--format", "csv"])
    output = capsys.readouterr().out
    assert "names + test images" in output


def test_pools_are_compared_from_every_score(
    world: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate_run(world, tmp_path / "run", "experiment=transduction", "pools.count=3", "~pools.rules.inmap")
    rows = result["pools"]
    assert {row["start"] for row in rows} == {"lgclip", "clip_text", "fusion"}
    assert {row["rule"] for row in rows} == {"none", *RULES} - {"inmap"}
    complete = {row["start"]: row["top1"] for row in rows if row["kind"] == "all" and row["rule"] == "none"}
    assert complete["lgclip"] == pytest.approx(result["metrics"]["top1"])
    refined = evaluate_run(world, tmp_path / "stata", "transduction=stata")
    (row,) = (row for row in rows if (row["kind"], row["start"], row["rule"]) == ("all", "lgclip", "stata"))
    assert row["top1"] == pytest.approx(refined["metrics"]["top1"])
    assert "largest loss: offset" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pools.count=1", "pools.count=1"),
        ("pools.seed=-1", "pools.seed=-1"),
        ("pools.rules={}", "pools.rules is empty"),
    ],
    ids=["count", "seed", "rules"],
)
def test_wrong_pools_are_named(
    world: Sandbox, tmp_path: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["pools=realistic", override]
    if override == "pools.rules={}":
        names = ("offset", "transclip", "stata", "em", "inmap", "zlap", "tda")
        overrides = ["pools=realistic", *[f"~pools.rules.{name}" for name in names]]
    with pytest.raises(SystemExit):
        evaluate_run(world, tmp_path / "run", *overrides)
    assert message in capsys.readouterr().err
