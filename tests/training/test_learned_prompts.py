"""Tests tuned prompts and adapters in complete runs against the prompts' own predictions."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    IMAGES_PER_CLASS,
    NAMES,
    Sandbox,
    computed_counts,
    evaluate_run,
    make_image_folder,
    read_csv,
    run_command,
)

from lgclip.cli.store.gc import collect, used_by
from lgclip.cli.store.verify import verify
from lgclip.datasets.folder import Folder
from lgclip.encoder.open_clip import OpenClip
from lgclip.training.prompt_tuning.encoder import LearnedPrompts

pytest_plugins = ("run_fixtures",)

SMALL = (
    "method=prompt_tuning", "prompt_tuning.epochs=2", "prompt_tuning.warmup_epochs=1", "prompt_tuning.batch_size=8",
    "prompt_tuning.rounds=2",
    "prompt_tuning.shots=2", "prompt_tuning.tokens=3", "prompt_tuning.lr=0.02",
)  # fmt: skip


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates the pool, with other patches than the test images."""
    return make_image_folder(tmp_path_factory.mktemp("training"), per_class=2 * IMAGES_PER_CLASS)


def tune_prompts(sandbox: Sandbox, folder: Path, training: Path, *overrides: str) -> dict[str, Any]:
    return evaluate_run(sandbox, folder, *SMALL, f"dataset.train_root={training}", *overrides)


def load_trained_prompts(sandbox: Sandbox, result: dict[str, Any]) -> LearnedPrompts:
    return LearnedPrompts(str(sandbox.store / "prompts_learned" / result["prompt_tuning"]["key"]))


def predict_labels(sandbox: Sandbox, learned_prompts: LearnedPrompts, synthetic_images: Path) -> np.ndarray:
    """Predicts with the prompts, one image at a time and without a store."""
    base = OpenClip(str(sandbox.encoder), precision="fp32")
    images = Folder(str(synthetic_images))
    encoder = learned_prompts.encoder(base)
    cpu = torch.device("cpu")
    look = encoder.transform()
    towers = encoder.load(cpu)
    classes = learned_prompts.class_features(base, images.class_names, cpu)
    if classes is None:
        classes = towers.texts([f"a photo of a {name}." for name in images.class_names])
    features = torch.cat([towers.images(look(images.image(index))[None]) for index in range(len(images))])
    return (features @ classes.T).argmax(dim=1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("prompt_tuning=air", "paradigm=ul", "prompt_tuning.auxiliary=fixed", "prompt_tuning.aux_neighbors=2"),
        ("prompt_tuning=grip", "paradigm=ssl", "paradigm.shots=1"),
        ("prompt_tuning=cpl", "paradigm=trzsl", "paradigm.seen_classes=[0, 2]", "prompt_tuning.modality=both"),
        ("prompt_tuning=grip", "paradigm=ul", "prompt_tuning.modality=visual"),
    ],
    ids=" ".join,
)
def test_tuned_prompt_is_evaluated(
    sandbox: Sandbox, tmp_path: Path, training: Path, overrides: tuple[str, ...]
) -> None:
    result = tune_prompts(sandbox, tmp_path / "run", training, *overrides)
    predicted = [int(row["prediction"]) for row in read_csv(tmp_path / "run" / "predictions.csv")]
    assert (
        predicted == predict_labels(sandbox, load_trained_prompts(sandbox, result), sandbox.synthetic_images).tolist()
    )
    assert result["method"] == "prompt_tuning"
    assert set(result["baselines"]) == {"clip_text", "lgclip"}
    assert [entry["round"] for entry in result["prompt_tuning"]["rounds"]] == [0, 1, 2]
    label = np.arange(12) // IMAGES_PER_CLASS
    right = np.array(predicted) == label
    if "trzsl" in overrides[1]:
        seen = right[label != 1].mean()
        unseen = right[label == 1].mean()
        harmonic = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
        expected = {"seen": seen, "unseen": unseen, "harmonic": harmonic}
        assert result["prompt_tuning"]["by_type"]["prompt_tuning"] == pytest.approx(expected)
    else:
        assert "by_type" not in result["prompt_tuning"]

    again = tune_prompts(sandbox, tmp_path / "again", training, *overrides)
    assert not {name: n for name, n in computed_counts(again).items() if n and not name.startswith("evaluation")}
    assert (again["metrics"], again["prompt_tuning"]) == (result["metrics"], result["prompt_tuning"])
    assert list(collect(sandbox.store, keep=[tmp_path / "run"], older_than=0.0))[-1].endswith(
        ": 0 files, 0 bytes would go"
    )
    assert used_by([tmp_path / "run"], sandbox.store, full=True).features
    assert list(verify(sandbox.store))[-1].endswith(" 0 faults")


@pytest.mark.slow
def test_trained_prompt_is_evaluated_on_other_classes(sandbox: Sandbox, tmp_path: Path, training: Path) -> None:
    first = tune_prompts(sandbox, tmp_path / "first", training, "prompt_tuning=grip")
    folder = load_trained_prompts(sandbox, first).folder
    other_folder = make_image_folder(tmp_path / "other", ("purple cow", "red star"), per_class=3)
    away = evaluate_run(
        sandbox, tmp_path / "away", *SMALL, "prompt_tuning=grip", f"checkpoint={folder}", f"dataset.root={other_folder}"
    )
    predicted = [int(row["prediction"]) for row in read_csv(tmp_path / "away" / "predictions.csv")]
    assert predicted == predict_labels(sandbox, LearnedPrompts(folder), other_folder).tolist()
    assert away["prompt_tuning"]["key"] == first["prompt_tuning"]["key"]

    subset_folder = make_image_folder(tmp_path / "some", (NAMES[2], NAMES[0]), per_class=3)
    sets = ("+dataset@ood.some=folder", f"ood.some.root={subset_folder}")
    shifted = evaluate_run(sandbox, tmp_path / "shifted", *SMALL, "prompt_tuning=grip", f"checkpoint={folder}", *sets)
    label = np.array(Folder(str(subset_folder)).labels)
    expected = (predict_labels(sandbox, LearnedPrompts(folder), subset_folder) == label).mean()
    assert shifted["ood"]["some"]["metrics"]["top1"] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method=diffuser_lora",), "LoraTuning evaluates nothing and only trains; give it to train.py"),
        ((*SMALL, "prompt_tuning=grip"), "train_root"),
        ((*SMALL, "prompt_tuning=grip", "membership=true"), "membership=True is asked of a student"),
        ((*SMALL, "prompt_tuning=grip", "paradigm=trzsl", "paradigm.seen_classes=[0, 1, 2]"), "unseen"),
        ((*SMALL, "prompt_tuning=grip", "prompt_tuning.shots=1000", "dataset.train_root=TRAINING"), "1000"),
        ((*SMALL, "prompt_tuning=grip", "checkpoint=."), "there is no prompt_tuning.json"),
        (("method=prompt_tuning", "+method.text_weight=0.5"), "0.5: prompt_tuning scores by what it trains"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_invalid_tuning_is_one_line(
    sandbox: Sandbox, tmp_path: Path, training: Path, overrides: tuple[str, ...], message: str, capsys: Any
) -> None:
    run_overrides = [override.replace("TRAINING", str(training)) for override in overrides]
    if "seen" in run_overrides[-1]:
        run_overrides.append(f"dataset.train_root={training}")
    with pytest.raises(SystemExit):
        evaluate_run(sandbox, tmp_path / "run", *run_overrides)
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.slow
def test_unreadable_pool_image_is_skipped(sandbox: Sandbox, tmp_path: Path, capsys: Any) -> None:
    pool = make_image_folder(tmp_path / "pool", per_class=2 * IMAGES_PER_CLASS)
    (pool / "blue_moon" / "0.png").write_bytes(b"not an image")
    overrides = [*sandbox.evaluate_overrides(), f"dataset.train_root={pool}", *SMALL, "prompt_tuning=grip"]
    with pytest.raises(SystemExit):
        run_command("train", *overrides, f"hydra.run.dir={tmp_path / 'refused'}")
    assert "on_bad_image=skip" in capsys.readouterr().err
    run_command("train", *overrides, f"hydra.run.dir={tmp_path / 'train'}", "on_bad_image=skip")
    run = evaluate_run(
        sandbox, tmp_path / "run", *SMALL, "prompt_tuning=grip", f"dataset.train_root={pool}", "on_bad_image=skip"
    )
    assert computed_counts(run)["prompt tuning"] == 0
    assert load_trained_prompts(sandbox, run).about["trained_on"]["unlabelled"] == 2 * IMAGES_PER_CLASS * 3 - 1


@pytest.mark.slow
def test_train_output_is_used_by_evaluate(sandbox: Sandbox, tmp_path: Path, training: Path, capsys: Any) -> None:
    overrides = [*sandbox.evaluate_overrides(), f"dataset.train_root={training}", f"hydra.run.dir={tmp_path / 'train'}"]
    run_command("train", *overrides, *SMALL, "prompt_tuning=grip")
    assert "text prompt after 2 rounds" in capsys.readouterr().out
    assert (
        computed_counts(tune_prompts(sandbox, tmp_path / "run", training, "prompt_tuning=grip"))["prompt tuning"] == 0
    )
    run_command("train", *overrides, "method=diffuser_lora", "method.steps=2", "method.batch_size=2")
    stdout = capsys.readouterr().out
    assert "2 steps on 24 images" in stdout
    folder = stdout.strip().rpartition("diffuser.lora=")[2]
    assert json.loads((Path(folder) / "lora.json").read_text())["key"] == Path(folder).name
    adapted = evaluate_run(sandbox, tmp_path / "adapted", f"diffuser.lora={folder}", f"dataset.train_root={training}")
    assert computed_counts(adapted)["images"] == 9, "an adapter draws other images"
    deleted = list(collect(sandbox.store, keep=[tmp_path / "adapted"], older_than=0.0))
    assert not [line for line in deleted if "adapters" in line]
    with pytest.raises(SystemExit):
        run_command("train", *overrides, "method=lgclip")
    assert "method=lgclip trains nothing" in capsys.readouterr().err
