"""What trainings that count steps share: the line that shows them, and the steps that a resumed one has left."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch.utils.data import Sampler
from tqdm import tqdm

from lgclip.stopping import heed


class StepBar(ProgressBar):
    """One line: steps done, and what the module has to say of the last ones.

    Args:
        title: What is trained.
        told: Figures to show, by their name; none before the first.
    """

    def __init__(self, title: str, told: Callable[[Any], Mapping[str, float]]) -> None:
        super().__init__()
        self._title, self._told, self._bar, self._enabled = title, told, None, True

    def disable(self) -> None:
        """Lightning calls this on every device but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        heed()
        self._bar: Any = tqdm(
            total=trainer.max_steps, initial=trainer.global_step, desc=self._title, unit=" step",
            disable=not self._enabled, file=sys.stderr, dynamic_ncols=True, mininterval=0.5,
        )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._bar.update(trainer.global_step - self._bar.n)
        if told := self._told(pl_module):
            self._bar.set_postfix({name: round(value, 4) for name, value in told.items()}, False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._bar.close()


class StepsFrom(Sampler[int]):
    """Steps from one on. Its length is that of all: Lightning counts those that were made before a resume, too.

    Args:
        first: The first that is left.
        steps: How many there are in all.
    """

    def __init__(self, first: int, steps: int) -> None:
        self._first, self._steps = first, steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._first, self._steps))

    def __len__(self) -> int:
        return self._steps
