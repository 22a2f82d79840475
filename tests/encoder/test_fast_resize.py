"""Tests `encoder.resize=fast`: its pixels, its keys, and that a classifier keeps it."""

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_families import ENCODERS
from factories import FirstRun, Sandbox, evaluate_run
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

import lgclip
from lgclip.classifier.export import export_classifier
from lgclip.encoder.fast_resize import FastTransform, build_transform
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.packed import PackedEncoder
from lgclip.encoder.paired import PairedEncoder
from lgclip.encoder.timm import Timm
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run

pytest_plugins = ("run_fixtures",)

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def photographs(mode: str = "RGB") -> list[Image.Image]:
    """Returns images of soft patches with noise, of several sizes."""
    rng = np.random.default_rng(0)
    images: list[Image.Image] = []
    for width, height in ((500, 375), (80, 211), (64, 64), (30, 41)):
        patches = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(patches, np.int64) + rng.integers(-20, 21, (height, width, 3))
        images.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode))
    return images


def gray_levels(transform: Any, image: Image.Image) -> torch.Tensor:
    """Returns the values before normalization, from 0 to 255."""
    std = next(step.std for step in transform.transforms if type(step).__name__ == "Normalize")
    return 255 * transform(image) * torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("family", ENCODERS)
def test_pixels_differ_by_a_gray_level(family: str, squash: bool, tmp_path: Path) -> None:
    exact: Any = ENCODERS[family](tmp_path / family)
    fast = replace(exact, resize="fast")
    transforms = exact.transform(squash=squash), fast.transform(squash=squash)
    for image in photographs():
        apart = (gray_levels(transforms[1], image) - gray_levels(transforms[0], image)).abs()
        assert apart.max() < 1.01
        assert (apart > 0.5).float().mean() < 0.05


@pytest.mark.parametrize("longest", [0.0, 1.0])
def test_ratio_is_kept(longest: float) -> None:
    from timm.data.transforms import ResizeKeepRatio

    step = ResizeKeepRatio((64, 48), longest=longest, interpolation="bilinear")
    steps = [step, ToTensor(), Normalize(MEAN, STD)]
    for image in photographs():
        exact: Any = Compose(steps)(image)
        fast = FastTransform(steps)(image)
        assert fast.shape == exact.shape
        assert (255 * 0.27 * (fast - exact)).abs().max() < 1.1


def test_images_of_other_modes_are_converted() -> None:
    steps = [Resize(32, InterpolationMode.BICUBIC), CenterCrop(32), ToTensor(), Normalize(MEAN, STD)]
    for gray in photographs("L"):
        assert torch.equal(FastTransform(steps)(gray), FastTransform(steps)(gray.convert("RGB")))


def test_workers_receive_the_transform() -> None:
    transform = OpenClip("tiny:encoder", resize="fast").transform()
    image = photographs()[0]
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


@pytest.mark.parametrize("kind", [OpenClip, Timm])
def test_unknown_value_is_one_error(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"^encoder\.resize=quick: choose exact or fast$"):
        kind("tiny:encoder", resize="quick")


def test_step_without_fast_version_is_one_error() -> None:
    steps: Any = Compose([torch.nn.ReflectionPad2d(2)])
    assert build_transform(steps, "exact") is steps
    with pytest.raises(
        ValueError, match=r"^encoder\.resize=fast: .* step ReflectionPad2d, .* set encoder\.resize=exact$"
    ):
        build_transform(steps, "fast")


def test_key_of_the_default_has_no_new_field(tmp_path: Path) -> None:
    for family in ("tiny", "timm_vit"):
        exact: Any = ENCODERS[family](tmp_path / family)
        inputs = exact.inputs()
        assert "resize" not in inputs["encoder"]
        fast = replace(exact, resize="fast").inputs()
        assert fast["encoder"] == {**inputs["encoder"], "resize": "fast"}
        assert fast.keys() == inputs.keys()


def test_pair_resizes_each_way(tmp_path: Path) -> None:
    fast = OpenClip("tiny:encoder", resize="fast")
    second: Any = ENCODERS["efficientnet"](tmp_path / "model")
    pair = PairedEncoder(fast, second)
    image = photographs()[0]
    pixels = pair.transform()(image).flatten()
    expected = [fast.transform()(image), second.transform()(image)]
    assert torch.equal(pixels.sort().values, torch.cat([part.flatten() for part in expected]).sort().values)
    assert pair.inputs() != PairedEncoder(replace(fast, resize="exact"), second).inputs()


@pytest.fixture(scope="module")
def fast_run(world: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """Evaluates with fast preprocessing over the store of an exact run."""
    folder = tmp_path_factory.mktemp("fast") / "run"
    result = evaluate_run(world, folder, "encoder.resize=fast", "rerun=true")
    return FirstRun(world, folder, result)


def test_features_have_their_own_keys(first_run: FirstRun, fast_run: FirstRun) -> None:
    exact, fast = (Run.read(run.folder).result for run in (first_run, fast_run))
    assert not set(exact.store.values()) & set(fast.store.values())
    assert [stage.computed for stage in fast.stages if stage.stage == "images"] == [0], "images are shared"
    restored = restore_run(Run.read(fast_run.folder))
    assert restored.encoder.inputs()["encoder"]["resize"] == "fast"  # pyright: ignore[reportIndexIssue]
    assert not any(stream.missing() for stream in restored.streams.values())


@pytest.mark.parametrize("packed", [False, True])
def test_classifier_keeps_it(packed: bool, fast_run: FirstRun, tmp_path: Path) -> None:
    sandbox: Sandbox = fast_run.sandbox
    classifier = lgclip.load(fast_run.folder)
    place = classifier.save(tmp_path / "classifier", with_encoder=packed)
    again = lgclip.load(place)
    assert isinstance(again.encoder, PackedEncoder) == packed
    assert isinstance(again.encoder.transform(), FastTransform)
    assert again.predict(sandbox.synthetic_images).tolist() == classifier.predict(sandbox.synthetic_images).tolist()


@pytest.mark.slow
def test_export_states_the_difference(
    fast_run: FirstRun, first_run: FirstRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export_classifier(lgclip.load(first_run.folder), tmp_path / "exact.pt2", format="pt2")
        assert "encoder.resize" not in caplog.text
        export_classifier(lgclip.load(fast_run.folder), tmp_path / "fast.pt2", format="pt2")
    assert "encoder.resize=fast" in caplog.text
