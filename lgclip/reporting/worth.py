"""Measures how many real images per class the synthetic prototypes are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.classifier.editing import best_repeats
from lgclip.classifier.inference import encode_images
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.shot_folders import images_by_class
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.shots import Shots
from lgclip.store.atomic import atomic_write

SHOTS = (1, 2, 4, 8, 16)
"""Numbers of real images per class."""
_LEAST_TEST = 2  # images per class that remain for the test


@dataclass(frozen=True)
class Worth:
    """Holds the accuracy at each number of real images per class, as one value for each random choice of them.

    Attributes:
        shots: Numbers of real images per class.
        synthetic: Accuracy of the synthetic prototypes, on the test images of each number of real images and choice.
        real: Accuracy of prototypes from the real images alone, by number of images.
        mixed: Accuracy of both together, by number of images.
        repeats: Number of synthetic images that a real one counts as, by number of images.
        test_images: Number of test images at the largest number of real images.
    """

    shots: tuple[int, ...]
    synthetic: Mapping[int, tuple[float, ...]]
    real: Mapping[int, tuple[float, ...]]
    mixed: Mapping[int, tuple[float, ...]]
    repeats: Mapping[int, tuple[int, ...]]
    test_images: int

    def equivalent_shots(self) -> float | None:
        """Returns the number of real images per class with the accuracy of the synthetic ones, interpolated.

        Returns:
            0 if a single real image is better already, None if the largest number is not as good.
        """
        before: tuple[int, float] | None = None
        for count in self.shots:
            difference = float(np.mean(self.real[count]) - np.mean(self.synthetic[count]))
            if difference >= 0:
                if before is None:
                    return 0.0 if difference > 0 else float(count)
                smaller, missing = before
                # Linear in the logarithm: accuracy grows with the number of images about so.
                part = -missing / (difference - missing)
                return float(np.exp(np.log(smaller) + part * (np.log(count) - np.log(smaller))))
            before = (count, difference)
        return None

    def lines(self) -> list[str]:
        """Returns a table and its summary."""
        rows = ["real images a class | synthetic alone | real alone | both (weight of a real image)"]
        for count in self.shots:
            weights = sorted(set(self.repeats[count]))
            weight_range = str(weights[0]) if len(weights) == 1 else f"{weights[0]} - {weights[-1]}"
            columns = (self.synthetic[count], self.real[count], self.mixed[count])
            rows.append(f"{count} | " + " | ".join(map(_percent, columns)) + f" ({weight_range})")
        equivalent = self.equivalent_shots()
        if equivalent is None:
            text = f"more than {self.shots[-1]} photos a class"
        elif equivalent == 0:
            text = "less than one photo a class"
        else:
            text = f"about {equivalent:.1f} photos a class"
        choices = len(self.real[self.shots[0]])
        rows.append(
            f"the synthetic prototypes are worth {text}: so many real ones alone are as accurate, on at least "
            f"{self.test_images} other labelled images, mean of {choices} random choices"
        )
        return rows


def measure_worth(classifier: ImageClassifier, folder: Path, *, seeds: int = 5, shots: Sequence[int] = SHOTS) -> Worth:
    """Measures accuracy against the number of real images per class, with and without synthetic ones.

    The real images of each choice are prototypes; all others are test images.

    Args:
        classifier: The classifier, with synthetic images.
        folder: Folder with a folder of labelled images per class.
        seeds: Number of random choices of the real images.
        shots: Numbers of real images per class; those that leave a class too few test images are left out.

    Raises:
        ValueError: If a folder is no class, a class has too few images, or one cannot be read.
    """
    classifier.check_prototypes()
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: at least one random choice")
    features, labels = _labelled_features(classifier, folder)
    return worth_of_features(classifier, features, labels, seeds=seeds, shots=shots)


def worth_of_features(
    classifier: ImageClassifier,
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    seeds: int = 5,
    shots: Sequence[int] = SHOTS,
) -> Worth:
    """Measures on features of labelled images; see `measure_worth`.

    Args:
        classifier: The classifier.
        features: Fused unit features of the images.
        labels: Class index of each.
        seeds: Number of random choices.
        shots: Numbers of real images per class.

    Raises:
        ValueError: If the classifier has no synthetic images, or a class has too few real ones.
    """
    if classifier.support is None:
        raise ValueError("this classifier compares with sentences only; build it with method=lgclip or fusion")
    fewest = int(torch.bincount(labels, minlength=len(classifier.classes)).min())
    counts = tuple(count for count in shots if count + _LEAST_TEST <= fewest)
    if not counts:
        raise ValueError(
            f"a class has {fewest} labelled images; at least {min(shots) + _LEAST_TEST} of every class are needed"
        )
    synthetic: dict[int, list[float]] = {count: [] for count in counts}
    real: dict[int, list[float]] = {count: [] for count in counts}
    mixed: dict[int, list[float]] = {count: [] for count in counts}
    repeats: dict[int, list[int]] = {count: [] for count in counts}
    aligned = classifier.aligned_real(features)
    compared = classifier.references
    for seed in range(seeds):
        order = _order_in_class(labels, seed)
        for count in counts:
            chosen = order < count
            test_features = aligned[~chosen]
            test_labels = labels[~chosen]
            shots_of_seed = Shots(features[chosen], labels[chosen], ("",) * int(chosen.sum()), 1)
            shots_of_seed = shots_of_seed._replace(repeats=best_repeats(classifier, shots_of_seed))
            alone = SupportSet(aligned[chosen], shots_of_seed.labels, len(classifier.classes))
            both = classifier.aligned(References(classifier.support, classifier.text, shots_of_seed)).images
            for results, images in ((synthetic, compared.support), (real, alone), (mixed, both)):
                predicted = classifier.choice.fit(images, compared.text)(test_features).argmax(dim=1)
                results[count].append(float((predicted == test_labels).double().mean()))
            repeats[count].append(shots_of_seed.repeats)
    accuracies = [{count: tuple(values) for count, values in results.items()} for results in (synthetic, real, mixed)]
    return Worth(
        counts,
        *accuracies,
        repeats={count: tuple(values) for count, values in repeats.items()},
        test_images=len(labels) - max(counts) * len(classifier.classes),
    )


def _labelled_features(classifier: ImageClassifier, folder: Path) -> tuple[Tensor, Tensor]:
    images = images_by_class(folder, classifier.class_names)
    lacking = [name for name in classifier.class_names if name not in images]
    if lacking:
        raise ValueError(f"{folder}: no images of {', '.join(map(repr, lacking[:6]))}; every class needs some")
    features: list[Tensor] = []
    labels: list[int] = []
    for index, name in enumerate(classifier.class_names):
        _, encoded = encode_images(classifier, images[name])
        features.append(encoded)
        labels += [index] * len(encoded)
    return torch.cat(features), torch.tensor(labels)


def _order_in_class(labels: Tensor, seed: int) -> Tensor:
    """Returns the random place of each image among those of its class."""
    generator = np.random.default_rng(seed)
    order = torch.zeros_like(labels)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        order[rows] = torch.from_numpy(generator.permutation(len(rows)))
    return order


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{spread}"


def plot_worth(worth: Worth, path: Path) -> None:
    """Draws accuracy against the number of real images per class.

    Args:
        worth: The accuracies.
        path: PNG, PDF or SVG file to write.

    Raises:
        ValueError: If matplotlib is not installed.
        WriteError: If the system refuses it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("a plot needs matplotlib: install lgclip[report]") from error
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    series = (
        ("synthetic alone", worth.synthetic, "#282828", "--"),
        ("real alone", worth.real, "#0072b2", "-"),
        ("both", worth.mixed, "#d55e00", "-"),
    )
    for name, values, color, style in series:
        means = [100 * float(np.mean(values[count])) for count in worth.shots]
        spreads = [100 * float(np.std(values[count])) for count in worth.shots]
        axes.errorbar(worth.shots, means, yerr=spreads, label=name, color=color, linestyle=style, marker="o", capsize=2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(worth.shots, [str(count) for count in worth.shots])
    axes.set_xlabel("real images per class")
    axes.set_ylabel("top-1 accuracy, %")
    axes.legend()
    axes.grid(color="#dddddd")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)
