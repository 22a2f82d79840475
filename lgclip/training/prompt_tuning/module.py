"""Trains one round of prompt tuning on labelled, pseudo-labelled and synthetic images.

`L = L_real + beta * L_syn` (arXiv:2504.11930), where `L_real` is that of the paradigm (arXiv:2306.01669, sec. 4) and
the loss of an image is `-log sum of softmax over its candidate classes` (arXiv:2406.10502), which is cross-entropy if
there is only one.
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

from lgclip.batches import PromptBatch
from lgclip.training.prompt_tuning.config import PromptTuningConfig

KINDS = ("labelled", "guessed", "synthetic")
"""Label types of an image; in a batch they are numbers."""


class Lessons(Protocol):
    """Defines what a round requires of its data module: see `data.Batches`."""

    steps: int
    steps_per_epoch: int


def candidate_losses(logits: Float[Tensor, "b c"], sets: Bool[Tensor, "b c"]) -> Float[Tensor, " b"]:
    """Computes `-log sum_c softmax(x)_c y_c` of each image (arXiv:2406.10502); cross-entropy for one candidate.

    Args:
        logits: Scores of all classes.
        sets: Candidate classes of each image, at least one.
    """
    # A difference of two log-sum-exps: the logarithm of a softmax that was summed before would lose all digits where
    # the candidates are improbable.
    return logits.logsumexp(dim=1) - logits.masked_fill(~sets, -math.inf).logsumexp(dim=1)


def weights_of(
    kind: str, labelled: int, pseudo_labelled: int, config: PromptTuningConfig
) -> tuple[float, float, float]:
    """Computes loss weights of labelled, pseudo-labelled and synthetic images (arXiv:2306.01669, sec. 4).

    With `b = |L| / |P|`: UL `CE(P)`, SSL `b CE(L) + CE(P)`, TRZSL `CE(L) + b CE(P)`, and beta for the synthetic ones.

    Args:
        kind: `ul`, `ssl` or `trzsl`.
        labelled: Number of labelled images.
        pseudo_labelled: Number of pseudo-labelled images.
        config: The recipe. With one round the release inverts `b` in SSL, and takes its root for prompts of both types.
    """
    # b is 0/0 or a division by zero without one of the two, and there is nothing to balance.
    if not labelled or not pseudo_labelled:
        return float(labelled > 0), float(pseudo_labelled > 0), config.synthetic_weight
    balance = labelled / pseudo_labelled
    if config.release_bugs and config.rounds == 1 and config.modality == "both":
        balance = math.sqrt(balance)
    # TRZSL puts the balance on the pseudo-labels, the other two on the labeled images.
    if kind == "trzsl":
        return 1.0, balance, config.synthetic_weight
    # The release computes |P| / |L| in this one case.
    if config.release_bugs and config.rounds == 1:
        balance = 1 / balance
    return balance, 1.0, config.synthetic_weight


def rate(config: PromptTuningConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Returns the learning rate of a step relative to the peak: linear warm-up from 0, then cosine (arXiv:1608.03983).

    Args:
        config: The recipe.
        step: Index of the step within the round, from 0.
        steps: Total number of steps.
        steps_per_epoch: Number of steps per epoch.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    # No division by zero: without a warm-up no step is below 0.
    if step < warmup:
        return step / warmup
    # The scheduler is called again after the last step, where the cosine must not rise again.
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))


class Prompts(nn.Module):
    """Computes logits of images with the tuned prompts.

    Args:
        text: Returns the unit features of the classes; None where they are fixed.
        visual: Maps pixels to unit features; None where features are provided.
        classes: Unit features of the classes where no text prompt is tuned.
        temperature: Divisor of the cosines.
    """

    def __init__(
        self, text: nn.Module | None, visual: nn.Module | None, classes: Float[Tensor, "c d"], temperature: float
    ) -> None:
        super().__init__()
        self.text = text
        self.visual = visual
        self.temperature = temperature
        # A buffer, so that it moves with the module; not persistent, because it is computed again and is no part of
        # what is learned.
        self.register_buffer("classes", classes, persistent=False)

    def class_features(self) -> Float[Tensor, "c d"]:
        """Returns unit features of the classes."""
        if self.text is None:
            return self.get_buffer("classes")
        return self.text()

    def image_features(self, inputs: Tensor) -> Float[Tensor, "b d"]:
        """Returns unit features of images, which are passed as such or as pixels."""
        if self.visual is None:
            return inputs
        return self.visual(inputs)

    def forward(self, inputs: Tensor) -> Float[Tensor, "b c"]:
        return self.image_features(inputs) @ self.class_features().T / self.temperature

    def learned_prompts(self) -> dict[str, Tensor]:
        """Returns the tuned vectors, on the CPU."""
        # Cloned: on a CPU `detach` and `cpu` give the same memory, which the next round goes on to change.
        return {name: value.detach().cpu().clone() for name, value in self.named_parameters()}

    def restore(self, learned_prompts: Mapping[str, Tensor]) -> None:
        """Restores the output of `learned_prompts`."""
        parameters = dict(self.named_parameters())
        # Copied in place: the optimizer and the device stay those of the parameter.
        with torch.no_grad():
            for name, value in learned_prompts.items():
                parameters[name].copy_(value)


class PromptRound(LightningModule):
    """Tunes prompts on the images of one round; resuming does not change the result.

    Args:
        prompts: The prompts to tune.
        config: The recipe.
        weights: Weight of the mean loss on each of `KINDS`.

    Attributes:
        losses: Mean loss of each epoch.
    """

    def __init__(self, prompts: Prompts, config: PromptTuningConfig, weights: tuple[float, float, float]) -> None:
        super().__init__()
        self.prompts = prompts
        self.config = config
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.losses: list[float] = []
        self._loss = torch.zeros(())

    @property
    def lessons(self) -> Lessons:
        """Returns its data module."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        # In fp32, whatever the towers compute in: half precision leaves two digits of a cosine over 0.01.
        losses = candidate_losses(self.prompts(batch.inputs).float(), batch.sets)
        # Each kind's mean is over the entire batch. Where a kind has no image, its mean is not used: `clamp` only
        # keeps the division from failing.
        share = (self.get_buffer("weights") / batch.totals.clamp(min=1))[batch.kinds]
        # The devices' mean of it, which is what their gradients are brought to, is the loss of the whole batch.
        loss = self.trainer.world_size * (losses * share).sum()
        # Summed on the device: reading it in each step would make the CPU wait for the GPU.
        self._loss = self._loss.to(loss) + loss.detach()
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # The global step is counted up only after this hook. Epochs are counted by steps, because to Lightning a
        # round is one pass over the loader.
        if (self.global_step + 1) % self.lessons.steps_per_epoch == 0:
            total = self.trainer.strategy.reduce(self._loss, reduce_op="mean")
            self.losses.append(float(total) / self.lessons.steps_per_epoch)
            self._loss = torch.zeros(())
            # Once an epoch is enough: a loss that is no number stays so, and the prompt of such a round must not be
            # kept.
            if not math.isfinite(self.losses[-1]):
                raise ValueError(
                    f"prompt_tuning.lr={self.config.lr}: the loss of epoch {len(self.losses)} is not a number; lower "
                    f"the rate, or "
                    "set prompt_tuning.gradient_clip"
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The unfinished epoch's sum goes along, so that a resumed run reports the same losses.
        checkpoint["round"] = {"losses": self.losses, "loss": self._loss}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = list(checkpoint["round"]["losses"])
        self._loss = checkpoint["round"]["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        config = self.config
        steps = self.lessons.steps
        an_epoch = self.lessons.steps_per_epoch
        learned_prompts = self.prompts.parameters()  # the towers are no part of it
        optimizer = SGD(learned_prompts, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)

        def factor(step: int) -> float:
            return rate(config, step, steps, an_epoch)

        # By the step: an epoch of few steps would otherwise warm up in jumps.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}
