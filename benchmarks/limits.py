"""What a classifier knows of its limits, against the truth of the small world: `python benchmarks/limits.py`.

Five claims, a table each, over five seeds of the synthetic images: rejection, probabilities, forecast, repair, shots.
Everything is fitted on synthetic images; real images (rendered scenes and scanned digits) only measure. Under 15
minutes on two cores from an empty store; `--store DIR` keeps prompts and images for a second run.
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
"""Random label subsets of each world and encoder."""
UNKNOWN_EACH = 3
"""Images of each of the 210 kinds that are no class."""
FAR = 10**6
"""First index of the images of kinds that the encoder was pre-trained on: none of these was in its training."""


@dataclass(frozen=True)
class World:
    """Real images of some classes, as pixels."""

    names: tuple[str, ...]
    images: Sequence[np.ndarray]
    labels: Tensor


@cache
def shapes(style: str) -> World:
    """The thirty classes of the small world, in a style."""
    count = len(world.HELD_OUT_KINDS) * world.TEST_IMAGES_PER_CLASS
    images = [STYLES[style](world.image_of("test", index), index) for index in range(count)]
    labels = torch.tensor([world.label_of(index) for index in range(count)])
    return World(tuple(kind.name for kind in world.HELD_OUT_KINDS), images, labels)


@cache
def digits() -> World:
    """The scanned digits that no model was trained on."""
    images, labels = world.scanned_digits(pretrain=False)
    return World(world.SCANNED_DIGITS, list(images), torch.from_numpy(labels.astype(np.int64)))


@cache
def related(style: str) -> World:
    """Sixty more kinds, so that subsets have classes that are hard to tell apart: the same color and pattern."""
    kinds = [*world.HELD_OUT_KINDS, *world.SEEN_KINDS[::4][:60]]
    places = {kind: place for place, kind in enumerate(world.SEEN_KINDS)}
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, kind in enumerate(kinds):
        for number in range(20):
            if kind in places:
                index = FAR // 210 * 210 + 210 * number + places[kind]
                image = world.image_of("pretrain", index)
            else:
                index = label * world.TEST_IMAGES_PER_CLASS + number
                image = world.image_of("test", index)
            images.append(STYLES[style](image, index))
            labels.append(label)
    return World(tuple(kind.name for kind in kinds), images, torch.tensor(labels))


def unknown() -> list[np.ndarray]:
    """Images of the 210 kinds that are no class."""
    start = FAR // 210 * 210
    return [world.image_of("pretrain", start + index) for index in range(210 * UNKNOWN_EACH)]


WORLDS: dict[str, Callable[[], World]] = {
    "shapes": lambda: shapes("photo"),
    "shapes_noisy": lambda: shapes("noisy"),
    "digits": digits,
}


class Runs:
    """Builds the classifiers once each, and encodes real images once for each encoder."""

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


def mean_of(values: Sequence[float], scale: float = 100, digits_shown: int = 1) -> str:
    """A mean with its 95% interval over the seeds, by Student's t."""
    from scipy.stats import t

    mean = float(np.mean(values)) * scale
    if len(values) < 2:
        return f"{mean:.{digits_shown}f}"
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))) * scale
    return f"{mean:.{digits_shown}f} ± {half:.{digits_shown}f}"


# ----------------------------------------------------------------------------------------------------------- rejection


def rejection_values(classifier: ImageClassifier, features: Tensor) -> dict[str, np.ndarray]:
    """Every score of some images."""
    images = classifier.references.images
    assert images is not None
    against = None
    if classifier.negatives is not None:
        negatives = classifier.negatives.references
        against = classifier.choice.fit(negatives.support, negatives.text)(features)
    nearest = (features @ images.features.T).amax(dim=1)
    inputs = ScoreInputs(classifier.scorer()(features), nearest, against, classifier.temperature.value)
    usable = [name for name in SCORES if against is not None or not name.startswith("negatives")]
    return {name: SCORES[name](inputs).double().numpy() for name in usable}


def rejection_rows(runs: Runs) -> Iterator[str]:
    """Rejection: classes of each world against what is none of them."""
    yield (
        "| classes | what is none of them | score | AUROC | FPR at 95% | kept of the classes | rejected of the others "
        "| promised |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    names = shapes("photo").names
    others = {"the 210 other kinds": unknown(), "scanned digits": digits().images}
    cases = [
        ("30 shapes", "shapes", names, others),
        ("10 shapes", "shapes", names[:10], others),
        ("7 digits", "digits", digits().names[:7], {"the digits 7, 8, 9": [], "shapes": shapes("photo").images}),
    ]
    for title, world_name, classes, unknowns in cases:
        for method in ("lgclip", "fusion"):
            for other, images in unknowns.items():
                yield from _rejection_case(runs, f"{title}, {method}", world_name, classes, other, images, method)
    yield _ceiling_row(runs, names)


def _ceiling_row(runs: Runs, classes: Sequence[str]) -> str:
    """The AUROC of a linear probe that was trained on real images of all 240 kinds: the limit of this encoder."""
    from sklearn.linear_model import LogisticRegression

    classifier = runs.classifier(classes, 0, "method=lgclip")
    each = 20
    known = [world.image_of("train", 100 * label + number) for label in range(len(classes)) for number in range(each)]
    start = 2 * FAR // 210 * 210
    others = [world.image_of("pretrain", start + index) for index in range(210 * each)]
    features = torch.cat(
        [
            runs.features(classifier, "single", "real images of the classes", known),
            runs.features(classifier, "single", "real images of the other kinds", others),
        ]
    )
    labels = [label for label in range(len(classes)) for _ in range(each)]
    labels += [len(classes) + index % 210 for index in range(len(others))]
    probe = LogisticRegression(C=1000, max_iter=300).fit(features.numpy(), labels)
    inside = probe.predict_proba(runs.world_features(classifier, "shapes").numpy())[:, : len(classes)].sum(axis=1)
    outside_features = runs.features(classifier, "single", "the 210 other kinds", unknown())
    outside = probe.predict_proba(outside_features.numpy())[:, : len(classes)].sum(axis=1)
    return (
        f"| 30 shapes | the 210 other kinds | for comparison: linear probe of {each} real images a kind | "
        f"{auroc(inside, outside):.3f} | {100 * fpr_at(inside, outside):.1f} | | | |"
    )


def _rejection_case(
    runs: Runs,
    title: str,
    world_name: str,
    classes: Sequence[str],
    other: str,
    images: Sequence[np.ndarray],
    method: str,
) -> Iterator[str]:
    rows: dict[str, list[tuple[float, float]]] = {}
    kept: list[float] = []
    rejected: list[float] = []
    promised: list[float] = []
    chosen: list[str] = []
    for seed in SEEDS:
        classifier = runs.classifier(classes, seed, f"method={method}")
        labels = WORLDS[world_name]().labels
        features = runs.world_features(classifier, world_name)
        inside = rejection_values(classifier, features[labels < len(classes)])
        outside_features = features[labels >= len(classes)]
        if images:
            outside_features = runs.features(classifier, "single", other, images)
        outside = rejection_values(classifier, outside_features)
        for name, values in inside.items():
            rows.setdefault(name, []).append((auroc(values, outside[name]), fpr_at(values, outside[name])))
        rejector = classifier.rejector
        assert rejector is not None
        chosen.append(rejector.score)
        kept.append(float((inside[rejector.score] >= rejector.threshold).mean()))
        rejected.append(float((outside[rejector.score] < rejector.threshold).mean()))
        if rejector.rejected is not None:
            promised.append(rejector.rejected)
    for name, pairs in rows.items():
        mine = f"{chosen.count(name)} of {len(chosen)} seeds" if name in chosen else ""
        cells = [title, other, name, mean_of([pair[0] for pair in pairs], 1, 3), mean_of([pair[1] for pair in pairs])]
        yield "| " + " | ".join([*cells, f"chosen: {mine}" if mine else "", "", ""]) + " |"
    yield (
        f"| {title} | {other} | **the classifier's threshold** | | | {mean_of(kept)} | {mean_of(rejected)} | "
        f"{mean_of(promised) if promised else 'unknown: no negatives'} |"
    )


# ------------------------------------------------------------------------------------------------------- probabilities


def probability_rows(runs: Runs) -> Iterator[str]:
    """Probabilities: calibration error on real images, for three ways to set the temperature."""
    yield "| world | method | top-1 | fixed 0.01 | maximum likelihood | ours, Platt's targets | temperature |"
    yield "|---|---|---|---|---|---|---|"
    for name, make in WORLDS.items():
        for method in ("lgclip", "fusion"):
            top1: list[float] = []
            temperatures: list[float] = []
            errors: dict[str, list[float]] = {"fixed": [], "likelihood": [], "ours": []}
            for seed in SEEDS:
                classifier = runs.classifier(make().names, seed, f"method={method}")
                scores = classifier.scorer()(runs.world_features(classifier, name))
                correct = (scores.argmax(dim=1) == make().labels).numpy()
                top1.append(float(correct.mean()))
                left_out = left_out_scores(classifier.choice, classifier.references)
                plain = likeliest_temperature(left_out.scores, left_out.labels)
                values = {
                    "fixed": DEFAULT_TEMPERATURE.value,
                    "likelihood": plain or DEFAULT_TEMPERATURE.value,
                    "ours": classifier.temperature.value,
                }
                temperatures.append(classifier.temperature.value)
                for key, value in values.items():
                    confidence = (scores / value).softmax(dim=1).amax(dim=1).double().numpy()
                    errors[key].append(calibration_error(confidence, correct))
            cells = [mean_of(errors[key], 1, 3) for key in errors]
            yield f"| {name} | {method} | {mean_of(top1)} | {' | '.join(cells)} | {mean_of(temperatures, 1, 4)} |"


# ------------------------------------------------------------------------------------------------------------ forecast


def forecast_rows(runs: Runs) -> Iterator[str]:
    """Forecast: expected against true accuracy of random subsets of the classes."""
    yield (
        "| world | encoder | subsets | top-1 | expected | rank correlation per task | per class | of the number of "
        "classes alone | interval holds the truth |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    encoders = {"images": (), "images, several scales": ("scales=multi",), "fusion": ("method=fusion",)}
    everything: list[tuple[float, float]] = []
    for encoder, overrides in encoders.items():
        views = "multi" if "scales=multi" in overrides else "single"
        pools = {
            "shapes, 90 kinds": related("photo"), "shapes_noisy, 90 kinds": related("noisy"), "digits": digits()
        }  # fmt: skip
        for name, pool in pools.items():
            classifier = runs.classifier(pool.names, 0, "rejection=none", *overrides)
            features = runs.features(classifier, views, name, pool.images)
            outcomes = [_subset(classifier, features, pool.labels, seed) for seed in range(SUBSETS)]
            true = [outcome[0] for outcome in outcomes]
            expected = [outcome[1] for outcome in outcomes]
            everything += zip(true, expected, strict=True)
            sizes = [-outcome[4] for outcome in outcomes]
            per_class = [outcome[2] for outcome in outcomes if np.isfinite(outcome[2])]
            inside = np.mean([outcome[3] for outcome in outcomes])
            yield (
                f"| {name} | {encoder} | {len(outcomes)} | {100 * np.mean(true):.1f} | {100 * np.mean(expected):.1f} | "
                f"{_rank(expected, true):.2f} | {np.mean(per_class):.2f} | {_rank(sizes, true):.2f} | "
                f"{100 * inside:.0f}% |"
            )
    yield f"| all together | | {len(everything)} | | | {_rank(*zip(*everything, strict=True)):.2f} | | | |"


def _rank(first: Sequence[float], second: Sequence[float]) -> float:
    return float(spearmanr(first, second)[0])  # pyright: ignore[reportArgumentType]


def _subset(
    classifier: ImageClassifier, features: Tensor, labels: Tensor, seed: int
) -> tuple[float, float, float, bool, int]:
    """True and expected accuracy of a random subset, their rank correlation over its classes, and its size."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, len(classifier.classes) + 1))
    classes = sorted(rng.permutation(len(classifier.classes))[:count].tolist())
    assert classifier.support is not None
    text = None if classifier.text is None else classifier.text[classes]
    references = References(classifier.support.of_classes(classes), text)
    fitted = fit_choice(classifier.configured, None, references)
    predicted = forecast(fitted.choice, references)
    assert predicted is not None
    places = {label: place for place, label in enumerate(classes)}
    rows = [row for row, label in enumerate(labels.tolist()) if label in places]
    targets = torch.tensor([places[label] for label in labels[rows].tolist()])
    correct = (fitted.choice.fit(references.images, text)(features[rows]).argmax(dim=1) == targets).double()
    true = [float(correct[targets == place].mean()) for place in range(count)]
    expected = [item.expected for item in predicted.classes]
    # Where all classes have the same accuracy there is no order to predict.
    correlation = float("nan") if np.ptp(true) == 0 or np.ptp(expected) == 0 else _rank(expected, true)
    accuracy = float(np.mean(true))
    return accuracy, predicted.expected, correlation, predicted.low <= accuracy <= predicted.high, count


# -------------------------------------------------------------------------------------------------------------- repair


def repair_rows(runs: Runs) -> Iterator[str]:
    """Repair: new images for confusable classes, kept where left-out images say so, or all."""
    yield "| world | before | `--improve 1` | classes that it changed | all new images kept |"
    yield "|---|---|---|---|---|"
    for name, make in WORLDS.items():
        names = make().names
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
                accuracies[key].append(float((predicted == make().labels).double().mean()))
        cells = [mean_of(values) for values in accuracies.values()]
        yield f"| {name} | {cells[0]} | {cells[1]} | {mean_of(changed, 1)} of {len(names)} | {cells[2]} |"


# --------------------------------------------------------------------------------------------------------------- shots


def shot_rows(runs: Runs) -> Iterator[str]:
    """Shots: accuracy with 1 to 16 real images per class, alone and with synthetic ones."""
    yield "| world | real images a class | synthetic alone | real alone | both | synthetic prototypes are worth |"
    yield "|---|---|---|---|---|---|"
    for name, make in WORLDS.items():
        classifier = runs.classifier(make().names, 0, "method=lgclip")
        worth = worth_of_features(classifier, runs.world_features(classifier, name), make().labels, seeds=5)
        equivalent = worth.equivalent_shots()
        shown = f"more than {worth.shots[-1]} photos" if equivalent is None else f"{equivalent:.1f} photos"
        for count in worth.shots:
            cells = [mean_of(values[count]) for values in (worth.synthetic, worth.real, worth.mixed)]
            yield f"| {name} | {count} | {' | '.join(cells)} | {shown} |"


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
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(args.store or Path(folder))
        for title, rows in CLAIMS.items():
            if args.claim and not any(title.lower().startswith(claim.lower()) for claim in args.claim):
                continue
            print(f"\n## {title}\n", flush=True)
            for row in rows(runs):
                print(row, flush=True)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
