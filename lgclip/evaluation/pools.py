"""Evaluates transductive rules in realistic pools: batches that hold few of the classes (arXiv:2501.03729, sec. 5).

A rule that gains on a complete test set may lose on a batch of a few classes. So each rule is compared with no
transduction on the same pools.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.evaluation.metrics import paired, wilson
from lgclip.methods.transduction.base import Transduction, UnlabeledPool

NO_RULE = "none"
"""Name of the rows without transduction."""

CLASSES = ((1, 4), (2, 10), (5, 25))
"""Least and largest number of classes of a batch: very low, low and medium in StatA's protocol."""

SIZES = (64, 200)
"""Numbers of images of a batch; 64 is that of StatA's protocol."""

RESAMPLES = 2_000
"""Bootstrap samples of a mean over pools."""


@dataclass(frozen=True)
class PoolKind:
    """Describes pools that are drawn in the same way.

    Args:
        name: Name in the rows of a comparison.
        classes: Least and largest number of classes of a pool, both included; None: all classes.
        size: Number of images; None: all images of the classes.

    Raises:
        ValueError: If a number is out of range.
    """

    name: str
    classes: tuple[int, int] | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if self.classes is not None and not 1 <= self.classes[0] <= self.classes[1]:
            raise ValueError(f"classes={self.classes} of a pool: at least 1, and the lower number first")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size={self.size} of a pool: it must be at least 1")

    @property
    def is_complete(self) -> bool:
        """Returns whether it is the complete test set, of which there is a single pool."""
        return self.classes is None and self.size is None


ALL = PoolKind("all")
"""The complete test set as one pool."""


@dataclass(frozen=True)
class PoolResult:
    """Holds the accuracy of a rule over the pools of a kind.

    Attributes:
        kind: Name of the kind of pools.
        start: Name of the starting scores.
        rule: Name of the rule; `none` for the starting scores themselves.
        pools: Number of pools.
        images: Mean number of images of a pool.
        top1: Mean top-1 accuracy over the pools, from 0 to 1.
        ci95: Its interval: percentile bootstrap over the pools, Wilson's for a single pool.
        difference: Accuracy less that without transduction.
        difference_ci95: Its paired interval: over the pools, or over the images of a single pool.
    """

    kind: str
    start: str
    rule: str
    pools: int
    images: float
    top1: float
    ci95: tuple[float, float]
    difference: float
    difference_ci95: tuple[float, float]


@dataclass(frozen=True)
class PoolComparison:
    """Configures the comparison of rules over pools: a value of config group `pools`.

    Args:
        rules: The rules, by name.
        count: Number of pools of each kind.
        seed: Seed of the draw.

    Raises:
        ValueError: If there is no rule, one has the name that stands for no transduction, or too few pools are asked.
    """

    rules: Mapping[str, Transduction]
    count: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("pools.rules is empty: name at least one transductive rule, or use pools=none")
        if NO_RULE in self.rules:
            raise ValueError(f"pools.rules: the name {NO_RULE} stands for no transduction; name the rule otherwise")
        if self.count < 2:
            raise ValueError(f"pools.count={self.count}: an interval over pools needs at least 2")
        if self.seed < 0:
            raise ValueError(f"pools.seed={self.seed}: it must be at least 0")

    def results(self, starts: Mapping[str, UnlabeledPool], labels: Int[Tensor, " n"]) -> list[PoolResult]:
        """Returns a result for each kind of pools, start and rule.

        Args:
            starts: Features and starting scores of the complete test set, by name.
            labels: True class of each image.
        """
        kinds = pool_kinds(len(labels.unique()))
        return compare_pools(starts, labels, self.rules, kinds, seed=self.seed, count=self.count)


def pool_kinds(num_classes: int) -> list[PoolKind]:
    """Returns the kinds of pools of StatA's protocol for a data set, and its complete test set.

    Bounds above the number of classes are cut to it, and the name of the kind says so; a kind that is then like an
    earlier one is left out.

    Args:
        num_classes: Number of classes with a test image.

    Raises:
        ValueError: If there is no class.
    """
    if num_classes < 1:
        raise ValueError("no class has a test image: there is no pool to draw")
    kinds: list[PoolKind] = []
    for size in SIZES:
        used: set[tuple[int, int]] = set()
        for low, high in CLASSES:
            classes = (min(low, num_classes), min(high, num_classes))
            if classes in used:
                continue
            used.add(classes)
            name = f"{classes[0]}-{classes[1]} classes, {size} images"
            if classes != (low, high):
                name += f" (cut from {low}-{high})"
            kinds.append(PoolKind(name, classes, size))
    return [*kinds, ALL]


def draw_pools(labels: Int[Tensor, " n"], kind: PoolKind, seed: int, count: int) -> list[Int[Tensor, " _"]]:
    """Draws pools of images without replacement, as StatA's protocol does.

    The number of classes is uniform between the bounds, then the classes are drawn, then images from all of theirs: a
    pool may hold none of a drawn class. Each pool depends on the seed and its place alone, not on the number of pools.

    Args:
        labels: True class of each image.
        kind: How to draw.
        seed: Seed of the draw.
        count: Number of pools; of the complete test set there is one.

    Returns:
        The indices of the images of each pool, in random order; all images in their order for the complete test set.

    Raises:
        ValueError: If there is no image, no pool, or fewer classes than the kind needs.
    """
    if count < 1 or len(labels) == 0:
        raise ValueError(f"{count} pools of {len(labels)} images: at least one of each is needed")
    device = labels.device
    if kind.is_complete:
        return [torch.arange(len(labels), device=device)]
    values = labels.cpu().numpy()
    present = np.unique(values)
    low, high = kind.classes or (len(present), len(present))
    if high > len(present):
        raise ValueError(f"pools of {high} classes, but {len(present)} have an image; use pool_kinds({len(present)})")
    pools: list[Int[Tensor, " _"]] = []
    for place in range(count):
        rng = np.random.default_rng([seed, place, low, high, kind.size or 0])
        classes = rng.choice(present, rng.integers(low, high, endpoint=True), replace=False)
        images = rng.permutation(np.flatnonzero(np.isin(values, classes)))
        pools.append(torch.from_numpy(images[: kind.size]).to(device))
    return pools


def compare_pools(
    starts: Mapping[str, UnlabeledPool],
    labels: Int[Tensor, " n"],
    rules: Mapping[str, Transduction],
    kinds: Sequence[PoolKind],
    *,
    seed: int = 0,
    count: int = 100,
) -> list[PoolResult]:
    """Compares rules with no transduction over pools of several kinds.

    Args:
        starts: Features and starting scores of the complete test set, with temperature and prototypes, by name.
        labels: True class of each image.
        rules: The rules, by name.
        kinds: The kinds of pools.
        seed: Seed of the draw; all rules and starts see the same pools.
        count: Number of pools of a kind.

    Returns:
        A result for each kind, start and rule, in this order; the first of each start is without transduction.

    Raises:
        ValueError: If a rule has the name that is kept for no transduction, or too few pools are asked for.
    """
    if NO_RULE in rules:
        raise ValueError(f"a rule has the name {NO_RULE}, which stands for no transduction; name it otherwise")
    if count < 2:
        raise ValueError(f"count={count} pools: an interval over pools needs at least 2")
    results: list[PoolResult] = []
    for kind in kinds:
        pools = draw_pools(labels, kind, seed, count)
        for start, images in starts.items():
            predictions = {NO_RULE: [images.scores[rows].argmax(dim=1) for rows in pools]}
            for name, rule in rules.items():
                predictions[name] = [_refine(rule, images, rows) for rows in pools]
            truths = [labels[rows] for rows in pools]
            for name, predicted in predictions.items():
                results.append(_result((kind.name, start, name), truths, predicted, predictions[NO_RULE]))
    return results


def _refine(rule: Transduction, images: UnlabeledPool, rows: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """Returns the predictions of a rule for some of the images, which it classifies together."""
    pool = images._replace(features=images.features[rows], scores=images.scores[rows])
    return rule.refine(pool).argmax(dim=1)


def _result(
    names: tuple[str, str, str],
    labels: Sequence[Int[Tensor, " _"]],
    predictions: Sequence[Int[Tensor, " _"]],
    references: Sequence[Int[Tensor, " _"]],
) -> PoolResult:
    """Returns the accuracy over pools, and the difference to the predictions of reference.

    Args:
        names: Names of the kind of pools, of the starting scores and of the rule.
        labels: True classes of the images of each pool.
        predictions: Predicted classes.
        references: Classes predicted without transduction.
    """
    accuracies = _accuracies(labels, predictions)
    differences = accuracies - _accuracies(labels, references)
    if len(labels) > 1:
        interval = _interval(accuracies)
        difference_interval = _interval(differences)
    else:
        n = len(labels[0])
        interval = wilson(round(float(accuracies[0]) * n), n)
        test = paired(labels[0].cpu().numpy(), predictions[0].cpu().numpy(), references[0].cpu().numpy())
        difference_interval = (test["ci95"][0], test["ci95"][1])
    return PoolResult(
        *names,
        pools=len(labels),
        images=float(np.mean([len(rows) for rows in labels])),
        top1=float(accuracies.mean()),
        ci95=interval,
        difference=float(differences.mean()),
        difference_ci95=difference_interval,
    )


def _accuracies(
    labels: Sequence[Int[Tensor, " _"]], predictions: Sequence[Int[Tensor, " _"]]
) -> Float[np.ndarray, " pools"]:
    """Returns the accuracy in each pool."""
    pairs = zip(labels, predictions, strict=True)
    return np.array([float((truth == prediction).double().mean()) for truth, prediction in pairs])


def _interval(values: Float[np.ndarray, " pools"]) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean over pools (Efron 1979, doi:10.1214/aos/1176344552)."""
    # A separate generator with a fixed seed: the same values give the same interval, and equal pools equal resamples.
    samples = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[samples].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)
