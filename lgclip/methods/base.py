"""Implements what all methods share: turns scores into a prediction for each image."""

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from omegaconf import DictConfig
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lgclip.batches import FeatureBatch
from lgclip.methods.alignment import Alignment, FittedAlignment
from lgclip.methods.calibration import DEFAULT_TEMPERATURE, Temperature
from lgclip.methods.predictor import Predictor
from lgclip.methods.prototypes import SupportSet
from lgclip.runtime.instantiate import build, target_of

SCORES_PER_BLOCK = 2**20
"""Number of scores processed at once on a CPU: 4 MB, which fits into its caches."""


@dataclass(frozen=True)
class Predictions:
    """Stores predictions, one row per image, in the data set's order.

    Attributes:
        index: Index in the data set.
        label: True class.
        prediction: Class with the highest score; the lowest index among equals.
        rank: Number of classes ranked above the true one; 0 is correct.
        tied: 1 if several classes share the highest score, so that their order decides; else 0.
        confidence: Probability of the predicted class: softmax of the scores over the temperature.
        log_prob: Natural logarithm of the true class's probability.
        squares: Sum of the squared probabilities of all classes.
    """

    index: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    prediction: Int[Tensor, " n"]
    rank: Int[Tensor, " n"]
    tied: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    log_prob: Float[Tensor, " n"]
    squares: Float[Tensor, " n"]


class PredictionCollector(Metric):
    """Collects the predictions for all images from all devices."""

    full_state_update = False
    rows: list[Tensor]
    probs: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("rows", "probs"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(
        self,
        scores: Float[Tensor, "b c"],
        labels: Int[Tensor, " b"],
        indices: Int[Tensor, " b"],
        temperature: float = DEFAULT_TEMPERATURE.value,
    ) -> None:
        """Adds one batch of scores; the temperature affects only the probabilities.

        Raises:
            ValueError: If a score is NaN.
        """
        size = len(scores)
        if scores.device.type == "cpu":
            size = SCORES_PER_BLOCK // scores.shape[1]
        # At least one row: a batch of a data set with a million classes is larger than the limit.
        blocks = (part.split(max(1, size)) for part in (scores, labels, indices))
        predictions = [
            _evaluate_block(rows, targets, places, temperature) for rows, targets, places in zip(*blocks, strict=True)
        ]
        for state, new in zip((self.rows, self.probs), map(torch.cat, zip(*predictions, strict=True)), strict=True):
            state.append(new)
            # Few large tensors: many small ones would lie between the scores that come and go, and hold their room.
            # Two are joined once the last is as long as the one before, so each row is copied log(n) times at most.
            while len(state) > 1 and len(state[-1]) >= len(state[-2]):
                state[-2:] = [torch.cat(state[-2:])]

    def compute(self) -> tuple[Int[Tensor, "n 5"], Float[Tensor, "n 3"]]:
        """Returns the fields of the predictions for all images, ordered by index."""
        # The parts are replaced at once, so that their memory is free before the next copy is made.
        rows = dim_zero_cat(self.rows)
        self.rows = [rows]
        probs = dim_zero_cat(self.probs)
        self.probs = [probs]
        # One device leaves them in order already, and no copy is needed.
        if bool((rows[1:, 0] > rows[:-1, 0]).all()):
            return rows, probs
        order = rows[:, 0].argsort()
        return rows[order], probs[order]


def _evaluate_block(
    scores: Float[Tensor, "b c"], labels: Int[Tensor, " b"], indices: Int[Tensor, " b"], temperature: float
) -> tuple[Int[Tensor, "b 5"], Float[Tensor, "b 3"]]:
    """Computes the stored values of some rows."""
    # A sum is the fastest pass. One of finite scores may overflow, so it alone refuses nothing.
    if not torch.isfinite(scores.sum()) and not torch.isfinite(scores).all():
        raise ValueError("a score is not finite, so no comparison with it means anything")
    true_scores = scores.gather(1, labels[:, None])
    highest, prediction = scores.max(dim=1, keepdim=True)
    # One buffer for all passes; comparisons go there as floats, which are added faster than truths.
    buffer = torch.empty_like(scores, dtype=torch.promote_types(scores.dtype, torch.float32))
    rank = torch.gt(scores, true_scores, out=buffer).sum(dim=1).long()
    tied = (torch.eq(scores, true_scores, out=buffer).sum(dim=1) > 1).nonzero()[:, 0]
    if len(tied):
        earlier = torch.arange(scores.shape[1], device=scores.device) < labels[tied, None]
        rank[tied] += ((scores[tied] == true_scores[tied]) & earlier).sum(dim=1)
    ties = torch.eq(scores, highest, out=buffer).sum(dim=1) > 1
    ratios = torch.sub(scores, highest, out=buffer).div_(temperature).exp_()  # of the predicted class, which has 1
    total = ratios.sum(dim=1)
    log_prob = ((true_scores - highest) / temperature)[:, 0] - total.log()
    squares = (torch.linalg.vector_norm(ratios, dim=1) / total).square()
    return (
        torch.stack(
            [indices, labels, prediction[:, 0], rank, ties], dim=1
        ).int(),  # half the room; no set has 2^31 images
        torch.stack([1 / total, log_prob, squares], dim=1),
    )


class Classifier(LightningModule, ABC):
    """Defines a method that `Trainer.test` evaluates on the `real` stream.

    Args:
        names: Result names; the first is the method itself, the others are its baselines.
        trained: Recipe of the trained predictor that gives its logits; None if it compares features itself.

    Attributes:
        results: After the test, the predictions for all images under each name.
        choices: After the test, the settings of each name, as plain values.
        temperatures: After the test, the temperature of each name's scores.
        support: After the test, the synthetic images that represent the classes; None if the method uses none.
        predictor: The predictor that `trained` gave, once `use` has been called.
        align: Aligns real images with synthetic ones; None if the method does not.
        alignment: After the test, what `align` has fitted.
    """

    def __init__(self, names: list[str], trained: object = None) -> None:
        super().__init__()
        self.names = names
        self.trained = trained
        self.predictor: Predictor | None = None
        # A list of modules, so that Lightning moves the metrics' states to the device.
        self.collectors = torch.nn.ModuleList(PredictionCollector() for _ in names)
        self.results: dict[str, Predictions] = {}
        self.choices: dict[str, dict[str, object]] = {}
        self.temperatures: dict[str, Temperature] = dict.fromkeys(names, DEFAULT_TEMPERATURE)
        self.support: SupportSet | None = None
        self.align: Alignment | None = None
        self.alignment: FittedAlignment | None = None

    def use(self, predictor: Predictor) -> None:
        """Takes the method's own logits from a trained predictor.

        Args:
            predictor: Returns the logits; called with batches of the stream whose role is `PREDICTED`.
        """
        self.predictor = predictor
        self.describe(self.names[0], predictor)

    def describe(self, name: str, predictor: Predictor) -> None:
        """Records the settings of a name, and the temperature of its logits."""
        self.choices[name] = predictor.description()
        self.temperatures[name] = predictor.temperature

    @property
    def top1(self) -> float:
        """Returns the top-1 accuracy of the method itself, after the test."""
        return float((next(iter(self.results.values())).rank == 0).float().mean())

    def collect(self, name: str, scores: Float[Tensor, "b c"], batch: FeatureBatch) -> None:
        """Adds one batch of scores under a name."""
        collector = self.collectors[self.names.index(name)]
        assert isinstance(collector, PredictionCollector)
        collector.update(scores, batch.labels, batch.indices, self.temperatures[name].value)

    def on_test_epoch_end(self) -> None:
        for name, collector in zip(self.names, self.collectors, strict=True):
            assert isinstance(collector, PredictionCollector)
            rows, probs = collector.compute()
            # The columns are in the order of the fields of `Predictions`.
            self.results[name] = Predictions(*rows.cpu().unbind(dim=1), *probs.cpu().unbind(dim=1))
            collector.reset()


def classifier(config: DictConfig) -> Callable[..., Classifier]:
    """Returns a factory of the method that a config names.

    Args:
        config: Config of the method.

    Raises:
        ValueError: If it does not evaluate anything.
    """
    target = target_of(config)
    if not (isinstance(target, type) and issubclass(target, Classifier)):
        raise ValueError(f"method: {target.__name__} evaluates nothing and only trains; give it to train.py")
    return build(config, _partial_=True, _convert_="all")
