"""Trains a classifier by cross-entropy on batches of bytes, by the recipe of a `Student`."""

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

from lgclip.batches import TrainingBatch
from lgclip.training.augmentation import normalized
from lgclip.training.student.config import Student


class StudentBatches(Protocol):
    """Defines what a training requires of its data module: see `data.MixedData`."""

    evaluated: Any
    steps: int
    steps_per_epoch: int

    def validation_batches(self) -> Iterable[tuple[Tensor, Tensor]]: ...


class StudentModule(LightningModule):
    """Trains a student and tracks its best epoch; resuming does not change the result.

    After the last step of each epoch it is evaluated on the held-out images. That is done inside the step, not
    by Lightning's validation: a checkpoint of the epoch's last step would precede it, and a resume would skip it.

    Args:
        network: Maps normalized pixels to logits, with its body under `body`.
        student: The recipe.
        mean: Mean of each input channel.
        std: Standard deviation of each input channel.

    Attributes:
        history: For each epoch its number, mean loss and learning rate, and the accuracy on the held-out images.
        best_epoch: The epoch of the best accuracy, the later one of equals; None before the first.
    """

    def __init__(self, network: nn.Module, student: Student, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        # Channels last is the order in which convolutions are fastest, on both GPUs and CPUs.
        self.network = network.to(memory_format=torch.channels_last)
        self.student = student
        self.average: AveragedModel | None = None
        if student.ema is not None:
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(student.ema), use_buffers=True)
            # It takes part in no backward pass; on several devices DDP would otherwise expect gradients for it.
            self.average.requires_grad_(False)
        for name, values in (("mean", mean), ("std", std)):
            # Not persistent: they are written to the student's JSON, where one can read them without torch.
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.history: list[dict[str, float]] = []
        self.best_epoch: int | None = None
        # Empty as long as nothing was selected: then the last weights are the student.
        self._best: dict[str, Tensor] = {}
        self._loss = torch.zeros(())
        self.strict_loading = not student.frozen  # a frozen body is in no checkpoint

    @property
    def mixed_data(self) -> StudentBatches:
        """Returns its data module."""
        return self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def evaluated(self) -> nn.Module:
        """Returns the network that would be the student now: the moving average if there is one."""
        return self.average.module if self.average is not None else self.network

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1 and self.trainer.strategy.root_device.type == "cuda":
            # The statistics of a whole batch, whatever the number of devices; torch has no such thing for a CPU.
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)

    def logits(self, network: nn.Module, pixels: Tensor) -> Tensor:
        """Computes a network's logits of images as bytes."""
        # Bytes come to the device and are scaled there, which is a quarter of the transfer.
        read = normalized(pixels, self.get_buffer("mean"), self.get_buffer("std"))
        return network(read.contiguous(memory_format=torch.channels_last))

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        # For dropout and the like; another number on each device, whose images are others.
        torch.manual_seed((self.student.seed * 1_000_003 + batch.step) * 1009 + self.global_rank)
        logits = self.logits(self.network, batch.pixels)
        # The logits in fp32: a log-softmax over many classes in bf16 has two or three digits.
        mean = F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.student.label_smoothing)
        # The devices' mean of it, which is what their gradients are brought to, is the mean of the whole batch.
        loss = mean * (self.trainer.world_size * len(batch.labels) / batch.total)
        # Summed on the device: reading it in each step would make the CPU wait for the GPU.
        self._loss = self._loss.to(loss) + loss.detach()
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            # After the step, so that the average has seen the newest weights when the epoch is evaluated.
            self.average.update_parameters(self.network)
        # The global step is counted up only after this hook.
        step = self.global_step + 1
        if step % self.mixed_data.steps_per_epoch == 0:
            self._end_epoch(step // self.mixed_data.steps_per_epoch, optimizer.param_groups[0]["lr"])

    def _end_epoch(self, epoch: int, lr: float) -> None:
        loss = self.trainer.strategy.reduce(self._loss, reduce_op="mean")
        row = {"epoch": epoch, "loss": float(loss) / self.mixed_data.steps_per_epoch, "lr": lr}
        self._loss = torch.zeros(())
        if self.mixed_data.evaluated is not None:
            row["accuracy"] = self._accuracy()
            # This row is not in the history yet, so the comparison is with earlier epochs. Among equals the later
            # one is kept: it has learned for longer.
            if self.student.select_on != "last" and row["accuracy"] >= self.best_accuracy:
                self.best_epoch = epoch
                self._best = {
                    name: value.detach().cpu().clone() for name, value in self._network_state(self.evaluated).items()
                }
        self.history.append(row)
        self._log_epoch(row)

    def on_train_start(self) -> None:
        for row in self.history:  # of a run that was interrupted
            self._log_epoch(row)

    def _log_epoch(self, row: dict[str, float]) -> None:
        values = {name: float(value) for name, value in row.items()}
        for logger in self.loggers:
            logger.log_metrics(values, step=int(row["epoch"]) * self.mixed_data.steps_per_epoch)

    @property
    def best_accuracy(self) -> float:
        """Returns the best accuracy so far on the held-out images; 0 before the first."""
        return max((row["accuracy"] for row in self.history if "accuracy" in row), default=0.0)

    @torch.no_grad()
    def _accuracy(self) -> float:
        network = self.evaluated.eval()
        # Counts, not a mean of means: the devices' shards may differ by an image.
        counts = torch.zeros(2, dtype=torch.long, device=self.device)
        # Outside Lightning's own steps nothing sets the precision; without this the weights would be selected in
        # another one than they are trained in.
        with self.trainer.precision_plugin.forward_context():
            for pixels, labels in self.mixed_data.validation_batches():
                predicted = self.logits(network, pixels.to(self.device)).argmax(dim=1).cpu()
                counts += torch.tensor([int((predicted == labels).sum()), len(labels)], device=self.device)
        # Also where the average was evaluated: `train` on a network in training mode changes nothing.
        self.network.train()
        correct, n = self.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        return correct / n

    def _network_state(self, network: nn.Module) -> dict[str, Tensor]:
        """Returns a network's tensors, without a frozen body's."""
        # A frozen body is hundreds of megabytes that never change; it comes back from the backbone's own weights.
        frozen = self.student.frozen
        return {name: t for name, t in network.state_dict().items() if not (frozen and name.startswith("body."))}

    def weights(self) -> dict[str, Tensor]:
        """Returns all tensors of the student: of the best epoch if one was selected, else of the last."""
        last = {name: value.detach().cpu() for name, value in self.evaluated.state_dict().items()}
        # Cloned and contiguous, because safetensors refuses shared memory and channels-last strides. The best epoch's
        # tensors come last, so they win; a frozen body is in `last` alone.
        return {name: value.clone().contiguous() for name, value in (last | self._best).items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.student.frozen:
            saved = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: t for name, t in saved.items() if ".body." not in f".{name}"}
        selected = {"best_epoch": self.best_epoch, "best": self._best}
        checkpoint["student"] = {"history": self.history, "loss": self._loss, **selected}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["student"]
        self.history = list(state["history"])
        self._loss = state["loss"]
        self.best_epoch = state["best_epoch"]
        self._best = state["best"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        spec = self.student
        steps = self.mixed_data.steps
        an_epoch = self.mixed_data.steps_per_epoch
        trained = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
            # Biases and norms: a pull towards 0 takes their freedom and does not regularize (arXiv:1812.01187, 3.1).
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer: Optimizer
        if spec.optimizer == "adamw":
            optimizer = AdamW(groups, lr=spec.peak_lr)
        else:
            optimizer = SGD(groups, lr=spec.peak_lr, momentum=spec.momentum, nesterov=spec.nesterov)

        def factor(step: int) -> float:
            return rate(spec, step, steps, an_epoch)

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}


def rate(student: Student, step: int, steps: int, steps_per_epoch: int) -> float:
    """Returns the learning rate relative to the peak: linear warm-up, then cosine (arXiv:1608.03983) or steps.

    Args:
        student: The recipe.
        step: Index of the step, from 0.
        steps: Total number of steps.
        steps_per_epoch: Number of steps per epoch.
    """
    warmup = student.warmup_epochs * steps_per_epoch
    if step < warmup:
        start = student.warmup_lr / student.peak_lr
        return start + (1 - start) * step / warmup
    # Milestones are fractions of all steps, the warm-up among them.
    if student.schedule == "steps":
        return student.gamma ** sum(step >= share * steps for share in student.milestones)
    # The scheduler is called again after the last step, where the cosine must not rise again.
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.5 * (1 + math.cos(math.pi * progress))
