"""Prompts are learnt in rounds: interrupted or not, on one device or two, to the same vectors, and blind to labels."""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import fit_prompts
import pytest
import torch
import torch.nn.functional as F
from crowd import finished, started
from prompt_worlds import EACH, Relabelled, encoder_of, ground_of, hidden_of, lesson_of, small, taught
from safetensors.torch import load_file
from student_worlds import NAMES, Patches, one_cpu, stages_of
from worlds import rows, tree

from lgclip.encoder.prompted import Learnt
from lgclip.encoder.timm import Timm
from lgclip.features import encode
from lgclip.guessing import guess
from lgclip.paradigms import Paradigm
from lgclip.pool import Ground, check_apart
from lgclip.prompt_learning import PromptLesson, folder_of, is_learned, learn_prompts, told
from lgclip.prompt_rounds import Course
from lgclip.scales import SquareCrops
from lgclip.soft_prompts import TextContext, TextPrompt

CPU = torch.device("cpu")


def vectors(folder: Path) -> dict[str, torch.Tensor]:
    return {path.stem: load_file(path)["vectors"] for path in sorted(folder.glob("*.safetensors"))}


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "learner.json").read_text())


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys() != set()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []


def test_prompts_are_learnt_in_rounds_and_whole_and_alone_in_their_folder(tmp_path: Path) -> None:
    ground = ground_of(tmp_path, "ssl")
    folder = taught(lesson_of(tmp_path, ground, rounds=3, epochs=4), tmp_path / "made", hidden=hidden_of(ground))
    assert {Path(name).name for name in tree(tmp_path / "made")} == {"text.safetensors", "learner.json"}
    said = about(folder)
    assert [row["round"] for row in said["rounds"]] == [0, 1, 2, 3]
    assert [row["k"] for row in said["rounds"][1:]] == [2, 4, 6], "int(n * int(18 / 3) / 3)"
    assert [row["coverage"] for row in said["rounds"][1:]] == pytest.approx([6 / 18, 12 / 18, 1.0])
    assert all(0 <= row[name] <= 1 for row in said["rounds"][1:] for name in ("precision", "accuracy"))
    assert said["learnt_from"] == {"labelled": 6, "unlabelled": 18, "synthetic": 0}
    assert said["seen"] == said["unseen"] == [], "these are words of another paradigm"
    assert vectors(folder)["text"].shape == (4, 32)
    assert "text prompt after 3 rounds; on the pool's unlabelled images" in told(folder)


def test_prompts_that_are_there_are_not_learnt_again(tmp_path: Path) -> None:
    lesson = lesson_of(tmp_path)
    folder = taught(lesson, tmp_path)
    before = tree(folder)

    def never(**_: Any) -> NoReturn:
        raise AssertionError("no trainer is made")

    assert taught(lesson, tmp_path) == folder
    stages = stages_of()
    assert learn_prompts(stages, never, lesson, tmp_path) == folder
    assert tree(folder) == before
    assert [(account.stage, account.made, account.reused) for account in stages.accounts] == [("prompt learning", 0, 2)]


@pytest.mark.parametrize("kind", ["ul", "ssl", "trzsl"])
def test_no_hidden_label_changes_what_is_learnt(kind: str, tmp_path: Path) -> None:
    """Neither those that analysis is given, nor those of the pool itself."""
    ground = ground_of(tmp_path, kind)
    blind = taught(lesson_of(tmp_path, ground), tmp_path / "blind")
    hidden = hidden_of(ground)
    seeing = taught(lesson_of(tmp_path, ground), tmp_path / "seeing", hidden=hidden[::-1])
    assert_equal(vectors(seeing), vectors(blind))
    assert "precision" in about(seeing)["rounds"][1]
    assert "precision" not in about(blind)["rounds"][1]
    # The unlabelled images' labels the other way round: classes, division and key stay as they are.
    labels = list(Patches(EACH, "train").labels)
    for at, label in zip(ground.division.unlabelled.tolist(), hidden[::-1], strict=True):
        labels[at] = label
    if kind != "ssl":  # there, which images are drawn to be labelled depends on the classes' sizes and places
        other = ground_of(tmp_path, kind, Relabelled(labels))
        assert folder_of(lesson_of(tmp_path, other), tmp_path) == folder_of(lesson_of(tmp_path, ground), tmp_path)
        assert_equal(vectors(taught(lesson_of(tmp_path, other), tmp_path / "other")), vectors(blind))


def test_what_is_known_of_a_pool_holds_no_hidden_label(tmp_path: Path) -> None:
    ground = ground_of(tmp_path, "trzsl")
    assert set(ground.labels.tolist()) == set(ground.division.seen)
    assert len(ground.labels) == len(ground.division.labelled) == EACH * len(ground.division.seen)
    assert set(ground.division.targets) == set(ground.division.unseen) == {0, 1, 2} - set(ground.division.seen)


def test_text_prompts_are_learnt_from_stored_features_alone(tmp_path: Path) -> None:
    def gone(_: int) -> NoReturn:
        raise AssertionError("no image is read")

    ground = ground_of(tmp_path, images=4)
    assert ground.synthetic is not None
    ground = replace(ground, pool=replace(ground.pool, load=gone), synthetic=replace(ground.synthetic, load=gone))
    assert is_learned(taught(lesson_of(tmp_path, ground, synthetic_weight=1.0, auxiliary="chosen"), tmp_path))


def test_a_killed_round_goes_on_to_the_very_vectors_and_two_devices_learn_the_same_but_for_rounding(
    tmp_path: Path,
) -> None:
    script = [sys.executable, fit_prompts.__file__, str(tmp_path)]
    finished([started([*script, "killed"])], status=-signal.SIGKILL)
    (left,) = (tmp_path / "killed").glob("store/prompts_learned/*")
    assert set(tree(left)) == {"checkpoints/rounds.safetensors", "checkpoints/02/last.safetensors"}
    finished([started(script)])
    (alone,), (shared,) = (list((tmp_path / str(n)).glob("store/prompts_learned/*")) for n in (1, 2))
    assert alone.name == shared.name == left.name, "how many devices there are is in no key"
    fit_prompts.fit(tmp_path, tmp_path / "killed", 1)
    assert_equal(vectors(left), vectors(alone))
    assert not (left / "checkpoints").exists()
    assert (about(shared)["devices"], about(alone)["devices"]) == (2, 1)
    for kind, value in vectors(shared).items():
        torch.testing.assert_close(value, vectors(alone)[kind], rtol=1e-3, atol=1e-5)


def test_each_round_begins_anew_or_where_the_last_one_ended(tmp_path: Path) -> None:
    """A round's first loss is that of the prompt it begins with, on labels by the one before."""
    ground, encoder = ground_of(tmp_path), encoder_of(tmp_path)
    recipe: dict[str, Any] = {"shots": 8, "batch_size": 24}
    once = taught(lesson_of(tmp_path, ground, rounds=1, **recipe), tmp_path)
    new = TextPrompt(encoder.learning_towers(CPU, "text"), TextContext(tokens=4), NAMES)().detach()
    last = Learnt(str(once)).class_features(encoder, NAMES, CPU)
    assert last is not None
    guesses = guess(small(**recipe), ground.pool.features @ last.T, 0.05, None, 8)
    assert sorted(guesses.places.tolist()) == list(range(24))
    for warm, begins_with in ((False, new), (True, last)):
        folder = taught(lesson_of(tmp_path, ground, warm_start=warm, **recipe), tmp_path)
        logits = (ground.pool.features @ begins_with.T / 0.05)[guesses.places]
        wanted = F.cross_entropy(logits, guesses.sets.long().argmax(dim=1)).item()
        assert about(folder)["rounds"][2]["losses"][0] == pytest.approx(wanted, rel=1e-4)


def test_the_release_has_braces_in_its_sentences_and_starts_text_prompts_warm(tmp_path: Path) -> None:
    ground, encoder = ground_of(tmp_path), encoder_of(tmp_path)
    assert small(quirks="release").goes_on
    assert not small(quirks="release", prompt="visual").goes_on
    said = encoder.load(CPU).texts([f"a photo of a {{}}{name}" for name in NAMES])
    course = Course(small(quirks="release", rounds=0), encoder, ground, tmp_path / "zero", CPU, 0)
    found, _ = course.run(one_cpu, one_cpu(logger=False, enable_checkpointing=False), None, False)
    torch.testing.assert_close(found.cosines, ground.pool.features @ said.T)


def test_synthetic_images_help_to_label_and_are_learnt_from(tmp_path: Path) -> None:
    ground = ground_of(tmp_path, images=5)
    ways: dict[str, dict[str, Any]] = {
        "grip": {}, "aided": {"auxiliary": "chosen"}, "given": {"auxiliary": "given", "nearest": 2, "aux_weight": 3.0},
        "all": {"auxiliary": "chosen", "synthetic_weight": 1.0},
        "few": {"synthetic_weight": 1.0, "synthetic_images": 2},
        "cpl": {"candidates": True, "alpha": 0.6, "beta": 0.5},
    }  # fmt: skip
    found = {
        name: taught(lesson_of(tmp_path, ground, **way), tmp_path, hidden=hidden_of(ground))
        for name, way in ways.items()
    }
    assert len({vectors(folder)["text"].numpy().tobytes() for folder in found.values()}) >= 5, "two may guess alike"
    assert about(found["grip"])["aid"] is None
    assert about(found["given"])["aid"] == {
        "keep": 2, "weight": 3.0, "text_temperature": 0.05, "aux_temperature": 0.01, "leave_one_out": None
    }  # fmt: skip
    assert about(found["aided"])["aid"]["leave_one_out"] >= 0.9, "colours are told apart by a random tower"
    assert about(found["few"])["learnt_from"]["synthetic"] == 6
    assert about(found["cpl"])["rounds"][1]["candidates"] >= 1
    precision = {name: about(folder)["rounds"][1]["precision"] for name, folder in found.items()}
    assert precision["given"] > precision["grip"], "sentences of a random tower say nothing of colours"


def test_without_rounds_nothing_is_learnt_and_it_is_zero_shot(tmp_path: Path) -> None:
    ground = ground_of(tmp_path)
    folder = taught(lesson_of(tmp_path, ground, rounds=0), tmp_path, hidden=hidden_of(ground))
    assert set(tree(folder)) == {"learner.json"}
    right = (
        ((ground.pool.features @ ground.sentences.T).argmax(dim=1) == torch.tensor(hidden_of(ground))).float().mean()
    )
    assert about(folder)["rounds"] == [{"round": 0, "accuracy": pytest.approx(float(right))}]
    assert Learnt(str(folder)).class_features(encoder_of(tmp_path), NAMES, CPU) is None
    assert told(folder).endswith("nothing learnt, zero-shot")


def test_what_a_logger_is_told_is_each_epoch_and_each_round(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger

    ground = ground_of(tmp_path)
    logger = CSVLogger(tmp_path, "log")
    folder = taught(lesson_of(tmp_path, ground), tmp_path, hidden=hidden_of(ground), logger=logger)
    logged = rows(next((tmp_path / "log").rglob("metrics.csv")))
    said = about(folder)["rounds"][1:]
    assert [float(row["loss"]) for row in logged] == pytest.approx([loss for row in said for loss in row["losses"]])
    told_rounds = [float(row["accuracy"]) for row in logged if row["accuracy"]]
    assert told_rounds == pytest.approx([row["accuracy"] for row in said])


def test_what_cannot_be_learnt_is_said_before_work_starts(tmp_path: Path) -> None:
    ground, encoder = ground_of(tmp_path), encoder_of(tmp_path)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"shots": 25}, r"K=25 pseudo-labels of a class: it must be 1 to 24"),
        ({"auxiliary": "chosen"}, "uses synthetic images of each class, and there are none"),
    ]
    for values, said in bad:
        with pytest.raises(ValueError, match=said):
            lesson_of(tmp_path, ground, **values)
    with pytest.raises(ValueError, match=r"learner\.synthetic_images=5: class 0 has 4; draw more"):
        lesson_of(tmp_path, ground_of(tmp_path, images=4), synthetic_weight=1.0, synthetic_images=5)
    two = replace(ground, scales=SquareCrops((1.0, 0.5), (1.0, 1.0)))
    with pytest.raises(ValueError, match=r"learner\.prompt=visual: .*choose scales=single"):
        PromptLesson(small(prompt="visual"), encoder, two)
    with pytest.raises(ValueError, match=r"encoder\.precision=fp16"):
        PromptLesson(small(), replace(encoder, precision="fp16"), ground)
    with pytest.raises(ValueError, match="no text tower"):
        PromptLesson(small(), Timm("test_vit", checkpoint=None, precision="fp32"), ground)
    streams, pool = encode(
        stages_of(), Patches(EACH, "train"), encoder, SquareCrops(), tmp_path / "store", drawing=None, workers=0
    )  # fmt: skip
    with pytest.raises(ValueError, match="choose an encoder with a text tower"):
        Ground.of(streams.streams[1:], pool, Paradigm(), SquareCrops())


def test_a_lesson_is_made_of_a_pool_and_its_hidden_labels_come_apart(tmp_path: Path) -> None:
    pool, encoder = Patches(EACH, "train"), encoder_of(tmp_path)
    given = (stages_of(), small(), encoder, Paradigm("trzsl"), pool, SquareCrops(), tmp_path)
    lesson, hidden = PromptLesson.of(*given, drawing=None)
    assert hidden == hidden_of(lesson.ground)
    assert is_learned(taught(lesson, tmp_path, hidden=hidden))


def test_a_rate_that_is_too_high_is_named_and_leaves_no_prompt(tmp_path: Path) -> None:
    lesson = lesson_of(tmp_path, lr=1e30, epochs=6)
    with pytest.raises(ValueError, match=r"learner\.lr=1e\+30: the loss of epoch \d is no number; lower the rate"):
        taught(lesson, tmp_path)
    assert not is_learned(folder_of(lesson, tmp_path))


def test_no_judged_image_is_learnt_from() -> None:
    check_apart(Patches(EACH, "train"), Patches(EACH, "test"))
    with pytest.raises(ValueError, match="24 of the 24 images to learn from are among those to be judged, first image"):
        check_apart(Patches(EACH, "test"), Patches(EACH, "test"))
