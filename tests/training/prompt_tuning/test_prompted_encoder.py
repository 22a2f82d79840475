"""Tests tuned prompts in use: an encoder with a visual one, class features by a text one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prompt_factories import EACH, encoder_of, hidden_labels_of, setup_of, train_prompts, tuning_data_of
from safetensors.torch import load_file
from student_factories import NAMES, ColorPatches, build_context

from lgclip.encoder.scales import SquareCrops
from lgclip.stages.extract import encode
from lgclip.training.prompt_tuning.encoder import LearnedPrompts

CPU = torch.device("cpu")


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "prompt_tuning.json").read_text())


def test_visual_prompt_encodes_as_trained(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path)
    folder = train_prompts(
        setup_of(tmp_path, tuning_data, modality="visual", deep=True, rounds=1),
        tmp_path,
        hidden=hidden_labels_of(tuning_data),
    )
    learned_prompts = LearnedPrompts(str(folder))
    encoder = encoder_of(tmp_path)
    assert learned_prompts.class_features(encoder, NAMES, CPU) is None, "sentences give the class features"
    seen = learned_prompts.encoder(encoder)
    assert seen.inputs() != encoder.inputs()
    pool = ColorPatches(EACH, "train")
    streams, _ = encode(build_context(tmp_path / "store"), pool, seen, SquareCrops(), synthetic_images=None)
    features = streams.streams[-1].features()[:, 0]
    assert (features - tuning_data.pool.features).abs().max() > 1e-3
    right = ((features @ tuning_data.sentences.T).argmax(dim=1) == torch.tensor(pool.labels)).float().mean()
    assert about(folder)["rounds"][-1]["accuracy"] == pytest.approx(float(right))


def test_text_prompt_works_for_other_classes(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path)
    folder = train_prompts(setup_of(tmp_path, tuning_data), tmp_path, hidden=hidden_labels_of(tuning_data))
    learned_prompts = LearnedPrompts(str(folder))
    encoder = encoder_of(tmp_path)
    learned_prompts.check(encoder, NAMES)
    classes = learned_prompts.class_features(encoder, NAMES, CPU)
    assert classes is not None
    right = (
        ((tuning_data.pool.features @ classes.T).argmax(dim=1) == torch.tensor(hidden_labels_of(tuning_data)))
        .float()
        .mean()
    )
    assert about(folder)["rounds"][-1]["accuracy"] == pytest.approx(float(right))
    other_features = learned_prompts.class_features(encoder, ("ring", "blue", "star", "moon"), CPU)
    assert other_features is not None
    assert other_features.shape == (4, 32)
    torch.testing.assert_close(other_features[1], classes[2], msg="the same name, the same feature")
    assert learned_prompts.encoder(encoder) is encoder


def test_class_specific_vectors_fit_their_classes(tmp_path: Path) -> None:
    folder = train_prompts(setup_of(tmp_path, per_class=True, rounds=1), tmp_path)
    assert load_file(folder / "text.safetensors")["vectors"].shape == (3, 4, 32)
    learned_prompts = LearnedPrompts(str(folder))
    learned_prompts.check(encoder_of(tmp_path), NAMES)
    with pytest.raises(ValueError, match="each of its 3 classes has vectors of its own"):
        learned_prompts.check(encoder_of(tmp_path), NAMES[::-1])


def test_invalid_prompt_folders_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no prompt_tuning\.json"):
        LearnedPrompts(str(tmp_path))
    folder = train_prompts(setup_of(tmp_path, rounds=1), tmp_path)
    other_encoder = replace(encoder_of(tmp_path), model="tiny:encoder", precision="fp32")
    with pytest.raises(ValueError, match=r"its text prompt was tuned with encoder\.model="):
        LearnedPrompts(str(folder)).check(other_encoder, NAMES)
    (folder / "text.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"text\.safetensors is damaged"):
        LearnedPrompts(str(folder))
