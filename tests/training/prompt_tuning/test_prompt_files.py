"""Tests prompt files: a lossless round trip for the same towers only."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_encoder
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lgclip.encoder.base import Encoder, LearningTowers
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.timm import Timm
from lgclip.store.checksums import checksum_of
from lgclip.training.prompt_tuning.files import about_prompt, load_prompt, save_prompt
from lgclip.training.prompt_tuning.soft_prompts import TextContext, TextPrompt, VisualPrompt, VisualTokens

CPU = torch.device("cpu")
NAMES = ("red star", "moon")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture
def towers(folder: Path) -> LearningTowers:
    return OpenClip(str(folder)).learning_towers(CPU, "text", "visual")


def learned_prompts(prompt: Any) -> Any:
    """Returns a prompt with other vectors than its initial ones."""
    torch.nn.init.normal_(prompt.vectors)
    return prompt


def test_prompt_round_trips(folder: Path, towers: LearningTowers, tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    for number, prompt in enumerate(
        [
            TextPrompt(towers, TextContext(4, "middle", "a {}."), NAMES),
            TextPrompt(towers, TextContext(2, per_class=True, words="a photo"), NAMES),
            VisualPrompt(towers, VisualTokens(3)),
            VisualPrompt(towers, VisualTokens(3, deep=True)),
        ]
    ):
        path = tmp_path / f"{number}.safetensors"
        save_prompt(learned_prompts(prompt), path)
        assert set(load_file(path)) == {"vectors"}
        about = about_prompt(path)
        assert (about["kind"], about["width"], about["name"]) == (prompt.kind, 32, str(folder))
        assert about["encoder"] == OpenClip(str(folder), precision="bf16").prompt_key(prompt.kind)
        again = load_prompt(path, towers)
        assert (again.context, torch.equal(again.vectors, prompt.vectors)) == (prompt.context, True)
        arguments = () if isinstance(prompt, TextPrompt) else (pixels,)
        assert torch.equal(again(*arguments), prompt(*arguments))


def test_class_specific_prompt_requires_its_classes(towers: LearningTowers, tmp_path: Path) -> None:
    shared = learned_prompts(TextPrompt(towers, TextContext(4), NAMES))
    per_class = TextPrompt(towers, TextContext(4, per_class=True), NAMES)
    save_prompt(shared, tmp_path / "shared")
    save_prompt(per_class, tmp_path / "own")
    other_classes = load_prompt(tmp_path / "shared", towers, ["green ring", "moon"])
    assert isinstance(other_classes, TextPrompt)
    torch.testing.assert_close(other_classes()[1], shared()[1])
    assert load_prompt(tmp_path / "own", towers, NAMES)
    with pytest.raises(ValueError, match=r"vectors of each of 2 classes, and the 3 to be evaluated are others"):
        load_prompt(tmp_path / "own", towers, [*NAMES, "green ring"])


def test_prompt_of_other_towers_is_rejected(folder: Path, towers: LearningTowers, tmp_path: Path) -> None:
    save_prompt(VisualPrompt(towers, VisualTokens(3)), tmp_path / "prompt")
    other_path = tmp_path / "other"
    other_path.mkdir()
    for file in folder.iterdir():
        (other_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(other_path / "open_clip_model.safetensors")
    save_file({name: -value for name, value in weights.items()}, other_path / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"tuned with encoder\.model=.*encoder \(width 32\), and this is .*other"):
        load_prompt(tmp_path / "prompt", OpenClip(str(other_path)).learning_towers(CPU, "visual"))


def test_damaged_prompt_file_is_rejected(towers: LearningTowers, tmp_path: Path) -> None:
    path = tmp_path / "prompt"
    with pytest.raises(ValueError, match="there is no such prompt"):
        about_prompt(path)
    save_prompt(TextPrompt(towers, TextContext(4), NAMES), path)
    content = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["lgclip"])
    path.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"is damaged: .*; tune it again"):
        load_prompt(path, towers)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="holds no tuned prompt"):
        load_prompt(path, towers)
    for vectors, changed, message in [
        (torch.zeros(4, 31), {}, "or not 32 wide"),
        (torch.full((4, 32), torch.nan), {}, "are not finite"),
        (torch.zeros(5, 32), {}, r"of shape \(5, 32\)"),
        (torch.zeros(4, 32), {"kind": "audio"}, "another version: 'audio'"),
        (torch.zeros(4, 32), {"prompt": {"tokens": 4, "colour": 1}}, "another version: .*colour"),
        (torch.zeros(4, 32), {"prompt": {"tokens": 0}}, r"another version: prompt_tuning\.tokens=0"),
    ]:
        other = about | changed
        other.pop("checksum", None)
        other["checksum"] = checksum_of({"vectors": vectors}, json.dumps(other))
        save_file({"vectors": vectors}, path, {"lgclip": json.dumps(other)})
        with pytest.raises(ValueError, match=message):
            load_prompt(path, towers)


@pytest.mark.parametrize(
    ("encoder", "kinds", "message"),
    [
        (Timm("test_vit.r160_in1k"), ("text",), r"Timm: this encoder has no text tower.*encoder=vit_b16"),
        (OpenClip("RN50-quickgelu", "openai"), ("text", "visual"), r"tower is a ResNet.*text prompts only"),
        (OpenClip("ViT-B-16-SigLIP2", "webli"), ("visual",), r"its vision tower is vit_base_patch16_siglip_224"),
        (OpenClip("coca_ViT-B-32", "laion2b_s13b_b90k"), ("text",), r"its text tower reads a class token of its own"),
        (OpenClip("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"), ("text",), r"is a model of transformers"),
    ],
)  # fmt: skip
def test_unsupported_towers_are_rejected_early(encoder: Encoder, kinds: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.prompt_key(*kinds)
    with pytest.raises(ValueError, match=message):
        encoder.learning_towers(CPU, *kinds)
