"""One round of prompt learning: labelled images, guessed ones and synthetic ones to better soft prompts.

`L = L_real + beta * L_syn` (arXiv:2504.11930), where `L_real` is that of the paradigm (arXiv:2306.01669, sec. 4) and an
image's own loss is `-log sum of softmax over its candidate classes` (arXiv:2406.10502), cross-entropy if there is one.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from lgclip.batch import PromptBatch
from lgclip.prompt_spec import PromptSpec

KINDS = ("labelled", "guessed", "synthetic")
"""What an image's label is; in a batch they are numbers."""


class Lessons(Protocol):
    """What a round asks of its data module: see `pool.Batches`."""

    steps: int
    steps_per_epoch: int


def candidate_losses(logits: Float[Tensor, "b c"], sets: Bool[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """`-log sum_c softmax(x)_c y_c` of each image (arXiv:2406.10502); with one candidate it is cross-entropy.

    Args:
        logits: Scores of all classes.
        sets: Candidate classes of each image, one at least.
    """
    return logits.logsumexp(dim=1) - logits.masked_fill(~sets, -math.inf).logsumexp(dim=1)


def weights_of(kind: str, labelled: int, guessed: int, spec: PromptSpec) -> tuple[float, float, float]:
    """What the mean losses on labelled, guessed and synthetic images count (arXiv:2306.01669, sec. 4).

    With `b = |L| / |P|`: UL `CE(P)`, SSL `b CE(L) + CE(P)`, TRZSL `CE(L) + b CE(P)`, and beta for the synthetic ones.

    Args:
        kind: `ul`, `ssl` or `trzsl`.
        labelled: Number of labelled images.
        guessed: Number of images with guessed labels.
        spec: The recipe. The release turns `b` over in SSL with one round.
    """
    if not labelled or not guessed:
        return float(labelled > 0), float(guessed > 0), spec.synthetic_weight
    balance = labelled / guessed
    if kind == "trzsl":
        return 1.0, balance, spec.synthetic_weight
    if spec.as_released and spec.rounds == 1:
        balance = 1 / balance
    return balance, 1.0, spec.synthetic_weight


def rate(spec: PromptSpec, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, as a share of the peak: a linear rise from 0, then a cosine (arXiv:1608.03983).

    Args:
        spec: The recipe.
        step: Which step of the round, from 0.
        steps: How many there are.
        steps_per_epoch: How many an epoch has.
    """
    warmup = spec.warmup_epochs * steps_per_epoch
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


class Prompts(nn.Module):
    """Images to logits, through whichever prompts are learnt.

    Args:
        text: Gives the unit features of the classes; None where they are fixed.
        visual: Pixels to unit features; None where these are given.
        classes: Unit features of the classes where no text prompt is learnt.
        temperature: What cosines are divided by.
    """

    def __init__(
        self, text: nn.Module | None, visual: nn.Module | None, classes: Float[Tensor, "c d"], temperature: float
    ) -> None:
        super().__init__()
        self.text, self.visual, self.temperature = text, visual, temperature
        self.register_buffer("classes", classes, persistent=False)

    def class_features(self) -> Float[Tensor, "c d"]:
        """Unit features of the classes."""
        return self.get_buffer("classes") if self.text is None else self.text()

    def image_features(self, inputs: Tensor) -> Float[Tensor, "b d"]:
        """Unit features of images, which are given as such or as pixels."""
        return inputs if self.visual is None else self.visual(inputs)

    def forward(self, inputs: Tensor) -> Float[Tensor, "b c"]:
        return self.image_features(inputs) @ self.class_features().T / self.temperature

    def learnt(self) -> dict[str, Tensor]:
        """What is learnt, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.named_parameters()}

    def restore(self, learnt: Mapping[str, Tensor]) -> None:
        """Puts back what `learnt` gave."""
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in learnt.items():
                own[name].copy_(value)


class PromptRound(LightningModule):
    """Learns prompts from the images of one round, and goes on after a resume as if there had been none.

    Args:
        prompts: What is learnt.
        spec: The recipe.
        weights: What the mean loss on each of `KINDS` counts.

    Attributes:
        losses: Mean loss of each epoch.
    """

    def __init__(self, prompts: Prompts, spec: PromptSpec, weights: tuple[float, float, float]) -> None:
        super().__init__()
        self.prompts, self.spec = prompts, spec
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.losses: list[float] = []
        self._loss = torch.zeros(())

    @property
    def lessons(self) -> Lessons:
        """What streams to it."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        own = candidate_losses(self.prompts(batch.inputs).float(), batch.sets)
        share = (self.get_buffer("weights") / batch.totals.clamp(min=1))[batch.kinds]
        # The devices' mean of it, which is what their gradients are brought to, is the loss of the whole batch.
        loss = self.trainer.world_size * (own * share).sum()
        self._loss = self._loss.to(loss) + loss.detach()
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if (self.global_step + 1) % self.lessons.steps_per_epoch == 0:
            total = self.trainer.strategy.reduce(self._loss, reduce_op="mean")
            self.losses.append(float(total) / self.lessons.steps_per_epoch)
            self._loss = torch.zeros(())
            if not math.isfinite(self.losses[-1]):
                raise ValueError(
                    f"learner.lr={self.spec.lr}: the loss of epoch {len(self.losses)} is no number; lower the rate, or "
                    "set learner.clip"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["round"] = {"losses": self.losses, "loss": self._loss}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses, self._loss = list(checkpoint["round"]["losses"]), checkpoint["round"]["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        spec, steps, an_epoch = self.spec, self.lessons.steps, self.lessons.steps_per_epoch
        learnt = self.prompts.parameters()  # the towers are no part of it
        optimiser = SGD(learnt, lr=spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay)

        def factor(step: int) -> float:
            return rate(spec, step, steps, an_epoch)

        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": LambdaLR(optimiser, factor), "interval": "step"}}
