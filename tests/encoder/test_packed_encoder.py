"""The packed vision tower of each family gives the features of its encoder, without the encoder's files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_families import ENCODERS
from factories import NAMES, FirstRun
from PIL import Image

import lgclip
from lgclip.classifier.places import ENCODER, RECORD
from lgclip.cli.main import main
from lgclip.encoder.packed import ABOUT, WEIGHTS, PackedEncoder, pack_encoder

pytest_plugins = ("run_fixtures",)

CPU = torch.device("cpu")


def noise(count: int) -> list[Image.Image]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 70, 90, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


@pytest.mark.parametrize("family", ENCODERS)
def test_features_are_the_encoders(family: str, tmp_path: Path) -> None:
    encoder: Any = ENCODERS[family](tmp_path / "model")
    encoder = replace(encoder, precision="fp32")
    pack_encoder(encoder, tmp_path / "packed")
    expected = []
    for squash in (False, True):
        transform = encoder.transform(squash=squash)
        expected.append(torch.stack([transform(image) for image in noise(5)]))
    features = encoder.load(CPU).images(expected[0])
    inputs = encoder.inputs()
    parameters = encoder.load(CPU).parameters()["image"]
    shutil.rmtree(tmp_path / "model", ignore_errors=True)

    packed = PackedEncoder(str(tmp_path / "packed"), "fp32")

    for squash, pixels in zip((False, True), expected, strict=True):
        transform = packed.transform(squash=squash)
        assert torch.equal(torch.stack([transform(image) for image in noise(5)]), pixels)
    torch.testing.assert_close(packed.load(CPU).images(expected[0]), features, atol=1e-5, rtol=0)
    assert json.loads(json.dumps(inputs)) == packed.inputs()
    assert packed.load(CPU).parameters()["image"] == parameters, "no text tower"
    assert packed.repositories() == []


def test_damaged_weights_are_one_error(tmp_path: Path) -> None:
    pack_encoder(ENCODERS["tiny"](tmp_path), tmp_path / "packed")
    weights = tmp_path / "packed" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is damaged or of another network"):
        PackedEncoder(str(tmp_path / "packed")).load(CPU)
    weights.unlink()
    with pytest.raises(ValueError, match=f"no packed encoder, it has no {WEIGHTS}"):
        PackedEncoder(str(tmp_path / "packed"))


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_classifier_needs_no_other_file(
    suffix: str, first_run: FirstRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = first_run.sandbox.synthetic_images
    expected = lgclip.load(first_run.folder).predict(pictures).tolist()
    place = tmp_path / f"packed{suffix}"
    assert main(["save", str(first_run.folder), str(place), "--with-encoder"]) == 0
    capsys.readouterr()
    hidden = first_run.sandbox.encoder.rename(tmp_path / "hidden")
    try:
        classifier = lgclip.load(place)
        assert classifier.predict(pictures).tolist() == expected
        assert isinstance(classifier.encoder, PackedEncoder)
        # What was loaded with its weights keeps them.
        classifier.rename(NAMES[0], "another")
        again = lgclip.load(classifier.save(tmp_path / "again"))
        assert isinstance(again.encoder, PackedEncoder)
        assert (again.predict(pictures) == [{NAMES[0]: "another"}.get(name, name) for name in expected]).all()
        card = (tmp_path / "again" / "README.md").read_text()
        assert "the weights of the vision tower are in `model/encoder`" in card
        with pytest.raises(ValueError, match=r"encoder"):
            lgclip.load(first_run.folder)
    finally:
        hidden.rename(first_run.sandbox.encoder)


def test_tampered_weights_are_refused(first_run: FirstRun, tmp_path: Path) -> None:
    place = lgclip.load(first_run.folder).save(tmp_path / "packed", with_encoder=True)
    for name in (WEIGHTS, ABOUT):
        file = place / ENCODER / name
        content = file.read_bytes()
        file.write_bytes(content.replace(b"1", b"2", 1) if name == ABOUT else content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(ValueError, match=f"{ENCODER}/{name} is missing or damaged"):
            lgclip.load(place)
        file.write_bytes(content)
    assert lgclip.load(place).class_names
    record = json.loads((place / RECORD).read_text())
    assert set(record["files"]) == {f"{ENCODER}/{ABOUT}", f"{ENCODER}/{WEIGHTS}"}
