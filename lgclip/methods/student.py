"""A classifier in training: cross-entropy on batches of bytes, by the recipe of a `Student`."""

import math
from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lgclip.augmentation import normalised
from lgclip.batch import TrainingBatch
from lgclip.student_spec import Student


class Lessons(Protocol):
    """What a learner asks of its data module: see `mixture.Mixture`."""

    judged: Any
    steps: int
    steps_per_epoch: int

    def judged_batches(self) -> Iterable[tuple[Tensor, Tensor]]: ...


class Learner(LightningModule):
    """What is trained, and what was best so far; both go on after a resume as if there had been none.

    After the last step of each epoch it is judged on the mixture's held-out images. That is done inside the step, not
    by Lightning's validation: a checkpoint of the epoch's last step would come before it, and a resume leave it out.

    Args:
        network: Normalised pixels to logits, its body under `body`.
        student: The recipe.
        mean: Of each channel of its input.
        std: Of each channel of its input.

    Attributes:
        history: Of each epoch its number, mean loss and learning rate, and the accuracy on the held-out images.
        best_epoch: The epoch of the best accuracy, the later one of equals; None before the first.
    """

    def __init__(self, network: nn.Module, student: Student, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Channels last is the order in which convolutions are fastest, on GPUs and CPUs alike.
        self.network, self.student = network.to(memory_format=torch.channels_last), student
        self.average: AveragedModel | None = None
        if student.ema is not None:
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(student.ema), use_buffers=True)
            self.average.requires_grad_(False)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.history: list[dict[str, float]] = []
        self.best_epoch: int | None = None
        self._best: dict[str, Tensor] = {}
        self._loss = torch.zeros(())
        self.strict_loading = not student.frozen  # a frozen body is in no checkpoint

    @property
    def mixture(self) -> Lessons:
        """What streams to it."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def judged(self) -> nn.Module:
        """The network that the student would be now: the average if there is one."""
        return self.average.module if self.average is not None else self.network

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            # The statistics of a whole batch, whatever the number of devices; torch has no such thing for a CPU.
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)

    def logits(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """What a network says to images as bytes."""
        read = normalised(pixels, self.get_buffer("mean"), self.get_buffer("std"))
        return network(read.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        # For dropout and the like; another number on each device, whose images are others.
        torch.manual_seed((self.student.seed * 1_000_003 + batch.step) * 1009 + self.global_rank)
        logits = self.logits(self.network, batch.pixels)
        mean = F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.student.label_smoothing)
        # The devices' mean of it, which is what their gradients are brought to, is the mean of the whole batch.
        loss = mean * (self.trainer.world_size * len(batch.labels) / batch.total)
        self._loss = self._loss.to(loss) + loss.detach()
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            self.average.update_parameters(self.network)
        done = self.global_step + 1
        if done % self.mixture.steps_per_epoch == 0:
            self._end_epoch(done // self.mixture.steps_per_epoch, optimizer.param_groups[0]["lr"])

    def _end_epoch(self, epoch: int, lr: float) -> None:
        loss = self.trainer.strategy.reduce(self._loss, reduce_op="mean")
        row = {"epoch": epoch, "loss": float(loss) / self.mixture.steps_per_epoch, "lr": lr}
        self._loss = torch.zeros(())
        if self.mixture.judged is not None:
            row["accuracy"] = self._accuracy()
            if self.student.select_on != "last" and row["accuracy"] >= self.best_accuracy:
                self.best_epoch = epoch
                self._best = {name: value.detach().cpu().clone() for name, value in self._own(self.judged).items()}
        self.history.append(row)
        self._tell(row)

    def on_train_start(self) -> None:
        for row in self.history:  # of a run that was interrupted
            self._tell(row)

    def _tell(self, row: dict[str, float]) -> None:
        told = {name: float(value) for name, value in row.items()}
        for logger in self.loggers:
            logger.log_metrics(told, step=int(row["epoch"]) * self.mixture.steps_per_epoch)

    @property
    def best_accuracy(self) -> float:
        """The best accuracy so far on the held-out images; 0 before the first."""
        return max((row["accuracy"] for row in self.history if "accuracy" in row), default=0.0)

    @torch.no_grad()
    def _accuracy(self) -> float:
        network = self.judged.eval()
        counts = torch.zeros(2, dtype=torch.long, device=self.device)
        with self.trainer.precision_plugin.forward_context():
            for pixels, labels in self.mixture.judged_batches():
                predicted = self.logits(network, pixels.to(self.device)).argmax(dim=1).cpu()
                counts += torch.tensor([int((predicted == labels).sum()), len(labels)], device=self.device)
        self.network.train()
        right, n = self.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        return right / n

    def _own(self, network: nn.Module) -> dict[str, Tensor]:
        """A network's tensors, without a frozen body's."""
        frozen = self.student.frozen
        return {name: t for name, t in network.state_dict().items() if not (frozen and name.startswith("body."))}

    def weights(self) -> dict[str, Tensor]:
        """All tensors of the student: of the best epoch if one was selected, else of the last."""
        last = {name: value.detach().cpu() for name, value in self.judged.state_dict().items()}
        return {name: value.clone().contiguous() for name, value in (last | self._best).items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.student.frozen:
            saved = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: t for name, t in saved.items() if ".body." not in f".{name}"}
        selected = {"best_epoch": self.best_epoch, "best": self._best}
        checkpoint["learner"] = {"history": self.history, "loss": self._loss, **selected}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        held = checkpoint["learner"]
        self.history, self._loss = list(held["history"]), held["loss"]
        self.best_epoch, self._best = held["best_epoch"], held["best"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        spec, steps, an_epoch = self.student, self.mixture.steps, self.mixture.steps_per_epoch
        trained = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},  # biases and norms
        ]
        optimiser: Optimizer
        if spec.optimiser == "adamw":
            optimiser = AdamW(groups, lr=spec.peak_lr)
        else:
            optimiser = SGD(groups, lr=spec.peak_lr, momentum=spec.momentum, nesterov=spec.nesterov)

        def factor(step: int) -> float:
            return rate(spec, step, steps, an_epoch)

        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": LambdaLR(optimiser, factor), "interval": "step"}}


def rate(student: Student, step: int, steps: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, as a share of the peak: a linear warm-up, then a cosine (arXiv:1608.03983) or steps.

    Args:
        student: The recipe.
        step: Which step, from 0.
        steps: How many there are.
        steps_per_epoch: How many an epoch has.
    """
    warmup = student.warmup_epochs * steps_per_epoch
    if step < warmup:
        start = student.warmup_lr / student.peak_lr
        return start + (1 - start) * step / warmup
    if student.schedule == "steps":
        return student.gamma ** sum(step >= at * steps for at in student.milestones)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
