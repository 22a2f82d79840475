"""Tests confidence against torchmetrics, scikit-learn and SciPy; no test label affects the temperature."""

from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss
from torch.nn.functional import normalize
from torchmetrics.functional.classification import multiclass_calibration_error

from lgclip.batches import FeatureBatch
from lgclip.encoder.scales import SquareCrops
from lgclip.evaluation.confidence import calibration_error, confidence_of, rejection
from lgclip.methods.base import PredictionCollector, Predictions
from lgclip.methods.calibration import (
    DEFAULT_TEMPERATURE,
    NOT_FITTED,
    Choice,
    Temperature,
    likeliest_temperature,
    temperature_of,
)
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Affinity, Mean, Nearest, ScoringRule, Signature, WeightedKNN
from lgclip.methods.selection import First, Medoid
from lgclip.methods.zero_shot import ZeroShot
from lgclip.types import Role

CLASSES = 4
PER_CLASS = 5
WIDTH = 8


def support(seed: int, noise: float = 1.2, per_class: int = PER_CLASS) -> SupportSet:
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    features = centers[labels] + noise * torch.randn(len(labels), WIDTH, generator=generator)
    return SupportSet(normalize(features, dim=1), labels, CLASSES)


def scores_of(seed: int, n: int = 60, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.randn(n, classes, generator=generator).index_put_(
        (torch.arange(n), labels), torch.tensor(1.0), accumulate=True
    ), labels


def predictions(scores: torch.Tensor, labels: torch.Tensor, temperature: float, parts: int = 1) -> Predictions:
    collector = PredictionCollector()
    for part in torch.arange(len(labels)).flip(0).chunk(parts):
        collector.update(scores[part], labels[part], part, temperature)
    rows, probs = collector.compute()
    return Predictions(*rows.unbind(dim=1), *probs.unbind(dim=1))


@pytest.mark.parametrize("temperature", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_calibration_matches_torchmetrics_and_scikit_learn(seed: int, temperature: float) -> None:
    scores, labels = scores_of(seed)
    metrics: Any = confidence_of(predictions(scores, labels, temperature, parts=3), Temperature(temperature, "default"))
    probs = softmax(scores.double().numpy() / temperature, axis=1)
    ece = multiclass_calibration_error(torch.from_numpy(probs), labels, CLASSES, n_bins=15, norm="l1")
    assert metrics["ece"] == pytest.approx(float(ece), abs=1e-6)
    assert metrics["brier"] == pytest.approx(brier_score_loss(labels.numpy(), probs, labels=list(range(4))), abs=1e-5)
    logs = log_softmax(scores.double().numpy() / temperature, axis=1)
    assert metrics["nll"] == pytest.approx(-logs[np.arange(len(labels)), labels].mean(), rel=1e-5)
    if temperature > 0.1:  # scikit-learn cuts chances off before it takes their logarithm
        assert metrics["nll"] == pytest.approx(log_loss(labels.numpy(), probs), rel=1e-5)
    assert (metrics["temperature"], metrics["fitted_on"]) == (temperature, "default")


def test_confidence_is_the_scaled_probability() -> None:
    scores, labels = scores_of(0)
    for temperature in (1e-4, 0.01, 1.0, 100.0):
        result = predictions(scores, labels, temperature)
        probs = (scores.double() / temperature).softmax(dim=1)
        torch.testing.assert_close(result.confidence.double(), probs.amax(dim=1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(result.squares.double(), probs.square().sum(dim=1), rtol=1e-4, atol=1e-6)
        assert torch.isfinite(result.log_prob).all()
        assert torch.equal(result.prediction, scores.argmax(dim=1)), "the temperature evaluates nothing"


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.2, 0.5, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30))
def test_aurc_matches_a_loop(images: list[tuple[float, bool]]) -> None:
    confidence = np.array([c for c, _ in images])
    right = np.array([r for _, r in images])
    area, curve = rejection(confidence, right)
    # Over many orders of the equal ones the mean risk is the risk of their mean.
    expected = [right[confidence == c].mean() for c in sorted(confidence, reverse=True)]
    risks = [1 - np.mean(expected[: k + 1]) for k in range(len(images))]
    assert area == pytest.approx(np.mean(risks))
    assert curve[-1] == {"coverage": 1.0, "top1": pytest.approx(right.mean())}
    for point in curve:
        assert point["top1"] == pytest.approx(1 - risks[round(point["coverage"] * len(images)) - 1])
    again, points = rejection(confidence[::-1].copy(), right[::-1].copy())
    assert again == pytest.approx(area)
    assert [p["top1"] for p in points] == pytest.approx([p["top1"] for p in curve])


def test_risk_coverage_curve_has_twenty_points() -> None:
    confidence = np.linspace(0, 1, 200)
    right = np.arange(200) > 20
    curve = rejection(confidence, right)[1]
    assert [point["coverage"] for point in curve] == pytest.approx([k / 20 for k in range(1, 21)])
    assert curve[0]["top1"] == 1
    assert [point["coverage"] for point in rejection(confidence[:3], right[:3])[1]] == pytest.approx([1 / 3, 2 / 3, 1])


def test_calibrated_scores_have_no_error() -> None:
    right = np.arange(100) % 4 > 0
    assert calibration_error(np.full(100, 0.75), right) == pytest.approx(0)
    assert calibration_error(np.full(100, 1.0), right) == pytest.approx(0.25)
    assert calibration_error(np.full(100, 0.0), right) == pytest.approx(0.75), "0 is in the first bin"


@given(st.integers(0, 10**6), st.sampled_from([0.02, 1.0, 30.0]))
def test_temperature_matches_an_optimizer(seed: int, scale: float) -> None:
    scores, labels = scores_of(seed, n=20)
    scores = scores * scale
    assume(bool((scores.argmax(dim=1) != labels).any()))

    def loss(log_temperature: float) -> float:
        logs = log_softmax(scores.double().numpy() / np.exp(log_temperature), axis=1)
        return -logs[np.arange(len(labels)), labels].mean()

    best = minimize_scalar(loss, bounds=(np.log(1e-4), np.log(1e2)), method="bounded", options={"xatol": 1e-9})
    temperature = likeliest_temperature(scores, labels)
    assert temperature is not None
    assert loss(np.log(temperature)) <= best.fun + 1e-6  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("scores", [torch.eye(4), torch.zeros(4, 4)])
def test_degenerate_scores_have_no_temperature(scores: torch.Tensor) -> None:
    assert likeliest_temperature(scores, torch.arange(4)) is None


def test_reversed_scores_are_uninformative() -> None:
    assert likeliest_temperature(-torch.eye(4), torch.arange(4)) == pytest.approx(100)


@pytest.mark.parametrize("rule", [Mean(), Mean(renormalize=False), Nearest(2), WeightedKNN(3), Affinity(), Signature()])
def test_left_out_images_are_scored_by_the_rest(rule: ScoringRule) -> None:
    images = support(1)
    scores = []
    labels = []
    for fold in range(PER_CLASS):  # one of every class, written out
        rest = [c * PER_CLASS + i for c, i in product(range(CLASSES), range(PER_CLASS)) if i != fold]
        score = rule.fit(images.take(torch.tensor(rest)))
        scores += [score(images.features[[c * PER_CLASS + fold]]) for c in range(CLASSES)]
        labels += range(CLASSES)
    temperature = temperature_of(Choice(rule, First(), 0.0), References(images))
    assert temperature.fitted_on == "synthetic images"
    expected = likeliest_temperature(torch.cat(scores), torch.tensor(labels), smooth=True)
    assert temperature.value == pytest.approx(expected, rel=1e-3)


def test_nothing_is_fitted_without_left_out_images() -> None:
    images = support(1)
    text = normalize(torch.randn(CLASSES, WIDTH), dim=1)
    choice = Choice(Mean(), First(), 0.0)
    one_of_class_0 = images.take(torch.arange(CLASSES * PER_CLASS) >= PER_CLASS - 1)
    for fitted_on in (support(1, per_class=1), one_of_class_0):
        temperature = temperature_of(choice, References(fitted_on, text))
        assert temperature == NOT_FITTED == (1.0, "not fitted")
        assert not temperature.is_fitted
    probs = (choice.fit(support(1, per_class=1), None)(images.features) / NOT_FITTED.value).softmax(dim=1)
    assert probs.max() < 0.9, "no probability is sure that nothing was fitted for"
    for fitted_on in (images, None):
        assert temperature_of(choice._replace(text_weight=1.0), References(fitted_on, text)) == DEFAULT_TEMPERATURE


def test_separable_images_have_a_temperature() -> None:
    """All left-out images are correct, so that the likelihood of plain targets has no maximum."""
    images = support(1, noise=0.01)
    temperature = temperature_of(Choice(Mean(), First(), 0.0), References(images))
    assert temperature.fitted_on == "synthetic images"
    scores = Mean().fit(images)(images.features)
    confidence = float((scores / temperature.value).softmax(dim=1).amax(dim=1).mean())
    n = len(images.labels)
    # The optimum of Platt's targets: the mean confidence is that of the targets, up to the images' own differences.
    assert 1 - 3 / (n + 2) < confidence < 1 - 0.3 / (n + 2)


@given(st.integers(0, 10**6))
def test_smooth_temperature_matches_an_optimizer(seed: int) -> None:
    scores, labels = scores_of(seed, n=20)
    classes = scores.shape[1]
    targets = np.full(scores.shape, 1 / 22 / (classes - 1))
    targets[np.arange(20), labels] = 21 / 22

    def loss(log_temperature: float) -> float:
        return -(targets * log_softmax(scores.double().numpy() / np.exp(log_temperature), axis=1)).sum(axis=1).mean()

    best = minimize_scalar(loss, bounds=(np.log(1e-4), np.log(1e2)), method="bounded", options={"xatol": 1e-9})
    temperature = likeliest_temperature(scores, labels, smooth=True)
    assert temperature is not None
    assert loss(np.log(temperature)) <= best.fun + 1e-6  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class Counting(Mean):
    """Counts how often the mean is fitted."""

    seen: tuple[list[int], ...] = ([],)

    def fit(self, support: SupportSet) -> Any:
        self.seen[0].append(len(support.labels))
        return super().fit(support)


@pytest.mark.parametrize(("per_class", "folds"), [(4, 4), (25, 10)])
def test_folds_are_at_most_ten(per_class: int, folds: int) -> None:
    rule = Counting(seen=([],))
    temperature_of(Choice(rule, Medoid(3), 0.0), References(support(0, per_class=per_class)))
    assert rule.seen[0] == [3 * CLASSES] * folds


def after_test(label: torch.Tensor, support: SupportSet, **options: Any) -> ZeroShot:
    """Returns a method after the test loop, without a trainer, over a real stream with these labels."""
    options = {"prototype": Mean(), "selection": First(), "scales": SquareCrops(), "has_text": True, **options}
    method = ZeroShot("own", 0.0, {"text": 1.0, "mix": 0.5}, **options)
    generator = torch.Generator().manual_seed(3)
    text, real = (normalize(torch.randn(n, 1, WIDTH, generator=generator), dim=-1) for n in (CLASSES, len(label)))
    batches = {
        "text": FeatureBatch(text, torch.arange(CLASSES), torch.arange(CLASSES)),
        "synthetic": FeatureBatch(support.features[:, None], support.labels, torch.arange(len(support.labels))),
        "real": FeatureBatch(real, label, torch.arange(len(label))),
    }
    streams = [
        SimpleNamespace(name="text", role=Role.TEXT, averages_scores=False),
        SimpleNamespace(name="synthetic", role=Role.SYNTHETIC),
        SimpleNamespace(name="real", role=Role.EVALUATED),
    ]
    data = SimpleNamespace(num_classes=CLASSES, width=WIDTH, streams=streams)
    method._trainer = SimpleNamespace(datamodule=data)  # pyright: ignore[reportAttributeAccessIssue]
    method.setup("test")
    for place, batch in enumerate(batches.values()):
        method.test_step(batch, 0, place)
    method.on_test_epoch_end()
    return method


def test_real_labels_do_not_affect_confidence() -> None:
    label = torch.arange(30) % CLASSES
    first = after_test(label, support(1))
    second = after_test(label.flip(0), support(1))
    assert first.temperatures == second.temperatures
    assert {name: t.fitted_on for name, t in first.temperatures.items()} == {
        "own": "synthetic images", "text": "default", "mix": "synthetic images"
    }  # fmt: skip
    for name, result in first.results.items():
        assert torch.equal(result.confidence, second.results[name].confidence)
        assert torch.equal(result.prediction, second.results[name].prediction)
        assert not torch.equal(result.log_prob, second.results[name].log_prob), "the true class's is another"


def test_temperature_source_is_reported() -> None:
    method = after_test(torch.arange(8) % CLASSES, support(1), selection=Medoid(2))
    assert method.support is not None
    assert method.support.counts().tolist() == [2] * CLASSES
