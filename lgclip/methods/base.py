"""What every method shares: scores in, a judgement of each image out."""

from abc import ABC
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from lightning import LightningModule
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lgclip.batch import FeatureBatch
from lgclip.calibration import DEFAULT_TEMPERATURE, Temperature
from lgclip.prototypes import Support

SCORES_AT_ONCE = 2**20
"""Scores judged at once on a CPU: 4 MB, so that the passes over them stay near its cores."""


@dataclass(frozen=True)
class Judged:
    """One row an image, in the data set's order.

    Attributes:
        index: Place in the data set.
        label: True class.
        prediction: Class with the highest score; the lowest index among equals.
        rank: How many classes come before the true one; 0 is right.
        confidence: Probability of the predicted class: softmax of the scores over the temperature.
        log_chance: Natural logarithm of the probability of the true class.
        squares: Sum of the squared probabilities of all classes.
    """

    index: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    prediction: Int[Tensor, " n"]
    rank: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    log_chance: Float[Tensor, " n"]
    squares: Float[Tensor, " n"]


class Judgement(Metric):
    """Collects the judgement of every image from every device."""

    full_state_update = False
    rows: list[Tensor]
    chances: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("rows", "chances"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(
        self,
        scores: Float[Tensor, "b c"],
        labels: Int[Tensor, " b"],
        indices: Int[Tensor, " b"],
        temperature: float = DEFAULT_TEMPERATURE.value,
    ) -> None:
        """Judges one batch of scores; the temperature changes the probabilities alone.

        Raises:
            ValueError: If a score is not a number.
        """
        size = SCORES_AT_ONCE // scores.shape[1] if scores.device.type == "cpu" else len(scores)
        parts = (part.split(max(1, size)) for part in (scores, labels, indices))
        judged = [_judged(some, of, at, temperature) for some, of, at in zip(*parts, strict=True)]
        for kept, new in zip((self.rows, self.chances), map(torch.cat, zip(*judged, strict=True)), strict=True):
            kept.append(new)
            # Few large tensors: many small ones would lie between the scores that come and go, and hold their room.
            while len(kept) > 1 and len(kept[-1]) >= len(kept[-2]):
                kept[-2:] = [torch.cat(kept[-2:])]

    def compute(self) -> tuple[Int[Tensor, "n 4"], Float[Tensor, "n 3"]]:
        """What a `Judged` holds of every image, in the order of the indices."""
        self.rows = [rows := dim_zero_cat(self.rows)]  # what it was put together from goes before more is made
        self.chances = [chances := dim_zero_cat(self.chances)]
        if bool((rows[1:, 0] > rows[:-1, 0]).all()):  # as one device leaves them
            return rows, chances
        order = rows[:, 0].argsort()
        return rows[order], chances[order]


def _judged(
    scores: Float[Tensor, "b c"], labels: Int[Tensor, " b"], indices: Int[Tensor, " b"], temperature: float
) -> tuple[Int[Tensor, "b 4"], Float[Tensor, "b 3"]]:
    """What `Judgement` keeps of some rows."""
    # A sum is the fastest pass. One of finite scores may overflow, so it alone refuses nothing.
    if not torch.isfinite(scores.sum()) and not torch.isfinite(scores).all():
        raise ValueError("a score is not finite, so no comparison with it means anything")
    own = scores.gather(1, labels[:, None])
    highest, prediction = scores.max(dim=1, keepdim=True)
    # One buffer for all passes; comparisons go there as floats, which are added faster than truths.
    buffer = torch.empty_like(scores, dtype=torch.promote_types(scores.dtype, torch.float32))
    rank = torch.gt(scores, own, out=buffer).sum(dim=1).long()
    tied = (torch.eq(scores, own, out=buffer).sum(dim=1) > 1).nonzero()[:, 0]
    if len(tied):
        earlier = torch.arange(scores.shape[1], device=scores.device) < labels[tied, None]
        rank[tied] += ((scores[tied] == own[tied]) & earlier).sum(dim=1)
    shares = torch.sub(scores, highest, out=buffer).div_(temperature).exp_()  # of the predicted class, which has 1
    total = shares.sum(dim=1)
    log_chance = ((own - highest) / temperature)[:, 0] - total.log()
    squares = (torch.linalg.vector_norm(shares, dim=1) / total).square()
    return (
        torch.stack([indices, labels, prediction[:, 0], rank], dim=1).int(),  # half the room; no set has 2^31 images
        torch.stack([1 / total, log_chance, squares], dim=1),
    )


class Classifier(LightningModule, ABC):
    """A method that is judged on the `real` stream by `Trainer.test`.

    Args:
        names: What it is judged as; the first is the method itself, the others stand beside it.

    Attributes:
        results: After the test, the judgement of every image under each name.
        choices: After the test, what each name stands for, in plain values.
        temperatures: After the test, what each name's scores were divided by to become probabilities.
        support: After the test, the synthetic images that stand for the classes; None if the method uses none.
        learns: What its scores are streamed by: a `student` or a `prompt`; None if it compares features itself.
    """

    learns: str | None = None

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.judgements = torch.nn.ModuleList(Judgement() for _ in names)
        self.results: dict[str, Judged] = {}
        self.choices: dict[str, dict[str, object]] = {}
        self.temperatures: dict[str, Temperature] = dict.fromkeys(names, DEFAULT_TEMPERATURE)
        self.support: Support | None = None

    @property
    def top1(self) -> float:
        """Share of images that the method itself judged right, after the test."""
        return float((next(iter(self.results.values())).rank == 0).float().mean())

    def judge(self, name: str, scores: Float[Tensor, "b c"], batch: FeatureBatch) -> None:
        """Adds one batch of scores under a name."""
        judgement = self.judgements[self.names.index(name)]
        assert isinstance(judgement, Judgement)
        judgement.update(scores, batch.labels, batch.indices, self.temperatures[name].value)

    def on_test_epoch_end(self) -> None:
        for name, judgement in zip(self.names, self.judgements, strict=True):
            assert isinstance(judgement, Judgement)
            rows, chances = judgement.compute()
            self.results[name] = Judged(*rows.cpu().unbind(dim=1), *chances.cpu().unbind(dim=1))
            judgement.reset()
