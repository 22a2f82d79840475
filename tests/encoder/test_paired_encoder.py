"""Two encoders side by side: features, sentences, keys, costs and errors are those of both."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_families import ENCODERS
from hydra import compose, initialize_config_dir
from PIL import Image

from lgclip.encoder.base import Encoder, exact_encoder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.paired import PairedEncoder, split_features
from lgclip.encoder.profiling import measure
from lgclip.runtime.config_aliases import register_second_encoders
from lgclip.runtime.instantiate import build
from lgclip.runtime.scripts import script_place
from lgclip.stages.parts import encoder_config

CPU = torch.device("cpu")
SENTENCES = ["a photo of a star.", "a photo of a ring."]


def noise(count: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 70, 90, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairedEncoder:
    folder = tmp_path_factory.mktemp("models")
    return PairedEncoder(OpenClip("tiny:encoder"), ENCODERS["efficientnet"](folder / "second"))


@pytest.mark.parametrize("squash", [False, True])
def test_features_are_those_of_both(pair: PairedEncoder, squash: bool) -> None:
    expected = []
    for encoder in (pair.first, pair.second):
        transform = encoder.transform(squash=squash)
        expected.append(encoder.load(CPU).images(torch.stack([transform(image) for image in noise(5)])))
    transform = pair.transform(squash=squash)
    features = pair.load(CPU).images(torch.stack([transform(image) for image in noise(5)]))

    assert torch.equal(features, torch.cat(expected, dim=1) / math.sqrt(2))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(5))
    for half, single in zip(split_features(features, pair.first.width()), expected, strict=True):
        torch.testing.assert_close(half, single, atol=1e-6, rtol=0)


def test_sentences_are_those_of_the_first(pair: PairedEncoder) -> None:
    expected = pair.first.load(CPU).texts(SENTENCES)
    texts = pair.load(CPU).texts(SENTENCES)
    width = pair.first.width()
    assert torch.equal(texts[:, :width], expected)
    assert texts.shape[1] == pair.width()
    assert not texts[:, width:].any()
    assert pair.has_text
    assert not PairedEncoder(pair.second, pair.first).has_text


@pytest.mark.parametrize("family", ENCODERS)
def test_width_is_that_of_the_features(family: str, tmp_path: Path) -> None:
    encoder = ENCODERS[family](tmp_path / "model")
    pixels = torch.stack([encoder.transform()(image) for image in noise(1)])
    assert encoder.width() == encoder.load(CPU).images(pixels).shape[1]


def test_width_of_a_timm_model_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ENCODERS["timm_vit"](tmp_path / "model")

    def fail(self: Encoder, device: torch.device) -> None:
        raise AssertionError("the weights are not needed")

    monkeypatch.setattr(type(encoder), "load", fail)
    assert encoder.width() == 48


def test_keys_cover_both(pair: PairedEncoder, tmp_path: Path) -> None:
    swapped = PairedEncoder(pair.second, pair.first)
    other = PairedEncoder(pair.first, ENCODERS["convnext"](tmp_path / "model"))
    keys = [str(encoder.inputs()) for encoder in (pair, swapped, other)]
    assert len(set(keys)) == 3
    assert pair.inputs()["first"] == pair.first.inputs()
    assert pair.inputs()["second"] == pair.second.inputs()
    assert pair.repositories() == []
    pair.check_weights()


def test_precision_is_resolved_for_both(pair: PairedEncoder) -> None:
    resolved = pair.on(CPU)
    assert (resolved.first.precision, resolved.second.precision) == ("fp32", "fp32")
    half = PairedEncoder(pair.first, resolved.second)
    exact = exact_encoder(half)
    assert [part.precision for part in exact.parts().values()] == ["fp32", "fp32"]


def test_costs_are_those_of_both_towers(pair: PairedEncoder, tmp_path: Path) -> None:
    measured: list[Any] = []
    for name, encoder in (("first", pair.first), ("second", pair.second), ("pair", pair)):
        measure(encoder, encoder.load(CPU), tmp_path / f"{name}.json", "cpu")
        measured.append(json.loads((tmp_path / f"{name}.json").read_text()))
    first, second, both = measured
    for quantity in ("parameters", "flops"):
        assert both["image"][quantity] == first["image"][quantity] + second["image"][quantity]
        assert both["text"][quantity] == first["text"][quantity]
    assert both["width"] == first["width"] + second["width"]


def test_same_encoder_twice_is_refused(pair: PairedEncoder) -> None:
    with pytest.raises(ValueError, match="encoder2 is tiny:encoder, as is encoder: choose another one"):
        PairedEncoder(pair.first, OpenClip("tiny:encoder"))
    with pytest.raises(ValueError, match="two encoders are joined, not more"):
        PairedEncoder(pair, pair.second)


def test_trainings_take_a_single_encoder(pair: PairedEncoder) -> None:
    with pytest.raises(ValueError, match="prompts are tuned with a single encoder: set encoder2=none"):
        pair.prompt_key("text")
    with pytest.raises(ValueError, match="no single tower that could be trained"):
        pair.tower()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (script_place("conf") / "encoder").glob("*.yaml")))
def test_every_encoder_can_be_the_second(name: str) -> None:
    register_second_encoders()
    with initialize_config_dir(str(script_place("conf")), version_base="1.3"):
        chosen = compose("evaluate", [f"encoder={name}"]).encoder
        cfg = compose("evaluate", [f"encoder2={name}"])
    assert cfg.encoder2 == chosen
    assert cfg.encoder.model == "tiny:encoder"


def test_config_of_two_encoders_builds_both(tmp_path: Path) -> None:
    register_second_encoders()
    model = ENCODERS["efficientnet"](tmp_path / "model")
    with initialize_config_dir(str(script_place("conf")), version_base="1.3"):
        cfg = compose("evaluate", ["encoder2=timm", f"encoder2.model={tmp_path / 'model'}", "encoder2.image_size=64"])
        single = compose("evaluate")
    built = build(encoder_config(cfg), _convert_="all")
    assert built == PairedEncoder(OpenClip("tiny:encoder"), model)
    assert build(encoder_config(single), _convert_="all") == OpenClip("tiny:encoder")
