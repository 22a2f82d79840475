"""Scores of images that show none of the classes equal their definitions, and thresholds keep what they promise."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn.functional import normalize

from lgclip.methods.calibration import Choice
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.rejection import (
    SCORES,
    FittedRejection,
    Rejection,
    ScoreInputs,
    auroc,
    fit_rejection,
    fpr_at,
    threshold_of,
)
from lgclip.methods.scoring import Affinity, Mean, Nearest
from lgclip.methods.selection import First

CHOICE = Choice(Mean(), First(), 0.0)
WIDTH = 8


def clusters(first: int, count: int, per_class: int = 6, noise: float = 0.3) -> SupportSet:
    """Returns images around `count` fixed centers, from center `first` on."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(20, WIDTH, generator=generator)[first : first + count]
    labels = torch.arange(count).repeat_interleave(per_class)
    generator.manual_seed(first + 1)
    features = centers[labels] + noise * torch.randn(len(labels), WIDTH, generator=generator)
    return SupportSet(normalize(features, dim=1), labels, count)


def fitted(rejection: Rejection, negatives: SupportSet | None, **settings: Any) -> FittedRejection:
    choice = settings.get("choice", CHOICE)
    references = References(settings.get("support", clusters(0, 4)))
    result = fit_rejection(rejection, choice, 0.1, references, None if negatives is None else References(negatives))
    assert result is not None
    return result


@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 1.0]))
def test_scores_equal_their_definitions(seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (5, 4))
    others = rng.uniform(-1, 1, (5, 3))
    nearest = rng.uniform(-1, 1, 5)
    inputs = ScoreInputs(torch.from_numpy(scores), torch.from_numpy(nearest), torch.from_numpy(others), temperature)
    highest = np.sort(scores, axis=1)
    energy = temperature * np.logaddexp.reduce(scores / temperature, axis=1)
    odds = energy - temperature * np.logaddexp.reduce(others / temperature, axis=1)
    expected = {
        "max_probability": softmax(scores / temperature, axis=1).max(axis=1),
        "max_score": highest[:, -1],
        "margin": highest[:, -1] - highest[:, -2],
        "energy": energy,
        "neighbor": nearest,
        "negatives": odds,
        "negatives_0.3": odds + 0.3 * highest[:, -1],
        "negatives_3": odds + 3 * highest[:, -1],
    }
    assert expected.keys() == SCORES.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(SCORES[name](inputs).numpy(), values, atol=1e-12, err_msg=name)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_quality_equals_scikit_learn(first: list[int], second: list[int]) -> None:
    positives = np.array(first, dtype=float)
    negatives = np.array(second, dtype=float)
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    values = np.concatenate([positives, negatives])
    assert auroc(positives, negatives) == pytest.approx(roc_auc_score(labels, values))
    false_positives, true_positives, _ = roc_curve(labels, values, drop_intermediate=False)
    assert fpr_at(positives, negatives) == pytest.approx(false_positives[true_positives >= 0.95 - 1e-12].min())


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=400), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_threshold_is_the_highest_that_keeps_enough(values: list[float], keep: float) -> None:
    positives = np.array(values)
    threshold = threshold_of(positives, keep)
    assert (positives >= threshold).mean() >= keep - 1e-9
    higher = positives[positives > threshold]
    if len(higher):
        assert (positives >= higher.min()).mean() < keep + 1e-9


def test_threshold_of_300_images_keeps_285() -> None:
    """0.05 x 300 is 15.000000000000014 in binary."""
    positives = np.arange(300.0)
    assert (positives >= threshold_of(positives, 0.95)).sum() == 285


def test_unknown_things_are_rejected() -> None:
    support = clusters(0, 4)
    result = fitted(Rejection(), clusters(4, 6))
    assert result.recall >= 0.95
    assert result.qualities[result.score].auroc == max(quality.auroc for quality in result.qualities.values())
    assert result.qualities[result.score].auroc > 0.9
    # Things that are neither: neither the classes nor the negatives are around these centers.
    unknown = clusters(10, 10)
    scores = CHOICE.fit(support, None)(unknown.features)
    against = CHOICE.fit(clusters(4, 6), None)(unknown.features)
    nearest = (unknown.features @ support.features.T).amax(dim=1)
    values = SCORES[result.score](ScoreInputs(scores, nearest, against, 0.1)).double()
    assert float((values < result.threshold).double().mean()) > 0.7


def test_quality_is_that_of_unknown_things() -> None:
    """A negative is compared with the other negatives only: by its own prototype, each would be recognized."""
    support = clusters(0, 3)
    negatives = clusters(3, 4, per_class=3)
    result = fitted(Rejection(score="negatives"), negatives, support=support)
    negative_scores: list[float] = []
    scorer = CHOICE.fit(support, None)
    for index in range(negatives.num_classes):
        rest = negatives.of_classes([other for other in range(negatives.num_classes) if other != index])
        features = negatives.features[negatives.labels == index]
        inputs = ScoreInputs(scorer(features), None, CHOICE.fit(rest, None)(features), 0.1)
        negative_scores += SCORES["negatives"](inputs).tolist()
    assert result.rejected == pytest.approx(np.mean(np.array(negative_scores) < result.threshold))
    assert result.negatives == len(negative_scores)


@pytest.mark.parametrize("rule", [Nearest(2), Affinity()])
def test_every_rule_has_a_threshold(rule: Any) -> None:
    result = fitted(Rejection(), clusters(4, 4), choice=Choice(rule, First(), 0.0))
    assert result.recall >= 0.95
    assert np.isfinite(result.threshold)


def test_without_negatives_only_the_threshold_is_known() -> None:
    result = fitted(Rejection(), None)
    assert result.score == "max_score"
    assert result.rejected is None
    assert not result.qualities
    assert fitted(Rejection(score="energy"), None).score == "energy"
    with pytest.raises(ValueError, match=r"needs images of things that are no class.*--negatives FILE"):
        fitted(Rejection(score="negatives"), None)


def test_nothing_is_fitted_without_left_out_images() -> None:
    references = References(clusters(0, 4, per_class=1))
    assert fit_rejection(Rejection(), CHOICE, 0.1, references, None) is None
    text = normalize(torch.randn(4, WIDTH), dim=1)
    by_text = CHOICE._replace(text_weight=1.0)
    assert fit_rejection(Rejection(), by_text, 0.1, References(clusters(0, 4), text), None) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "luck"}, r"rejection\.score=luck: choose auto, max_probability"),
        ({"recall": 1.0}, r"rejection\.recall=1\.0: it must be between 0 and 1"),
        ({"similar_names": -1}, r"rejection\.similar_names=-1: it must be at least 0"),
        ({"images_per_name": 0}, r"rejection\.images_per_name=0: it must be at least 1"),
        ({"most_names": 0}, r"rejection\.most_names=0: it must be at least 1"),
    ],
)
def test_wrong_settings_are_one_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rejection(**settings)
