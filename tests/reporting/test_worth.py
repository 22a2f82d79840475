"""What synthetic images are worth is counted on other images than those that join the prototypes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo
from lgclip.encoder.scales import SquareCrops
from lgclip.methods.calibration import Choice, FittedChoice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean
from lgclip.methods.selection import First
from lgclip.reporting.worth import Worth, plot_worth, worth_of_features

CLASSES = 4
WIDTH = 16


def classifier_of(support: SupportSet) -> ImageClassifier:
    choice = Choice(Mean(), First(), 0.0)
    return ImageClassifier(
        classes=tuple(ClassInfo(f"class {index}") for index in range(CLASSES)),
        encoder=None,  # pyright: ignore[reportArgumentType]  features are given
        scales=SquareCrops(),
        configured=choice,
        calibration=None,
        support=support,
        text=None,
        fitted=FittedChoice(choice, None, Temperature(0.1, "synthetic images")),
    )


def images_around(shift: float, per_class: int, seed: int) -> SupportSet:
    """Returns images around the classes' centers, which a shift moves away."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    moved = centers + shift * torch.randn(CLASSES, WIDTH, generator=generator)
    generator.manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    features = moved[labels] + 1.5 * torch.randn(len(labels), WIDTH, generator=generator)
    return SupportSet(normalize(features, dim=1), labels, CLASSES)


def test_accuracies_equal_a_loop() -> None:
    support = images_around(0.5, 10, 1)
    real = images_around(0.0, 12, 2)
    worth = worth_of_features(classifier_of(support), real.features, real.labels, seeds=2, shots=(1, 2, 20))
    assert worth.shots == (1, 2), "20 images a class are not there"
    assert worth.test_images == CLASSES * 10
    for seed in range(2):
        order = np.zeros(len(real.labels), dtype=int)
        generator = np.random.default_rng(seed)
        for label in range(CLASSES):
            order[real.labels.numpy() == label] = generator.permutation(12)
        for count in worth.shots:
            chosen = torch.from_numpy(order < count)
            test = real.take(~chosen)
            repeats = worth.repeats[count][seed]
            shots = real.take(chosen)
            both = SupportSet(
                torch.cat([support.features, *[shots.features] * repeats]),
                torch.cat([support.labels, *[shots.labels] * repeats]),
                CLASSES,
            )
            for values, images in ((worth.synthetic, support), (worth.real, shots), (worth.mixed, both)):
                predicted = (test.features @ images.means(renormalize=True).T).argmax(dim=1)
                assert values[count][seed] == pytest.approx(float((predicted == test.labels).double().mean()))


def test_useless_synthetic_images_are_worth_nothing() -> None:
    real = images_around(0.0, 40, 2)
    good = worth_of_features(classifier_of(images_around(0.0, 10, 1)), real.features, real.labels, shots=(1, 2, 4, 8))
    useless = worth_of_features(
        classifier_of(images_around(9.0, 10, 1)), real.features, real.labels, shots=(1, 2, 4, 8)
    )
    assert useless.equivalent_shots() == 0
    equivalent = good.equivalent_shots()
    assert equivalent is None or equivalent > 2
    # Real images outweigh useless synthetic ones, so that the mixture is not far below them.
    assert min(useless.repeats[8]) >= 8


@pytest.mark.parametrize(
    ("real", "expected"),
    [((0.5, 0.7, 0.9), 2.0), ((0.8, 0.9, 0.9), 0.0), ((0.1, 0.2, 0.3), None), ((0.5, 0.6, 0.8), 2 * 2**0.5)],
)
def test_equivalent_number_is_interpolated(real: tuple[float, ...], expected: float | None, tmp_path: Path) -> None:
    shots = (1, 2, 4)
    accuracies = {count: (value,) for count, value in zip(shots, real, strict=True)}
    worth = Worth(shots, dict.fromkeys(shots, (0.7,)), accuracies, accuracies, dict.fromkeys(shots, (1,)), 100)
    result = worth.equivalent_shots()
    assert result == (expected if expected is None else pytest.approx(expected))
    assert worth.lines()[-1].startswith("the synthetic prototypes are worth ")
    plot_worth(worth, tmp_path / "worth.svg")
    assert (tmp_path / "worth.svg").stat().st_size > 1000


def test_too_few_images_are_one_error() -> None:
    real = images_around(0.0, 2, 2)
    with pytest.raises(ValueError, match=r"a class has 2 labelled images; at least 3"):
        worth_of_features(classifier_of(images_around(0.0, 5, 1)), real.features, real.labels)
    by_text = replace(classifier_of(images_around(0.0, 5, 1)), support=None)
    with pytest.raises(ValueError, match="compares with sentences only"):
        worth_of_features(by_text, real.features, real.labels)
