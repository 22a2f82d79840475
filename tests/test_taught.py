"""Soft prompts and adapters in whole runs, against what the prompts themselves say of the images."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from worlds import IMAGES_PER_CLASS, NAMES, World, call, judge, made, picture_folder, rows

from lgclip.datasets.folder import Folder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.prompted import Learnt
from lgclip.retention import collect, used_by
from lgclip.verification import verify

pytest_plugins = ("run_fixtures",)

SMALL = (
    "method=air", "learner.epochs=2", "learner.warmup_epochs=1", "learner.batch_size=8", "learner.rounds=2",
    "learner.shots=2", "learner.tokens=3", "learner.lr=0.02",
)  # fmt: skip


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pool: other patches than the test images."""
    return picture_folder(tmp_path_factory.mktemp("training"), each=2 * IMAGES_PER_CLASS)


def learn(world: World, folder: Path, training: Path, *overrides: str) -> dict[str, Any]:
    return judge(world, folder, *SMALL, f"dataset.train_root={training}", *overrides)


def learnt_of(world: World, result: dict[str, Any]) -> Learnt:
    return Learnt(str(world.store / "prompts_learned" / result["learner"]["key"]))


def foretold(world: World, learnt: Learnt, pictures: Path) -> np.ndarray:
    """What the prompts say of each image, one at a time and without any store."""
    base, images = OpenClip(str(world.encoder), precision="fp32"), Folder(str(pictures))
    encoder, cpu = learnt.encoder(base), torch.device("cpu")
    look, towers = encoder.transform(), encoder.load(cpu)
    classes = learnt.class_features(base, images.class_names, cpu)
    if classes is None:
        classes = towers.texts([f"a photo of a {name}." for name in images.class_names])
    features = torch.cat([towers.images(look(images.image(at))[None]) for at in range(len(images))])
    return (features @ classes.T).argmax(dim=1).numpy()


@pytest.mark.parametrize(
    "overrides",
    [
        ("learner=air", "paradigm=ul", "learner.auxiliary=given", "learner.nearest=2"),
        ("learner=grip", "paradigm=ssl", "paradigm.shots=1"),
        ("learner=cpl", "paradigm=trzsl", "paradigm.seen=[0, 2]", "learner.prompt=both"),
        ("learner=grip", "paradigm=ul", "learner.prompt=visual"),
    ],
    ids=" ".join,
)
def test_a_learnt_prompt_is_judged_as_it_answers(
    world: World, tmp_path: Path, training: Path, overrides: tuple[str, ...]
) -> None:
    result = learn(world, tmp_path / "run", training, *overrides)
    said = [int(row["prediction"]) for row in rows(tmp_path / "run" / "predictions.csv")]
    assert said == foretold(world, learnt_of(world, result), world.pictures).tolist()
    assert result["method"] == "air"
    assert set(result["beside"]) == {"clip_text", "lgclip"}
    assert [one["round"] for one in result["learner"]["rounds"]] == [0, 1, 2]
    label = np.arange(12) // IMAGES_PER_CLASS
    right = np.array(said) == label
    if "trzsl" in overrides[1]:
        seen, unseen = right[label != 1].mean(), right[label == 1].mean()
        harmonic = 2 * seen * unseen / (seen + unseen) if seen + unseen else 0.0
        wanted = {"seen": seen, "unseen": unseen, "harmonic": harmonic}
        assert result["learner"]["by_kind"]["air"] == pytest.approx(wanted)
    else:
        assert "by_kind" not in result["learner"]

    again = learn(world, tmp_path / "again", training, *overrides)
    assert not {name: n for name, n in made(again).items() if n and not name.startswith("judging")}
    assert (again["metrics"], again["learner"]) == (result["metrics"], result["learner"])
    assert list(collect(world.store, keep=[tmp_path / "run"], older_than=0.0))[-1].endswith(
        ": 0 files, 0 bytes would go"
    )
    assert used_by([tmp_path / "run"], world.store, whole=True).features
    assert list(verify(world.store))[-1].endswith(" 0 faults")


def test_a_prompt_that_is_there_is_judged_on_other_classes_and_shifted_ones(
    world: World, tmp_path: Path, training: Path
) -> None:
    first = learn(world, tmp_path / "first", training, "learner=grip")
    folder = learnt_of(world, first).folder
    other = picture_folder(tmp_path / "other", ("purple cow", "red star"), each=3)
    away = judge(world, tmp_path / "away", *SMALL, "learner=grip", f"ckpt={folder}", f"dataset.root={other}")
    said = [int(row["prediction"]) for row in rows(tmp_path / "away" / "predictions.csv")]
    assert said == foretold(world, Learnt(folder), other).tolist()
    assert away["learner"]["key"] == first["learner"]["key"]

    some = picture_folder(tmp_path / "some", (NAMES[2], NAMES[0]), each=3)
    sets = ("+dataset@ood.some=folder", f"ood.some.root={some}")
    shifted = judge(world, tmp_path / "shifted", *SMALL, "learner=grip", f"ckpt={folder}", *sets)
    label = np.array(Folder(str(some)).labels)
    wanted = (foretold(world, Learnt(folder), some) == label).mean()
    assert shifted["ood"]["some"]["metrics"]["top1"] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("method=diffuser_lora",), "LoraTuning judges nothing and only trains; give it to train.py"),
        ((*SMALL, "learner=grip"), "train_root"),
        ((*SMALL, "learner=grip", "membership=true"), "membership=True is asked of a student"),
        ((*SMALL, "learner=grip", "paradigm=trzsl", "paradigm.seen=[0, 1, 2]"), "unseen"),
        ((*SMALL, "learner=grip", "learner.shots=1000", "dataset.train_root=TRAINING"), "1000"),
        ((*SMALL, "learner=grip", "ckpt=nowhere"), "there is no learner.json"),
        (("method=air", "method.learns=luck"), "method.learns=luck: choose student or prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_learnt_is_said_in_one_line(
    world: World, tmp_path: Path, training: Path, overrides: tuple[str, ...], said: str, capsys: Any
) -> None:
    given = [one.replace("TRAINING", str(training)) for one in overrides]
    if "seen" in given[-1]:
        given.append(f"dataset.train_root={training}")
    with pytest.raises(SystemExit):
        judge(world, tmp_path / "run", *given)
    assert re.search(said, capsys.readouterr().err)


def test_a_pool_with_an_image_that_cannot_be_read_is_learnt_from_without_it_if_asked(
    world: World, tmp_path: Path, capsys: Any
) -> None:
    pool = picture_folder(tmp_path / "pool", each=2 * IMAGES_PER_CLASS)
    (pool / "blue_moon" / "0.png").write_bytes(b"not an image")
    given = [*world.evaluating(), f"dataset.train_root={pool}", *SMALL, "learner=grip"]
    with pytest.raises(SystemExit):
        call("train", *given, f"hydra.run.dir={tmp_path / 'refused'}")
    assert "on_bad_image=skip" in capsys.readouterr().err
    call("train", *given, f"hydra.run.dir={tmp_path / 'train'}", "on_bad_image=skip")
    run = judge(world, tmp_path / "run", *SMALL, "learner=grip", f"dataset.train_root={pool}", "on_bad_image=skip")
    assert made(run)["prompt learning"] == 0
    assert learnt_of(world, run).about["learnt_from"]["unlabelled"] == 2 * IMAGES_PER_CLASS * 3 - 1


def test_train_makes_what_evaluate_finds(world: World, tmp_path: Path, training: Path, capsys: Any) -> None:
    given = [*world.evaluating(), f"dataset.train_root={training}", f"hydra.run.dir={tmp_path / 'train'}"]
    call("train", *given, *SMALL, "learner=grip")
    assert "text prompt after 2 rounds" in capsys.readouterr().out
    assert made(learn(world, tmp_path / "run", training, "learner=grip"))["prompt learning"] == 0
    call("train", *given, "method=diffuser_lora", "method.steps=2", "method.batch_size=2")
    told = capsys.readouterr().out
    assert "2 steps on 24 images" in told
    folder = told.strip().rpartition("diffuser.lora=")[2]
    assert json.loads((Path(folder) / "lora.json").read_text())["key"] == Path(folder).name
    adapted = judge(world, tmp_path / "adapted", f"diffuser.lora={folder}", f"dataset.train_root={training}")
    assert made(adapted)["images"] == 9, "an adapter draws other images"
    gone = list(collect(world.store, keep=[tmp_path / "adapted"], older_than=0.0))
    assert not [line for line in gone if "adapters" in line]
    with pytest.raises(SystemExit):
        call("train", *given, "method=lgclip")
    assert "method=lgclip trains nothing" in capsys.readouterr().err
