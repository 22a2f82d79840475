"""Judging 200,000 images among 1,000 classes: `python benchmarks/evaluation.py`, in two minutes on two cores (B9).

Ours is what a run does with features: scored against the prototypes, ranked, confidences worked out, all put in
order. Beside it stands the matrix product of the same features and prototypes alone, in
the same batches. Predictions, ranks and confidences are compared with plain ones first.
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


def world() -> tuple[SupportSet, list[FeatureBatch]]:
    """Two synthetic images per class, and real ones that lie about their class's, in batches."""
    torch.manual_seed(0)
    centres = normalize(torch.randn(CLASSES, WIDTH), dim=1)
    labels = torch.arange(IMAGES) % CLASSES
    of_support = torch.arange(CLASSES).repeat(2)
    support = SupportSet(
        normalize(centres[of_support] + 0.05 * torch.randn(2 * CLASSES, WIDTH), dim=1), of_support, CLASSES
    )
    features = normalize(centres[labels] + 0.15 * torch.randn(IMAGES, WIDTH), dim=1)[:, None]
    parts = torch.arange(IMAGES).split(ROWS_PER_BATCH)
    return support, [FeatureBatch(features[part], labels[part], part) for part in parts]


def judge(score: Scorer, batches: list[FeatureBatch]) -> Predictions:
    """What a method does with the stream of real images."""
    collector = PredictionCollector()
    for batch in batches:
        collector.update(score(batch.features[:, 0]), batch.labels, batch.indices)
    rows, probs = collector.compute()
    return Predictions(*rows.unbind(dim=1), *probs.unbind(dim=1))


def check(judged: Predictions, batches: list[FeatureBatch], prototypes: Tensor) -> None:
    """Compares with the obvious way."""
    predictions = torch.cat([(batch.features[:, 0] @ prototypes.T).argmax(dim=1) for batch in batches])
    scores = batches[0].features[:CHECKED, 0] @ prototypes.T
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranks = (order == batches[0].labels[:CHECKED, None]).int().argmax(dim=1)
    confidences = (scores.double() / DEFAULT_TEMPERATURE.value).softmax(dim=1).amax(dim=1).float()
    if not torch.equal(judged.prediction, predictions):
        raise SystemExit("a prediction is not the first of the highest scores")
    if not torch.equal(judged.rank[:CHECKED], ranks):
        raise SystemExit("a rank is not its place in a stable sort")
    torch.testing.assert_close(judged.confidence[:CHECKED], confidences, rtol=0, atol=2e-6)


def main() -> None:
    """Measures and saves the rows."""
    support, batches = world()
    score = Choice(Mean(), First(), 0.0).fit(support, None)
    prototypes = support.means(renormalize=True)
    check(judge(score, batches), batches, prototypes)

    def product() -> None:
        for batch in batches:
            torch.mm(batch.features[:, 0], prototypes.T)

    ours, theirs = alternate(lambda: measure_seconds(lambda: judge(score, batches)), lambda: measure_seconds(product))
    save_row(
        Row(
            number="B9",
            task=f"evaluation {IMAGES:,} images, {CLASSES:,} classes, width {WIDTH}, fp32",
            reference="the matrix product alone",
            aim=">= 0.6",
            unit="s",
            measured=ours,
            baselines=theirs,
            equality="predictions, ranks in a stable sort, confidences to 2e-6",
            command="python benchmarks/evaluation.py",
        )
    )


if __name__ == "__main__":
    main()
