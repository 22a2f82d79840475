"""Tests the scores of two encoders, their standardization and their weights, against NumPy."""

import numpy as np
import pytest
import torch

from lgclip.classifier.loading import rule_of
from lgclip.methods.calibration import Choice, LeaveOneOut, fit_choice, temperature_of
from lgclip.methods.left_out import References, left_out_scores
from lgclip.methods.paired import Paired, SingleEncoder, class_weights, clearness, global_weight, halves
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import GDA, Affinity, Mean, Nearest, ScoringRule, WeightedKNN
from lgclip.methods.selection import ByText, First

CLASSES = 5
PER_CLASS = 6
WIDTHS = (7, 4)
RULES = [Mean(), Mean(False), GDA(), Nearest(2), WeightedKNN(5), Affinity()]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def encoded(seed: int, width: int, labels: np.ndarray, noise: float) -> np.ndarray:
    """Returns features around one direction for each class; the directions are the same for every seed."""
    centers = np.random.default_rng(width).normal(size=(CLASSES, width))
    return unit(unit(centers)[labels] + noise * np.random.default_rng(seed).normal(size=(len(labels), width)))


def images(seed: int, per_class: int, noises: tuple[float, float] = (0.2, 0.4)) -> SupportSet:
    labels = np.arange(CLASSES * per_class) % CLASSES
    blocks = [encoded(seed + place, width, labels, noises[place]) for place, width in enumerate(WIDTHS)]
    features = np.concatenate(blocks, axis=1) / np.sqrt(2)
    return SupportSet(torch.from_numpy(features), torch.from_numpy(labels), CLASSES)


def left_out_of(rule: ScoringRule, half: SupportSet) -> np.ndarray:
    """Scores each image by the others, one image of every class left out at a time; in the order of the images."""
    scores = []
    for place in range(PER_CLASS):
        rows = torch.arange(place * CLASSES, (place + 1) * CLASSES)
        rest = np.setdiff1d(np.arange(len(half.labels)), rows.numpy())
        scores.append(rule.fit(half.take(torch.from_numpy(rest)))(half.features[rows]).numpy())
    return np.concatenate(scores)


def margin_clearness(scores: np.ndarray, labels: np.ndarray) -> float:
    margins = []
    for row, label in zip(scores, labels, strict=True):
        margins.append(row[label] - np.delete(row, label).max())
    return float(np.mean(margins) / np.std(margins, ddof=1))


@pytest.mark.parametrize("weights", ["global", "per_class", "equal"])
@pytest.mark.parametrize("rule", RULES, ids=["mean", "mean_raw", "gda", "nearest", "knn", "affinity"])
def test_scores(rule: ScoringRule, weights: str) -> None:
    support, queries = images(0, PER_CLASS), images(50, 3)
    standardized, scored, precisions = [], [], []
    labels = np.arange(CLASSES * PER_CLASS) % CLASSES
    for half, query in zip(halves(support, WIDTHS[0]), halves(queries, WIDTHS[0]), strict=True):
        left_out = left_out_of(rule, half)
        mean, spread = left_out.mean(), left_out.std(ddof=1)
        standardized.append((left_out - mean) / spread)
        scored.append((rule.fit(half)(query.features).numpy() - mean) / spread)
        predicted = left_out.argmax(axis=1)
        precisions.append([np.mean(labels[predicted == c] == c) if c in predicted else 0 for c in range(CLASSES)])
    weight = np.full(CLASSES, 0.5)
    if weights == "global":
        candidates = np.arange(11) / 10
        clear = [margin_clearness(w * standardized[0] + (1 - w) * standardized[1], labels) for w in candidates]
        weight = np.full(CLASSES, candidates[int(np.argmax(clear))])
        assert weight[0] > 0.5, "the first encoder has less noise"
    if weights == "per_class":
        first, second = np.array(precisions)
        weight = np.where(first + second > 0, first / np.maximum(first + second, 1e-12), 0.5)

    scores = Paired(rule, WIDTHS[0], weights).fit(support)(queries.features)

    np.testing.assert_allclose(scores.numpy(), weight * scored[0] + (1 - weight) * scored[1], atol=1e-6)


@pytest.mark.parametrize("is_second", [False, True])
def test_single_encoder_scores_as_by_itself(is_second: bool) -> None:
    support, queries = images(0, PER_CLASS), images(50, 3)
    half, query = halves(support, WIDTHS[0])[is_second], halves(queries, WIDTHS[0])[is_second]
    rule = SingleEncoder(GDA(), WIDTHS[0], is_second)
    assert torch.equal(rule.fit(support)(queries.features), GDA().fit(half)(query.features))
    expected = temperature_of(Choice(GDA(), First(), 0.0), References(half))
    assert temperature_of(Choice(rule, First(), 0.0), References(support)) == expected


def test_text_is_compared_with_the_first_encoder_alone() -> None:
    support, queries = images(0, PER_CLASS), images(50, 3)
    sentences = torch.from_numpy(unit(np.random.default_rng(3).normal(size=(CLASSES, WIDTHS[0]))))
    text = torch.nn.functional.pad(sentences, (0, WIDTHS[1]))
    first = halves(queries, WIDTHS[0])[0].features
    rule = Paired(Mean(), WIDTHS[0])

    plain = Choice(rule, First(), 1.0).fit(None, text)
    torch.testing.assert_close(plain(queries.features), first @ sentences.T)

    # After a fusion of views the halves have other lengths, which must not matter.
    stretched = torch.cat([3 * queries.features[:, : WIDTHS[0]], queries.features[:, WIDTHS[0] :]], dim=1)
    torch.testing.assert_close(plain(stretched), first @ sentences.T)

    image = rule.fit(support)
    cosines = halves(support, WIDTHS[0])[0].features @ sentences.T
    factor = cosines.std() / image(support.features).std()
    mixed = Choice(rule, First(), 0.3).fit(support, text)
    expected = 0.3 * first @ sentences.T + 0.7 * factor * image(queries.features)
    torch.testing.assert_close(mixed(queries.features), expected)


def test_noise_as_second_encoder_costs_little() -> None:
    """The second encoder sees nothing: its features are random."""
    accuracies = {}
    support, queries = images(0, 10, (0.25, 100.0)), images(50, 200, (0.25, 100.0))
    rules: dict[str, ScoringRule] = {
        "pair": Paired(Mean(), WIDTHS[0]),
        "equal": Paired(Mean(), WIDTHS[0], "equal"),
        "first": SingleEncoder(Mean(), WIDTHS[0]),
        "second": SingleEncoder(Mean(), WIDTHS[0], is_second=True),
    }
    for name, rule in rules.items():
        predicted = rule.fit(support)(queries.features).argmax(dim=1)
        accuracies[name] = float((predicted == queries.labels).double().mean())
    assert accuracies["second"] < 0.3
    assert accuracies["first"] > 0.9
    assert accuracies["pair"] >= accuracies["first"] - 0.01
    assert accuracies["equal"] < accuracies["first"] - 0.01, "or this case would show nothing"


def test_two_views_of_the_same_thing_are_better_than_either() -> None:
    support, queries = images(0, PER_CLASS, (0.6, 0.6)), images(50, 200, (0.6, 0.6))
    rules = [Paired(Mean(), WIDTHS[0]), SingleEncoder(Mean(), WIDTHS[0]), SingleEncoder(Mean(), WIDTHS[0], True)]
    both, *singles = [
        float((rule.fit(support)(queries.features).argmax(dim=1) == queries.labels).double().mean()) for rule in rules
    ]
    assert both > max(singles) + 0.03


def test_global_weight() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    clear = torch.tensor([[1.0, 0.0], [0.0, 1.1], [0.9, 0.0], [0.0, 1.0]])
    empty = torch.zeros(4, 2)
    assert global_weight(clear, clear, labels).tolist() == [0.5, 0.5], "of equals the middle"
    assert global_weight(clear, empty, labels)[0] > 0
    assert clearness(clear, labels) == pytest.approx(1.0 / np.std([1.0, 1.1, 0.9, 1.0], ddof=1))
    assert clearness(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)) == 0
    opposite = -clear
    assert global_weight(clear, opposite, labels)[0] > 0.5
    assert global_weight(opposite, clear, labels)[0] < 0.5


def test_class_weights() -> None:
    """Of class 0 both are right; of class 1 the first only half; class 2 neither ever predicts; 3 the second alone."""
    labels = torch.tensor([0, 0, 1, 1, 2, 3])
    first = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 0, 1, 1]), 4).double()
    second = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 0, 3]), 4).double()
    # Precisions: first 2/3, 1/3, 0, 0; second 2/3, 1, 0, 1.
    np.testing.assert_allclose(class_weights(first, second, labels), [0.5, 0.25, 0.5, 0.0])


@pytest.mark.parametrize("weights", ["global", "per_class", "equal"])
def test_a_single_image_a_class_needs_no_leave_one_out(weights: str) -> None:
    support = images(0, 1)
    scores = Paired(Mean(), WIDTHS[0], weights).fit(support)(support.features)
    expected = []
    for half in halves(support, WIDTHS[0]):
        cosines = (half.features @ half.features.T).numpy()
        expected.append((cosines - cosines.mean()) / cosines.std(ddof=1))
    np.testing.assert_allclose(scores.numpy(), (expected[0] + expected[1]) / 2, atol=1e-9)


def test_order_of_images_changes_nothing() -> None:
    support, queries = images(0, PER_CLASS), images(50, 3)
    # Within the order of each class, which decides the folds.
    order = torch.argsort(support.labels, stable=True)
    expected = Paired(Mean(), WIDTHS[0]).fit(support)(queries.features)
    torch.testing.assert_close(Paired(Mean(), WIDTHS[0]).fit(support.take(order))(queries.features), expected)


def test_calibration_tries_the_parameters_of_the_rule() -> None:
    support = images(0, PER_CLASS)
    rule = Paired(Nearest(3), WIDTHS[0])
    assert [candidate.rule for candidate in rule.candidates()] == list(Nearest(3).candidates())  # pyright: ignore
    fitted = fit_choice(Choice(rule, First(), 0.0), LeaveOneOut(), References(support))
    assert isinstance(fitted.choice.rule, Paired)
    assert fitted.temperature.is_fitted


def test_selection_by_text_uses_the_kept_images() -> None:
    support = images(0, PER_CLASS)
    sentences = torch.from_numpy(unit(np.random.default_rng(3).normal(size=(CLASSES, WIDTHS[0]))))
    text = torch.nn.functional.pad(sentences, (0, WIDTHS[1]))
    choice = Choice(Paired(Mean(), WIDTHS[0]), ByText(keep=3), 0.0)
    selected = choice.selection.select(support, text)
    queries = images(50, 3).features
    assert torch.equal(choice.fit(support, text)(queries), choice.rule.fit(selected)(queries))


def test_left_out_scores_learn_the_weights_once() -> None:
    support = images(0, PER_CLASS)
    rule = Paired(Mean(), WIDTHS[0])
    fixed = rule.fixed(support)
    rest = torch.arange(CLASSES, len(support.labels))
    left_out = left_out_scores(Choice(rule, First(), 0.0), References(support))
    expected = fixed.fit(support.take(rest))(support.features[:CLASSES])
    torch.testing.assert_close(left_out.scores[:CLASSES], expected)


@pytest.mark.parametrize("rule", [Paired(WeightedKNN(3, 0.1), 7, "per_class"), SingleEncoder(GDA(), 7, True)], ids=str)
def test_described_rules_are_restored(rule: ScoringRule) -> None:
    assert rule_of(rule.described()) == rule


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder_weights=best: choose global, per_class, equal"):
        Paired(Mean(), 4, "best")
