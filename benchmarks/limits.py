"""Compares what a classifier predicts of its limits with the truth: `python benchmarks/limits.py`.

Five claims, one table each, over five seeds of the synthetic images of the small world: rejection, probabilities,
forecast, repair, shots. Everything is fitted on synthetic images; real images (rendered scenes and scanned digits) only
measure. Takes less than 15 minutes on two cores from an empty store; `--store DIR` keeps prompts and images for a
second run.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

import lgclip
from lgclip.classifier.improvement import improve
from lgclip.classifier.inference import encode_images
from lgclip.classifier.model import ImageClassifier
from lgclip.evaluation.confidence import calibration_error
from lgclip.methods.calibration import DEFAULT_TEMPERATURE, fit_choice, likeliest_temperature
from lgclip.methods.forecast import forecast
from lgclip.methods.left_out import References, left_out_scores
from lgclip.methods.rejection import SCORES, ScoreInputs, auroc, fpr_at
from lgclip.reporting.worth import worth_of_features
from lgclip.tiny import world
from lgclip.tiny.styles import STYLES

SEEDS = range(5)
SUBSETS = 60
"""Number of random label subsets of each world and encoder."""

UNKNOWN_PER_KIND = 3
"""Number of images of each of the 210 kinds that are no class."""

UNSEEN_INDEX = 10**6
"""First index of images of pre-training kinds that were not in the encoder's training."""


@dataclass(frozen=True)
class World:
    """Holds real images of some classes, as pixels."""

    names: tuple[str, ...]
    images: Sequence[np.ndarray]
    labels: Tensor


@cache
def load_shapes(style: str) -> World:
    """Returns the thirty classes of the small world, in a style."""
    count = len(world.HELD_OUT_KINDS) * world.TEST_IMAGES_PER_CLASS
    images = [STYLES[style](world.image_of("test", index), index) for index in range(count)]
    labels = torch.tensor([world.label_of(index) for index in range(count)])
    return World(tuple(kind.name for kind in world.HELD_OUT_KINDS), images, labels)


@cache
def load_digits() -> World:
    """Returns the scanned digits that no model was trained on."""
    images, labels = world.scanned_digits(pretrain=False)
    return World(world.SCANNED_DIGITS, list(images), torch.from_numpy(labels.astype(np.int64)))


@cache
def load_related_shapes(style: str) -> World:
    """Returns 90 kinds, so that subsets have classes that are hard to distinguish: the same color and pattern."""
    kinds = [*world.HELD_OUT_KINDS, *world.SEEN_KINDS[::4][:60]]
    kind_indices = {kind: index for index, kind in enumerate(world.SEEN_KINDS)}
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, kind in enumerate(kinds):
        for number in range(20):
            if kind in kind_indices:
                index = UNSEEN_INDEX // 210 * 210 + 210 * number + kind_indices[kind]
                image = world.image_of("pretrain", index)
            else:
                index = label * world.TEST_IMAGES_PER_CLASS + number
                image = world.image_of("test", index)
            images.append(STYLES[style](image, index))
            labels.append(label)
    return World(tuple(kind.name for kind in kinds), images, torch.tensor(labels))


def load_unknown_images() -> list[np.ndarray]:
    """Returns images of the 210 kinds that are no class."""
    start = UNSEEN_INDEX // 210 * 210
    return [world.image_of("pretrain", start + index) for index in range(210 * UNKNOWN_PER_KIND)]


WORLDS: dict[str, Callable[[], World]] = {
    "shapes": lambda: load_shapes("photo"),
    "shapes_noisy": lambda: load_shapes("noisy"),
    "digits": load_digits,
}


class Runs:
    """Builds each classifier once, and encodes real images once per encoder."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._classifiers: dict[tuple[object, ...], ImageClassifier] = {}
        self._features: dict[tuple[str, str], Tensor] = {}

    def classifier(self, names: Sequence[str], seed: int, *overrides: str) -> ImageClassifier:
        key = (tuple(names), seed, overrides)
        if key not in self._classifiers:
            fixed = [f"paths.store={self.store}", f"seed={seed}"]
            if "rejection=none" not in overrides:
                fixed.append("rejection.most_names=40")
            self._classifiers[key] = lgclip.build(names, overrides=[*fixed, *overrides])
        return self._classifiers[key]

    def features(self, classifier: ImageClassifier, views: str, name: str, images: Sequence[np.ndarray]) -> Tensor:
        if (views, name) not in self._features:
            parts = [encode_images(classifier, images[start : start + 256])[1] for start in range(0, len(images), 256)]
            self._features[views, name] = torch.cat(parts)
        return self._features[views, name]

    def world_features(self, classifier: ImageClassifier, name: str, views: str = "single") -> Tensor:
        return self.features(classifier, views, name, WORLDS[name]().images)


def format_mean(values: Sequence[float], scale: float = 100, decimals: int = 1) -> str:
    """Returns a mean with its 95% interval over the seeds, by Student's t."""
    from scipy.stats import t

    mean = float(np.mean(values)) * scale
    if len(values) < 2:
        return f"{mean:.{decimals}f}"
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))) * scale
    return f"{mean:.{decimals}f} ± {half:.{decimals}f}"


# ----------------------------------------------------------------------------------------------------------- rejection


def compute_rejection_scores(classifier: ImageClassifier, features: Tensor) -> dict[str, np.ndarray]:
    """Returns every rejection score of images."""
    images = classifier.references.images
    assert images is not None
    negative_scores = None
    if classifier.negatives is not None:
        negatives = classifier.negatives.references
        negative_scores = classifier.choice.fit(negatives.support, negatives.text)(features)
    nearest = (features @ images.features.T).amax(dim=1)
    inputs = ScoreInputs(classifier.scorer()(features), nearest, negative_scores, classifier.temperature.value)
    usable = [name for name in SCORES if negative_scores is not None or not name.startswith("negatives")]
    return {name: SCORES[name](inputs).double().numpy() for name in usable}


def rejection_rows(runs: Runs) -> Iterator[str]:
    """Yields the rows of rejection: images of the classes against images of other things."""
    yield (
        "| classes | other images | score | AUROC | FPR at 95% | accepted of the classes | rejected of the others "
        "| predicted |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    names = load_shapes("photo").names
    others = {"the 210 other kinds": load_unknown_images(), "scanned digits": load_digits().images}
    cases = [
        ("30 shapes", "shapes", names, others),
        ("10 shapes", "shapes", names[:10], others),
        (
            "7 digits",
            "digits",
            load_digits().names[:7],
            {"the digits 7, 8, 9": [], "shapes": load_shapes("photo").images},
        ),
    ]
    for title, world_name, classes, unknowns in cases:
        for method in ("lgclip", "fusion"):
            for unknown_name, images in unknowns.items():
                yield from _rejection_case(
                    runs, f"{title}, {method}", world_name, classes, unknown_name, images, method
                )
    yield _ceiling_row(runs, names)


def _ceiling_row(runs: Runs, classes: Sequence[str]) -> str:
    """Returns the row of a linear probe trained on real images of all 240 kinds, the upper bound of this encoder."""
    from sklearn.linear_model import LogisticRegression

    classifier = runs.classifier(classes, 0, "method=lgclip")
    images_per_kind = 20
    class_images = [
        world.image_of("train", 100 * label + number)
        for label in range(len(classes))
        for number in range(images_per_kind)
    ]
    start = 2 * UNSEEN_INDEX // 210 * 210
    others = [world.image_of("pretrain", start + index) for index in range(210 * images_per_kind)]
    features = torch.cat(
        [
            runs.features(classifier, "single", "real images of the classes", class_images),
            runs.features(classifier, "single", "real images of the other kinds", others),
        ]
    )
    labels = [label for label in range(len(classes)) for _ in range(images_per_kind)]
    labels += [len(classes) + index % 210 for index in range(len(others))]
    probe = LogisticRegression(C=1000, max_iter=300).fit(features.numpy(), labels)
    inside = probe.predict_proba(runs.world_features(classifier, "shapes").numpy())[:, : len(classes)].sum(axis=1)
    outside_features = runs.features(classifier, "single", "the 210 other kinds", load_unknown_images())
    outside = probe.predict_proba(outside_features.numpy())[:, : len(classes)].sum(axis=1)
    return (
        f"| 30 shapes | the 210 other kinds | for comparison: linear probe of {images_per_kind} real images per kind | "
        f"{auroc(inside, outside):.3f} | {100 * fpr_at(inside, outside):.1f} | | | |"
    )


def _rejection_case(
    runs: Runs,
    title: str,
    world_name: str,
    classes: Sequence[str],
    unknown_name: str,
    images: Sequence[np.ndarray],
    method: str,
) -> Iterator[str]:
    rows: dict[str, list[tuple[float, float]]] = {}
    accepted: list[float] = []
    rejected: list[float] = []
    predicted_rates: list[float] = []
    chosen: list[str] = []
    for seed in SEEDS:
        classifier = runs.classifier(classes, seed, f"method={method}")
        labels = WORLDS[world_name]().labels
        features = runs.world_features(classifier, world_name)
        inside = compute_rejection_scores(classifier, features[labels < len(classes)])
        outside_features = features[labels >= len(classes)]
        if images:
            outside_features = runs.features(classifier, "single", unknown_name, images)
        outside = compute_rejection_scores(classifier, outside_features)
        for name, values in inside.items():
            rows.setdefault(name, []).append((auroc(values, outside[name]), fpr_at(values, outside[name])))
        rejector = classifier.rejector
        assert rejector is not None
        chosen.append(rejector.score)
        accepted.append(float((inside[rejector.score] >= rejector.threshold).mean()))
        rejected.append(float((outside[rejector.score] < rejector.threshold).mean()))
        if rejector.rejected is not None:
            predicted_rates.append(rejector.rejected)
    predicted = format_mean(predicted_rates) if predicted_rates else "unknown: no negatives"
    for name, pairs in rows.items():
        selection = f"{chosen.count(name)} of {len(chosen)} seeds" if name in chosen else ""
        cells = [
            title,
            unknown_name,
            name,
            format_mean([pair[0] for pair in pairs], 1, 3),
            format_mean([pair[1] for pair in pairs]),
        ]
        yield "| " + " | ".join([*cells, f"chosen: {selection}" if selection else "", "", ""]) + " |"
    yield (
        f"| {title} | {unknown_name} | **the classifier's threshold** | | "
        f"| {format_mean(accepted)} | {format_mean(rejected)} | {predicted} |"
    )


# ------------------------------------------------------------------------------------------------------- probabilities


def probability_rows(runs: Runs) -> Iterator[str]:
    """Yields the rows of probabilities: calibration error on real images, for three ways to set the temperature."""
    yield "| world | method | top-1 | fixed 0.01 | maximum likelihood | lgclip, Platt's targets | temperature |"
    yield "|---|---|---|---|---|---|---|"
    for name, load in WORLDS.items():
        for method in ("lgclip", "fusion"):
            top1: list[float] = []
            temperatures: list[float] = []
            errors: dict[str, list[float]] = {"fixed": [], "likelihood": [], "lgclip": []}
            for seed in SEEDS:
                classifier = runs.classifier(load().names, seed, f"method={method}")
                scores = classifier.scorer()(runs.world_features(classifier, name))
                correct = (scores.argmax(dim=1) == load().labels).numpy()
                top1.append(float(correct.mean()))
                left_out = left_out_scores(classifier.choice, classifier.references)
                plain = likeliest_temperature(left_out.scores, left_out.labels)
                values = {
                    "fixed": DEFAULT_TEMPERATURE.value,
                    "likelihood": plain or DEFAULT_TEMPERATURE.value,
                    "lgclip": classifier.temperature.value,
                }
                temperatures.append(classifier.temperature.value)
                for key, value in values.items():
                    confidence = (scores / value).softmax(dim=1).amax(dim=1).double().numpy()
                    errors[key].append(calibration_error(confidence, correct))
            cells = [format_mean(errors[key], 1, 3) for key in errors]
            cells = [format_mean(top1), *cells, format_mean(temperatures, 1, 4)]
            yield f"| {name} | {method} | {' | '.join(cells)} |"


# ------------------------------------------------------------------------------------------------------------ forecast


def forecast_rows(runs: Runs) -> Iterator[str]:
    """Yields the rows of the forecast: predicted and true accuracy of random subsets of the classes."""
    yield (
        "| world | encoder | subsets | top-1 | expected | rank correlation per task | per class | of the number of "
        "classes alone | interval contains the truth |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    encoders = {"images": (), "images, several scales": ("scales=multi",), "fusion": ("method=fusion",)}
    all_pairs: list[tuple[float, float]] = []
    for encoder, overrides in encoders.items():
        views = "multi" if "scales=multi" in overrides else "single"
        pools = {
            "shapes, 90 kinds": load_related_shapes("photo"),
            "shapes_noisy, 90 kinds": load_related_shapes("noisy"),
            "digits": load_digits(),
        }
        for name, pool in pools.items():
            classifier = runs.classifier(pool.names, 0, "rejection=none", *overrides)
            features = runs.features(classifier, views, name, pool.images)
            outcomes = [_evaluate_subset(classifier, features, pool.labels, seed) for seed in range(SUBSETS)]
            true = [outcome[0] for outcome in outcomes]
            expected = [outcome[1] for outcome in outcomes]
            all_pairs += zip(true, expected, strict=True)
            sizes = [-outcome[4] for outcome in outcomes]
            per_class = [outcome[2] for outcome in outcomes if np.isfinite(outcome[2])]
            inside = np.mean([outcome[3] for outcome in outcomes])
            yield (
                f"| {name} | {encoder} | {len(outcomes)} | {100 * np.mean(true):.1f} | {100 * np.mean(expected):.1f} | "
                f"{_rank(expected, true):.2f} | {np.mean(per_class):.2f} | {_rank(sizes, true):.2f} | "
                f"{100 * inside:.0f}% |"
            )
    yield f"| all together | | {len(all_pairs)} | | | {_rank(*zip(*all_pairs, strict=True)):.2f} | | | |"


def _rank(first: Sequence[float], second: Sequence[float]) -> float:
    return float(spearmanr(first, second)[0])  # pyright: ignore[reportArgumentType]


def _evaluate_subset(
    classifier: ImageClassifier, features: Tensor, labels: Tensor, seed: int
) -> tuple[float, float, float, bool, int]:
    """Returns true and predicted accuracy of a random subset, their rank correlation over its classes, whether the
    interval contains the truth, and the number of classes.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, len(classifier.classes) + 1))
    classes = sorted(rng.permutation(len(classifier.classes))[:count].tolist())
    assert classifier.support is not None
    text = None if classifier.text is None else classifier.text[classes]
    references = References(classifier.support.of_classes(classes), text)
    fitted = fit_choice(classifier.configured, None, references)
    predicted = forecast(fitted.choice, references)
    assert predicted is not None
    indices = {label: index for index, label in enumerate(classes)}
    rows = [row for row, label in enumerate(labels.tolist()) if label in indices]
    targets = torch.tensor([indices[label] for label in labels[rows].tolist()])
    correct = (fitted.choice.fit(references.images, text)(features[rows]).argmax(dim=1) == targets).double()
    true = [float(correct[targets == index].mean()) for index in range(count)]
    expected = [item.expected for item in predicted.classes]
    # Where all classes have the same accuracy there is no order to predict.
    correlation = float("nan") if np.ptp(true) == 0 or np.ptp(expected) == 0 else _rank(expected, true)
    accuracy = float(np.mean(true))
    return accuracy, predicted.expected, correlation, predicted.low <= accuracy <= predicted.high, count


# -------------------------------------------------------------------------------------------------------------- repair


def repair_rows(runs: Runs) -> Iterator[str]:
    """Yields the rows of repair: new images of confusable classes, kept where held-out images improve, or all."""
    yield "| world | before | `--improve 1` | changed classes | all new images kept |"
    yield "|---|---|---|---|---|"
    for name, load in WORLDS.items():
        names = load().names
        accuracies: dict[str, list[float]] = {"before": [], "improved": [], "all": []}
        changed: list[float] = []
        for seed in SEEDS:
            before = runs.classifier(names, seed, "method=lgclip", "rejection=none")
            # A copy that shares the tensors; an improvement replaces them.
            improved = replace(before)
            improved.improve(1)
            changed.append(len(improved.edits))
            extended = replace(before)
            improve(extended, 1, judges=False)
            features = runs.world_features(before, name)
            for key, classifier in (("before", before), ("improved", improved), ("all", extended)):
                predicted = classifier.scorer()(features).argmax(dim=1)
                accuracies[key].append(float((predicted == load().labels).double().mean()))
        cells = [format_mean(values) for values in accuracies.values()]
        yield f"| {name} | {cells[0]} | {cells[1]} | {format_mean(changed, 1)} of {len(names)} | {cells[2]} |"


# --------------------------------------------------------------------------------------------------------------- shots


def shot_rows(runs: Runs) -> Iterator[str]:
    """Yields the rows of shots: accuracy with 1 to 16 real images per class, with and without synthetic ones."""
    yield "| world | real images per class | synthetic only | real only | both | synthetic prototypes are worth |"
    yield "|---|---|---|---|---|---|"
    for name, load in WORLDS.items():
        classifier = runs.classifier(load().names, 0, "method=lgclip")
        worth = worth_of_features(classifier, runs.world_features(classifier, name), load().labels, seeds=5)
        equivalent = worth.equivalent_shots()
        worth_text = f"more than {worth.shots[-1]} photos" if equivalent is None else f"{equivalent:.1f} photos"
        for count in worth.shots:
            cells = [format_mean(values[count]) for values in (worth.synthetic, worth.real, worth.mixed)]
            yield f"| {name} | {count} | {' | '.join(cells)} | {worth_text} |"


CLAIMS = {
    "Rejection": rejection_rows,
    "Probabilities: expected calibration error": probability_rows,
    "Forecast": forecast_rows,
    "Repair: top-1": repair_rows,
    "Shots: top-1": shot_rows,
}


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, help="keep prompts and images here (default: a temporary folder)")
    parser.add_argument("--claim", action="append", help="only claims whose title begins so")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(options.store or Path(folder))
        for title, rows in CLAIMS.items():
            if options.claim and not any(title.lower().startswith(claim.lower()) for claim in options.claim):
                continue
            print(f"\n## {title}\n", flush=True)
            for row in rows(runs):
                print(row, flush=True)
    print(f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
