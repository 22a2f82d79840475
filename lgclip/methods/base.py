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


@dataclass(frozen=True)
class Judged:
    """One row an image, in the data set's order.

    Attributes:
        index: Place in the data set.
        label: True class.
        prediction: Class with the highest score; the lowest index among equals.
        rank: How many classes come before the true one; 0 is right.
    """

    index: Int[Tensor, " n"]
    label: Int[Tensor, " n"]
    prediction: Int[Tensor, " n"]
    rank: Int[Tensor, " n"]


class Judgement(Metric):
    """Collects the judgement of every image from every device."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, scores: Float[Tensor, "b c"], labels: Int[Tensor, " b"], indices: Int[Tensor, " b"]) -> None:
        """Judges one batch of scores.

        Raises:
            ValueError: If a score is not a number.
        """
        if not torch.isfinite(scores).all():
            raise ValueError("a score is not finite, so no comparison with it means anything")
        own = scores.gather(1, labels[:, None])
        earlier = torch.arange(scores.shape[1], device=scores.device) < labels[:, None]
        rank = ((scores > own) | ((scores == own) & earlier)).sum(dim=1)
        self.rows.append(torch.stack([indices, labels, scores.argmax(dim=1), rank], dim=1))

    def compute(self) -> Int[Tensor, "n 4"]:
        """Index, label, prediction and rank of every image, in the order of the indices."""
        rows = dim_zero_cat(self.rows)
        return rows[rows[:, 0].argsort()]


class Classifier(LightningModule, ABC):
    """A method that is judged on the `real` stream by `Trainer.test`.

    Args:
        names: What it is judged as; the first is the method itself, the others stand beside it.

    Attributes:
        results: After the test, the judgement of every image under each name.
        choices: After the test, what each name stands for, in plain values.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        self.judgements = torch.nn.ModuleList(Judgement() for _ in names)
        self.results: dict[str, Judged] = {}
        self.choices: dict[str, dict[str, object]] = {}

    @property
    def top1(self) -> float:
        """Share of images that the method itself judged right, after the test."""
        return float((next(iter(self.results.values())).rank == 0).float().mean())

    def judge(self, name: str, scores: Float[Tensor, "b c"], batch: FeatureBatch) -> None:
        """Adds one batch of scores under a name."""
        judgement = self.judgements[self.names.index(name)]
        assert isinstance(judgement, Judgement)
        judgement.update(scores, batch.labels, batch.indices)

    def on_test_epoch_end(self) -> None:
        for name, judgement in zip(self.names, self.judgements, strict=True):
            assert isinstance(judgement, Judgement)
            self.results[name] = Judged(*judgement.compute().cpu().unbind(dim=1))
            judgement.reset()
