"""Measures the evaluation of features (B9): `python benchmarks/evaluation.py`, two minutes on two cores.

200,000 features are scored against the prototypes of 1,000 classes, ranked, given a confidence, and put in order, as a
run does. The reference is only the matrix product of the same features and prototypes, in the same batches.
Predictions, ranks and confidences are first compared with those of a direct computation.
"""

import torch
from comparison import Row, alternate, measure_seconds, save_row
from torch import Tensor
from torch.nn.functional import normalize

from lgclip.batches import FeatureBatch
from lgclip.methods.base import PredictionCollector, Predictions
from lgclip.methods.calibration import DEFAULT_TEMPERATURE, Choice
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean, Scorer
from lgclip.methods.selection import First
from lgclip.stages.streams import ROWS_PER_BATCH

IMAGES, CLASSES, WIDTH = 200_000, 1000, 512
CHECKED = 1000


def simulate_features() -> tuple[SupportSet, list[FeatureBatch]]:
    """Returns two synthetic features per class, and batches of real ones scattered around the same class centers."""
    torch.manual_seed(0)
    centers = normalize(torch.randn(CLASSES, WIDTH), dim=1)
    labels = torch.arange(IMAGES) % CLASSES
    support_labels = torch.arange(CLASSES).repeat(2)
    support = SupportSet(
        normalize(centers[support_labels] + 0.05 * torch.randn(2 * CLASSES, WIDTH), dim=1), support_labels, CLASSES
    )
    features = normalize(centers[labels] + 0.15 * torch.randn(IMAGES, WIDTH), dim=1)[:, None]
    parts = torch.arange(IMAGES).split(ROWS_PER_BATCH)
    return support, [FeatureBatch(features[part], labels[part], part) for part in parts]


def evaluate(score: Scorer, batches: list[FeatureBatch]) -> Predictions:
    """Evaluates a stream of real features, as a method does."""
    collector = PredictionCollector()
    for batch in batches:
        collector.update(score(batch.features[:, 0]), batch.labels, batch.indices)
    rows, probs = collector.compute()
    return Predictions(*rows.unbind(dim=1), *probs.unbind(dim=1))


def check_predictions(predictions: Predictions, batches: list[FeatureBatch], prototypes: Tensor) -> None:
    """Checks predictions, ranks and confidences against a direct computation.

    Raises:
        SystemExit: If a prediction or a rank differs.
    """
    expected = torch.cat([(batch.features[:, 0] @ prototypes.T).argmax(dim=1) for batch in batches])
    scores = batches[0].features[:CHECKED, 0] @ prototypes.T
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranks = (order == batches[0].labels[:CHECKED, None]).int().argmax(dim=1)
    confidences = (scores.double() / DEFAULT_TEMPERATURE.value).softmax(dim=1).amax(dim=1).float()
    if not torch.equal(predictions.prediction, expected):
        raise SystemExit("a prediction is not the first class with the highest score")
    if not torch.equal(predictions.rank[:CHECKED], ranks):
        raise SystemExit("a rank is not the position in a stable sort")
    torch.testing.assert_close(predictions.confidence[:CHECKED], confidences, rtol=0, atol=2e-6)


def main() -> None:
    """Measures and saves the rows."""
    support, batches = simulate_features()
    score = Choice(Mean(), First(), 0.0).fit(support, None)
    prototypes = support.means(renormalize=True)
    check_predictions(evaluate(score, batches), batches, prototypes)

    def multiply() -> None:
        for batch in batches:
            torch.mm(batch.features[:, 0], prototypes.T)

    measured, baselines = alternate(
        lambda: measure_seconds(lambda: evaluate(score, batches)), lambda: measure_seconds(multiply)
    )
    save_row(
        Row(
            number="B9",
            task=f"evaluating {IMAGES:,} images, {CLASSES:,} classes, width {WIDTH}, fp32",
            reference="matrix product only",
            aim=">= 0.6",
            unit="s",
            measured=measured,
            baselines=baselines,
            equality="predictions, ranks in a stable sort, confidences to 2e-6",
            command="python benchmarks/evaluation.py",
        )
    )


if __name__ == "__main__":
    main()
