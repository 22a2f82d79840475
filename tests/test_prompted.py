"""Learnt prompts at work: an encoder that sees through a visual one, class features by a text one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_worlds import EACH, encoder_of, ground_of, hidden_of, lesson_of, taught
from safetensors.torch import load_file
from student_worlds import NAMES, Patches, stages_of

from lgclip.encoder.prompted import Learnt
from lgclip.features import encode
from lgclip.scales import SquareCrops

CPU = torch.device("cpu")


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "learner.json").read_text())


def test_a_visual_prompt_is_judged_by_the_features_that_it_was_learnt_with(tmp_path: Path) -> None:
    ground = ground_of(tmp_path)
    folder = taught(
        lesson_of(tmp_path, ground, prompt="visual", deep=True, rounds=1), tmp_path, hidden=hidden_of(ground)
    )  # fmt: skip
    learnt, encoder = Learnt(str(folder)), encoder_of(tmp_path)
    assert learnt.class_features(encoder, NAMES, CPU) is None, "classes are told by sentences"
    seen = learnt.encoder(encoder)
    assert seen.inputs() != encoder.inputs()
    pool = Patches(EACH, "train")
    streams, _ = encode(stages_of(), pool, seen, SquareCrops(), tmp_path / "store", drawing=None, workers=0)
    features = streams.streams[-1].features()[:, 0]
    assert (features - ground.pool.features).abs().max() > 1e-3
    right = ((features @ ground.sentences.T).argmax(dim=1) == torch.tensor(pool.labels)).float().mean()
    assert about(folder)["rounds"][-1]["accuracy"] == pytest.approx(float(right))


def test_a_text_prompt_gives_class_features_for_its_own_and_for_other_classes(tmp_path: Path) -> None:
    ground = ground_of(tmp_path)
    folder = taught(lesson_of(tmp_path, ground), tmp_path, hidden=hidden_of(ground))
    learnt, encoder = Learnt(str(folder)), encoder_of(tmp_path)
    learnt.check(encoder, NAMES)
    classes = learnt.class_features(encoder, NAMES, CPU)
    assert classes is not None
    right = ((ground.pool.features @ classes.T).argmax(dim=1) == torch.tensor(hidden_of(ground))).float().mean()
    assert about(folder)["rounds"][-1]["accuracy"] == pytest.approx(float(right))
    others = learnt.class_features(encoder, ("ring", "blue", "star", "moon"), CPU)
    assert others is not None
    assert others.shape == (4, 32)
    torch.testing.assert_close(others[1], classes[2], msg="the same name, the same feature")
    assert learnt.encoder(encoder) is encoder


def test_vectors_of_each_class_are_for_these_classes_alone(tmp_path: Path) -> None:
    folder = taught(lesson_of(tmp_path, per_class=True, rounds=1), tmp_path)
    assert load_file(folder / "text.safetensors")["vectors"].shape == (3, 4, 32)
    learnt = Learnt(str(folder))
    learnt.check(encoder_of(tmp_path), NAMES)
    with pytest.raises(ValueError, match="each of its 3 classes has vectors of its own"):
        learnt.check(encoder_of(tmp_path), NAMES[::-1])


def test_a_folder_without_a_learner_and_one_of_other_towers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no learner\.json"):
        Learnt(str(tmp_path))
    folder = taught(lesson_of(tmp_path, rounds=1), tmp_path)
    other = replace(encoder_of(tmp_path), model="tiny:encoder", precision="fp32")
    with pytest.raises(ValueError, match=r"its text prompt was learnt through encoder\.model="):
        Learnt(str(folder)).check(other, NAMES)
    (folder / "text.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"text\.safetensors is damaged"):
        Learnt(str(folder))
