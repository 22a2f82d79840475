"""The forecast equals what a loop over left-out images counts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from scipy.stats import binomtest
from torch.nn.functional import normalize

from lgclip.methods.calibration import Choice
from lgclip.methods.forecast import AT_RISK, Forecast, forecast
from lgclip.methods.left_out import References, left_out_scores
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean
from lgclip.methods.selection import First
from lgclip.methods.shots import Shots

CHOICE = Choice(Mean(), First(), 0.0)
CLASSES = 4
PER_CLASS = 5
WIDTH = 6


def support(seed: int, noise: float = 0.8, per_class: int = PER_CLASS) -> SupportSet:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    features = centers[labels] + noise * torch.randn(len(labels), WIDTH, generator=generator)
    return SupportSet(normalize(features, dim=1), labels, CLASSES)


def predicted(images: SupportSet) -> Forecast:
    result = forecast(CHOICE, References(images))
    assert result is not None
    return result


@given(st.integers(0, 10**6))
def test_forecast_equals_a_loop(seed: int) -> None:
    images = support(seed)
    features = images.features.double().numpy().reshape(CLASSES, PER_CLASS, WIDTH)
    scores_of = np.zeros((CLASSES, PER_CLASS, CLASSES))
    other = np.zeros((CLASSES, CLASSES))
    for fold in range(PER_CLASS):
        means = np.delete(features, fold, axis=1).mean(axis=1)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        for index in range(CLASSES):
            scores = features[index, fold] @ means.T
            scores_of[index, fold] = scores
            other[index] += scores > scores[index]
    true_scores = np.stack([scores_of[index, :, index] for index in range(CLASSES)])
    temperature = 1.5 * (true_scores - true_scores.mean(axis=1, keepdims=True)).std()
    probs = softmax(scores_of / temperature, axis=2)
    correct = scores_of.argmax(axis=2) == np.arange(CLASSES)[:, None]
    expected = np.array([(correct[index].mean() + probs[index, :, index].mean()) / 2 for index in range(CLASSES)])
    result = predicted(images)
    np.testing.assert_allclose([item.expected for item in result.classes], expected, atol=1e-5)
    assert result.expected == pytest.approx(expected.mean(), abs=1e-5)
    assert result.images == CLASSES * PER_CLASS
    fractions = (other + other.T) / (2 * PER_CLASS)
    named = {(pair.first, pair.second): pair.fraction for pair in result.pairs}
    assert named.keys() == {(a, b) for a in range(CLASSES) for b in range(a + 1, CLASSES) if fractions[a, b] >= 0.1}
    for (first, second), fraction in named.items():
        assert fraction == pytest.approx(fractions[first, second])
    assert [pair.fraction for pair in result.pairs] == sorted(named.values(), reverse=True)
    assert result.at_risk() == sorted((c for c in range(CLASSES) if expected[c] < AT_RISK), key=lambda c: expected[c])


@given(st.integers(0, 10**6))
def test_interval_spans_both_values(seed: int) -> None:
    images = support(seed)
    left_out = left_out_scores(CHOICE, References(images))
    fraction = float((left_out.scores.argmax(dim=1) == left_out.labels).double().mean())
    result = predicted(images)
    probability = 2 * result.expected - fraction
    count = CLASSES * PER_CLASS
    ends = [binomtest(k, count).proportion_ci(0.95, method="wilson") for k in (0, count)]
    assert ends[0].low - 1e-9 <= result.low <= min(fraction, probability) + 1e-6
    assert max(fraction, probability) - 1e-6 <= result.high <= ends[1].high + 1e-9


def test_interval_of_certain_images_is_wilsons() -> None:
    result = predicted(support(1, noise=0.001))
    assert result.expected == pytest.approx(1, abs=1e-6)
    interval = binomtest(CLASSES * PER_CLASS, CLASSES * PER_CLASS).proportion_ci(0.95, method="wilson")
    assert (result.low, result.high) == pytest.approx((interval.low, interval.high), abs=1e-5)


def test_confused_classes_are_named() -> None:
    images = support(3, noise=0.01)
    features = images.features.clone()
    # The second half of class 1 looks like class 2.
    features[PER_CLASS + 2 : 2 * PER_CLASS] = features[2 * PER_CLASS : 2 * PER_CLASS + 3]
    result = predicted(images._replace(features=features))
    worst = result.classes[1]
    assert worst.confused_with == 2
    assert worst.fraction == pytest.approx(3 / 5)
    assert (result.pairs[0].first, result.pairs[0].second) == (1, 2)
    assert result.at_risk()[0] == 1
    assert result.classes[0].confused_with is None


def test_nothing_is_predicted_without_left_out_images() -> None:
    assert forecast(CHOICE, References(support(0, per_class=1))) is None
    text = normalize(torch.randn(CLASSES, WIDTH), dim=1)
    assert forecast(CHOICE._replace(text_weight=1.0), References(support(0), text)) is None
    assert forecast(CHOICE._replace(text_weight=1.0), References(None, text)) is None


def test_shots_are_left_out_with_all_their_repeats() -> None:
    """A copy of the image that is left out would make its score 1."""
    images = support(0)
    real = support(7, per_class=2)
    shots = Shots(real.features, real.labels, tuple("abcdefgh"), repeats=50)
    left_out = left_out_scores(CHOICE, References(images, None, shots), synthetic=False)
    assert len(left_out.labels) == CLASSES * 2
    for fold in range(2):
        mask = torch.arange(CLASSES * 2) % 2 == fold
        rest = SupportSet(
            torch.cat([images.features, real.features[~mask].repeat(50, 1)]),
            torch.cat([images.labels, real.labels[~mask].repeat(50)]),
            CLASSES,
        )
        expected = CHOICE.fit(rest, None)(real.features[mask])
        torch.testing.assert_close(left_out.scores[fold * CLASSES : (fold + 1) * CLASSES], expected)
    everything = left_out_scores(CHOICE, References(images, None, shots))
    assert len(everything.labels) == CLASSES * (PER_CLASS + 2)
    # Synthetic images are scored with the real ones among the prototypes.
    without = left_out_scores(CHOICE, References(images))
    assert not torch.equal(everything.scores[: CLASSES * PER_CLASS], without.scores)
