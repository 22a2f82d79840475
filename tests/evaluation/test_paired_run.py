"""A run with two encoders: its baselines, its classifier and its records are those of both."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_families import ENCODERS
from factories import NAMES, FirstRun, Sandbox, build_overrides, computed_counts, evaluate_run, read_csv, run_command
from multiprocess_runs import QUIET_ENVIRONMENT, ROOT
from store_maintenance import make_older

import lgclip
from lgclip.classifier.model import ImageClassifier
from lgclip.cli.main import main
from lgclip.cli.store.gc import collect
from lgclip.encoder.base import Encoder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.paired import PairedEncoder
from lgclip.encoder.timm import Timm
from lgclip.reporting.restore import additional_streams, restore_run
from lgclip.reporting.run_classifier import classifier_of
from lgclip.reporting.run_folder import Run
from lgclip.store.features import FeatureStore

pytestmark = pytest.mark.slow

pytest_plugins = ("run_fixtures",)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Returns the overrides that add a second encoder, a small network of timm."""
    folder = tmp_path_factory.mktemp("second") / "model"
    ENCODERS["efficientnet"](folder)
    return ("encoder2=timm", f"encoder2.model={folder}", "encoder2.image_size=64")


@pytest.fixture(scope="module")
def paired(world: Sandbox, second: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("paired") / "run"
    return folder, evaluate_run(world, folder, "method=fusion", *second)


def test_baselines_are_the_runs_of_each_encoder(
    paired: tuple[Path, Any], world: Sandbox, second: tuple[str, ...], tmp_path: Path
) -> None:
    folder, result = paired
    assert list(result["baselines"]) == ["lgclip", "clip_text", "first_encoder", "second_encoder"]
    rows = read_csv(folder / "predictions.csv")
    text = evaluate_run(world, tmp_path / "text", "method=clip_text")
    first = evaluate_run(world, tmp_path / "first", "method=lgclip")
    alone = [override.replace("encoder2", "encoder") for override in second if not override.startswith("encoder2=")]
    other = evaluate_run(world, tmp_path / "second", "method=lgclip", "encoder=timm", *alone)
    singles = {"clip_text": ("text", text), "first_encoder": ("first", first), "second_encoder": ("second", other)}
    for name, (run, single) in singles.items():
        assert result["baselines"][name] == single["metrics"]
        expected = [row["prediction"] for row in read_csv(tmp_path / run / "predictions.csv")]
        assert [row[name] for row in rows] == expected


@pytest.mark.parametrize("scales", ["single", "multi"])
def test_confidence_of_text_is_that_of_a_single_encoder(
    world: Sandbox, second: tuple[str, ...], scales: str, tmp_path: Path
) -> None:
    runs = []
    for name, overrides in (("single", ()), ("pair", second)):
        evaluate_run(world, tmp_path / name, "method=clip_text", f"scales={scales}", *overrides)
        runs.append(read_csv(tmp_path / name / "predictions.csv"))
    for row, expected in zip(*runs, strict=True):
        assert row["prediction"] == expected["prediction"]
        assert float(row["confidence"]) == pytest.approx(float(expected["confidence"]), abs=2e-6)


def test_result_records_both_encoders(paired: tuple[Path, Any], world: Sandbox) -> None:
    record = paired[1]["encoder"]
    assert record["choice"] == "tiny + timm"
    assert record["first"]["id"] == str(world.encoder)
    assert record["second"]["part"] == "Timm"
    assert (record["first"]["precision"], record["second"]["precision"]) == ("fp32", "fp32")
    towers = paired[1]["cost"]["towers"]
    restored = restore_run(Run.read(paired[0])).encoder
    assert isinstance(restored, PairedEncoder)
    singles = [encoder.load(CPU).parameters()["image"] for encoder in (restored.first, restored.second)]
    assert towers["image"]["parameters"] == sum(singles)
    prototype = paired[1]["predictor"]["fusion"]["prototype"]
    assert prototype == {
        "part": "Paired", "width": 32, "weights": "global", "rule": {"part": "Mean", "renormalize": True},
    }  # fmt: skip


def test_restored_run_finds_its_features(paired: tuple[Path, Any]) -> None:
    run = Run.read(paired[0])
    restored = restore_run(run)
    for name, stream in restored.streams.items():
        assert stream.store.key == paired[1]["store"][name]
        assert not stream.missing()
    assert additional_streams(run, restored) == []


def test_recorded_precision_is_restored(paired: tuple[Path, Any], tmp_path: Path) -> None:
    """The run says which precision it computed in, whatever `auto` means on this machine."""
    result = json.loads((paired[0] / "result.json").read_text())
    result["encoder"]["first"]["precision"] = "bf16"
    result["encoder"]["second"]["precision"] = "fp16"
    (tmp_path / "result.json").write_text(json.dumps(result))
    for name in ("predictions.csv", "per_class.csv", "diagnostics.csv"):
        (tmp_path / name).write_bytes((paired[0] / name).read_bytes())
    encoder = restore_run(Run.read(tmp_path)).encoder
    assert [part.precision for part in encoder.parts().values()] == ["bf16", "fp16"]


def classified(classifier: ImageClassifier, world: Sandbox) -> tuple[list[Any], list[float]]:
    predictions = list(classifier.classify(world.synthetic_images, batch_size=5))
    return [prediction.label for prediction in predictions], [float(item.score or 0) for item in predictions]


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method=clip_text",),
        ("method=lgclip", "scales=multi", "encoder_weights=per_class"),
        ("prototype=gda", "calibration=leave_one_out", "method=lgclip"),
        ("selection=text", "selection.keep=1", "scales=multi"),
    ],
    ids=["fusion", "text", "views", "gda", "selection"],
)
def test_classifier_gives_the_predictions_of_the_run(
    world: Sandbox, second: tuple[str, ...], overrides: tuple[str, ...], tmp_path: Path
) -> None:
    evaluate_run(world, tmp_path / "run", "method=fusion", *second, *overrides)
    classifier_of(tmp_path / "run").save(tmp_path / "saved")
    rows = read_csv(tmp_path / "run" / "predictions.csv")
    expected = [NAMES[int(row["prediction"])] for row in rows]
    for classifier in (classifier_of(tmp_path / "run"), lgclip.load(tmp_path / "saved")):
        labels, scores = classified(classifier, world)
        assert labels == expected
        np.testing.assert_allclose(scores, [float(row["confidence"]) for row in rows], atol=2e-5)


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_packed_classifier_needs_no_encoder(
    paired: tuple[Path, Any], world: Sandbox, suffix: str, tmp_path: Path
) -> None:
    classifier = classifier_of(paired[0])
    expected = classified(classifier, world)
    place = classifier.save(tmp_path / f"packed{suffix}", with_encoder=True)
    packed = lgclip.load(place)
    assert [type(part).__name__ for part in packed.encoder.parts().values()] == ["PackedEncoder"] * 2
    again = lgclip.load(packed.save(tmp_path / f"again{suffix}", with_encoder=True))
    for loaded in (packed, again):
        labels, scores = classified(loaded, world)
        assert labels == expected[0]
        np.testing.assert_allclose(scores, expected[1], atol=1e-4)


def test_added_classes_are_built_by_both_encoders(world: Sandbox, second: tuple[str, ...]) -> None:
    options = [*build_overrides(world), *second, "encoder_weights=equal"]
    built = lgclip.build(NAMES, llm="template", overrides=options)
    grown = lgclip.build(NAMES[:2], llm="template", overrides=options)
    grown.add(NAMES[2])
    assert built.support is not None
    assert grown.support is not None
    assert torch.equal(built.support.features, grown.support.features)
    assert grown.choice == built.choice
    assert classified(grown, world) == classified(built, world)
    assert list(built.settings["encoder"]) == ["_target_", "first", "second"]


@pytest.mark.parametrize(
    "overrides",
    [("align=pool",), ("transduction=em",), ("align=pool", "transduction=stata"), ("prototype=affinity",)],
    ids=["align", "em", "align_stata", "affinity"],
)
def test_other_rules_take_two_encoders(
    world: Sandbox, second: tuple[str, ...], overrides: tuple[str, ...], tmp_path: Path
) -> None:
    pool = [f"align.images={world.synthetic_images}"] if "align=pool" in overrides else []
    result = evaluate_run(world, tmp_path / "run", "method=fusion", *second, *overrides, *pool)
    single = evaluate_run(world, tmp_path / "text", "method=fusion", *overrides, *pool)
    assert result["baselines"]["clip_text"] == single["baselines"]["clip_text"]
    assert restore_run(Run.read(tmp_path / "run")).streams["real"].store.key == result["store"]["real"]


def test_commands_take_a_run_of_two_encoders(
    paired: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["save", str(paired[0]), str(tmp_path / "saved")])
    main(["show", str(tmp_path / "saved")])
    main(["audit", str(paired[0])])
    main(["report", str(paired[0]), "-o", str(tmp_path / "report.html")])
    main(["compare", str(paired[0]), "--by", "encoder,encoder2"])
    output = capsys.readouterr().out
    assert "encoder " in output
    assert " + " in output
    card = (tmp_path / "saved" / "README.md").read_text()
    assert card.count("- encoder: ") == 2


def test_fetch_reaches_both_encoders(
    world: Sandbox, second: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [override for override in world.evaluate_overrides() if override != "logger=none"]
    assert main(["fetch", *overrides, *second]) == 0
    assert main(["fetch", *overrides, "encoder2=timm", f"encoder2.model={tmp_path / 'absent'}"]) == 1
    assert "absent': no such folder" in capsys.readouterr().err


@pytest.mark.multiprocess
def test_result_is_equal_on_two_devices(world: Sandbox, second: tuple[str, ...], tmp_path: Path) -> None:
    evaluate_run(world, tmp_path / "one", *second, f"paths.store={tmp_path / 'first_store'}")
    command = [
        sys.executable, "evaluate.py", *world.evaluate_overrides(), *second, f"paths.store={tmp_path / 'second_store'}",
        f"hydra.run.dir={tmp_path / 'several'}", "trainer.devices=2", "trainer.strategy=ddp",
    ]  # fmt: skip
    environment = {**os.environ, **QUIET_ENVIRONMENT}
    completed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert completed.returncode == 0, completed.stderr[-3000:]
    predictions = [(tmp_path / run / "predictions.csv").read_bytes() for run in ("one", "several")]
    assert predictions[0] == predictions[1]


def test_features_in_the_store_are_those_of_both(paired: tuple[Path, Any], world: Sandbox, first_run: FirstRun) -> None:
    """The first half is what a run with the first encoder has stored."""
    both = restore_run(Run.read(paired[0])).streams["real"].features()[:, 0]
    alone = restore_run(Run.read(first_run.folder)).streams["real"].features()[:, 0]
    torch.testing.assert_close(both[:, : alone.shape[1]] * 2**0.5, alone, atol=1e-6, rtol=0)
    assert isinstance(restore_run(Run.read(paired[0])).streams["real"].store, FeatureStore)


def alone(second: tuple[str, ...]) -> list[str]:
    """Returns the overrides of a run with the second encoder alone."""
    return ["encoder=timm", *(part.replace("encoder2", "encoder") for part in second[1:])]


def refuse_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Encoder, device: torch.device) -> None:
        raise AssertionError(f"{self} was loaded")

    for kind in (OpenClip, Timm, PairedEncoder):
        monkeypatch.setattr(kind, "load", fail)


@pytest.mark.parametrize("images", ["null", "none"])
def test_nothing_is_encoded_that_each_encoder_has_stored(
    world: Sandbox,
    second: tuple[str, ...],
    images: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    views = ["method=fusion", "scales=multi", f"paths.images={images}"]
    expected = evaluate_run(world, tmp_path / "pair", *second, *views, f"paths.store={tmp_path / 'other'}")
    stored = [*views, f"paths.store={tmp_path / 'store'}"]
    evaluate_run(world, tmp_path / "first", *stored)
    evaluate_run(world, tmp_path / "second", *stored, *alone(second), "method=lgclip")

    with monkeypatch.context() as patches:
        refuse_passes(patches)
        plan = ["plan=true", f"hydra.run.dir={tmp_path / 'plan'}"]
        capsys.readouterr()
        run_command("evaluate", *world.evaluate_overrides(), *second, *stored, *plan)
        rows = [row.split() for row in capsys.readouterr().out.splitlines() if row.startswith("features")]
        assert [row[-1] for row in rows] == ["0", "0", "0"], rows
        result = evaluate_run(world, tmp_path / "joined", *second, *stored)
    assert set(computed_counts(result).values()) == {0}
    assert result["metrics"] == expected["metrics"]
    assert result["store"] == expected["store"]
    for name in ("predictions.csv", "per_class.csv"):
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "pair" / name).read_bytes()
    runs = [restore_run(Run.read(tmp_path / name)) for name in ("pair", "joined")]
    for name, stream in runs[0].streams.items():
        assert torch.equal(runs[1].streams[name].features(), stream.features())
    # Costs are those of both encoders.
    for tower, record in expected["cost"]["towers"].items():
        for value in ("parameters", "flops"):
            assert result["cost"]["towers"][tower][value] == record[value]
    assert result["cost"]["total_seconds"] > result["cost"]["seconds"]
    # The folder of the pair suffices: what is kept for it needs no run of one encoder.
    make_older(tmp_path / "store", 3)
    list(collect(tmp_path / "store", keep=[tmp_path / "joined"], yes=True))
    assert len({path.parents[1] for path in (tmp_path / "store" / "features").rglob("*.safetensors")}) == 1
    assert not restore_run(Run.read(tmp_path / "joined")).streams["real"].missing()


def test_one_encoder_alone_is_no_reason_to_join(world: Sandbox, second: tuple[str, ...], tmp_path: Path) -> None:
    stored = f"paths.store={tmp_path / 'store'}"
    evaluate_run(world, tmp_path / "first", "method=fusion", stored)
    result = evaluate_run(world, tmp_path / "pair", "method=fusion", *second, stored)
    expected = evaluate_run(
        world, tmp_path / "other", "method=fusion", *second, f"paths.store={tmp_path / 'other_store'}"
    )
    assert computed_counts(result)["features"] == computed_counts(expected)["features"]
    assert (tmp_path / "pair" / "predictions.csv").read_bytes() == (tmp_path / "other" / "predictions.csv").read_bytes()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("encoder=tiny", "encoder2=tiny", "encoder.model=tiny:encoder"), "encoder2 is tiny:encoder, as is encoder"),
        (("encoder_weights=best",), "encoder_weights=best: choose global, per_class, equal"),
        (("encoder2.model=tiny:missing",), "tiny:missing"),
        (("encoder2.checkpoint=/absent/file",), "encoder2.checkpoint=/absent/file: no such file or folder"),
    ],
    ids=["same", "weights", "model", "checkpoint"],
)
def test_wrong_settings_are_named(
    world: Sandbox,
    second: tuple[str, ...],
    overrides: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = () if "encoder2=tiny" in overrides else second
    with pytest.raises(SystemExit):
        evaluate_run(world, tmp_path / "run", *chosen, *overrides)
    assert message in capsys.readouterr().err
