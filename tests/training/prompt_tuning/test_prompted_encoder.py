"""Tests tuned prompts in use: an encoder with a visual one, class features by a text one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from prompt_factories import PER_CLASS, encoder_of, hidden_labels_of, setup_of, train_prompts, tuning_data_of
from safetensors.torch import load_file
from student_factories import NAMES, ColorPatches, build_context

from lgclip.encoder.base import exact_encoder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.stages.extract import encode
from lgclip.training.prompt_tuning.encoder import LearnedPrompts, PromptedEncoder
from lgclip.training.prompt_tuning.files import load_prompt
from lgclip.training.prompt_tuning.soft_prompts import VisualPrompt

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
    pool = ColorPatches(PER_CLASS, "train")
    streams, _ = encode(build_context(tmp_path / "store"), pool, seen, SquareCrops(), synthetic_images=None)
    features = streams.streams[-1].features()[:, 0]
    assert (features - tuning_data.pool.features).abs().max() > 1e-3
    right = ((features @ tuning_data.sentences.T).argmax(dim=1) == torch.tensor(pool.labels)).float().mean()
    assert about(folder)["rounds"][-1]["accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize("deep", [True, False])
def test_vision_tower_with_its_prompt_stands_alone(deep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train_prompts(setup_of(tmp_path, modality="visual", deep=deep, rounds=1), tmp_path)
    encoder = LearnedPrompts(str(folder)).encoder(encoder_of(tmp_path))
    prompt = load_prompt(folder / "visual.safetensors", encoder_of(tmp_path).learning_towers(CPU, "visual"))
    assert isinstance(prompt, VisualPrompt)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = prompt(pixels)
    tower = encoder.tower()
    alone = tower.plan.body()
    alone.load_state_dict(tower.body.state_dict())
    torch.testing.assert_close(F.normalize(alone.eval()(pixels), dim=-1), expected)
    # Images need no text tower.
    with monkeypatch.context() as patches:
        patches.setattr(OpenClip, "load", None)
        torch.testing.assert_close(encoder.load(CPU).images(pixels), expected)
    vectors = prompt.vectors.numel()
    plain = encoder_of(tmp_path).load(CPU).parameters()
    assert encoder.load(CPU).parameters() == {**plain, "image": plain["image"] + vectors}
    assert encoder.width() == expected.shape[1]


def test_precision_is_that_of_the_encoder(tmp_path: Path) -> None:
    folder = train_prompts(setup_of(tmp_path, modality="visual", rounds=1), tmp_path)
    half = LearnedPrompts(str(folder)).encoder(replace(encoder_of(tmp_path), precision="bf16"))
    exact = exact_encoder(half)
    assert (half.precision, exact.precision) == ("bf16", "fp32")
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rounded, features = (encoder.load(CPU).images(pixels) for encoder in (half, exact))
    assert not torch.equal(rounded, features)
    torch.testing.assert_close(rounded, features, atol=0.05, rtol=0)


def test_prompt_of_another_encoder_is_one_error(tmp_path: Path) -> None:
    folder = train_prompts(setup_of(tmp_path, modality="both", rounds=1), tmp_path)
    other = PromptedEncoder(replace(encoder_of(tmp_path), model="tiny:encoder"), str(folder / "visual.safetensors"))
    with pytest.raises(ValueError, match="and this is tiny:encoder of other weights"):
        other.load(CPU)
    text = PromptedEncoder(encoder_of(tmp_path), str(folder / "text.safetensors"))
    with pytest.raises(ValueError, match=r"text\.safetensors holds no visual prompt"):
        text.load(CPU)


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
