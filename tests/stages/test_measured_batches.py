"""Tests the image stage with `diffuser.batch_size=auto`: same images, passes of the measured size, halved if needed."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import FirstRun, Sandbox, computed_counts, evaluate_run
from lightning import Trainer

from lgclip.diffuser.base import GeneratedBatch, ImageGenerator, noise_seed
from lgclip.diffuser.batch_probe import LARGEST_BATCH
from lgclip.stages.images import ImageGenerationStage
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.types import Prompt, TargetClass

pytest_plugins = ("run_fixtures",)

CLASSES = [TargetClass(index, name) for index, name in enumerate("abcd")]
PROMPTS = [Prompt(target, f"{target.name} {number}", 0) for target, number in product(CLASSES, range(10))]


@dataclass(frozen=True)
class NoiseGenerator(ImageGenerator):
    """Generates noise; a batch above `room` does not fit."""

    room: int
    batch_size: int | str = "auto"
    size: int | None = None
    retries: int = 0
    batches: list[int] = field(default_factory=list)

    def inputs(self) -> dict[str, object]:
        return {"painter": "noise"}

    def load(self, device: torch.device) -> "NoiseGenerator":
        return self

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> np.ndarray:
        return self.generate(prompts, seed, [0] * len(prompts)).pixels

    def generate(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> GeneratedBatch:
        self.batches.append(len(prompts))
        if len(prompts) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seeds = [noise_seed(prompt, seed, attempt) for prompt, attempt in zip(prompts, attempts, strict=True)]
        pixels = [np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8) for number in seeds]
        return GeneratedBatch(np.stack(pixels), [None] * len(seeds))


@dataclass
class Meter:
    """Reports as many bytes as a batch has images.

    Attributes:
        generator: What generates the batches.
        bytes: Free memory.
    """

    generator: NoiseGenerator
    bytes: int

    def free(self) -> int:
        return self.bytes

    def peak(self, call: Callable[[], object]) -> int:
        call()
        return self.generator.batches[-1]


def generate(root: Path, generator: NoiseGenerator) -> list[bytes]:
    """Generates all images, and returns their bytes."""
    quiet()
    stage = ImageGenerationStage(generator, root, CLASSES, PROMPTS, 0)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    Stages(trainer).complete("images", stage, len(PROMPTS))
    images = stage.synthetic_images()
    return [images.image(index).tobytes() for index in range(len(images.ids))]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[NoiseGenerator, int], NoiseGenerator]:
    """Returns a function that lets the stage measure a device of so much memory, in groups as on a GPU."""

    def simulate(generator: NoiseGenerator, memory: int) -> NoiseGenerator:
        monkeypatch.setattr("lgclip.stages.images.memory_meter", lambda device: Meter(generator, memory))
        monkeypatch.setattr("lgclip.stages.images.CPU_IMAGES", LARGEST_BATCH)
        monkeypatch.setattr("lgclip.stages.images.CPU_PIXELS", LARGEST_BATCH * 512**2)
        return generator

    return simulate


def test_passes_have_the_measured_size(
    on_device: Callable[[NoiseGenerator, int], NoiseGenerator], tmp_path: Path
) -> None:
    expected = generate(tmp_path / "fixed", NoiseGenerator(100, batch_size=5))
    generator = on_device(NoiseGenerator(100), 20)  # 17 after the fraction
    assert generate(tmp_path / "auto", generator) == expected
    assert generator.batches == [1, 1, 2, 16, 16, 8], "three to measure; the last pass is no larger than needed"
    assert generate(tmp_path / "auto", generator) == expected
    assert len(generator.batches) == 6, "nothing is missing, so nothing is measured"


def test_batch_that_does_not_fit_is_halved(
    on_device: Callable[[NoiseGenerator, int], NoiseGenerator], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = generate(tmp_path / "fixed", NoiseGenerator(100, batch_size=5))
    generator = on_device(NoiseGenerator(room=6), 20)
    with caplog.at_level(logging.WARNING):
        assert generate(tmp_path / "auto", generator) == expected
    assert generator.batches[:6] == [1, 1, 2, 16, 8, 4]
    assert set(generator.batches[6:]) == {4}
    assert "diffuser.batch_size=auto: 16 images did not fit, 8 from now on" in caplog.text


def test_last_pass_that_does_not_fit_is_halved(
    on_device: Callable[[NoiseGenerator, int], NoiseGenerator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last pass has fewer images than the measured size: half of what it has is tried next."""
    monkeypatch.setattr(f"{__name__}.PROMPTS", PROMPTS[::6])  # seven, of every class
    generator = on_device(NoiseGenerator(room=4), 80)
    generate(tmp_path / "auto", generator)
    assert generator.batches == [1, 1, 2, 8, 4, 4]


def test_number_that_does_not_fit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgclip.stages.images.CPU_IMAGES", 5)
    monkeypatch.setattr("lgclip.stages.images.CPU_PIXELS", 5 * 512**2)
    with pytest.raises(ValueError, match=r"diffuser\.batch_size=5: 5 images at once do not fit .* or auto"):
        generate(tmp_path, NoiseGenerator(room=4, batch_size=5))


def test_cpu_ignores_auto(tmp_path: Path) -> None:
    generator = NoiseGenerator(100)
    generate(tmp_path, generator)
    assert set(generator.batches) == {1}, "as with a number: one image of unknown size"


def test_groups_are_multiples_of_every_measured_size(tmp_path: Path) -> None:
    stage = ImageGenerationStage(NoiseGenerator(100), tmp_path, CLASSES, PROMPTS, 0)
    assert stage.group_size(0, "cuda") == LARGEST_BATCH
    assert stage.group_size(0, "cpu") == 1


def test_run_reuses_images_of_another_batch_size(first_run: FirstRun, sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", "diffuser.batch_size=auto")
    assert computed_counts(result) == {"prompts": 0, "images": 0, "features": 0}
    assert result["store"] == first_run.result["store"]
    assert result["metrics"] == first_run.result["metrics"]
